"""Thought attention against its dense definition."""

import pytest
import torch
from attention_cases import assert_agree, padding_of, random, results
from attention_cases import thought_leaves as leaves
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from thinkers.ops import dense, thought_attention
from thinkers.ops.validation import DTYPES

SHAPES = [
    (2, 6, 3, 37, 37, 3, 5),
    (1, 4, 4, 17, 29, 5, 3),
    (3, 4, 1, 1, 23, 2, 7),
    (2, 2, 2, 19, 19, 0, 3),
    (1, 2, 1, 1, 1, 0, 2),
]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("padding", ["none", "right", "scattered", "whole row"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["auto", "block"])
def test_agrees_with_dense_in_value_and_gradient(shape, padding, causal, backend):
    tensors = leaves(*shape)
    call = {"causal": causal, "key_padding": padding_of(padding, shape[0], shape[4]), "scale": 0.6}
    oracle = results(dense.thought_attention, tensors, **call)
    assert_agree(results(thought_attention, tensors, **call, backend=backend), oracle)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    b=st.integers(0, 3),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2), (0, 1)]),
    t=st.integers(0, 20),
    more=st.integers(0, 20),
    n=st.integers(0, 7),
    d=st.integers(1, 9),
    causal=st.booleans(),
    padding=st.sampled_from(["none", "right", "scattered", "whole row"]),
    transposed=st.booleans(),
    scale=st.sampled_from([None, 0.6, 0.0, -0.9]),
    backend=st.sampled_from(["auto", "block"]),
)
def test_any_shape_agrees_with_dense(
    b, heads, t, more, n, d, causal, padding, transposed, scale, backend
):
    tensors = leaves(b, *heads, t, t + more, n, d)
    if transposed:
        tensors = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
        tensors = [x.requires_grad_() for x in tensors]
    call = {"causal": causal, "key_padding": padding_of(padding, b, t + more), "scale": scale}
    oracle = results(dense.thought_attention, tensors, **call)
    assert_agree(results(thought_attention, tensors, **call, backend=backend), oracle)


@pytest.mark.parametrize("backend", ["fused", "block"])
def test_gradcheck(backend):
    hidden = padding_of("scattered", 2, 5)
    assert torch.autograd.gradcheck(
        lambda *x: thought_attention(*x, key_padding=hidden, backend=backend),
        leaves(2, 2, 1, 3, 5, 2, 3),
        atol=1e-7,
        rtol=1e-5,
        nondet_tol=0.0,
    )


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("padding", ["none", "right"])
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(dtype, padding):
    tensors = leaves(2, 4, 2, 67, 67, 5, 16, dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    weight = random(2, 4, 67, 16, seed=9, dtype=dtype)
    hidden = padding_of(padding, 2, 67)

    def run(attend, xs):
        out = attend(*xs, key_padding=hidden)
        return [out, *torch.autograd.grad(out, xs, weight.to(out.dtype))]

    ours, plain = run(thought_attention, tensors), run(dense.thought_attention, tensors)
    for x, y, z in zip(ours, plain, run(dense.thought_attention, wide), strict=True):
        assert x.dtype == dtype
        assert (x - z).abs().max() <= 2 * (y - z).abs().max() + 1e-7


def test_decoding_steps_equal_the_rows_of_one_call():
    q, base_k, base_v, chain_k, chain_v = (x.detach() for x in leaves(2, 4, 2, 23, 23, 3, 5))
    whole = thought_attention(q, base_k, base_v, chain_k, chain_v)
    for start, end in ((0, 1), (6, 7), (10, 15), (22, 23)):
        here, visible = slice(start, end), slice(0, end)
        part = thought_attention(
            q[:, :, here],
            base_k[:, :, visible],
            base_v[:, :, visible],
            chain_k[:, :, here],
            chain_v[:, :, here],
        )
        torch.testing.assert_close(part, whole[:, :, here], rtol=1e-12, atol=1e-12)


def test_thoughts_of_other_positions_and_later_tokens_change_no_bit():
    tensors = [x.detach().float() for x in leaves(2, 4, 2, 150, 150, 3, 8)]
    out = thought_attention(*tensors)
    for x in tensors:
        x[:, :, 101:] = 7.0
    changed = thought_attention(*tensors)
    assert torch.equal(out[:, :, :101], changed[:, :, :101])
    for x in tensors[3:]:
        x[:, :, 50] = -3.0
    again = thought_attention(*tensors)
    same = torch.arange(150) != 50
    assert torch.equal(again[:, :, same], changed[:, :, same])
    assert not torch.equal(again[:, :, 50], changed[:, :, 50])


def test_no_thoughts_is_plain_attention():
    tensors = leaves(2, 4, 2, 19, 19, 0, 5)
    plain = functional.scaled_dot_product_attention(*tensors[:3], is_causal=True, enable_gqa=True)
    torch.testing.assert_close(thought_attention(*tensors), plain, rtol=1e-12, atol=1e-12)
