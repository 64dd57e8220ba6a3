"""Attention through torch's fused CPU kernels, over keys that are divided into ranges.

The kernels know causality only as a square, so that keys before the square are a range of their
own, and the ranges are merged by log-sum-exp. A fused backward reads only exp(score - lse) and the
row sums of grad * out. Given `out` and `lse` of ALL keys, it returns the exact gradients of the
keys that it is called with: ranges need no gradient through their own log-sum-exp.
"""

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (b, h, t, d) and log-sum-exp (b, h, t) in float32 or float64.

    A row that sees no key gives output 0 and log-sum-exp -inf. `bias` is added to the scores, see
    `additive_mask`.
    """
    b, h, t, d = q.shape
    s = k.shape[2]
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if causal and t > s:
        # Bottom-right alignment: the first t - s queries see no key.
        out, lse = forward(q[:, :, t - s :], k, v, causal, _rows_from(bias, t - s), scale)
        empty = lse.new_full((b, h, t - s), -torch.inf)
        return torch.cat([q.new_zeros(b, h, t - s, d), out], 2), torch.cat([empty, lse], 2)
    if 0 in (b, t, s):
        return torch.zeros_like(q), q.new_full((b, h, t), -torch.inf, dtype=lse_dtype)
    q, scale, _ = _positive_scale(q, scale)
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    done: tuple[Tensor, Tensor] | None = None
    for start, end, triangle in _key_ranges(causal, t, s):
        part = _keys_of(bias, start, end)
        out, lse = _forward(
            q, k[:, :, start:end], v[:, :, start:end], 0.0, triangle, attn_mask=part, scale=scale
        )
        if part is not None:
            # The kernel gives output 0 for a row without keys, and a log-sum-exp that is not -inf.
            lse = lse.masked_fill(~_sees_a_key(part, triangle, t), -torch.inf)
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
    """Gradients of q, k and v; `out` and `lse` may belong to more keys than `k` holds."""
    t, s = q.shape[2], k.shape[2]
    if causal and t > s:
        empty = t - s
        rows = (x[:, :, empty:] for x in (grad, q, out, lse))
        seeing_grad, seeing_q, seeing_out, seeing_lse = rows
        bias = _rows_from(bias, empty)
        dq, dk, dv = backward(
            seeing_grad, seeing_q, k, v, seeing_out, seeing_lse, causal, bias, scale
        )
        return torch.cat([torch.zeros_like(q[:, :, :empty]), dq], 2), dk, dv
    if 0 in (q.shape[0], t, s):
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    q, scale, sign = _positive_scale(q, scale)
    grad, q, k, v, out = (unit_stride(x) for x in (grad, q, k, v, out))
    # All scores of an empty row are -inf: against 0 its probabilities are exp(-inf) = 0, against
    # -inf they would be nan.
    lse = lse.masked_fill(lse == -torch.inf, 0.0)
    parts = [
        _backward(
            grad,
            q,
            k[:, :, start:end],
            v[:, :, start:end],
            out,
            lse,
            0.0,
            triangle,
            attn_mask=_keys_of(bias, start, end),
            scale=scale,
        )
        for start, end, triangle in _key_ranges(causal, t, s)
    ]
    if len(parts) == 1:
        dq, dk, dv = parts[0]
    else:
        (dq, *first), (dq_more, *second) = parts
        dk, dv = (torch.cat(pair, 2) for pair in zip(first, second, strict=True))
        dq = dq + dq_more
    return dq if sign == 1 else dq * sign, dk, dv


def merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of attention over two disjoint sets of keys, from those of each."""
    merged = torch.logaddexp(lse, more_lse)
    # Where both are empty: exp(-inf - 0) = 0 weighs them, not exp(-inf - -inf), which is nan.
    base = merged.masked_fill(merged == -torch.inf, 0.0)
    total = out * (lse - base).exp()[..., None]
    total.addcmul_(more.to(total.dtype), (more_lse - base).exp()[..., None])
    return total.to(out.dtype), merged


def additive_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask as an addend of the scores of queries of `dtype`, broadcastable to (b, h, t, s)."""
    if mask is None:
        return None
    # Float32 at least: in low precision an addend would be rounded by more than the scores, and a
    # large negative one would become -inf, which hides the key.
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
    return mask.to(dtype).reshape((1,) * (4 - mask.ndim) + mask.shape)


def unit_stride(x: Tensor) -> Tensor:
    """Return `x` with stride 1 along the last axis, as the kernels require."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float, int]:
    """Queries and a scale above 0 with the same scores, and the sign that dq is multiplied by.

    The kernels multiply by the scale after hiding keys: a negative scale would turn -inf into inf,
    and scale 0 into nan.
    """
    if scale > 0:
        return q, scale, 1
    return (-q, -scale, -1) if scale < 0 else (torch.zeros_like(q), 1.0, 0)


def _key_ranges(causal: bool, t: int, s: int) -> list[tuple[int, int, bool]]:
    """Ranges of keys (start, end, is a causal square), which are all that the kernels can do.

    t <= s: the last t keys are the square, every query sees all keys before it.
    """
    if not causal or t == 1:
        return [(0, s, False)]
    if t == s:
        return [(0, s, True)]
    return [(0, s - t, False), (s - t, s, True)]


def _keys_of(bias: Tensor | None, start: int, end: int) -> Tensor | None:
    return bias if bias is None or bias.shape[3] == 1 else bias[:, :, :, start:end]


def _rows_from(bias: Tensor | None, start: int) -> Tensor | None:
    return bias if bias is None or bias.shape[2] == 1 else bias[:, :, start:]


def _sees_a_key(bias: Tensor, triangle: bool, t: int) -> Tensor:
    """True where a row sees at least one key, broadcastable to (b, h, t)."""
    visible = bias != -torch.inf
    if not triangle or visible.shape[3] == 1:
        return visible.any(-1)
    if visible.shape[2] == 1:
        # The same keys for all rows: row i sees one if any of the keys 0 to i is visible.
        return visible[:, :, 0].expand(*visible.shape[:2], t).cummax(-1).values
    return visible.expand(*visible.shape[:3], t).tril().any(-1)
