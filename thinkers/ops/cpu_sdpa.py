"""Attention through the fused CPU kernels of torch, exact over keys that are cut into parts.

A fused backward uses only exp(score - lse) and the row sums of grad * out. Given the out and lse of
ALL keys, it returns the exact share of the keys that it is called with, so parts need no gradient
through their own lse.
"""

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (b, h, t, d) and log-sum-exp (b, h, t) in float32 or float64.

    A row that sees nothing is zero, and its log-sum-exp -inf.
    """
    b, h, t, d = q.shape
    s = k.shape[2]
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if causal and t > s:
        out, lse = forward(q[:, :, t - s :], k, v, causal, _tail(bias, t - s), scale)
        blind = lse.new_full((b, h, t - s), -torch.inf)
        return torch.cat([q.new_zeros(b, h, t - s, d), out], 2), torch.cat([blind, lse], 2)
    if 0 in (b, t, s):
        return torch.zeros_like(q), q.new_full((b, h, t), -torch.inf, dtype=lse_dtype)
    q, scale, _ = _positive(q, scale)
    q, k, v = unit(q), unit(k), unit(v)
    done: tuple[Tensor, Tensor] | None = None
    for start, end, triangle in _parts(causal, t, s):
        cut = _columns(bias, start, end)
        out, lse = _forward(
            q, k[:, :, start:end], v[:, :, start:end], 0.0, triangle, attn_mask=cut, scale=scale
        )
        if cut is not None:
            lse = lse.masked_fill(~_sees(cut, triangle, t), -torch.inf)
        done = (out, lse) if done is None else merge(*done, out, lse)
    assert done is not None
    return done


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `out` and `lse` may be merged with those of further keys."""
    t, s = q.shape[2], k.shape[2]
    if causal and t > s:
        blind = t - s
        tail, last, rest, ends = (x[:, :, blind:] for x in (grad, q, out, lse))
        bias = _tail(bias, blind)
        dq, dk, dv = backward(tail, last, k, v, rest, ends, causal, bias, scale)
        return torch.cat([torch.zeros_like(q[:, :, :blind]), dq], 2), dk, dv
    if 0 in (q.shape[0], t, s):
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    q, scale, sign = _positive(q, scale)
    grad, q, k, v, out = unit(grad), unit(q), unit(k), unit(v), unit(out)
    lse = lse.masked_fill(lse == -torch.inf, 0.0)
    shares = [
        _backward(
            grad,
            q,
            k[:, :, start:end],
            v[:, :, start:end],
            out,
            lse,
            0.0,
            triangle,
            attn_mask=_columns(bias, start, end),
            scale=scale,
        )
        for start, end, triangle in _parts(causal, t, s)
    ]
    if len(shares) == 1:
        dq, dk, dv = shares[0]
    else:
        (dq, *first), (more, *second) = shares
        dk, dv = (torch.cat(pair, 2) for pair in zip(first, second, strict=True))
        dq = dq + more
    return dq if sign == 1 else dq * sign, dk, dv


def merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of attention over two disjoint sets of keys together."""
    both = torch.logaddexp(lse, more_lse)
    base = both.masked_fill(both == -torch.inf, 0.0)
    total = out * (lse - base).exp()[..., None]
    total.addcmul_(more.to(total.dtype), (more_lse - base).exp()[..., None])
    return total.to(out.dtype), both


def bias_of(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores of queries of `dtype`, as four axes, some perhaps of size 1."""
    if mask is None:
        return None
    # Rounding an addend to low precision would move probabilities, and hide what is only far away.
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
    return mask.to(dtype).reshape((1,) * (4 - mask.ndim) + mask.shape)


def unit(x: Tensor) -> Tensor:
    """`x` with elements of the last axis side by side in memory, as the kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _positive(q: Tensor, scale: float) -> tuple[Tensor, float, int]:
    """Queries and a scale above 0 with the same scores, and the factor from dq to dq before.

    The kernels multiply by the scale after hiding keys, so that -inf would become inf or nan.
    """
    if scale > 0:
        return q, scale, 1
    return (-q, -scale, -1) if scale < 0 else (torch.zeros_like(q), 1.0, 0)


def _parts(causal: bool, t: int, s: int) -> list[tuple[int, int, bool]]:
    """Ranges of keys, each with whether it is a causal square: all that the kernels know."""
    if not causal or t == 1:
        return [(0, s, False)]
    if t == s:
        return [(0, s, True)]
    return [(0, s - t, False), (s - t, s, True)]


def _columns(bias: Tensor | None, start: int, end: int) -> Tensor | None:
    return bias if bias is None or bias.shape[3] == 1 else bias[:, :, :, start:end]


def _tail(bias: Tensor | None, start: int) -> Tensor | None:
    return bias if bias is None or bias.shape[2] == 1 else bias[:, :, start:]


def _sees(bias: Tensor, triangle: bool, t: int) -> Tensor:
    """Whether a row sees at least one key, broadcastable to (b, h, t)."""
    shown = bias != -torch.inf
    if not triangle or shown.shape[3] == 1:
        return shown.any(-1)
    if shown.shape[2] == 1:
        return shown[:, :, 0].expand(*shown.shape[:2], t).cummax(-1).values
    return shown.expand(*shown.shape[:3], t).tril().any(-1)
