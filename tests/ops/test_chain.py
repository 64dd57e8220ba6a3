"""Chains of thoughts against concatenation and the dense definition."""

import gc
import weakref

import pytest
import torch
from attention_cases import random, thought_leaves

from thinkers.ops import Chain, dense, thought_attention

STEPS, SIZES = 5, (2, 4, 2, 13, 17, 3)


def think(weights, base, attend, steps=STEPS):
    """A toy model: each step attends, and its state becomes the next thought."""
    b, h, g, t, s, d = SIZES
    base_k, base_v, x = base
    to_q, to_k, to_v = weights
    ks, vs, states = [], [], []
    for _ in range(steps):
        q = torch.einsum("btc,chd->bhtd", x, to_q)
        x = x + attend(q, base_k, base_v, ks, vs).transpose(1, 2).flatten(2)
        ks.append(torch.einsum("btc,cgd->bgtd", x, to_k))
        vs.append(torch.einsum("btc,cgd->bgtd", x, to_v))
        states.append(x)
    return torch.stack(states)


def by_concatenation(q, base_k, base_v, ks, vs):
    empty = q.new_zeros(*ks[0].shape[:3], 0, q.shape[3]) if ks else None
    if empty is None:
        empty = q.new_zeros(q.shape[0], base_k.shape[1], q.shape[2], 0, q.shape[3])
    k, v = (torch.stack(x, 3) if x else empty for x in (ks, vs))
    return dense.thought_attention(q, base_k, base_v, k, v)


def by_chain(max_thoughts=STEPS):
    chain = Chain(max_thoughts)

    def attend(q, base_k, base_v, ks, vs):
        if ks:
            chain.append(ks[-1], vs[-1])
        return chain.attend(q, base_k, base_v)

    return attend


def toy():
    b, h, g, t, s, d = SIZES
    c = h * d
    weights = [random(c, n, d, seed=i) * 0.3 for i, n in enumerate((h, g, g))]
    base = [random(b, g, s, d, seed=4), random(b, g, s, d, seed=5), random(b, t, c, seed=6)]
    return [x.requires_grad_() for x in weights], [x.requires_grad_() for x in base]


def test_a_chain_gives_the_values_and_gradients_of_concatenation():
    weights, base = toy()
    losses = [think(weights, base, x) for x in (by_chain(), by_concatenation)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
    weight = random(*losses[0].shape, seed=8)
    ours, oracle = (torch.autograd.grad(x, [*weights, *base], weight) for x in losses)
    for x, y in zip(ours, oracle, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_a_chain_survives_retained_partial_and_interrupted_backward_passes():
    weights, base = toy()
    states = think(weights, base, by_chain())
    wanted = [*weights, *base]
    weight = random(*states.shape, seed=8)
    first = torch.autograd.grad(states, wanted, weight, retain_graph=True)
    torch.autograd.grad(states[-1].sum(), base[:1], retain_graph=True)
    handle = states.grad_fn.register_prehook(lambda grads: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        torch.autograd.grad(states, wanted, weight, retain_graph=True)
    handle.remove()
    torch.autograd.grad(states[2].sum(), weights[1], retain_graph=True)
    again = torch.autograd.grad(states, wanted, weight, retain_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    alone = torch.autograd.grad(states[1].sum(), wanted)
    oracle = torch.autograd.grad(think(weights, base, by_concatenation)[1].sum(), wanted)
    for x, y in zip(alone, oracle, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_a_chain_refuses_second_derivatives_and_is_freed_without_the_garbage_collector():
    weights, base = toy()
    states = think(weights, base, by_chain())
    grads = torch.autograd.grad(states.sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="thought_attention has no second derivative"):
        torch.autograd.grad(sum(x.square().sum() for x in grads), weights)
    chain = Chain(2)
    chain.append(base[0] * 2, base[1] * 2)
    buffer = weakref.ref(chain._buffer)
    gc.disable()
    try:
        del chain
        assert buffer() is None
    finally:
        gc.enable()


def test_a_chain_keeps_each_thought_once():
    b, g, t, d = 1, 2, 31, 4

    def saved(attend, steps):
        sizes = {}

        def pack(x):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        x = random(b, g, t, d, seed=1).requires_grad_()
        ks, outs = [], []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            for i in range(steps):
                if i:
                    ks.append(x * i)
                outs.append(attend(x, x, x, ks, ks))
        return sum(sizes.values())

    grown = [saved(by_chain(32), n) for n in (8, 16)]
    copied = [saved(by_concatenation, n) for n in (8, 16)]
    assert grown[1] < 2.3 * grown[0]
    assert copied[1] > 3 * copied[0]


def test_a_chain_works_without_gradient_and_refuses_what_does_not_fit():
    weights, base = toy()
    with torch.no_grad():
        ours, oracle = (think(weights, base, x) for x in (by_chain(), by_concatenation))
    torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-12)
    assert not ours.requires_grad
    with pytest.raises(ValueError, match="a chain must hold at most 2 thoughts, got one more"):
        think(weights, base, by_chain(2))
    chain = Chain(3)
    chain.append(base[0], base[1])
    assert len(chain) == 1 and chain.k.shape == (2, 2, 17, 1, 3)
    with pytest.raises(ValueError, match="k must be .* like the first thought's k, got"):
        chain.append(base[0][:, :, :2], base[1][:, :, :2])
    with pytest.raises(ValueError, match=r"k must be a tensor \(b g t d\), got list"):
        Chain(1).append([1.0], base[1])
    with pytest.raises(ValueError, match="v must be .* on cpu like the first thought's k, got"):
        Chain(1).append(base[0], base[1].to("meta"))
    with pytest.raises(ValueError, match="q must be a tensor .* got NoneType"):
        Chain(1).attend(None, base[0], base[1])
    with pytest.raises(ValueError, match="base_k must have the 4 axes"):
        Chain(1).attend(base[0], base[0][0], base[1])
    with pytest.raises(ValueError, match="max_thoughts must be an integer >= 0, got -1"):
        Chain(-1)


def test_a_chain_takes_part_in_autocast_as_the_operation_does():
    q, k, v, *_ = thought_leaves(1, 2, 2, 7, 7, 0, 3, dtype=torch.float32)
    chain = Chain(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chain.append(k, v)
        ours = chain.attend(q, k, v)
        plain = thought_attention(q, k, v, k[:, :, :, None], v[:, :, :, None])
    assert ours.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(ours, plain)
    assert torch.autograd.grad(ours.sum(), k)[0].dtype == torch.float32
