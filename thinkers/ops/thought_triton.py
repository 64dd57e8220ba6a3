"""Triton kernels that merge attention over base elements with attention over the own thoughts.

The thoughts of a position are few and its own: no product of matrices is worth forming. A program
takes some positions, and reads the keys and values of each thought once, forwards and backwards.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _row(base, rows, dims, stride, number, D: tl.constexpr):
    inside = (rows[:, None] < number) & (dims[None, :] < D)
    place = base + rows[:, None].to(tl.int64) * stride + dims[None, :]
    return tl.load(place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _hidden(hidden, b, rows, T):
    return tl.load(hidden + b * T + rows, mask=rows < T, other=1) != 0


@triton.jit
def _merge(
    q, k, v, base, base_lse, hidden, out, lse, c_b, c_g, c_t, c_n, H, G, T, COUNT, scale,
    D: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    b, g = head // H, ((head % H) // (H // G)).to(tl.int64)
    rows, dims = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, DIM)
    here = head.to(tl.int64) * T
    own = b.to(tl.int64) * c_b + g * c_g
    x = _row(q + here * D, rows, dims, D, T, D)
    value = _row(base + here * D, rows, dims, D, T, D)
    peak = tl.load(base_lse + here + rows, mask=rows < T, other=-float("inf"))
    total = tl.where(peak == -float("inf"), 0.0, 1.0)
    hide = _hidden(hidden, b, rows, T)
    for n in range(0, COUNT):
        key = _row(k + own + n * c_n, rows, dims, c_t, T, D)
        score = tl.where(hide, -float("inf"), tl.sum(x * key, 1) * scale)
        higher = tl.maximum(peak, score)
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        p, shrink = tl.exp2((score - safe) * LOG2E), tl.exp2((peak - safe) * LOG2E)
        total = total * shrink + p
        value = value * shrink[:, None]
        value += p[:, None] * _row(v + own + n * c_n, rows, dims, c_t, T, D)
        peak = higher
    seen = total > 0
    value = value / tl.where(seen, total, 1.0)[:, None]
    end = tl.where(seen, peak + tl.log(tl.where(seen, total, 1.0)), -float("inf"))
    inside = (rows[:, None] < T) & (dims[None, :] < D)
    place = out + here * D + rows[:, None] * D + dims[None, :]
    tl.store(place, value.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + here + rows, end, mask=rows < T)


@triton.jit
def _back(
    q, k, v, grad, lse, delta, hidden, dq, into_k, into_v,
    c_b, c_g, c_t, c_n, i_b, i_g, i_t, i_n, H, G, T, COUNT, scale,
    D: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    b, g = head // G, (head % G).to(tl.int64)
    rows, dims = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, DIM)
    own = b.to(tl.int64) * c_b + g * c_g
    into = b.to(tl.int64) * i_b + g * i_g + rows[:, None].to(tl.int64) * i_t + dims[None, :]
    inside = (rows[:, None] < T) & (dims[None, :] < D)
    hide = _hidden(hidden, b, rows, T)
    for h in range(g * (H // G), (g + 1) * (H // G)):
        here = (b * H + h).to(tl.int64) * T
        x = _row(q + here * D, rows, dims, D, T, D)
        go = _row(grad + here * D, rows, dims, D, T, D)
        base = tl.load(lse + here + rows, mask=rows < T, other=float("inf"))
        drop = tl.load(delta + here + rows, mask=rows < T, other=0.0)
        total = _row(dq + here * D, rows, dims, D, T, D)
        for n in range(0, COUNT):
            key = _row(k + own + n * c_n, rows, dims, c_t, T, D)
            value = _row(v + own + n * c_n, rows, dims, c_t, T, D)
            score = tl.where(hide, -float("inf"), tl.sum(x * key, 1) * scale)
            p = tl.exp2((score - base) * LOG2E)
            ds = p * (tl.sum(go * value, 1) - drop) * scale
            total += ds[:, None] * key
            place = into + n * i_n
            old_k = tl.load(into_k + place, mask=inside, other=0.0)
            old_v = tl.load(into_v + place, mask=inside, other=0.0)
            tl.store(into_k + place, old_k + ds[:, None] * x, mask=inside)
            tl.store(into_v + place, old_v + p[:, None] * go, mask=inside)
        place = dq + here * D + rows[:, None] * D + dims[None, :]
        tl.store(place, total.to(dq.dtype.element_ty), mask=inside)


def merge(
    q: Tensor,
    chain_k: Tensor,
    chain_v: Tensor,
    out: Tensor,
    lse: Tensor,
    hidden: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over the keys behind `out` and `lse` and the own thoughts."""
    (b, h, t, d), (g, n) = q.shape, chain_k.shape[1:4:2]
    merged, both = torch.empty_like(out), torch.empty_like(lse)
    if 0 in (b, t):
        return merged, both
    k, v = _alike(chain_k, chain_v)
    _merge[_grid(b * h, t)](
        *(q.contiguous(), k, v, out, lse, _padding(hidden, q), merged, both, *k.stride()[:4]),
        *(h, g, t, n, scale),
        **_settings(d),
    )
    return merged, both


def back(
    grad: Tensor,
    q: Tensor,
    chain_k: Tensor,
    chain_v: Tensor,
    out: Tensor,
    lse: Tensor,
    hidden: Tensor | None,
    scale: float,
    dq: Tensor,
    into: tuple[Tensor, Tensor],
) -> Tensor:
    """`dq` with the share of the thoughts; their own gradients are added to `into`."""
    (b, h, t, d), (g, n) = q.shape, chain_k.shape[1:4:2]
    if 0 in (b, t):
        return dq
    delta = (grad.float() * out).sum(-1).contiguous()
    lse = lse.masked_fill(lse == -torch.inf, torch.inf).contiguous()
    k, v = _alike(chain_k, chain_v)
    assert into[0].stride() == into[1].stride() and into[0].stride(-1) == 1
    _back[_grid(b * g, t)](
        *(q.contiguous(), k, v, grad.contiguous(), lse, delta, _padding(hidden, q), dq, *into),
        *(*k.stride()[:4], *into[0].stride()[:4], h, g, t, n, scale),
        **_settings(d),
    )
    return dq


def _grid(heads: int, t: int) -> tuple[int, int]:
    return (triton.cdiv(t, 16), heads)


def _settings(d: int) -> dict:
    return {"D": d, "DIM": max(16, triton.next_power_of_2(d)), "M": 16, "num_warps": 4}


def _alike(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with equal strides and dense rows."""
    if k.stride() == v.stride() and k.stride(-1) == 1:
        return k, v
    return k.contiguous(), v.contiguous()


def _padding(hidden: Tensor | None, q: Tensor) -> Tensor:
    b, _, t, _ = q.shape
    if hidden is None:
        return torch.zeros((b, t), dtype=torch.int8, device=q.device)
    return hidden[:, hidden.shape[1] - t :].to(torch.int8).contiguous()
