"""Building blocks of Thinker: Read, Process, Output, Probe.

A small set of latent vectors is the state. One block, shared by all steps, is the processor: it
updates the latents by attention over a memory, which holds the input and the latents of earlier
steps. The building blocks can be called in any order, in training and in inference (idea and
published toy model: https://github.com/domguia/thinker).
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.nn.causal_mixing import CausalMixing, TextCache
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.nn.latent_store import LatentStore, Memory
from thinkers.nn.layers import Head, Rotary, SwiGLU, attention_flops, rotate, sinusoidal

SelfAttention = Literal["plain", "feed_forward", "none"]


class Attention(nn.Module):
    """Projections into attention heads and out of them.

    Args:
        rank: Make each projection a product of two matrices of this inner width; None means full.
    """

    def __init__(self, dim: int, num_heads: int, rank: int | None = None):
        super().__init__()
        self.num_heads, self.dim, self.rank = num_heads, dim, rank
        self.query, self.key, self.value, self.output = (
            nn.Linear(dim, dim, bias=False) if rank is None else low_rank(dim, rank)
            for _ in range(4)
        )

    def split(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b h t d"]:
        """Split the last axis into heads."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(
        self, x: Float[Tensor, "b m c"]
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        """Project vectors into keys and values, split into heads."""
        return self.split(self.key(x)), self.split(self.value(x))

    def merge(self, x: Float[Tensor, "b h t d"]) -> Float[Tensor, "b t c"]:
        """Join the heads and project them to the width of the state."""
        return self.output(x.transpose(1, 2).flatten(-2))

    def flops(self, projections: int, rows: int) -> int:
        """Return the floating-point operations of `projections` projections of `rows` vectors."""
        inner = self.dim * self.dim if self.rank is None else 2 * self.dim * self.rank
        return 2 * projections * rows * inner


class Layer(nn.Module):
    """Pre-norm [self-attention [-> feed-forward]] -> attention over memory -> feed-forward."""

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
        memory.attended(q, layer)
        attended = F.scaled_dot_product_attention(
            q, memory.keys[layer], memory.values[layer], attn_mask=memory.mask
        )
        x = x + attention.merge(attended)
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
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=causal and visible is None
        )
        return attention.merge(attended)


class Process(nn.Module):
    """The processor: x <- block(x, memory), the same block at every step and in the read-out.

    Args:
        hidden: Hidden size of the feed-forwards.
        num_layers: Depth of the block.
        rank: Rank of all attention projections; None means full.
        self_attention: "plain"; "feed_forward", with a feed-forward of its own; or "none".
        normed: Normalise memory before it is projected, and the state at the end of a step, so
            that activations do not grow with the number of steps. False is the published block:
            a final norm only where there are several layers.
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
        """Project vectors into the keys and values of every layer: k0, v0, k1, v1, .."""
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
        """Compute one step.

        Args:
            x: Latents, or output queries.
            positions: Rotary positions of the self-attention; None means 0, 1, 2, ..
            causal: Restrict self-attention to the vector itself and those before it.
            cache: Keys and values of earlier vectors in the self-attention; layer i of this call
                has number `slot` + i in it.
        """
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        table = self.rotary.table(positions, x.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(x, memory, i, table, causal, cache, slot + i)
        return self.norm(x)

    def flops(self, batch: int, vectors: int, memory: int, past: int | None = None) -> int:
        """Return the floating-point operations of one step; memory is projected already.

        Args:
            vectors: Vectors per row that go through the block.
            memory: Vectors per row in memory.
            past: Vectors that the self-attention reads; None means those of this step.
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
        """Return the floating-point operations of projecting `rows` vectors into memory."""
        layer: Any = self.layers[0]
        return len(self.layers) * layer.memory_attention.flops(2, rows)


class Input(nn.Module):
    """Base class of inputs; a subclass embeds its kind of input as vectors."""

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b m c"]:
        """Embed an input, m vectors per row."""
        raise NotImplementedError

    def count(self, x: Tensor) -> int:
        """Return the number of vectors of each row of this input."""
        return x.shape[1]

    def flops(self, x: Tensor) -> int:
        """Return the floating-point operations of embedding this input; matrix products count."""
        return 0


class TextInput(Input):
    """Text: mix(sqrt(c) * (embedding + learned position)).

    Args:
        mix: Lets each token read those before it; None leaves the embedded tokens as they are.
    """

    def __init__(self, vocab_size: int, max_length: int, dim: int, mix: CausalMixing | None = None):
        super().__init__()
        self.scale = math.sqrt(dim)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(max_length, dim)
        self.mix = mix

    def embed(
        self, tokens: Int[Tensor, "b m"], positions: Int[Tensor, "*b m"]
    ) -> Float[Tensor, "b m c"]:
        """Embed tokens at these positions, each by itself."""
        return self.scale * (self.embedding(tokens) + self.position(positions))

    def forward(  # type: ignore[override]
        self,
        tokens: Int[Tensor, "b m"],
        positions: Int[Tensor, "*b m"] | None = None,
        section: int | None = None,
        past: TextCache | None = None,
    ) -> Float[Tensor, "b m c"]:
        """Embed and mix a text; see `CausalMixing`. `positions` None means 0, 1, 2, .."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed(tokens, positions)
        return x if self.mix is None else self.mix(x, positions, section, past)

    def flops(self, batch: int, length: int) -> int:  # type: ignore[override]
        """Return the floating-point operations of reading texts of this length."""
        return 0 if self.mix is None else self.mix.flops(batch, length)


class FixedTextInput(TextInput):
    """Text of the published model: sqrt(c) * embedding + a stored table of positions.

    The table is a buffer, since the published file stores it.
    """

    table: Tensor

    def __init__(self, vocab_size: int, max_length: int, dim: int):
        super().__init__(vocab_size, max_length, dim)
        del self.position
        self.register_buffer("table", sinusoidal(torch.arange(max_length), dim, torch.float32))

    def embed(
        self, tokens: Int[Tensor, "b m"], positions: Int[Tensor, "*b m"]
    ) -> Float[Tensor, "b m c"]:
        return self.scale * self.embedding(tokens) + self.table[positions]


class Read:
    """Read an input into the latents, or into a store for later steps.

    Not an `nn.Module`: the weights belong to `process` and `source`.

    Args:
        process: Block whose steps read the input.
        source: Embeds the input; None where vectors (latents, for example) are given.
    """

    def __init__(self, process: Process, source: Input | None = None):
        self.process = process
        self.source = source

    def vectors(self, *inputs: Any) -> Float[Tensor, "b m c"]:
        """Embed the input, m vectors per row."""
        return inputs[0] if self.source is None else self.source(*inputs)

    def project(self, *inputs: Any) -> list[Float[Tensor, "b h m d"]]:
        """Embed the input, and project it into the keys and values of every layer."""
        return self.process.project(self.vectors(*inputs))

    def __call__(self, latent: Float[Tensor, "b l c"], *inputs: Any) -> Float[Tensor, "b l c"]:
        """Return the latents after one step whose memory is this input alone."""
        parts = self.project(*inputs)
        return self.process(latent, Memory(parts[::2], parts[1::2]))

    def into(
        self, store: LatentStore, *inputs: Tensor, hidden: Bool[Tensor, "b m"] | None = None
    ) -> None:
        """Write the input into `store`; `hidden` is True at padding."""
        store.write(self.vectors(*inputs), kind="input", hidden=hidden)


class Output:
    """Read out memory: output queries pass `steps` times through the block of the processor.

    Not an `nn.Module`: the weights belong to `process`, `embedding` and `head`.

    Args:
        embedding: Token embedding, whose matrix a tied head uses.
        head: Output layer; None ties it to the embedding.
        causal: Restrict each query to itself and the queries before it, as generation token by
            token requires.
    """

    def __init__(
        self,
        process: Process,
        embedding: nn.Embedding,
        steps: int = 1,
        causal: bool = True,
        head: Head | None = None,
    ):
        self.process = process
        self.embedding = embedding
        self.head = Head(embedding, tied=True) if head is None else head
        self.steps, self.causal = steps, causal

    def __call__(
        self,
        queries: Float[Tensor, "b t c"],
        memory: Memory,
        positions: Int[Tensor, "*b t"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Return the output states of the queries."""
        depth = len(self.process.layers)
        for step in range(self.steps):
            queries = self.process(queries, memory, positions, self.causal, cache, step * depth)
        return queries

    def logits(self, states: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        """Compute the logits of output states."""
        return self.head(states, self.embedding)


class Probe(nn.Module):
    """Linear read-out of scalars from a state, such as an estimate or a confidence."""

    def __init__(self, dim: int, num_probes: int = 1):
        super().__init__()
        self.linear = nn.Linear(dim, num_probes)

    def forward(self, states: Float[Tensor, "*b c"]) -> Float[Tensor, "*b p"]:
        return self.linear(states)


def low_rank(dim: int, rank: int) -> nn.Sequential:
    """Build a bias-free projection of this rank, as two matrices."""
    return nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False))
