"""Which way a call of an operation would take, in words."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from thinkers.ops import stop_grad, thought
from thinkers.ops.autograd import lowered
from thinkers.ops.stop_grad import Way
from thinkers.ops.validation import check_backend, check_stop_grad, check_thought


def explain(name: str, *args: Any, **settings: Any) -> str:
    """Which way the operation `name` takes for these arguments, and why; nothing is computed.

    Args:
        name: "stop_grad_attention" or "thought_attention".
        args: The tensors of the call.
        settings: Its keyword arguments.

    Raises:
        ValueError: as the call itself would.
    """
    known: dict[str, Callable[..., Way]] = {
        "stop_grad_attention": _stop_grad_way,
        "thought_attention": _thought_way,
    }
    if name not in known:
        raise ValueError(f"unknown operation {name!r}; choose from {', '.join(known)}")
    way = known[name](*args, **settings)
    return f"{name} takes the {way.name!r} way: {way.reason}"


def _stop_grad_way(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
    **stops: Any,
) -> Way:
    check_backend(backend, stop_grad.BACKENDS)
    q, k, v = lowered(q, k, v)
    unknown = sorted(set(stops) - set(stop_grad.NAMES))
    if unknown:
        raise TypeError(f"stop_grad_attention takes no argument {unknown[0]!r}")
    stops = {stop: stops.get(stop) for stop in stop_grad.NAMES}
    check_stop_grad(q, k, v, causal, mask, stops, scale)
    return stop_grad.choose(q, k, stops, backend)


def _thought_way(
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
) -> Way:
    check_backend(backend, thought.BACKENDS)
    q, base_k, base_v, chain_k, chain_v = lowered(q, base_k, base_v, chain_k, chain_v)
    check_thought(q, base_k, base_v, chain_k, chain_v, causal, key_padding, scale)
    way = thought.choose(q, backend)
    if way.name == "dense":
        return way
    if not causal:
        return Way(way.name, f"{way.reason}; all thoughts are keys like the bases")
    return Way(way.name, f"{way.reason}; {chain_k.shape[3]} own thoughts merged by log-sum-exp")
