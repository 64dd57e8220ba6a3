"""Trains of thought that grow step by step in one buffer, for models that learn through many steps.

Concatenating a longer chain at every step keeps n copies of it on the tape: memory quadratic in n.
Here every thought is written once, and the steps that read it add their gradients into one buffer.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thinkers.ops.autograd import eager, lowered, no_autocast, one_derivative
from thinkers.ops.thought import BACKENDS, NAME, Reading, choose, read, read_back
from thinkers.ops.validation import check_backend, check_tensor, check_thought


class Chain:
    """The keys and values of the thoughts of every position, for one layer and one forward pass."""

    def __init__(self, max_thoughts: int):
        """A chain of no thoughts with room for `max_thoughts`."""
        if isinstance(max_thoughts, bool) or not isinstance(max_thoughts, int) or max_thoughts < 0:
            raise ValueError(f"max_thoughts must be an integer >= 0, got {max_thoughts!r}")
        self.max_thoughts = max_thoughts
        self._store: _Store | None = None
        self._tickets: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def k(self) -> Float[Tensor, "b g t n d"]:
        """The keys written so far, without gradient."""
        return self._stored().view(len(self))[0]

    @property
    def v(self) -> Float[Tensor, "b g t n d"]:
        """The values written so far, without gradient."""
        return self._stored().view(len(self))[1]

    @eager("a chain of thoughts is written in place between graphs")
    def append(self, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]) -> None:
        """Write the next thought of every position."""
        if len(self) == self.max_thoughts:
            raise ValueError(
                f"a chain must hold at most {self.max_thoughts} thoughts, got one more"
            )
        k, v = lowered(k, v)
        check_tensor("k", k, "b g t d")
        check_tensor("v", v, "b g t d")
        if self._store is None:
            self._store = _Store(k, self.max_thoughts)
        slot = self._store.k[..., 0, :]
        for name, x in (("k", k), ("v", v)):
            if (x.shape, x.dtype, x.device) != (slot.shape, slot.dtype, slot.device):
                raise ValueError(
                    f"{name} must be {_kind(slot)} like the first thought's k, got {_kind(x)}"
                )
        self._tickets.append(_Write.apply(k, v, self._store, len(self)))

    @eager("a chain of thoughts is read between graphs")
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
        """What causal `thought_attention` gives over this chain, with gradients to its thoughts."""
        check_backend(backend, tuple(name for name in BACKENDS if name != "dense"))
        q, base_k, base_v = lowered(q, base_k, base_v)
        check_tensor("q", q, "b h t d")
        check_tensor("base_k", base_k, "b g s d", like=q)
        store = self._store
        if store is None:
            store = _Store(base_k[:, :, base_k.shape[2] - q.shape[2] :], 0)
        k, v = store.view(len(self))
        check_thought(q, base_k, base_v, k, v, True, key_padding, scale)
        scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        reading = Reading(True, scale, choose(q, backend).name)
        return _Attend.apply(q, base_k, base_v, key_padding, store, reading, *self._tickets)

    def _stored(self) -> "_Store":
        if self._store is None:
            raise ValueError("a chain must hold a thought before it is looked at, got none")
        return self._store


def _kind(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype} on {x.device}"


class _Store:
    """The buffers of a chain. It knows no tensor of the graph, so that graph and chain can die."""

    def __init__(self, like: Tensor, room: int):
        shape = (*like.shape[:3], room, like.shape[3])
        self.k, self.v = like.new_empty(shape), like.new_empty(shape)
        self._grads: tuple[Tensor, Tensor] | None = None
        self._pass = -1

    def view(self, n: int) -> tuple[Tensor, Tensor]:
        """The first n thoughts."""
        return self.k[..., :n, :], self.v[..., :n, :]

    def write(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Put a thought into its place."""
        # Earlier steps keep views of the slots before, which stay: their versions must not change.
        self.k.data[..., slot, :] = k
        self.v.data[..., slot, :] = v

    def grads(self) -> tuple[Tensor, Tensor]:
        """Where the steps of the backward pass that is running add up their gradients."""
        current = torch._C._current_graph_task_id()
        if self._grads is None or self._pass != current:
            wide = torch.float64 if self.k.dtype == torch.float64 else torch.float32
            first, second = (torch.zeros_like(self.k, dtype=wide) for _ in "kv")
            self._grads, self._pass = (first, second), current
        return self._grads


class _Write(torch.autograd.Function):
    """Writes a thought, and returns a ticket: its readers go backwards before it does."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, store: _Store, slot: int) -> Tensor:
        ctx.store, ctx.slot, ctx.dtype = store, slot, k.dtype
        store.write(slot, k, v)
        return k.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = (x[..., ctx.slot, :].to(ctx.dtype).contiguous() for x in ctx.store.grads())
        return (*one_derivative(NAME, tuple(found), grads), None, None)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        base_k: Tensor,
        base_v: Tensor,
        hidden: Tensor | None,
        store: _Store,
        reading: Reading,
        *tickets: Tensor,
    ) -> Tensor:
        with no_autocast(q):
            k, v = store.view(len(tickets))
            out, lse = read(q, base_k, base_v, k, v, hidden, reading)
        ctx.save_for_backward(q, base_k, base_v, hidden, out, lse)
        ctx.store, ctx.reading, ctx.n = store, reading, len(tickets)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, base_k, base_v, hidden, out, lse = ctx.saved_tensors
        store, n, (grad,) = ctx.store, ctx.n, grads
        with torch.no_grad(), no_autocast(q):
            k, v = store.view(n)
            into = None
            if any(ctx.needs_input_grad[6:]):
                into_k, into_v = store.grads()
                into = (into_k[..., :n, :], into_v[..., :n, :])
            tensors = (q, base_k, base_v, k, v, out, lse, hidden)
            needs = ctx.needs_input_grad
            dq, dk, dv = read_back(grad, *tensors, ctx.reading, needs, into)
        used = (q.new_zeros(0) if need else None for need in ctx.needs_input_grad[6:])
        dq, dk, dv, *passed = one_derivative(NAME, (dq, dk, dv, *used), (grad, q, base_k, base_v))
        return (dq, dk, dv, None, None, None, *passed)
