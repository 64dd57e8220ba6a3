"""The choice of a backend, and its explanation."""

import pytest
import torch
from attention_cases import leaves

from thinkers import ops
from thinkers.ops import masks, stop_grad_attention, triton_support
from thinkers.ops.triton_support import unsupported_reason


def test_explain_states_backend_and_reason_and_depends_on_no_value():
    q, k, v = (x.detach() for x in leaves(2, 4, 2, 5, 7, 3))
    near, pair, key = masks.reasoning_near(1, 2), torch.zeros(5, 7), torch.zeros(1, 7)

    def explained(q=q, **call):
        return ops.explain("stop_grad_attention", q, k.to(q.dtype), v.to(q.dtype), **call)

    assert explained().startswith("stop_grad_attention uses the backend 'sdpa': no factor differs")
    assert "backend 'sdpa': stop_k by key, stop_v by key" in explained(stop_k=key > 0, stop_v=key)
    assert "backend 'block': stop_k by pair" in explained(stop_k=near)
    assert "backend 'block': stop_q by key" in explained(stop_q=key)
    assert "backend 'block': stop_v by query" in explained(stop_v=torch.zeros(5, 1))
    assert "backward by query blocks" in explained(q=q.bfloat16())
    assert "backend 'dense': it was requested" in explained(backend="dense")
    assert explained(stop_k=pair) == explained(stop_k=pair - 1, q=q + torch.inf)
    thoughts = torch.ones(2, 2, 5, 3, 3).double()
    words = ops.explain("thought_attention", q, k, v, thoughts, thoughts)
    assert "backend 'fused'" in words and "3 own thoughts" in words
    words = ops.explain("thought_attention", q, k, v, thoughts, thoughts, causal=False)
    assert "backend 'fused'" in words and "merged" not in words
    with pytest.raises(ValueError, match="unknown operation 'attention'; choose from stop_grad"):
        ops.explain("attention", q, k, v)
    with pytest.raises(ValueError, match="stop_q must broadcast"):
        explained(stop_q=torch.zeros(6, 7))
    with pytest.raises(TypeError, match="stop_grad_attention takes no argument 'stop_o'"):
        explained(stop_o=near)


def test_a_requested_backend_that_cannot_run_raises(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tensors = leaves(1, 2, 2, 5, 5, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="backend must not be 'triton' here"):
        stop_grad_attention(*tensors, backend="triton")


def test_unsupported_calls_of_the_kernels_have_a_reason(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: name)
    assert unsupported_reason(torch.empty(2, 3, 5, 256)) is None
    assert "a head dim of at most 256, not 257" in unsupported_reason(torch.empty(2, 3, 5, 257))
    assert "do not compute in float64" in unsupported_reason(torch.empty(2, 3, 5, 4).double())
    many = torch.empty(65536, 1, 1, 1)
    assert "at most 65535 batch rows times heads, not 65536" in unsupported_reason(many)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "the kernels run on CUDA" in unsupported_reason(torch.empty(2, 3, 5, 4))
