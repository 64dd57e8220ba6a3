"""Choice of the backend of each call, by shapes, dtypes, devices and kinds of masks.

The choice never depends on values: a token could otherwise change the rounding of another one, and
causality would not hold bit for bit; on a GPU every call would wait for its inputs.

Backends of `stop_grad_attention`:
- "sdpa": torch's fused CPU kernels; gradient factors scale the finished gradients (cpu_sdpa.py).
- "block": blocks of queries in plain torch operations, any device and dtype (tiled.py).
- "triton": the CUDA kernels (stop_grad_triton.py).
- "dense": the definition (dense.py).

`thought_attention` has the same, with "fused" for "sdpa", and its thoughts merged in thought.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thinkers.errors import UsageError, UsageTypeError
from thinkers.ops.autograd import cast_for_autocast
from thinkers.ops.triton_support import unsupported_reason
from thinkers.ops.validation import PairValues, check_backend, check_stop_grad, check_thought

STOP_GRAD_BACKENDS = ("auto", "dense", "sdpa", "block", "triton")
THOUGHT_BACKENDS = ("auto", "dense", "fused", "block", "triton")
STOP_NAMES = ("stop_q", "stop_k", "stop_v")


@dataclass(frozen=True)
class Choice:
    """A backend, and the reason for it."""

    backend: str
    reason: str


def choose_stop_grad(
    q: Tensor, k: Tensor, stops: dict[str, PairValues], backend: str = "auto"
) -> Choice:
    """Choose the backend of a `stop_grad_attention` call.

    Raises:
        ValueError: if the requested backend cannot do this call.
    """
    if backend == "dense":
        return Choice("dense", "it was requested")
    axes = {name: factor_axis(stop, q, k) for name, stop in stops.items()}
    separable = _factors_leave_sums(axes, stops)
    if backend == "sdpa" and not separable:
        raise UsageError(
            "backend must not be 'sdpa' where gradient factors differ by pair, "
            f"got {_describe(axes)}"
        )
    # In low precision the block backend, which accumulates in float32, is the faster and the more
    # accurate one on CPUs.
    wide = q.dtype in (torch.float32, torch.float64)
    if backend == "sdpa" or (backend == "auto" and separable and wide and q.device.type == "cpu"):
        if q.device.type != "cpu":
            raise UsageError(
                f"backend must not be 'sdpa' on a device other than the CPU, got device {q.device}"
            )
        return Choice(
            "sdpa",
            f"{_describe(axes)}: the factors scale the finished gradients of the fused kernel",
        )
    if triton := _choose_triton(q, backend):
        return Choice("triton", f"{triton.reason}; {_describe(axes)}")
    return Choice(
        "block", f"{_describe(axes)}: forward by {_forward_kernel(q)}, backward by query blocks"
    )


def choose_thought(q: Tensor, backend: str = "auto") -> Choice:
    """Choose the backend of a `thought_attention` call.

    Raises:
        ValueError: if the requested backend cannot do this call.
    """
    if backend == "dense":
        return Choice("dense", "it was requested")
    if triton := _choose_triton(q, backend):
        return triton
    if backend == "fused" and q.device.type != "cpu":
        raise UsageError(
            f"backend must not be 'fused' on a device other than the CPU, got device {q.device}"
        )
    wide = q.dtype in (torch.float32, torch.float64)
    if backend == "fused" or (backend == "auto" and wide and q.device.type == "cpu"):
        return Choice("fused", "base keys through the fused kernels")
    return Choice("block", f"base keys forward by {_forward_kernel(q)}, backward by query blocks")


def _choose_triton(q: Tensor, backend: str) -> Choice | None:
    """Return the Triton kernels if they were requested, or are the default here and can run."""
    if backend != "triton" and not (backend == "auto" and q.device.type == "cuda"):
        return None
    reason = unsupported_reason(q)
    if reason is None:
        return Choice("triton", f"the tensors are on {q.device}")
    if backend == "triton":
        raise UsageError(f"backend must not be 'triton' here: {reason}, got {q.device}")
    return None


def _forward_kernel(q: Tensor) -> str:
    return "the fused kernel" if q.device.type == "cpu" else "query blocks"


def factor_axis(stop: PairValues, q: Tensor, k: Tensor) -> str:
    """Return the axis along which gradient factors vary: "nothing", "query", "key" or "pair".

    Variation over batch rows is free. Variation over query heads counts as variation by query, or
    by pair, where several query heads share a key head: the gradient of the key sums over them.
    """
    if stop is None or isinstance(stop, bool | float):
        return "nothing"
    if not isinstance(stop, Tensor):
        # A function: it is not evaluated to choose, and may vary by pair.
        return "pair"
    h, t, s = ((1, 1, 1) + tuple(stop.shape))[-3:]
    if t > 1 and s > 1:
        return "pair"
    if s > 1:
        return "key" if h == 1 or k.shape[1] == q.shape[1] else "pair"
    if t > 1:
        return "query"
    return "nothing" if h == 1 or k.shape[1] == q.shape[1] else "query"


def one_query_factor(axes: list[str], stops: list[PairValues]) -> bool:
    """Return True if one factor per query holds for q, k and v: it scales the output's gradient."""
    return axes[0] == "query" and stops[0] is stops[1] is stops[2]


def _factors_leave_sums(axes: dict[str, str], stops: dict[str, PairValues]) -> bool:
    """Return True if no factor must be applied to single pairs.

    dQ_i sums over keys and dK_j, dV_j over queries: a factor that does not vary along the summed
    axis can be taken out of the sum.
    """
    own = {"stop_q": "query", "stop_k": "key", "stop_v": "key"}
    if all(axis in ("nothing", own[name]) for name, axis in axes.items()):
        return True
    return one_query_factor(list(axes.values()), list(stops.values()))


def _describe(axes: dict[str, str]) -> str:
    kinds = {name: axis for name, axis in axes.items() if axis != "nothing"}
    if not kinds:
        return "no factor differs by query or key"
    return ", ".join(f"{name} by {axis}" for name, axis in kinds.items())


def explain(name: str, *args: Any, **settings: Any) -> str:
    """State the backend that the operation `name` uses for these arguments, and the reason.

    Nothing is computed.

    Args:
        name: "stop_grad_attention" or "thought_attention".
        args: The tensors of the call.
        settings: Its keyword arguments.

    Raises:
        ValueError: as the call itself would.
    """
    known: dict[str, Callable[..., Choice]] = {
        "stop_grad_attention": _explain_stop_grad,
        "thought_attention": _explain_thought,
    }
    if name not in known:
        raise UsageError(f"unknown operation {name!r}; choose from {', '.join(known)}")
    choice = known[name](*args, **settings)
    return f"{name} uses the backend {choice.backend!r}: {choice.reason}"


def _explain_stop_grad(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
    **stops: Any,
) -> Choice:
    check_backend(backend, STOP_GRAD_BACKENDS)
    q, k, v = cast_for_autocast(q, k, v)
    unknown = sorted(set(stops) - set(STOP_NAMES))
    if unknown:
        raise UsageTypeError(f"stop_grad_attention takes no argument {unknown[0]!r}")
    stops = {stop: stops.get(stop) for stop in STOP_NAMES}
    check_stop_grad(q, k, v, causal, mask, stops, scale)
    return choose_stop_grad(q, k, stops, backend)


def _explain_thought(
    q: Tensor,
    base_k: Tensor,
    base_v: Tensor,
    chain_k: Tensor,
    chain_v: Tensor,
    *,
    causal: bool = True,
    key_padding: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Choice:
    check_backend(backend, THOUGHT_BACKENDS)
    q, base_k, base_v, chain_k, chain_v = cast_for_autocast(q, base_k, base_v, chain_k, chain_v)
    check_thought(q, base_k, base_v, chain_k, chain_v, causal, key_padding, scale)
    choice = choose_thought(q, backend)
    if choice.backend == "dense":
        return choice
    if not causal:
        return Choice(choice.backend, f"{choice.reason}; all thoughts are keys like the bases")
    number = chain_k.shape[3]
    return Choice(choice.backend, f"{choice.reason}; {number} own thoughts merged by log-sum-exp")
