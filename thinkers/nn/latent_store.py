"""LatentStore: what a thinker has read and been, projected once and read back with its gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class Memory:
    """What a step may read: keys and values for each layer of the block.

    Args:
        keys: One tensor per layer.
        values: Likewise.
        mask: Added to the scores; None where all may be read.
    """

    keys: Sequence[Float[Tensor, "b h m d"]]
    values: Sequence[Float[Tensor, "b h m d"]]
    mask: Float[Tensor, "b 1 1 m"] | None = None

    def select(self, rows: Int[Tensor, " b"]) -> "Memory":
        """Only these rows."""
        mask = None if self.mask is None else self.mask[rows]
        return Memory([k[rows] for k in self.keys], [v[rows] for v in self.values], mask)


class Projects(Protocol):
    """A block that can turn vectors into the keys and values of its layers."""

    def project(self, x: Float[Tensor, "b m c"]) -> list[Float[Tensor, "b h m d"]]:
        """k0, v0, k1, v1, .."""


class LatentStore:
    """Memory of inputs, knowledge and earlier latents, each projected once and kept.

    Keys and values lie in buffers of fixed capacity. A read returns views of them, and its
    gradient adds up in buffers of the same shape, from which each write takes its share when all
    later reads are done: 2 * capacity vectors per layer, however often they are read.

    Args:
        process: The block whose projections are kept.
        capacity: The most vectors that will be written.
    """

    def __init__(self, process: Projects, capacity: int):
        self.process, self.capacity = process, capacity
        self.segments: list[tuple[str, int, int]] = []
        self.used = 0
        self._buffers: _Buffers | None = None
        self._mask: Tensor | None = None
        self._frozen = (0, 0)
        self._order = torch.zeros(())

    def write(
        self,
        vectors: Float[Tensor, "b m c"],
        kind: str = "latent",
        hidden: Bool[Tensor, "b m"] | None = None,
    ) -> None:
        """Keep these vectors; gradients of later reads reach them.

        Args:
            kind: What `read` will call them: "input", "knowledge" or "latent".
            hidden: True where a vector is padding that no one may read.
        """
        self.write_projected(self.process.project(vectors), kind, hidden)

    def write_projected(
        self,
        parts: Sequence[Float[Tensor, "b h m d"]],
        kind: str = "latent",
        hidden: Bool[Tensor, "b m"] | None = None,
    ) -> None:
        """Keep keys and values that `Process.project` gave."""
        start, stop = self.used, self.used + parts[0].shape[2]
        if stop > self.capacity:
            raise ValueError(
                f"a store of capacity {self.capacity} cannot take {stop - start} vectors "
                f"beside its {start}"
            )
        if self._buffers is None:
            self._buffers = _Buffers(parts[0], self.capacity, len(parts))
            self._order = parts[0].new_zeros(())
        order = _Write.apply(self._order, self._buffers, start, *parts)
        if torch.is_grad_enabled():  # otherwise earlier writes would fall out of the order
            self._order = order
        if hidden is not None and self._mask is None:
            b = parts[0].shape[0]
            self._mask = parts[0].new_zeros(b, 1, 1, self.capacity)
        if hidden is not None and self._mask is not None:
            self._mask[:, 0, 0, start:stop].masked_fill_(hidden, -torch.inf)
        self.segments.append((kind, start, stop))
        self.used = stop

    def read(
        self, kinds: Sequence[str] = ("input", "knowledge", "latent"), steps: int | None = None
    ) -> Memory:
        """What was written of these kinds; of latents the last `steps` writes, None is all."""
        chosen = [s for s in self.segments if s[0] in kinds and s[0] != "latent"]
        latents = [s for s in self.segments if s[0] in kinds and s[0] == "latent"]
        chosen += latents if steps is None else latents[max(0, len(latents) - steps) :]
        spans = join([(start, stop) for _, start, stop in chosen])
        if self._buffers is None or not spans:
            raise ValueError(f"the store holds nothing of {list(kinds)} to read")
        parts = [self._window(i, spans) for i in range(len(self._buffers.data))]
        mask = None
        if self._mask is not None:
            mask = torch.cat([self._mask[..., lo:hi] for lo, hi in spans], -1)
        return Memory(parts[::2], parts[1::2], mask)

    def stop_gradient(self) -> None:
        """From now on, no gradient of a read reaches the latents written so far."""
        latents = [s for s in self.segments if s[0] == "latent"]
        if latents:
            self._frozen = (latents[0][1], latents[-1][2])

    def _window(self, index: int, spans: list[tuple[int, int]]) -> Tensor:
        views = [
            _Window.apply(self._order, self._buffers, index, lo, hi, self._frozen)
            for lo, hi in spans
        ]
        return views[0] if len(views) == 1 else torch.cat(views, 2)


def join(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same places in as few spans as can be."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


class _Buffers:
    """Keys and values of a store, and during a backward pass their gradients."""

    def __init__(self, like: Float[Tensor, "b h m d"], capacity: int, number: int):
        b, h, _, d = like.shape
        self.data = [like.new_empty(b, h, capacity, d) for _ in range(number)]
        self._grads: list[Tensor] = []
        self._pass = -1

    def grads(self) -> list[Tensor]:
        """Zero at the start of each backward pass, whatever an earlier, partial one left."""
        current = torch._C._current_graph_task_id()
        if self._pass != current or not self._grads:
            self._grads, self._pass = [torch.zeros_like(x) for x in self.data], current
        return self._grads


class _Write(Function):
    """Copies keys and values into a store; the order it returns makes later reads wait for it.

    Backward runs once all those reads are done, and takes the gradient that they left.
    """

    @staticmethod
    def forward(ctx: Any, order: Tensor, buffers: _Buffers, start: int, *parts: Tensor) -> Tensor:
        stop = start + parts[0].shape[2]
        for buffer, part in zip(buffers.data, parts, strict=True):
            buffer[:, :, start:stop] = part
        ctx.buffers, ctx.span = buffers, (start, stop)
        return order.clone()

    @staticmethod
    def backward(ctx: Any, order: Tensor) -> tuple[Tensor | None, ...]:
        lo, hi = ctx.span
        return order, None, None, *(g[:, :, lo:hi].clone() for g in ctx.buffers.grads())


class _Window(Function):
    """A view of a store; its gradient is added to the store's, but for the `frozen` span.

    The view does not share the buffer's version counter: slots that it shows are never written
    again, so later writes into other slots must not invalidate it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        order: Tensor,
        buffers: _Buffers,
        index: int,
        lo: int,
        hi: int,
        frozen: tuple[int, int],
    ) -> Tensor:
        ctx.buffers, ctx.index, ctx.span, ctx.frozen = buffers, index, (lo, hi), frozen
        ctx.save_for_backward(order)
        return buffers.data[index].data[:, :, lo:hi]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("what was read from a store has no second derivative (create_graph)")
        (order,) = ctx.saved_tensors
        (lo, hi), (from_, to) = ctx.span, ctx.frozen
        total = ctx.buffers.grads()[ctx.index]
        for start, stop in ((lo, min(hi, from_)), (max(lo, to), hi)):
            if start < stop:
                total[:, :, start:stop] += grad[:, :, start - lo : stop - lo]
        return torch.zeros_like(order), None, None, None, None, None
