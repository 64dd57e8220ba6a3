"""Argument checks: every error names the argument, the rule and the value."""

import pytest
import torch

from thinkers.ops import masks, stop_grad_attention, thought_attention

Q, K = (2, 4, 5, 3), (2, 2, 7, 3)
STOP_GRAD_ERRORS = [
    ({"q": [1.0]}, "q must be a tensor (b h t d), got list"),
    ({"q": torch.ones(4, 5, 3)}, "q must have the 4 axes (b h t d), got shape (4, 5, 3)"),
    ({"q": torch.ones(Q, dtype=torch.int64)}, "q must be float64, float32, bfloat16 or float16"),
    ({"k": torch.ones(K).double()}, "k must have q's dtype float32, got float64"),
    ({"k": torch.ones(K, device="meta")}, "k must be on q's device cpu, got meta"),
    ({"k": torch.ones(3, 2, 7, 3)}, "k must have b = 2 in (b g s d), got shape (3, 2, 7, 3)"),
    ({"k": torch.ones(2, 2, 7, 5)}, "k must have d = 3 in (b g s d), got shape (2, 2, 7, 5)"),
    ({"k": torch.ones(2, 3, 7, 3)}, "k must have a number of heads that divides q's 4, got 3"),
    ({"v": torch.ones(2, 2, 6, 3)}, "v must have s = 7 in (b g s d), got shape (2, 2, 6, 3)"),
    ({"v": torch.ones(2, 4, 7, 3)}, "v must have g = 2 in (b g s d), got shape (2, 4, 7, 3)"),
    ({"causal": 1}, "causal must be True or False, got 1"),
    ({"scale": "1"}, "scale must be None or a number, got '1'"),
    ({"scale": float("nan")}, "scale must be finite, got nan"),
    ({"scale": 10**400}, "scale must be finite, got 1000"),
    ({"stop_q": float("inf")}, "stop_q must be finite, got inf"),
    ({"q": torch.ones(Q).to_sparse()}, "q must be a dense tensor, got layout sparse_coo"),
    ({"mask": torch.ones(6, 7).bool()}, "mask must broadcast to (b, h, t, s) = (2, 4, 5, 7)"),
    ({"mask": torch.ones(5, 7).long()}, "mask must be bool or floating, got int64"),
    ({"mask": torch.ones(5, 7, device="meta")}, "mask must be on q's device cpu, got meta"),
    ({"mask": torch.ones(5, 7, requires_grad=True)}, "mask must not require a gradient"),
    ({"stop_q": torch.ones(2, 1, 1, 5, 7)}, "stop_q must broadcast to (b, h, t, s)"),
    ({"stop_k": torch.ones(5, 7).int()}, "stop_k must be bool or floating, got int32"),
    ({"stop_v": torch.ones(5, 7, requires_grad=True)}, "stop_v must not require a gradient"),
    ({"stop_k": 1}, "stop_k must be None, a bool, a float, a tensor of either or a function"),
    ({"stop_k": "near"}, "stop_k must be None, a bool, a float, a tensor of either or a function"),
    ({"stop_v": lambda b, h, q, k: True}, "the result of stop_v must be a tensor, got bool"),
    ({"stop_v": lambda b, h, q, k: q + k}, "the result of stop_v must be bool or floating"),
    ({"backend": "flash"}, "backend must be one of auto, dense, sdpa, block, triton, got 'flash'"),
    ({"backend": "sdpa", "stop_k": masks.causal}, "backend must not be 'sdpa' where gradient"),
]


@pytest.mark.parametrize(
    ("change", "message"), STOP_GRAD_ERRORS, ids=[x[1][:48] for x in STOP_GRAD_ERRORS]
)
def test_bad_stop_grad_calls_name_the_argument_the_rule_and_the_value(change, message):
    call = {"q": torch.ones(Q), "k": torch.ones(K), "v": torch.ones(K)} | change
    q, k, v = (call.pop(name) for name in "qkv")
    with pytest.raises(ValueError) as caught:
        stop_grad_attention(q, k, v, **call)
    assert message in str(caught.value)


THOUGHT_CALL = {
    "q": torch.ones(2, 4, 5, 3),
    "base_k": torch.ones(2, 2, 7, 3),
    "base_v": torch.ones(2, 2, 7, 3),
    "chain_k": torch.ones(2, 2, 5, 6, 3),
    "chain_v": torch.ones(2, 2, 5, 6, 3),
}
THOUGHT_ERRORS = [
    ({"q": torch.ones(2, 4, 8, 3)}, "q must have at most as many positions as base_k"),
    ({"q": torch.ones(2, 3, 5, 3)}, "base_k must have a number of heads that divides q's 3, got 2"),
    ({"q": torch.ones(2, 4, 5, 0)}, "base_k must have d = 0"),
    ({"base_v": torch.ones(2, 2, 6, 3)}, "base_v must have s = 7 in (b g s d)"),
    ({"base_k": torch.ones(2, 2, 7, 3).half()}, "base_k must have q's dtype float32, got float16"),
    ({"chain_k": torch.ones(2, 2, 5, 3)}, "chain_k must have the 5 axes (b g t n d)"),
    ({"chain_k": torch.ones(2, 2, 7, 6, 3)}, "chain_k must have t = 5 in (b g t n d)"),
    ({"chain_v": torch.ones(2, 2, 5, 4, 3)}, "chain_v must have n = 6 in (b g t n d)"),
    ({"chain_v": torch.ones(2, 4, 5, 6, 3)}, "chain_v must have g = 2 in (b g t n d)"),
    ({"key_padding": torch.ones(2, 7)}, "key_padding must be a bool tensor (b, s), got float32"),
    (
        {"key_padding": torch.ones(7).bool()},
        "key_padding must have shape (b, s) = (2, 7), got (7,)",
    ),
    ({"causal": None}, "causal must be True or False, got None"),
    ({"scale": True}, "scale must be None or a number, got True"),
    ({"backend": "sdpa"}, "backend must be one of auto, dense, fused, block, triton, got 'sdpa'"),
]


@pytest.mark.parametrize(
    ("change", "message"), THOUGHT_ERRORS, ids=[x[1][:48] for x in THOUGHT_ERRORS]
)
def test_bad_thought_calls_name_the_argument_the_rule_and_the_value(change, message):
    call = THOUGHT_CALL | change
    tensors = [call.pop(name) for name in THOUGHT_CALL]
    with pytest.raises(ValueError) as caught:
        thought_attention(*tensors, **call)
    assert message in str(caught.value)
