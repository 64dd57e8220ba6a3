"""The definitions against explicit sums, golden files and finite differences."""

import json

import pytest
import torch
from attention_cases import random
from golden import read_golden

from thinkers.ops import dense

B, H, G, T, S, D, N = 2, 6, 3, 5, 7, 11, 3


def leaves(t=T, s=S):
    shapes = [(B, H, t, D), (B, G, s, D), (B, G, s, D)]
    return [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def test_gradients_are_the_three_sums_of_the_equations():
    q, k, v = leaves()
    keep_q, keep_k, keep_v = (random(B, H, T, S, seed=i) for i in (3, 4, 5))
    grad = random(B, H, T, D, seed=6)
    out = dense.stop_grad_attention(
        q, k, v, causal=True, stop_q=keep_q, stop_k=keep_k, stop_v=keep_v, scale=0.7
    )
    got = torch.autograd.grad(out, (q, k, v), grad)

    wide_k, wide_v = (x.detach().repeat_interleave(2, dim=1) for x in (k, v))
    hidden = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    p = (0.7 * q.detach() @ wide_k.mT).masked_fill(hidden, -torch.inf).softmax(-1)
    value = p @ wide_v
    ds = 0.7 * p * (grad @ wide_v.mT - (grad * value).sum(-1, keepdim=True))
    dq = (keep_q * ds) @ wide_k
    dk = ((keep_k * ds).mT @ q.detach()).unflatten(1, (G, 2)).sum(2)
    dv = ((keep_v * p).mT @ grad).unflatten(1, (G, 2)).sum(2)
    torch.testing.assert_close(out.detach(), value, rtol=1e-12, atol=1e-12)
    for x, y in zip(got, (dq, dk, dv), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_a_query_that_sees_nothing_is_zero_with_zero_gradients():
    q, k, v = leaves(t=9, s=4)
    out = dense.stop_grad_attention(q, k, v, causal=True, stop_v=True)
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert torch.equal(out[:, :, :5], torch.zeros(B, H, 5, D, dtype=torch.float64))
    assert all(x.isfinite().all() for x in grads)
    assert torch.equal(grads[0][:, :, :5], torch.zeros(B, H, 5, D, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["bool_causal", "float", "v_only"])
def test_golden_stop_grad_attention(kind):
    settings, groups = read_golden(f"stop_grad_attention_{kind}")
    x = {f"{group}.{name}": y for group, part in groups.items() for name, y in part.items()}
    causal = json.loads(settings["causal"])
    q, k, v = (x[f"in.{name}"].requires_grad_() for name in "qkv")
    stops = {f"stop_{name}": x.get(f"in.{name}_stop_grad") for name in "qkv"}
    out = dense.stop_grad_attention(q, k, v, causal=causal, **stops)
    grads = torch.autograd.grad(out, (q, k, v), x["in.grad_out"])
    for ours, name in zip((out, *grads), ("out.out", "grad.q", "grad.k", "grad.v"), strict=True):
        assert (ours - x[name]).abs().max() <= 1e-9 * max(x[name].abs().max(), 1e-6)


def thought_leaves(t=T, s=S, n=N):
    shapes = [(B, H, t, D), *[(B, G, s, D)] * 2, *[(B, G, t, n, D)] * 2]
    return [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("causal", [True, False])
def test_thought_attention_position_by_position(causal):
    q, base_k, base_v, chain_k, chain_v = (x.detach() for x in thought_leaves())
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, 5:] = True
    out = dense.thought_attention(
        q, base_k, base_v, chain_k, chain_v, causal=causal, key_padding=padding
    )
    for b in range(B):
        for h in range(H):
            for t in range(T):
                column = t + S - T
                bases = [j for j in range(S) if not padding[b, j] and (j <= column or not causal)]
                chains = [t] if causal else range(T)
                chains = [i for i in chains if not padding[b, i + S - T]]
                keys = [base_k[b, h // 2, bases], *(chain_k[b, h // 2, i] for i in chains)]
                values = [base_v[b, h // 2, bases], *(chain_v[b, h // 2, i] for i in chains)]
                p = (torch.cat(keys) @ q[b, h, t] * D**-0.5).softmax(0)
                torch.testing.assert_close(out[b, h, t], p @ torch.cat(values))


def test_thought_attention_without_thoughts_is_plain_attention():
    q, k, v, chain_k, chain_v = thought_leaves(t=S, n=0)
    ours = dense.thought_attention(q, k, v, chain_k, chain_v)
    plain = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_finite_differences_agree_where_nothing_is_stopped():
    q, k, v, *_ = leaves(3, 4)
    mask = random(1, H, 3, 4, seed=8)
    mask[:, 2, 1] = -torch.inf
    assert torch.autograd.gradcheck(
        lambda *x: dense.stop_grad_attention(*x, causal=True, mask=mask), (q, k, v)
    )
    assert torch.autograd.gradcheck(dense.thought_attention, thought_leaves(3, 4, 2))


def test_another_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of auto, dense, got 'block'"):
        dense.stop_grad_attention(*leaves(), backend="block")
