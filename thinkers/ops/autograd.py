"""Autograd helpers of the operations: no second derivative, no autocast inside, eager execution."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P, R = ParamSpec("P"), TypeVar("R")


class _OnceDifferentiable(torch.autograd.Function):
    """The identity, whose own backward raises an error that names the operation."""

    @staticmethod
    def forward(ctx: Any, name: str, number: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(x.view_as(x) for x in tensors[:number])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"{ctx.name} has no second derivative; "
            f"differentiate thinkers.ops.dense.{ctx.name} instead"
        )


def forbid_second_derivative(
    name: str, grads: tuple[Tensor | None, ...], sources: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Return `grads` unchanged, but raise if they are differentiated with respect to `sources`.

    torch's `once_differentiable` would raise too, without the name of the operation.
    """
    # Gradients are enabled inside a backward pass under create_graph=True alone.
    if not torch.is_grad_enabled():
        return grads
    wanted = [x for x in grads if x is not None]
    passed = iter(_OnceDifferentiable.apply(name, len(wanted), *wanted, *sources))
    return tuple(None if x is None else next(passed) for x in grads)


def eager(reason: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that compiled callers run between their graphs.

    Under `fullgraph=True` the compiler raises, and its error holds `reason`. The same as
    `torch.compiler.disable`, which would import the whole compiler with the library.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        disabled: Any = torch._disable_dynamo(function)
        disabled._torchdynamo_disable = True
        disabled._torchdynamo_disable_msg = reason

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return disabled(*args, **kwargs)
            return function(*args, **kwargs)

        return called

    return decorate


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast tensors to the dtype of autocast if it is on, as torch's own attention does."""
    if not isinstance(tensors[0], Tensor):
        return tensors
    kind = tensors[0].device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) if _is_cast(x) else x for x in tensors)


def _is_cast(x: Tensor) -> bool:
    """Return True if autocast casts `x`; the checks reject any other dtype."""
    return isinstance(x, Tensor) and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Return a context in which matrix products keep the dtype of their inputs.

    The kernels choose the dtype of every product themselves: autocast would lower the float32
    products that low precision is accumulated in, and a backward pass may run under another
    autocast setting than its forward pass.
    """
    if not torch.amp.is_autocast_available(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)
