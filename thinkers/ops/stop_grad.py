"""Attention in which every pair of query and key decides how much gradient reaches q, k and v.

With P the probabilities, dO the output gradient and dS = P * (dO V^T - rowsum(dO * O)) * scale:
dV_j = sum_i Gv_ij P_ij dO_i, dQ_i = sum_j Gq_ij dS_ij K_j, dK_j = sum_i Gk_ij dS_ij Q_i.
The factors touch the backward pass alone. Those that depend only on the row of the tensor they
belong to (Gq on the query, Gk and Gv on the key) leave the sums and scale the finished gradient.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thinkers.ops import cpu_sdpa, dense, tiled
from thinkers.ops.autograd import eager, lowered, no_autocast, one_derivative
from thinkers.ops.triton_support import lacks as triton_lacks
from thinkers.ops.validation import Pairs, check_backend, check_stop_grad

BACKENDS = ("auto", "dense", "sdpa", "block", "triton")
NAMES = ("stop_q", "stop_k", "stop_v")


@dataclass(frozen=True)
class Way:
    """The way that a call takes, and why."""

    name: str
    reason: str


@eager("stop_grad_attention chooses panels and evaluates mask functions in Python")
def stop_grad_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b g s d"],
    v: Float[Tensor, "b g s d"],
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    stop_q: Pairs = None,
    stop_k: Pairs = None,
    stop_v: Pairs = None,
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
        causal: Query i sees keys up to i + s - t. A query that sees none gives zeros.
        mask: Broadcastable to (b, h, t, s). True where a query may attend, or a float to be added.
        stop_q: Per pair, what happens to its gradient to q: True stops, False keeps, a float
            multiplies. A constant, a tensor broadcastable to (b, h, t, s), or an elementwise
            function of the int64 indices (b, h, q, k) that returns such a tensor.
        stop_k: The same for the gradient to k.
        stop_v: The same for the gradient to v.
        scale: Factor on the scores. Default: `d ** -0.5`.
        backend: "auto", or the way to take: "sdpa", "block", "triton" or "dense".

    Raises:
        ValueError: if an argument does not fit, or the named backend cannot do this call.
    """
    check_backend(backend, BACKENDS)
    stops: dict[str, Any] = {"stop_q": stop_q, "stop_k": stop_k, "stop_v": stop_v}
    q, k, v = lowered(q, k, v)
    check_stop_grad(q, k, v, causal, mask, stops, scale)
    way = choose(q, k, stops, backend)
    if way.name == "dense":
        return dense.stop_grad_attention(q, k, v, causal=causal, mask=mask, **stops, scale=scale)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    call = Call("stop_grad_attention", way.name, causal, scale, (mask, stop_q, stop_k, stop_v))
    return run(q, k, v, call)


def choose(q: Tensor, k: Tensor, stops: dict[str, Pairs], backend: str = "auto") -> Way:
    """The way this call takes: by shapes, dtypes, devices and kinds of masks, never by values."""
    if backend == "dense":
        return Way("dense", "it was asked for")
    axes = {name: _axis(stop, q, k) for name, stop in stops.items()}
    outside = _outside(axes, stops)
    if backend == "sdpa" and not outside:
        raise ValueError(
            f"backend must not be 'sdpa' where gradient factors differ by pair, got {_tell(axes)}"
        )
    wide = q.dtype in (torch.float32, torch.float64)
    if backend == "sdpa" or (backend == "auto" and outside and wide and q.device.type == "cpu"):
        if q.device.type != "cpu":
            raise ValueError(f"backend must not be 'sdpa' off the CPU, got device {q.device}")
        return Way(
            "sdpa",
            f"{_tell(axes)}: the factors scale the finished gradients of the fused kernel",
        )
    if backend == "triton" or (backend == "auto" and q.device.type == "cuda"):
        lack = triton_lacks(q)
        if lack is None:
            return Way("triton", f"the tensors are on {q.device}; {_tell(axes)}")
        if backend == "triton":
            raise ValueError(f"backend must not be 'triton' here: {lack}, got {q.device}")
    first = "the fused kernel" if q.device.type == "cpu" else "panels"
    return Way("block", f"{_tell(axes)}: forward by {first}, backward by panels of queries")


@dataclass(frozen=True)
class Call:
    """What a backward pass has to know of its forward pass, besides tensors."""

    name: str
    way: str
    causal: bool
    scale: float
    pairs: tuple[Pairs, ...]
    """The mask, and what stops q, k and v."""

    def problem(self, q: Tensor, k: Tensor, mask: Tensor | None) -> tiled.Problem:
        (b, h, t, _), (_, g, s, _) = q.shape, k.shape
        return tiled.Problem(b, h, g, t, s, self.causal, mask, self.scale, q.device)


def run(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Attention as `call` says, with its gradient."""
    return _StopGrad.apply(q, k, v, call)


class _StopGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        with no_autocast(q):
            out, lse = attend(q, k, v, call)
        # Masks are saved as tensors so that changing one in place before the backward is noticed.
        ctx.kept = [isinstance(x, Tensor) for x in call.pairs]
        ctx.save_for_backward(q, k, v, out, lse, *(x for x in call.pairs if isinstance(x, Tensor)))
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        call, left = ctx.call, iter(tensors)
        pairs = [next(left) if kept else x for kept, x in zip(ctx.kept, call.pairs, strict=True)]
        call = replace(call, pairs=tuple(pairs))
        with torch.no_grad(), no_autocast(q):
            found = share(grads[0], q, k, v, out, lse, call, ctx.needs_input_grad[:3])
        if k.shape[2] == 1:
            # One key has probability 1 whatever q and k are; rounding must not say otherwise.
            zeros = (None if x is None else torch.zeros_like(x) for x in found[:2])
            found = (*zeros, found[2])
        return (*one_derivative(call.name, found, (grads[0], q, k, v)), None)


def attend(q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, by the kernels that the device has."""
    mask = call.pairs[0]
    assert mask is None or isinstance(mask, Tensor)
    if q.numel() == 0 or k.shape[2] == 0:
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        return torch.zeros_like(q), q.new_full(q.shape[:3], -torch.inf, dtype=wide)
    if call.way == "triton":
        return _kernels().forward(q, k, v, call.causal, mask, call.scale)
    if q.device.type == "cpu":
        bias = cpu_sdpa.bias_of(mask, q.dtype)
        return cpu_sdpa.forward(q, k, v, call.causal, bias, call.scale)
    return tiled.forward(q, k, v, call.problem(q, k, mask))


def share(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k and v that are needed, for these keys out of all behind `out` and `lse`."""
    mask, *stops = call.pairs
    assert mask is None or isinstance(mask, Tensor)
    found: tuple[Tensor | None, ...]
    if q.numel() == 0 or k.shape[2] == 0:
        found = tuple(torch.zeros_like(x) for x in (q, k, v))
    elif call.way == "sdpa":
        found = _scaled(grad, q, k, v, out, lse, call, mask, stops)
    elif call.way == "triton":
        settings = (call.causal, mask, call.scale, tuple(stops), needs)
        found = _kernels().backward(grad, q, k, v, out, lse, *settings)
    else:
        problem = call.problem(q, k, mask)
        stopped = (stops[0], stops[1], stops[2])
        wanted = (needs[0], needs[1], needs[2])
        found = tiled.backward(grad, q, k, v, out, lse, problem, stopped, wanted)
    return tuple(x if need else None for x, need in zip(found, needs, strict=False))


def _kernels() -> Any:
    # Triton is imported by the first call that takes it, not with the library.
    from thinkers.ops import stop_grad_triton

    return stop_grad_triton


def _scaled(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
    mask: Tensor | None,
    stops: list[Pairs],
) -> tuple[Tensor, ...]:
    """The gradients of the fused kernel, scaled row by row."""
    axes = [_axis(stop, q, k) for stop in stops]
    if _same_query(axes, stops):
        grad, stops = grad * _factor(stops[0], q), [None] * 3
    bias = cpu_sdpa.bias_of(mask, q.dtype)
    found = cpu_sdpa.backward(grad, q, k, v, out, lse, call.causal, bias, call.scale)
    rows = [None if stop is None else _factor(stop, q) for stop in stops]
    rows = [x if x is None or i == 0 else x.mT for i, x in enumerate(rows)]
    return tuple(x if row is None else x * row for x, row in zip(found, rows, strict=True))


def _factor(stop: Pairs, q: Tensor) -> Tensor:
    """A factor that is constant along queries or along keys, as four axes."""
    stop = torch.as_tensor(stop, device=q.device)
    factor = (~stop if stop.dtype == torch.bool else stop).to(q.dtype)
    return factor.reshape((1,) * (4 - factor.ndim) + factor.shape)


def _axis(stop: Pairs, q: Tensor, k: Tensor) -> str:
    """What the factors depend on: "nothing", "query", "key" or "pair"."""
    if stop is None or isinstance(stop, bool | float):
        return "nothing"
    if not isinstance(stop, Tensor):
        return "pair"
    h, t, s = ((1, 1, 1) + tuple(stop.shape))[-3:]
    if t > 1 and s > 1:
        return "pair"
    if s > 1:
        return "key" if h == 1 or k.shape[1] == q.shape[1] else "pair"
    if t > 1:
        return "query"
    return "nothing" if h == 1 or k.shape[1] == q.shape[1] else "query"


def _outside(axes: dict[str, str], stops: dict[str, Pairs]) -> bool:
    """Whether all factors can leave the sums over pairs."""
    own = {"stop_q": "query", "stop_k": "key", "stop_v": "key"}
    if all(axis in ("nothing", own[name]) for name, axis in axes.items()):
        return True
    return _same_query(list(axes.values()), list(stops.values()))


def _same_query(axes: list[str], stops: list[Pairs]) -> bool:
    """Whether one factor per query holds for all three: then it scales the output's gradient."""
    return axes[0] == "query" and stops[0] is stops[1] is stops[2]


def _tell(axes: dict[str, str]) -> str:
    kinds = {name: axis for name, axis in axes.items() if axis != "nothing"}
    if not kinds:
        return "no factor differs by query or key"
    return ", ".join(f"{name} by {axis}" for name, axis in kinds.items())
