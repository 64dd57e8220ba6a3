"""Second derivatives, autocast and torch.compile, for both operations."""

import pytest
import torch
from attention_cases import assert_agree, leaves, results, thought_leaves
from torch.nn import functional

from thinkers import ops
from thinkers.ops import masks, stop_grad_attention, thought_attention


def test_stop_grad_second_backward_repeats_and_second_derivative_is_refused():
    tensors = leaves(1, 2, 2, 13, 13, 3)
    out = stop_grad_attention(*tensors, causal=True, stop_v=masks.reasoning_near(1, 2))
    first = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    again = torch.autograd.grad(out.sum(), tensors, create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="stop_grad_attention has no second derivative"):
        torch.autograd.grad(sum(x.square().sum() for x in again), tensors)


def test_thought_second_backward_repeats_and_second_derivative_is_refused():
    tensors = thought_leaves(1, 2, 2, 11, 13, 2, 3)
    out = thought_attention(*tensors)
    first = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    again = torch.autograd.grad(out.sum(), tensors, create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="thought_attention has no second derivative"):
        torch.autograd.grad(sum(x.square().sum() for x in again), tensors)


def test_autocast_takes_part_as_in_plain_attention():
    tensors = leaves(1, 2, 2, 37, 37, 8, dtype=torch.float32)
    near = masks.reasoning_near(1, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = stop_grad_attention(*tensors, causal=True, stop_v=near)
        plain = functional.scaled_dot_product_attention(*tensors, is_causal=True)
    assert out.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(out, plain, rtol=1e-2, atol=1e-2)
    assert torch.autograd.grad(out.sum(), tensors)[0].dtype == torch.float32


def test_autocast_enters_the_explanation_and_hides_no_wrong_dtype():
    q, k, v = (x.detach() for x in leaves(1, 2, 2, 5, 5, 3, dtype=torch.float32))
    chain = torch.ones(1, 2, 5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "backend 'block'" in ops.explain("stop_grad_attention", q, k, v)
        assert "backend 'block'" in ops.explain("thought_attention", q, k, v, chain, chain)
        with pytest.raises(ValueError, match="k must be float64, .* got int64"):
            stop_grad_attention(q, k.long(), v)
        with pytest.raises(ValueError, match="v must have q's dtype bfloat16, got float64"):
            stop_grad_attention(q, k, v.double())


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler reads .grad
def test_compiled_callers_of_stop_grad_get_equal_results_or_a_reason():
    tensors = leaves(1, 2, 2, 13, 13, 3)
    near = masks.reasoning_near(1, 2)

    def model(q, k, v):
        return stop_grad_attention(q * 2, k, v, causal=True, stop_k=near, stop_v=near) + 1

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert_agree(results(compiled, tensors), results(model, tensors), 1e-12)
    torch._dynamo.reset()
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="query blocks and evaluates mask functions in Python"):
        whole(*tensors)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler reads .grad
def test_compiled_callers_of_thought_get_equal_results_or_a_reason():
    tensors = thought_leaves(1, 2, 2, 11, 13, 2, 3)

    def model(q, *rest):
        return thought_attention(q * 2, *rest) + 1

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert_agree(results(compiled, tensors), results(model, tensors), 1e-12)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="chooses query blocks and ranges of keys in Python"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(*tensors)
    torch._dynamo.reset()
