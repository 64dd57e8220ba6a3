"""Stop-gradient attention at its edges: empty axes, scales, wide masks, callers, bad calls."""

import pytest
import torch
from test_ops_stop_grad import (
    STOPS,
    Largest,
    assert_agree,
    leaves,
    random,
    results,
    stops_of,
)
from torch.nn import functional

from thinkers import ops
from thinkers.ops import dense, masks, stop_grad_attention, triton_support


@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 5, 2), (2, 0, 1, 3, 5, 2), (2, 2, 1, 0, 5, 2)])
def test_nothing_to_compute_gives_nothing_and_zero_gradients(shape, stops):
    b, h, _, t, s, d = shape
    call = stops_of(stops, b, h, t, s)
    for backend in ("auto", "block", "dense"):
        out, *grads = results(stop_grad_attention, leaves(*shape), **call, backend=backend)
        assert out.shape == (b, h, t, d)
        assert not any(x.any() for x in grads)


@pytest.mark.parametrize("backend", ["auto", "block", "dense"])
@pytest.mark.parametrize("scale", [-0.7, 0.0])
def test_a_scale_that_is_not_positive_against_sums_over_pairs(backend, scale):
    q, k, v = leaves(1, 2, 1, 5, 7, 3)
    keep = random(2, 5, 7, seed=3)
    call = {"stop_q": keep, "causal": True, "mask": random(5, 7, seed=4) > -1, "scale": scale}
    got = results(stop_grad_attention, (q, k, v), **call, backend=backend)
    weight = random(1, 2, 5, 3, seed=9)
    q, k, v = (x.detach() for x in (q, k, v))
    out, dq, dk, dv = (torch.zeros_like(x) for x in (q, q, k, v))
    for h, i in ((h, i) for h in range(2) for i in range(5)):
        seen = [j for j in range(7) if j <= i + 2 and call["mask"][i, j]]
        p = (k[0, 0, seen] @ q[0, h, i] * scale).softmax(0)
        out[0, h, i] = p @ v[0, 0, seen]
        go = weight[0, h, i]
        ds = scale * p * (v[0, 0, seen] @ go - go @ out[0, h, i])
        dq[0, h, i] = (keep[h, i, seen] * ds) @ k[0, 0, seen]
        dk[0, 0, seen] += ds[:, None] * q[0, h, i]
        dv[0, 0, seen] += p[:, None] * go
    assert_agree(got, [out, dq, dk, dv])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_wide_addend_is_not_rounded_to_low_precision(dtype):
    tensors = leaves(1, 2, 2, 67, 67, 16, dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    near = masks.reasoning_near(0, 1)  # nothing is near: the block way, nothing stopped
    mask = 30 * random(67, 67, seed=6, dtype=torch.float32)
    mask[5] = -1e5  # below float16, and still a row that sees all keys
    exact = results(dense.stop_grad_attention, wide, mask=mask.double())
    fused = results(functional.scaled_dot_product_attention, tensors, attn_mask=mask)
    ours = results(stop_grad_attention, tensors, mask=mask, stop_k=near)
    assert exact[0][:, :, 5].abs().min() > 0
    for x, y, z in zip(ours, fused, exact, strict=True):
        assert (x - z).abs().max() <= 2 * (y - z).abs().max()
    plain = results(dense.stop_grad_attention, tensors, mask=mask)
    torch.testing.assert_close(plain[0].double(), exact[0], rtol=0.02, atol=0.02)


def test_a_mask_of_rows_is_not_spread_over_keys():
    tensors = leaves(1, 1, 1, 1100, 1100, 4, dtype=torch.float32)
    rows = random(1100, 1, seed=6) > 0
    with Largest() as largest:
        out = stop_grad_attention(*tensors, causal=True, mask=rows)
    assert largest.numel <= 4 * 1100
    assert torch.equal((out != 0).any(-1)[0, 0], rows[:, 0])


def test_autocast_takes_part_as_in_plain_attention():
    tensors = leaves(1, 2, 2, 37, 37, 8, dtype=torch.float32)
    near = masks.reasoning_near(1, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = stop_grad_attention(*tensors, causal=True, stop_v=near)
        plain = functional.scaled_dot_product_attention(*tensors, is_causal=True)
    assert out.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(out, plain, rtol=1e-2, atol=1e-2)
    assert torch.autograd.grad(out.sum(), tensors)[0].dtype == torch.float32


def test_autocast_changes_what_is_explained_and_hides_no_wrong_dtype():
    q, k, v = (x.detach() for x in leaves(1, 2, 2, 5, 5, 3, dtype=torch.float32))
    chain = torch.ones(1, 2, 5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "'block' way" in ops.explain("stop_grad_attention", q, k, v)
        assert "'block' way" in ops.explain("thought_attention", q, k, v, chain, chain)
        with pytest.raises(ValueError, match="k must be float64, .* got int64"):
            stop_grad_attention(q, k.long(), v)
        with pytest.raises(ValueError, match="v must have q's dtype bfloat16, got float64"):
            stop_grad_attention(q, k, v.double())


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler's own look
def test_compiled_callers_get_equal_results_or_a_reason():
    tensors = leaves(1, 2, 2, 13, 13, 3)
    near = masks.reasoning_near(1, 2)

    def model(q, k, v):
        return stop_grad_attention(q * 2, k, v, causal=True, stop_k=near, stop_v=near) + 1

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert_agree(results(compiled, tensors), results(model, tensors), 1e-12)
    torch._dynamo.reset()
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="chooses panels and evaluates mask functions in Python"):
        whole(*tensors)
    torch._dynamo.reset()


Q, K = (2, 4, 5, 3), (2, 2, 7, 3)
BAD = [
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


@pytest.mark.parametrize(("change", "message"), BAD, ids=[x[1][:48] for x in BAD])
def test_bad_calls_name_the_argument_the_rule_and_the_value(change, message):
    call = {"q": torch.ones(Q), "k": torch.ones(K), "v": torch.ones(K)} | change
    q, k, v = (call.pop(name) for name in "qkv")
    with pytest.raises(ValueError) as caught:
        stop_grad_attention(q, k, v, **call)
    assert message in str(caught.value)


def test_explain_says_the_way_and_why_and_it_depends_on_no_value():
    q, k, v = (x.detach() for x in leaves(2, 4, 2, 5, 7, 3))
    near, pair, key = masks.reasoning_near(1, 2), torch.zeros(5, 7), torch.zeros(1, 7)

    def told(q=q, **call):
        return ops.explain("stop_grad_attention", q, k.to(q.dtype), v.to(q.dtype), **call)

    assert told().startswith("stop_grad_attention takes the 'sdpa' way: no factor differs")
    assert "'sdpa' way: stop_k by key, stop_v by key" in told(stop_k=key > 0, stop_v=key)
    assert "'block' way: stop_k by pair" in told(stop_k=near)
    assert "'block' way: stop_q by key" in told(stop_q=key)
    assert "'block' way: stop_v by query" in told(stop_v=torch.zeros(5, 1))
    assert "backward by panels" in told(q=q.bfloat16())
    assert "'dense' way: it was asked for" in told(backend="dense")
    assert told(stop_k=pair) == told(stop_k=pair - 1, q=q + torch.inf)
    thoughts = torch.ones(2, 2, 5, 3, 3).double()
    words = ops.explain("thought_attention", q, k, v, thoughts, thoughts)
    assert "'fused' way" in words and "3 own thoughts" in words
    words = ops.explain("thought_attention", q, k, v, thoughts, thoughts, causal=False)
    assert "'fused' way" in words and "merged" not in words
    with pytest.raises(ValueError, match="unknown operation 'attention'; choose from stop_grad"):
        ops.explain("attention", q, k, v)
    with pytest.raises(ValueError, match="stop_q must broadcast"):
        told(stop_q=torch.zeros(6, 7))
    with pytest.raises(TypeError, match="stop_grad_attention takes no argument 'stop_o'"):
        told(stop_o=near)


def test_a_named_way_that_cannot_run_raises(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tensors = leaves(1, 2, 2, 5, 5, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="backend must not be 'triton' here"):
        stop_grad_attention(*tensors, backend="triton")


def test_kernels_say_which_calls_they_lack(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: name)
    assert triton_support.lacks(torch.empty(2, 3, 5, 256)) is None
    assert "head dims reach 256, not 257" in triton_support.lacks(torch.empty(2, 3, 5, 257))
    assert "float64 is not theirs" in triton_support.lacks(torch.empty(2, 3, 5, 4).double())
    many = torch.empty(65536, 1, 1, 1)
    assert "batch rows times heads reach 65535, not 65536" in triton_support.lacks(many)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "the kernels run on CUDA" in triton_support.lacks(torch.empty(2, 3, 5, 4))


def test_shapes_go_through_on_the_meta_device():
    q = torch.empty(2, 4, 5, 3, device="meta", requires_grad=True)
    k = torch.empty(2, 2, 7, 3, device="meta", requires_grad=True)
    out = stop_grad_attention(q, k, k, causal=True, stop_k=masks.reasoning_near(1, 2))
    assert out.shape == q.shape
    assert torch.autograd.grad(out.sum(), k)[0].shape == k.shape
