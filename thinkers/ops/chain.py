"""Chain: thoughts appended step by step to one buffer, for gradients through many steps.

Concatenating a longer chain at every step keeps n copies in the graph: memory quadratic in n. Here
every thought is written once, and the steps that read it add their gradients into one buffer.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thinkers.errors import UsageError
from thinkers.ops.autograd import cast_for_autocast, eager, forbid_second_derivative, no_autocast
from thinkers.ops.dispatch import THOUGHT_BACKENDS, choose_thought
from thinkers.ops.thought import NAME, ThoughtCall, backward_from_lse, forward_with_lse
from thinkers.ops.validation import check_backend, check_tensor, check_thought


class Chain:
    """Keys and values of the thoughts of every position, for one layer and one forward pass."""

    def __init__(self, max_thoughts: int):
        """Make an empty chain.

        Args:
            max_thoughts: Largest number of thoughts of a position; the first one allocates the
                buffer.
        """
        if isinstance(max_thoughts, bool) or not isinstance(max_thoughts, int) or max_thoughts < 0:
            raise UsageError(f"max_thoughts must be an integer >= 0, got {max_thoughts!r}")
        self.max_thoughts = max_thoughts
        self._buffer: _Buffer | None = None
        self._dependencies: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._dependencies)

    @property
    def k(self) -> Float[Tensor, "b g t n d"]:
        """Keys of the thoughts so far, without gradient."""
        return self._written().view(len(self))[0]

    @property
    def v(self) -> Float[Tensor, "b g t n d"]:
        """Values of the thoughts so far, without gradient."""
        return self._written().view(len(self))[1]

    @eager("a chain of thoughts is written in place, outside of graphs")
    def append(self, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]) -> None:
        """Append the next thought of every position.

        Raises:
            ValueError: if the chain is full, or k or v is not like the first thought.
        """
        if len(self) == self.max_thoughts:
            raise UsageError(
                f"a chain must hold at most {self.max_thoughts} thoughts, got one more"
            )
        k, v = cast_for_autocast(k, v)
        check_tensor("k", k, "b g t d")
        check_tensor("v", v, "b g t d")
        if self._buffer is None:
            self._buffer = _Buffer(k, self.max_thoughts)
        slot = self._buffer.k[..., 0, :]
        for name, x in (("k", k), ("v", v)):
            if (x.shape, x.dtype, x.device) != (slot.shape, slot.dtype, slot.device):
                raise UsageError(
                    f"{name} must be {_describe(slot)} like the first thought's k, "
                    f"got {_describe(x)}"
                )
        self._dependencies.append(_Append.apply(k, v, self._buffer, len(self)))

    @eager("a chain of thoughts is read outside of graphs")
    def attend(
        self,
        q: Float[Tensor, "b h t d"],
        base_k: Float[Tensor, "b g s d"],
        base_v: Float[Tensor, "b g s d"],
        *,
        key_padding: Bool[Tensor, "b s"] | None = None,
        scale: float | None = None,
        backend: str = "auto",
    ) -> Float[Tensor, "b h t d"]:
        """Causal `thought_attention` over this chain, with gradients to its thoughts.

        See `thinkers.ops.thought_attention` for the arguments and errors; the dense backend is not
        available.
        """
        check_backend(backend, tuple(name for name in THOUGHT_BACKENDS if name != "dense"))
        q, base_k, base_v = cast_for_autocast(q, base_k, base_v)
        check_tensor("q", q, "b h t d")
        check_tensor("base_k", base_k, "b g s d", like=q)
        buffer = self._buffer
        if buffer is None:
            buffer = _Buffer(base_k[:, :, base_k.shape[2] - q.shape[2] :], 0)
        k, v = buffer.view(len(self))
        check_thought(q, base_k, base_v, k, v, True, key_padding, scale)
        scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        call = ThoughtCall(True, scale, choose_thought(q, backend).backend)
        return _Attend.apply(q, base_k, base_v, key_padding, buffer, call, *self._dependencies)

    def _written(self) -> "_Buffer":
        if self._buffer is None:
            raise UsageError("a chain must hold a thought before k or v is read, got none")
        return self._buffer


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype} on {x.device}"


class _Buffer:
    """Keys, values and their gradients. It holds no tensor of the graph, so that the graph, which
    holds the buffer, makes no reference cycle with it and is freed without the garbage collector.
    """

    def __init__(self, like: Tensor, room: int):
        shape = (*like.shape[:3], room, like.shape[3])
        self.k, self.v = like.new_empty(shape), like.new_empty(shape)
        self._grads: tuple[Tensor, Tensor] | None = None
        self._pass_id = -1

    def view(self, n: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first n thoughts, (b, g, t, n, d) each."""
        return self.k[..., :n, :], self.v[..., :n, :]

    def write(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Write the keys and values (b, g, t, d) of a thought."""
        # Through .data, which leaves the version counter alone: a view of earlier slots that was
        # saved for a backward pass still holds the same values, and autograd must not refuse it.
        self.k.data[..., slot, :] = k
        self.v.data[..., slot, :] = v

    def grads(self) -> tuple[Tensor, Tensor]:
        """Gradients of keys and values, summed over the steps of the running backward pass."""
        # A retained graph may run backward again, and an earlier pass may have been interrupted:
        # sums of another pass are dropped.
        current = torch._C._current_graph_task_id()
        if self._grads is None or self._pass_id != current:
            wide = torch.float64 if self.k.dtype == torch.float64 else torch.float32
            first, second = (torch.zeros_like(self.k, dtype=wide) for _ in "kv")
            self._grads, self._pass_id = (first, second), current
        return self._grads


class _Append(torch.autograd.Function):
    """Write a thought, and return an empty tensor for its readers to depend on.

    Autograd thereby runs the backward passes of all readers, which add to the buffer of gradients,
    before this one, which takes the sum.
    """

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, buffer: _Buffer, slot: int) -> Tensor:
        ctx.buffer, ctx.slot, ctx.dtype = buffer, slot, k.dtype
        buffer.write(slot, k, v)
        return k.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = (x[..., ctx.slot, :].to(ctx.dtype).contiguous() for x in ctx.buffer.grads())
        return (*forbid_second_derivative(NAME, tuple(found), grads), None, None)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        base_k: Tensor,
        base_v: Tensor,
        padding: Tensor | None,
        buffer: _Buffer,
        call: ThoughtCall,
        *dependencies: Tensor,
    ) -> Tensor:
        with no_autocast(q):
            k, v = buffer.view(len(dependencies))
            out, lse = forward_with_lse(q, base_k, base_v, k, v, padding, call)
        ctx.save_for_backward(q, base_k, base_v, padding, out, lse)
        ctx.buffer, ctx.call, ctx.n = buffer, call, len(dependencies)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, base_k, base_v, padding, out, lse = ctx.saved_tensors
        buffer, n, (grad,) = ctx.buffer, ctx.n, grads
        with torch.no_grad(), no_autocast(q):
            k, v = buffer.view(n)
            chain_grads = None
            if any(ctx.needs_input_grad[6:]):
                grad_k, grad_v = buffer.grads()
                chain_grads = (grad_k[..., :n, :], grad_v[..., :n, :])
            tensors = (q, base_k, base_v, k, v, out, lse, padding)
            needs = ctx.needs_input_grad
            dq, dk, dv = backward_from_lse(grad, *tensors, ctx.call, needs, chain_grads)
        # Empty gradients of the dependencies: the real ones are in the buffer.
        empty = (q.new_zeros(0) if need else None for need in ctx.needs_input_grad[6:])
        dq, dk, dv, *passed = forbid_second_derivative(
            NAME, (dq, dk, dv, *empty), (grad, q, base_k, base_v)
        )
        return (dq, dk, dv, None, None, None, *passed)
