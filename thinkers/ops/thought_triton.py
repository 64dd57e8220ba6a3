"""Triton kernels that merge attention over base elements with attention over the own thoughts.

A position has few thoughts, and shares them with no other: there is no matrix product to form. A
program takes M positions and reads keys and values of each thought once, forward and backward.

Names in the kernels: D is the head dim and DIM the next power of two; T, H, G the positions, query
heads and key heads, COUNT the thoughts of a position; c_b, c_g, c_t, c_n strides.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
"""exp(x) = exp2(x * LOG2E): the GPU has an instruction for exp2 alone."""


@triton.jit
def _row(base, rows, dims, stride, number, D: tl.constexpr):
    inside = (rows[:, None] < number) & (dims[None, :] < D)
    pointers = base + rows[:, None].to(tl.int64) * stride + dims[None, :]
    return tl.load(pointers, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _is_padding(padding, b, rows, T):
    return tl.load(padding + b * T + rows, mask=rows < T, other=1) != 0


@triton.jit
def _merge(
    q, k, v, base, base_lse, padding, out, lse, c_b, c_g, c_t, c_n, H, G, T, COUNT, scale,
    D: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    b, g = head // H, ((head % H) // (H // G)).to(tl.int64)
    rows, dims = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, DIM)
    row_offset = head.to(tl.int64) * T
    chain_offset = b.to(tl.int64) * c_b + g * c_g
    x = _row(q + row_offset * D, rows, dims, D, T, D)
    value = _row(base + row_offset * D, rows, dims, D, T, D)
    # The base part enters as one more key, with its log-sum-exp as score and its output as value.
    row_max = tl.load(base_lse + row_offset + rows, mask=rows < T, other=-float("inf"))
    total = tl.where(row_max == -float("inf"), 0.0, 1.0)
    is_padding = _is_padding(padding, b, rows, T)
    for n in range(0, COUNT):
        key = _row(k + chain_offset + n * c_n, rows, dims, c_t, T, D)
        score = tl.where(is_padding, -float("inf"), tl.sum(x * key, 1) * scale)
        new_max = tl.maximum(row_max, score)
        # A row that has seen no key yet: -inf - -inf would be nan.
        safe = tl.where(new_max == -float("inf"), 0.0, new_max)
        p, rescale = tl.exp2((score - safe) * LOG2E), tl.exp2((row_max - safe) * LOG2E)
        total = total * rescale + p
        value = value * rescale[:, None]
        value += p[:, None] * _row(v + chain_offset + n * c_n, rows, dims, c_t, T, D)
        row_max = new_max
    nonempty = total > 0
    value = value / tl.where(nonempty, total, 1.0)[:, None]
    end = tl.where(nonempty, row_max + tl.log(tl.where(nonempty, total, 1.0)), -float("inf"))
    inside = (rows[:, None] < T) & (dims[None, :] < D)
    pointers = out + row_offset * D + rows[:, None] * D + dims[None, :]
    tl.store(pointers, value.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + row_offset + rows, end, mask=rows < T)


@triton.jit
def _backward(
    q, k, v, grad, lse, delta, padding, dq, chain_dk, chain_dv,
    c_b, c_g, c_t, c_n, i_b, i_g, i_t, i_n, H, G, T, COUNT, scale,
    D: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    b, g = head // G, (head % G).to(tl.int64)
    rows, dims = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, DIM)
    chain_offset = b.to(tl.int64) * c_b + g * c_g
    grad_offset = b.to(tl.int64) * i_b + g * i_g + rows[:, None].to(tl.int64) * i_t + dims[None, :]
    inside = (rows[:, None] < T) & (dims[None, :] < D)
    is_padding = _is_padding(padding, b, rows, T)
    for h in range(g * (H // G), (g + 1) * (H // G)):
        row_offset = (b * H + h).to(tl.int64) * T
        x = _row(q + row_offset * D, rows, dims, D, T, D)
        grad_out = _row(grad + row_offset * D, rows, dims, D, T, D)
        row_lse = tl.load(lse + row_offset + rows, mask=rows < T, other=float("inf"))
        row_delta = tl.load(delta + row_offset + rows, mask=rows < T, other=0.0)
        total = _row(dq + row_offset * D, rows, dims, D, T, D)
        for n in range(0, COUNT):
            key = _row(k + chain_offset + n * c_n, rows, dims, c_t, T, D)
            value = _row(v + chain_offset + n * c_n, rows, dims, c_t, T, D)
            score = tl.where(is_padding, -float("inf"), tl.sum(x * key, 1) * scale)
            p = tl.exp2((score - row_lse) * LOG2E)
            ds = p * (tl.sum(grad_out * value, 1) - row_delta) * scale
            total += ds[:, None] * key
            pointers = grad_offset + n * i_n
            # No race: this program alone holds these positions, and takes the heads in turn.
            old_k = tl.load(chain_dk + pointers, mask=inside, other=0.0)
            old_v = tl.load(chain_dv + pointers, mask=inside, other=0.0)
            tl.store(chain_dk + pointers, old_k + ds[:, None] * x, mask=inside)
            tl.store(chain_dv + pointers, old_v + p[:, None] * grad_out, mask=inside)
        pointers = dq + row_offset * D + rows[:, None] * D + dims[None, :]
        tl.store(pointers, total.to(dq.dtype.element_ty), mask=inside)


def merge(
    q: Tensor,
    chain_k: Tensor,
    chain_v: Tensor,
    out: Tensor,
    lse: Tensor,
    padding: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over the keys of `out` and `lse` and the own thoughts together."""
    (b, h, t, d), (g, n) = q.shape, chain_k.shape[1:4:2]
    merged, merged_lse = torch.empty_like(out), torch.empty_like(lse)
    if 0 in (b, t):
        return merged, merged_lse
    k, v = _with_equal_strides(chain_k, chain_v)
    flags = _padding_flags(padding, q)
    _merge[_grid(b * h, t)](
        *(q.contiguous(), k, v, out, lse, flags, merged, merged_lse, *k.stride()[:4]),
        *(h, g, t, n, scale),
        **_settings(d),
    )
    return merged, merged_lse


def backward(
    grad: Tensor,
    q: Tensor,
    chain_k: Tensor,
    chain_v: Tensor,
    out: Tensor,
    lse: Tensor,
    padding: Tensor | None,
    scale: float,
    dq: Tensor,
    chain_grads: tuple[Tensor, Tensor],
) -> Tensor:
    """Add the gradients that come through the thoughts: to `dq`, and to `chain_grads`.

    `out` and `lse` are the merged ones, see `thinkers.ops.thought.backward_from_lse`.
    """
    (b, h, t, d), (g, n) = q.shape, chain_k.shape[1:4:2]
    if 0 in (b, t):
        return dq
    delta = (grad.float() * out).sum(-1).contiguous()
    lse = lse.masked_fill(lse == -torch.inf, torch.inf).contiguous()
    k, v = _with_equal_strides(chain_k, chain_v)
    # One set of strides is passed for both.
    assert chain_grads[0].stride() == chain_grads[1].stride() and chain_grads[0].stride(-1) == 1
    _backward[_grid(b * g, t)](
        *(q.contiguous(), k, v, grad.contiguous(), lse, delta, _padding_flags(padding, q), dq),
        *chain_grads,
        *(*k.stride()[:4], *chain_grads[0].stride()[:4], h, g, t, n, scale),
        **_settings(d),
    )
    return dq


def _grid(heads: int, t: int) -> tuple[int, int]:
    return (triton.cdiv(t, 16), heads)


def _settings(d: int) -> dict:
    return {"D": d, "DIM": max(16, triton.next_power_of_2(d)), "M": 16, "num_warps": 4}


def _with_equal_strides(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with equal strides, and stride 1 along the last axis, copied if necessary."""
    if k.stride() == v.stride() and k.stride(-1) == 1:
        return k, v
    return k.contiguous(), v.contiguous()


def _padding_flags(padding: Tensor | None, q: Tensor) -> Tensor:
    b, _, t, _ = q.shape
    if padding is None:
        return torch.zeros((b, t), dtype=torch.int8, device=q.device)
    return padding[:, padding.shape[1] - t :].to(torch.int8).contiguous()
