"""The blocks that a thinker is made of: Read, Process, Output, Probe, LatentStore, Disturb.

A small set of latent vectors is the state of a processor; one block, shared by all steps, is the
processor; what it has read and been is its memory. The blocks can be called in any order, in
training and in inference (the idea and its published toy model: github.com/domguia/thinker).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from thinkers.cache import KeyValueCache
from thinkers.layers import Rotary, SwiGLU, attention_flops, rotate, sinusoidal

SelfAttention = Literal["plain", "feed_forward", "none"]


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


class Attention(nn.Module):
    """Projections of one attention; `rank` makes each a product of two thin matrices."""

    def __init__(self, dim: int, num_heads: int, rank: int | None = None):
        super().__init__()
        self.num_heads, self.dim, self.rank = num_heads, dim, rank
        self.query, self.key, self.value, self.output = (
            nn.Linear(dim, dim, bias=False) if rank is None else low_rank(dim, rank)
            for _ in range(4)
        )

    def split(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b h t d"]:
        """Heads as an axis."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, x: Float[Tensor, "b m c"]) -> tuple[Tensor, Tensor]:
        """What these vectors are found by, and what they hold, by head."""
        return self.split(self.key(x)), self.split(self.value(x))

    def merge(self, x: Float[Tensor, "b h t d"]) -> Float[Tensor, "b t c"]:
        """What the heads found, back in the width of the state."""
        return self.output(x.transpose(1, 2).flatten(-2))

    def flops(self, projections: int, rows: int) -> int:
        """Of so many projections of so many vectors."""
        inner = self.dim * self.dim if self.rank is None else 2 * self.dim * self.rank
        return 2 * projections * rows * inner


class Layer(nn.Module):
    """[self-attention, maybe its own feed-forward] -> attention over memory -> feed-forward."""

    def __init__(
        self, dim: int, num_heads: int, hidden: int, rank: int | None, kind: SelfAttention
    ):
        super().__init__()
        if kind != "none":
            self.self_norm = nn.RMSNorm(dim, eps=1e-6)
            self.self_attention = Attention(dim, num_heads, rank)
        if kind == "feed_forward":
            self.self_feed_forward_norm = nn.RMSNorm(dim, eps=1e-6)
            self.self_feed_forward = SwiGLU(dim, hidden)
        self.kind = kind
        self.memory_norm = nn.RMSNorm(dim, eps=1e-6)
        self.memory_attention = Attention(dim, num_heads, rank)
        self.feed_forward_norm = nn.RMSNorm(dim, eps=1e-6)
        self.feed_forward = SwiGLU(dim, hidden)

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        memory: Memory,
        layer: int,
        table: tuple[Tensor, Tensor],
        causal: bool,
        cache: KeyValueCache | None,
        slot: int,
    ) -> Float[Tensor, "b t c"]:
        if self.kind != "none":
            x = x + self._attend_self(self.self_norm(x), table, causal, cache, slot)
        if self.kind == "feed_forward":
            x = x + self.self_feed_forward(self.self_feed_forward_norm(x))
        attention = self.memory_attention
        q = attention.split(attention.query(self.memory_norm(x)))
        found = F.scaled_dot_product_attention(
            q, memory.keys[layer], memory.values[layer], attn_mask=memory.mask
        )
        x = x + attention.merge(found)
        return x + self.feed_forward(self.feed_forward_norm(x))

    def _attend_self(
        self,
        x: Float[Tensor, "b t c"],
        table: tuple[Tensor, Tensor],
        causal: bool,
        cache: KeyValueCache | None,
        slot: int,
    ) -> Float[Tensor, "b t c"]:
        attention = self.self_attention
        q = rotate(attention.split(attention.query(x)), table)
        k, v = attention.keys_values(x)
        k, visible = rotate(k, table), None
        if cache is not None:
            k, v, visible = cache.keep(slot, k, v)
        found = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=causal and visible is None
        )
        return attention.merge(found)


class Process(nn.Module):
    """The processor: x <- block(x, memory), the same block at every step and in the read-out.

    Args:
        num_layers: Depth of the block.
        hidden: Width of its feed-forwards.
        rank: Rank of all attention projections; None is full.
        self_attention: "plain", followed by a "feed_forward" of its own, or "none".
        normed: Whether a step ends with a norm and memory is normed before it is projected, so
            that more steps than were trained do not outgrow the weights. Without it, the published
            block: a last norm only where there are several layers.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        num_layers: int = 1,
        *,
        rank: int | None = None,
        self_attention: SelfAttention = "plain",
        normed: bool = True,
    ):
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.rotary = Rotary(dim // num_heads)
        self.layers = nn.ModuleList(
            Layer(dim, num_heads, hidden, rank, self_attention) for _ in range(num_layers)
        )
        self.memory_norm = nn.RMSNorm(dim, eps=1e-6) if normed else nn.Identity()
        last = normed or num_layers > 1
        self.norm = nn.RMSNorm(dim, eps=1e-6) if last else nn.Identity()

    def project(self, x: Float[Tensor, "b m c"]) -> list[Float[Tensor, "b h m d"]]:
        """Keys and values of these vectors in every layer: k0, v0, k1, v1, .."""
        x, parts = self.memory_norm(x), []
        for layer in self.layers:
            attention: Any = layer.memory_attention
            parts += attention.keys_values(x)
        return parts

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        memory: Memory,
        positions: Int[Tensor, "*b t"] | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        slot: int = 0,
    ) -> Float[Tensor, "b t c"]:
        """One step.

        Args:
            x: Latents, or queries to be answered.
            positions: For the rotations of the self-attention; None is 0, 1, 2, ..
            causal: Whether a vector may attend to those before it alone.
            cache: Keys and values of earlier vectors, kept from `slot` on.
        """
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        table = self.rotary.table(positions, x.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(x, memory, i, table, causal, cache, slot + i)
        return self.norm(x)

    def flops(self, batch: int, vectors: int, memory: int, past: int | None = None) -> int:
        """Of one step of so many vectors over so much memory (projected before).

        Args:
            past: Vectors that the self-attention reads; None is those of this step.
        """
        layer: Any = self.layers[0]
        rows = batch * vectors
        total = layer.memory_attention.flops(2, rows) + layer.feed_forward.flops(rows)
        total += attention_flops(batch, vectors, memory, self.dim)
        if layer.kind != "none":
            total += layer.self_attention.flops(4, rows)
            total += attention_flops(batch, vectors, past or vectors, self.dim)
        if layer.kind == "feed_forward":
            total += layer.self_feed_forward.flops(rows)
        return len(self.layers) * total

    def project_flops(self, rows: int) -> int:
        """Of projecting so many vectors into memory."""
        layer: Any = self.layers[0]
        return len(self.layers) * layer.memory_attention.flops(2, rows)


class Input(nn.Module):
    """What can be read: a subclass turns its kind of input into vectors."""

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b m c"]:
        """The vectors that stand for this input."""
        raise NotImplementedError


class TextInput(Input):
    """Tokens as vectors: sqrt(c) * (embedding + learned position)."""

    def __init__(self, vocab_size: int, max_length: int, dim: int):
        super().__init__()
        self.scale = math.sqrt(dim)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(max_length, dim)

    def forward(  # type: ignore[override]
        self, tokens: Int[Tensor, "b m"], positions: Int[Tensor, "*b m"] | None = None
    ) -> Float[Tensor, "b m c"]:
        """The vectors of these tokens; `positions` None is 0, 1, 2, .."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.scale * (self.embedding(tokens) + self.position(positions))


class FixedTextInput(TextInput):
    """Tokens with stored positions, as the published model has: sqrt(c) * embedding + table."""

    table: Tensor

    def __init__(self, vocab_size: int, max_length: int, dim: int):
        super().__init__(vocab_size, max_length, dim)
        del self.position
        self.register_buffer("table", sinusoidal(torch.arange(max_length), dim, torch.float32))

    def forward(  # type: ignore[override]
        self, tokens: Int[Tensor, "b m"], positions: Int[Tensor, "*b m"] | None = None
    ) -> Float[Tensor, "b m c"]:
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.scale * self.embedding(tokens) + self.table[positions]


class Read:
    """Takes an input into the latent, or into a store for later steps to read.

    It has no weights of its own: whoever owns `process` and `source` owns them.

    Args:
        process: The block that reads.
        source: Turns the input into vectors; None where vectors (latents, say) are given.
    """

    def __init__(self, process: Process, source: Input | None = None):
        self.process = process
        self.source = source

    def vectors(self, *inputs: Tensor) -> Float[Tensor, "b m c"]:
        """The vectors that stand for the input."""
        return inputs[0] if self.source is None else self.source(*inputs)

    def __call__(self, latent: Float[Tensor, "b l c"], *inputs: Tensor) -> Float[Tensor, "b l c"]:
        """The latent after one step that sees this input alone."""
        parts = self.process.project(self.vectors(*inputs))
        return self.process(latent, Memory(parts[::2], parts[1::2]))

    def into(
        self, store: "LatentStore", *inputs: Tensor, hidden: Bool[Tensor, "b m"] | None = None
    ) -> None:
        """Keep this input in `store`; `hidden` marks vectors that are padding."""
        store.write(self.vectors(*inputs), kind="input", hidden=hidden)


class Output:
    """Queries answered from memory by the same block, `steps` times over.

    It has no weights of its own: whoever owns `process` and `embedding` owns them.

    Args:
        embedding: Gives the logits, tied.
        causal: Whether a query may read the queries before it alone, as writing token by token
            needs; otherwise all of them.
    """

    def __init__(
        self, process: Process, embedding: nn.Embedding, steps: int = 1, causal: bool = True
    ):
        self.process = process
        self.embedding = embedding
        self.steps, self.causal = steps, causal

    def __call__(
        self,
        queries: Float[Tensor, "b t c"],
        memory: Memory,
        positions: Int[Tensor, "*b t"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "b t c"]:
        """The states from which the queries are answered."""
        depth = len(self.process.layers)
        for step in range(self.steps):
            queries = self.process(queries, memory, positions, self.causal, cache, step * depth)
        return queries

    def logits(self, states: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        """What each state answers."""
        return F.linear(states, self.embedding.weight)


class Probe(nn.Module):
    """Scalars read off a state: an estimate, a confidence, or scores for the block to run next."""

    def __init__(self, dim: int, num_probes: int = 1):
        super().__init__()
        self.linear = nn.Linear(dim, num_probes)

    def forward(self, states: Float[Tensor, "*b c"]) -> Float[Tensor, "*b p"]:
        return self.linear(states)


class LatentStore:
    """Memory of inputs, knowledge and earlier latents, each projected once and kept.

    Keys and values lie in buffers of fixed capacity. A read returns views of them, and its
    gradient adds up in buffers of the same shape, from which each write takes its share when all
    later reads are done: 2 * capacity vectors per layer, however often they are read.

    Args:
        process: The block whose projections are kept.
        capacity: The most vectors that will be written.
    """

    def __init__(self, process: Process, capacity: int):
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


@dataclass(frozen=True)
class Disturb:
    """Disturbance of latents between steps, so that the block learns to go on from any of them.

    All of it is a function of one key per row, so that it does not depend on how rows are batched.

    Args:
        noise: Standard deviation of the noise added to every latent.
        drop: Probability that a latent is emptied (set to zero).
        replace: Probability that a latent is replaced by noise of the spread of the learned ones.
    """

    noise: float = 0.0
    drop: float = 0.0
    replace: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.noise or self.drop or self.replace)

    def __call__(
        self,
        latent: Float[Tensor, "b l c"],
        keys: Int[Tensor, " b"],
        step: int,
        learned: Float[Tensor, "l c"],
    ) -> Float[Tensor, "b l c"]:
        """The disturbed latent; `step` makes each step's disturbance its own."""
        size = latent.shape[1:]
        if self.replace:
            chosen = uniform(keys, 8 * step, (size[0], 1), latent.dtype) < self.replace
            latent = latent.where(~chosen, like_learned(learned, keys, 8 * step + 1, size[0]))
        if self.drop:
            kept = uniform(keys, 8 * step + 2, (size[0], 1), latent.dtype) >= self.drop
            latent = latent * kept
        if self.noise:
            latent = latent + self.noise * normal(keys, 8 * step + 3, tuple(size), latent.dtype)
        return latent


def like_learned(
    learned: Float[Tensor, "l c"], keys: Int[Tensor, " b"], stream: int, number: int
) -> Float[Tensor, "b l c"]:
    """Random latents with the mean and the deviation of the learned ones."""
    drawn = normal(keys, stream, (number, learned.shape[1]), learned.dtype)
    return learned.mean() + learned.std() * drawn


def uniform(
    keys: Int[Tensor, " b"], stream: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Numbers in [0, 1), the same for a key wherever it stands in the batch (b, *shape).

    Counters hashed by the finaliser of splitmix64 (Steele et al. 2014,
    https://doi.org/10.1145/2660193.2660195).
    """
    count = torch.arange(math.prod(shape), device=keys.device).view(shape)
    seeds = mix(keys + mix(torch.tensor(stream + 1, device=keys.device)))
    bits = mix(seeds.view(-1, *[1] * len(shape)) + count * GOLDEN)
    return ((bits >> 11) & (2**53 - 1)).to(torch.float64).div(2**53).to(dtype)


def normal(
    keys: Int[Tensor, " b"], stream: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Standard normal numbers by the Box-Muller transform of `uniform` ones."""
    u, angle = uniform(keys, stream, (2, *shape), torch.float64).unbind(1)
    return ((-2 * (1 - u).log()).sqrt() * (2 * math.pi * angle).cos()).to(dtype)


GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def mix(x: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """Each number scattered over all 64 bits."""
    x = (x + GOLDEN) ^ (((x + GOLDEN) >> 30) & (2**34 - 1))
    x = x * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))


def low_rank(dim: int, rank: int) -> nn.Sequential:
    """A projection through a narrow waist."""
    return nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False))
