"""What the operations share around autograd: no second derivative, and no autocast inside."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P, R = ParamSpec("P"), TypeVar("R")


class _OneDerivative(torch.autograd.Function):
    """Passes gradients on; differentiating them again is an error that names the operation."""

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


def one_derivative(
    name: str, grads: tuple[Tensor | None, ...], sources: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """`grads`, which raise if they are differentiated with respect to any of `sources`."""
    if not torch.is_grad_enabled():
        return grads
    wanted = [x for x in grads if x is not None]
    passed = iter(_OneDerivative.apply(name, len(wanted), *wanted, *sources))
    return tuple(None if x is None else next(passed) for x in grads)


def eager(reason: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: compiled callers run the function between their graphs, or are told why.

    The same as torch.compiler.disable, which would import the whole compiler with the library.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        between: Any = torch._disable_dynamo(function)
        between._torchdynamo_disable = True
        between._torchdynamo_disable_msg = reason

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return between(*args, **kwargs)
            return function(*args, **kwargs)

        return called

    return decorate


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype of autocast where it is on, as torch's own attention casts them."""
    if not isinstance(tensors[0], Tensor):
        return tensors
    kind = tensors[0].device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) if _casts(x) else x for x in tensors)


def _casts(x: Tensor) -> bool:
    """Whether autocast lowers `x`; what it leaves alone is for the checks to refuse."""
    return isinstance(x, Tensor) and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """A context in which products keep the dtype that they were given."""
    if not torch.amp.is_autocast_available(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)
