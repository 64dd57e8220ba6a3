"""Attention of rows with reasoning tokens, whose pairs scale gradients.

A compiler cannot trace `stop_grad_attention`, which evaluates functions of pairs block by block.
Compiled models call the same kernels through an operator of torch, which the compiler does not
look into: the memory stays linear in the length. Operators take no functions as arguments; these
take the numbers from which the functions of pairs are made.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thinkers.models.reasoning_masks import FACTORS, Stops, at_first, gradient_stops
from thinkers.ops import stop_grad, stop_grad_attention
from thinkers.ops.autograd import cast_for_autocast
from thinkers.ops.dispatch import STOP_NAMES, choose_stop_grad


@dataclass(frozen=True)
class PairStops:
    """Factors of the gradients of all pairs in rows with `steps` reasoning tokens per token.

    Args:
        stride: 1 where all elements are queries, and steps + 1 where the ordinary ones are.
    """

    config: Any
    steps: int
    stride: int = 1

    @property
    def functions(self) -> Stops:
        """The factors as functions of a pair's indices, without those that are all 1."""
        stops = gradient_stops(self.config, self.steps)
        return stops if self.stride == 1 else at_first(self.stride, stops)

    def attend(
        self,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b h s d"],
        v: Float[Tensor, "b h s d"],
        causal: bool,
        mask: Tensor | None,
    ) -> Float[Tensor, "b h t d"]:
        """Compute the attention."""
        if not torch.compiler.is_compiling():
            return stop_grad_attention(q, k, v, causal=causal, mask=mask, **self.functions)
        config, heads = self.config, q.shape[1]
        factors: list[float] = []
        for name in FACTORS:
            value = getattr(config, name)
            factors += value if isinstance(value, tuple) else [value] * heads
        q, k, v = cast_for_autocast(q, k, v)
        sizes = config.window, self.steps, self.stride
        return _attention(q, k, v, mask, causal, config.mode, *sizes, factors)[0]


@torch.library.custom_op("thinkers::reasoning_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    mode: str,
    window: int,
    steps: int,
    stride: int,
    factors: list[float],
) -> tuple[Tensor, Tensor]:
    call = _call(q, k, mask, causal, mode, window, steps, stride, factors)
    out, lse = stop_grad.forward(q, k, v, call)
    return out.contiguous(), lse.contiguous()


@torch.library.custom_op("thinkers::reasoning_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
    mode: str,
    window: int,
    steps: int,
    stride: int,
    factors: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    call = _call(q, k, mask, causal, mode, window, steps, stride, factors)
    found = stop_grad.backward(grad, q, k, v, out, lse, call, (True, True, True))
    first, second, third = (x.contiguous() for x in found if x is not None)
    return first, second, third


def _call(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    causal: bool,
    mode: str,
    window: int,
    steps: int,
    stride: int,
    factors: list[float],
) -> stop_grad.Call:
    """Return the call that these numbers describe."""
    heads = q.shape[1]
    by_name = {name: tuple(factors[i * heads : (i + 1) * heads]) for i, name in enumerate(FACTORS)}
    config = SimpleNamespace(mode=mode, window=window, num_heads=heads, **by_name)
    stops = dict.fromkeys(STOP_NAMES) | PairStops(config, steps, stride).functions
    backend = choose_stop_grad(q, k, stops).backend
    values = (mask, *(stops[name] for name in STOP_NAMES))
    return stop_grad.Call("stop_grad_attention", backend, causal, q.shape[-1] ** -0.5, values)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=wide)


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, mask)


def _differentiate(ctx: Any, grad: Tensor, of_lse: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, mask = ctx.saved_tensors
    found = _attention_backward(grad.contiguous(), *tensors, mask, *ctx.settings)
    return (*found, *(None,) * (1 + len(ctx.settings)))


_attention.register_autograd(_differentiate, setup_context=_save)
