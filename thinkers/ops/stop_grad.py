"""Attention in which every pair of query and key scales the gradient that it sends to q, k and v.

With P the probabilities, O the output, dO its gradient and dS = P * (dO V^T - rowsum(dO * O)):

    dV_j = sum_i Gv_ij P_ij dO_i
    dQ_i = scale * sum_j Gq_ij dS_ij K_j
    dK_j = scale * sum_i Gk_ij dS_ij Q_i

The factors G enter the backward pass alone. Those that vary only along the row of the tensor they
belong to (Gq with the query, Gk and Gv with the key) leave the sums and scale finished gradients.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thinkers.ops import cpu_sdpa, dense, tiled
from thinkers.ops.autograd import cast_for_autocast, eager, forbid_second_derivative, no_autocast
from thinkers.ops.dispatch import (
    STOP_GRAD_BACKENDS,
    choose_stop_grad,
    factor_axis,
    one_query_factor,
)
from thinkers.ops.validation import PairValues, check_backend, check_stop_grad


@eager("stop_grad_attention chooses query blocks and evaluates mask functions in Python")
def stop_grad_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b g s d"],
    v: Float[Tensor, "b g s d"],
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    stop_q: PairValues = None,
    stop_k: PairValues = None,
    stop_v: PairValues = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b h t d"]:
    """Softmax attention in which every pair (query, key) scales its gradient to q, k and v.

    Idea: F. Bonetto, Self-Reasoning Tokens, 2024, https://reasoning-tokens.ghost.io/reasoning-tokens/.
    Memory grows with t + s, never with t * s. The gradient has no derivative of its own.

    Args:
        q: Queries.
        k: Keys. `g` divides `h`; query head `i` reads key head `i // (h // g)`.
        v: Values.
        causal: Query i sees keys up to i + s - t (the bottom-right corner of the matrix of pairs
            is aligned: with t < s it is a decoding step). A query that sees none gives zeros.
        mask: Broadcastable to (b, h, t, s). True where a query may attend, or a float to be added
            to the scores.
        stop_q: Per pair, the treatment of its gradient to q: True stops it, False keeps it, a
            float of any sign multiplies it. A constant, a tensor broadcastable to (b, h, t, s), or
            an elementwise function of the int64 indices (b, h, q, k) that returns such a tensor.
        stop_k: The same for the gradient to k.
        stop_v: The same for the gradient to v.
        scale: Factor on the scores. Default: `d ** -0.5`.
        backend: "auto", "sdpa", "block", "triton" or "dense"; see `thinkers.ops.dispatch`.

    Raises:
        ValueError: if an argument does not fit, or the requested backend cannot do this call.
    """
    check_backend(backend, STOP_GRAD_BACKENDS)
    stops: dict[str, Any] = {"stop_q": stop_q, "stop_k": stop_k, "stop_v": stop_v}
    q, k, v = cast_for_autocast(q, k, v)
    check_stop_grad(q, k, v, causal, mask, stops, scale)
    backend = choose_stop_grad(q, k, stops, backend).backend
    if backend == "dense":
        return dense.stop_grad_attention(q, k, v, causal=causal, mask=mask, **stops, scale=scale)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    values = (mask, stop_q, stop_k, stop_v)
    return attention(q, k, v, Call("stop_grad_attention", backend, causal, scale, values))


@dataclass(frozen=True)
class Call:
    """The settings of a forward pass that its backward pass needs, besides tensors."""

    name: str
    """The public operation, for error messages."""
    backend: str
    """"sdpa", "block" or "triton"."""
    causal: bool
    scale: float
    values: tuple[PairValues, ...]
    """The mask, and the stops of q, k and v."""

    def problem(self, q: Tensor, k: Tensor, mask: Tensor | None) -> tiled.Problem:
        """The same call for the block backend, which has no stops yet."""
        (b, h, t, _), (_, g, s, _) = q.shape, k.shape
        return tiled.Problem(b, h, g, t, s, self.causal, mask, self.scale, q.device)


def attention(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Attention (b, h, t, d) as `call` describes it, with its gradient; inputs are not checked."""
    return _StopGrad.apply(q, k, v, call)


class _StopGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        out, lse = forward(q, k, v, call)
        # Masks are saved as tensors so that changing one in place before the backward is noticed.
        ctx.is_saved = [isinstance(x, Tensor) for x in call.values]
        ctx.save_for_backward(q, k, v, out, lse, *(x for x in call.values if isinstance(x, Tensor)))
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *saved = ctx.saved_tensors
        call, tensors = ctx.call, iter(saved)
        is_saved = zip(ctx.is_saved, call.values, strict=True)
        call = replace(call, values=tuple(next(tensors) if x else value for x, value in is_saved))
        found = backward(grads[0], q, k, v, out, lse, call, ctx.needs_input_grad[:3])
        return (*forbid_second_derivative(call.name, found, (grads[0], q, k, v)), None)


def forward(q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the whole attention; see `forward_with_lse`."""
    with no_autocast(q):
        return forward_with_lse(q, k, v, call)


@torch.no_grad()
def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the whole attention; see `backward_from_lse`."""
    with no_autocast(q):
        found = backward_from_lse(grad, q, k, v, out, lse, call, needs)
    if k.shape[2] == 1:
        # A single key has probability 1 for any q and k, so dq and dk are exactly 0. Computed,
        # they would be the rounding error of a difference of equal numbers.
        zeros = (None if x is None else torch.zeros_like(x) for x in found[:2])
        found = (*zeros, found[2])
    return found


def forward_with_lse(q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output (b, h, t, d) and log-sum-exp (b, h, t), by the kernels that the device has.

    A row that sees no key gives output 0 and log-sum-exp -inf.
    """
    mask = call.values[0]
    assert mask is None or isinstance(mask, Tensor)
    if q.numel() == 0 or k.shape[2] == 0:
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        return torch.zeros_like(q), q.new_full(q.shape[:3], -torch.inf, dtype=wide)
    if call.backend == "triton":
        return _kernels().forward(q, k, v, call.causal, mask, call.scale)
    if q.device.type == "cpu":
        bias = cpu_sdpa.additive_mask(mask, q.dtype)
        return cpu_sdpa.forward(q, k, v, call.causal, bias, call.scale)
    return tiled.forward(q, k, v, call.problem(q, k, mask))


def backward_from_lse(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k and v, or None where `needs` is False.

    `out` and `lse` may belong to more keys than `k` holds. A backward pass reads them only through
    exp(score - lse), the probability among ALL keys, and rowsum(grad * out); it therefore returns
    the exact gradient of its own keys, and that part of dq that comes through them.
    """
    mask, *stops = call.values
    assert mask is None or isinstance(mask, Tensor)
    found: tuple[Tensor | None, ...]
    if q.numel() == 0 or k.shape[2] == 0:
        found = tuple(torch.zeros_like(x) for x in (q, k, v))
    elif call.backend == "sdpa":
        found = _scaled_gradients(grad, q, k, v, out, lse, call, mask, stops)
    elif call.backend == "triton":
        settings = (call.causal, mask, call.scale, tuple(stops), needs)
        found = _kernels().backward(grad, q, k, v, out, lse, *settings)
    else:
        problem = call.problem(q, k, mask)
        all_stops = (stops[0], stops[1], stops[2])
        all_needs = (needs[0], needs[1], needs[2])
        found = tiled.backward(grad, q, k, v, out, lse, problem, all_stops, all_needs)
    return tuple(x if need else None for x, need in zip(found, needs, strict=False))


def _kernels() -> Any:
    # Triton is imported by the first call that uses it, not with the library.
    from thinkers.ops import stop_grad_triton

    return stop_grad_triton


def _scaled_gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
    mask: Tensor | None,
    stops: list[PairValues],
) -> tuple[Tensor, ...]:
    """Gradients of the fused kernel, scaled row by row."""
    axes = [factor_axis(stop, q, k) for stop in stops]
    if one_query_factor(axes, stops):
        # All three gradients are linear in dO_i, whose factor is the same for each of them.
        grad, stops = grad * _as_factor(stops[0], q), [None] * 3
    bias = cpu_sdpa.additive_mask(mask, q.dtype)
    found = cpu_sdpa.backward(grad, q, k, v, out, lse, call.causal, bias, call.scale)
    factors = [None if stop is None else _as_factor(stop, q) for stop in stops]
    # A factor by key is (.., 1, s), along the last axis; the rows of dk and dv are keys.
    factors = [x if x is None or i == 0 else x.mT for i, x in enumerate(factors)]
    return tuple(x if y is None else x * y for x, y in zip(found, factors, strict=True))


def _as_factor(stop: PairValues, q: Tensor) -> Tensor:
    """Return a stop that is constant along queries or keys as a factor with four axes."""
    stop = torch.as_tensor(stop, device=q.device)
    factor = (~stop if stop.dtype == torch.bool else stop).to(q.dtype)
    return factor.reshape((1,) * (4 - factor.ndim) + factor.shape)
