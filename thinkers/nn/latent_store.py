"""LatentStore: keys and values of inputs and earlier latents, projected once, read many times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function

from thinkers.errors import UsageError
from thinkers.nn.tracing import record_weights


@dataclass(frozen=True)
class Memory:
    """Keys and values that a step attends to, for each layer of the block.

    Args:
        keys: One tensor per layer.
        values: One tensor per layer.
        mask: Added to the attention scores, 0 or -inf; None where nothing is hidden.
    """

    keys: Sequence[Float[Tensor, "b h m d"]]
    values: Sequence[Float[Tensor, "b h m d"]]
    mask: Float[Tensor, "b 1 1 m"] | None = None

    def attended(self, q: Float[Tensor, "b h l d"], layer: int) -> None:
        """Record the attention of these queries, in this layer, inside `record_attention`."""
        record_weights("memory", q, self.keys[layer], self.mask)

    def select(self, rows: Int[Tensor, " r"]) -> "Memory":
        """Return the memory of these rows alone."""
        mask = None if self.mask is None else self.mask[rows]
        return Memory([k[rows] for k in self.keys], [v[rows] for v in self.values], mask)


@runtime_checkable
class Projector(Protocol):
    """A block that projects vectors into the keys and values of its layers."""

    def project(self, x: Float[Tensor, "b m c"]) -> list[Float[Tensor, "b h m d"]]:
        """Return k0, v0, k1, v1, .., the keys and values in every layer."""


class LatentStore:
    """Memory of inputs, knowledge and earlier latents, each projected once.

    Keys and values are held in buffers of fixed capacity. A read returns views of them. The
    gradients of all reads add up in buffers of the same shape, and each write takes its share once
    all later reads have been differentiated: the cost is 2 * capacity vectors per layer, however
    often they are read. A compiler cannot trace this: under torch.compile, every read concatenates
    what was written, and the gradient is that of autograd.

    Args:
        process: Block whose projections are stored.
        capacity: Largest number of vectors that can be written.
    """

    def __init__(self, process: Projector, capacity: int):
        self.process, self.capacity = process, capacity
        self.segments: list[tuple[str, int, int]] = []
        self.used = 0
        self._buffers: _Buffers | None = None
        self._traced: list[Sequence[Tensor]] = []
        self._mask: Tensor | None = None
        self._frozen = (0, 0)
        self._order = torch.zeros(())

    def write(
        self,
        vectors: Float[Tensor, "b m c"],
        kind: str = "latent",
        hidden: Bool[Tensor, "b m"] | None = None,
    ) -> None:
        """Project and store vectors; gradients of later reads reach them.

        Args:
            kind: "input", "knowledge" or "latent", by which `read` selects.
            hidden: True where a vector is padding, which is never attended to.

        Raises:
            ValueError: The store has no room for them.
        """
        self.write_projected(self.process.project(vectors), kind, hidden)

    def write_projected(
        self,
        parts: Sequence[Float[Tensor, "b h m d"]],
        kind: str = "latent",
        hidden: Bool[Tensor, "b m"] | None = None,
    ) -> None:
        """Store keys and values that `Process.project` returned; see `write`."""
        start, stop = self.used, self.used + parts[0].shape[2]
        if stop > self.capacity:
            raise UsageError(
                f"a store of capacity {self.capacity} that holds {start} vectors has no room for "
                f"{stop - start} more; create it with a capacity of at least {stop}"
            )
        if torch.compiler.is_compiling():
            self._traced.append(parts)
        else:
            self._copy(parts, start)
        if hidden is not None and self._mask is None:
            b = parts[0].shape[0]
            self._mask = parts[0].new_zeros(b, 1, 1, self.capacity)
        if hidden is not None and self._mask is not None:
            self._mask[:, 0, 0, start:stop].masked_fill_(hidden, -torch.inf)
        self.segments.append((kind, start, stop))
        self.used = stop

    def _copy(self, parts: Sequence[Float[Tensor, "b h m d"]], start: int) -> None:
        if self._buffers is None:
            self._buffers = _Buffers(parts[0], self.capacity, len(parts))
            self._order = parts[0].new_zeros(())
        order = _Write.apply(self._order, self._buffers, start, *parts)
        # Without gradient, `order` has no graph. Storing it would cut the chain that makes the
        # backward pass of earlier writes wait for later reads.
        if torch.is_grad_enabled():
            self._order = order

    def read(
        self, kinds: Sequence[str] = ("input", "knowledge", "latent"), steps: int | None = None
    ) -> Memory:
        """Return what was written of these kinds; of latents, the last `steps` writes (None: all).

        Raises:
            ValueError: The store holds nothing of these kinds.
        """
        # Chosen in the order of writing, which is that of the spans: sizes that are symbols of a
        # compiler can be compared, but not sorted.
        num_latents = sum(kind == "latent" for kind, _, _ in self.segments)
        skipped = 0 if steps is None else max(0, num_latents - steps)
        chosen, seen = [], 0
        for kind, start, stop in self.segments:
            seen += kind == "latent"
            if kind in kinds and not (kind == "latent" and seen <= skipped):
                chosen.append((start, stop))
        spans = merge_spans(chosen)
        if not spans:
            raise UsageError(
                f"the store holds nothing of the kinds {list(kinds)}; write to it before reading"
            )
        if self._buffers is None:
            parts = self._concatenate(spans)
        else:
            parts = [self._window(i, spans) for i in range(len(self._buffers.data))]
        mask = None
        if self._mask is not None:
            mask = torch.cat([self._mask[..., lo:hi] for lo, hi in spans], -1)
        return Memory(parts[::2], parts[1::2], mask)

    def stop_gradient(self) -> None:
        """Stop gradients of later reads before they reach the latents written so far."""
        latents = [s for s in self.segments if s[0] == "latent"]
        if latents:
            self._frozen = (latents[0][1], latents[-1][2])
        for i, parts in enumerate(self._traced):
            if self.segments[i][0] == "latent":
                self._traced[i] = [x.detach() for x in parts]

    def _window(self, index: int, spans: list[tuple[int, int]]) -> Tensor:
        views = [
            _Window.apply(self._order, self._buffers, index, lo, hi, self._frozen)
            for lo, hi in spans
        ]
        return views[0] if len(views) == 1 else torch.cat(views, 2)

    def _concatenate(self, spans: list[tuple[int, int]]) -> list[Tensor]:
        chosen = [
            parts
            for (_, start, stop), parts in zip(self.segments, self._traced, strict=True)
            if any(lo <= start and stop <= hi for lo, hi in spans)
        ]
        return [torch.cat(same, 2) for same in zip(*chosen, strict=True)]


def merge_spans(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge those of these sorted spans that touch."""
    merged: list[tuple[int, int]] = []
    for start, stop in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged


class _Buffers:
    """Keys and values of a store, and during a backward pass their gradients."""

    def __init__(self, like: Float[Tensor, "b h m d"], capacity: int, number: int):
        b, h, _, d = like.shape
        self.data = [like.new_empty(b, h, capacity, d) for _ in range(number)]
        self._grads: list[Tensor] = []
        self._pass = -1

    def grads(self) -> list[Tensor]:
        """Return the gradient buffers, set to zero at the start of each backward pass.

        A partial pass (`autograd.grad` of some inputs) leaves sums that no write has taken, so
        the buffers are identified by the pass that filled them.
        """
        current = torch._C._current_graph_task_id()
        if self._pass != current or not self._grads:
            self._grads, self._pass = [torch.zeros_like(x) for x in self.data], current
        return self._grads


class _Write(Function):
    """Copy keys and values into a store, and return the token that later reads depend on.

    Autograd runs a node's backward once all its consumers are done. Every read takes the token of
    the last write, and every write that of the write before, so that the backward of a write runs
    after all reads that could have seen it, and takes the gradient that they left.
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
    """A view of a store, whose gradient is added to the store's except in the `frozen` span."""

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
        # `.data` gives the view a version counter of its own: the slots that it shows are never
        # written again, so writes into other slots must not invalidate it for the backward pass.
        return buffers.data[index].data[:, :, lo:hi]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "reads of a LatentStore have no second derivative; differentiate once, without "
                "create_graph"
            )
        (order,) = ctx.saved_tensors
        (lo, hi), (frozen_lo, frozen_hi) = ctx.span, ctx.frozen
        total = ctx.buffers.grads()[ctx.index]
        for start, stop in ((lo, min(hi, frozen_lo)), (max(lo, frozen_hi), hi)):
            if start < stop:
                total[:, :, start:stop] += grad[:, :, start - lo : stop - lo]
        return torch.zeros_like(order), None, None, None, None, None
