"""The modern causal transformer: the yardstick that does not think."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import check_int
from thinkers.models import base
from thinkers.models.base import (
    IGNORED,
    Batch,
    Loss,
    Model,
    Thought,
    as_batch,
    correct_rows,
    graded_targets,
    next_token_loss,
)
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.nn.layers import (
    AttentionProjections,
    Rotary,
    SwiGLU,
    attention_flops,
    initialize,
    rotate,
    swiglu_width,
)
from thinkers.nn.tracing import record_weights


class Decoder(Model):
    """x <- x + Attention(norm(x)); x <- x + SwiGLU(norm(x)); logits = E norm(x).

    Root-mean-square norms before each part, rotary positions, no biases, the output tied to the
    embedding, as in LLaMA (Touvron et al. 2023, https://arxiv.org/abs/2302.13971).

    For fair comparisons it can be given the compute of a thinker without the thoughts, by learned
    fillers behind every token (Goyal et al. 2023, https://arxiv.org/abs/2310.02226), and a view of
    the future in training, by further heads (Gloeckle et al. 2024,
    https://arxiv.org/abs/2404.19737).
    """

    name = "decoder"
    test_variants = (
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "hidden": 40},
        {"num_fillers": 2, "num_kv_heads": 2},
        {"num_future": 3},
        {"num_fillers": 1, "num_future": 2},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """`num_steps` is accepted as in every model; a decoder always takes one."""

        num_kv_heads: int | None = None
        """Key and value heads; None is one for each query head."""
        hidden: int | None = None
        """Width of the feed-forward; None is 8/3 of dim."""
        dropout: float = 0.0
        num_fillers: int = 0
        """Learned elements behind every token, read by all that comes later; the next token is
        read from the last of them."""
        num_future: int = 1
        """How many next tokens each position is trained to predict: one by the usual head, each of
        the others by a block of its own on top of all layers, left out of everything else."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_int("num_fillers", self.num_fillers, 0)
            check_int("num_future", self.num_future, 1, self.max_length, "max_length")
            groups = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
            check_int("num_kv_heads", groups, 1, self.num_heads, "num_heads")
            if self.num_heads % groups:
                raise ValueError(
                    f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} "
                    f"and {groups}"
                )
            if self.hidden is not None:
                check_int("hidden", self.hidden, 1)
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    def __init__(self, config: Config):
        super().__init__(config)
        self.embedding = nn.Embedding(self.config.vocab_size, config.dim)
        self.rotary = Rotary(config.dim // config.num_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        if config.num_fillers:
            self.fillers = nn.Parameter(0.02 * torch.randn(config.num_fillers, config.dim))
        self.future = nn.ModuleList(Block(config) for _ in range(config.num_future - 1))
        initialize(self, num_residuals=2 * config.num_layers)

    @property
    def size(self) -> int:
        """Elements of each token: itself and its fillers."""
        return 1 + self.config.num_fillers

    @property
    def step_counts(self) -> tuple[int, ...]:
        """One: a decoder answers after its only pass."""
        return (1,)

    def check_steps(self, num_steps: Any) -> int:
        return 1 if num_steps is None else check_int("num_steps", num_steps, 1, 1, self.name)

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        lengths: Int[Tensor, " b"] | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
        keep_states: bool = False,
    ) -> Thought:
        self.check_steps(num_steps)
        x = self._run(self.check_tokens(tokens, lengths, prompt_lengths))
        return Thought(self._answer(x), x[:, None] if keep_states else None)

    def _run(
        self, tokens: Int[Tensor, "b t"], cache: KeyValueCache | None = None
    ) -> Float[Tensor, "b t c"]:
        """The vectors that tokens are predicted from, after all layers."""
        x = F.dropout(self._elements(tokens), self.config.dropout, self.training)
        table = self.rotary.table(torch.arange(x.shape[1], device=x.device), x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, table, cache, layer)
        return x[:, self.size - 1 :: self.size]

    def _elements(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b s c"]:
        x = self.embedding(tokens)
        if not self.config.num_fillers:
            return x
        fillers = self.fillers.expand(*tokens.shape, -1, -1)
        return torch.cat([x[:, :, None], fillers], 2).flatten(1, 2)

    def _answer(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        return F.linear(self.norm(x), self.embedding.weight)

    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        return self._answer(states)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], KeyValueCache]:
        config = self.config
        groups, head_dim = config.num_kv_heads or config.num_heads, config.dim // config.num_heads
        n = self.size
        shape = (len(self.blocks), n * lengths, n * capacity, groups, head_dim, self.norm.weight)
        cache = FillerCache(n, *shape) if config.num_fillers else KeyValueCache(*shape)
        x = self._run(tokens, cache)
        return self._answer(x[torch.arange(len(x)), lengths - 1]), cache

    def extend(self, tokens: Int[Tensor, " b"], cache: KeyValueCache) -> Float[Tensor, "b v"]:
        x = self._elements(tokens[:, None])
        table = self.rotary.table(cache.grow(), x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, table, cache, layer)
        return self._answer(x[:, -1])

    def counts(self, batch: Batch | Int[Tensor, "b t"]) -> dict[str, int]:
        batch = as_batch(batch, self)
        return {name: int((x != IGNORED).sum()) for name, x in self._targets(batch).items()}

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        """As in every model; the parts `future_2` .. are of the tokens behind the next one."""
        if not self.future:
            return super().loss(batch, num_steps=num_steps, counts=counts)
        self.check_steps(num_steps)
        batch = as_batch(batch, self)
        x = self._run(self.check_tokens(batch.tokens, batch.lengths, batch.prompt_lengths))
        table = self.rotary.table(torch.arange(x.shape[1], device=x.device), x.dtype)
        heads = [x, *(block(x, table) for block in self.future)]
        own, targets = self.counts(batch), self._targets(batch)
        logits = [self._answer(head) for head in heads]
        parts = {
            name: next_token_loss(given, targets[name], (counts or own)[name])
            for name, given in zip(targets, logits, strict=True)
        }
        correct = correct_rows(logits[0], targets["next_token"])
        total = sum(parts.values(), start=torch.zeros((), device=x.device))
        return Loss(total, {name: part.detach() for name, part in parts.items()}, own, correct)

    def _targets(self, batch: Batch) -> dict[str, Int[Tensor, "b t"]]:
        """What each head is compared with, by the name of its part of the loss."""
        targets = graded_targets(batch)
        found = {"next_token": targets}
        for ahead in range(2, self.config.num_future + 1):
            targets = F.pad(targets[:, 1:], (0, 1), value=IGNORED)
            found[f"future_{ahead}"] = targets
        return found

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        self.check_steps(num_steps)
        rows, config = batch_size * length, self.config
        block: Any = self.blocks[0]
        head = 2 * rows * config.dim * config.vocab_size
        forward = config.num_layers * block.flops(batch_size, length * self.size) + head
        future = len(self.future) * (block.flops(batch_size, length) + head)
        return 3 * (forward + future) if training else forward


class FillerCache(KeyValueCache):
    """Keys and values of tokens and their fillers: `size` elements of every token at once."""

    def __init__(self, size: int, *shape: Any):
        super().__init__(*shape)
        self.size = size

    def grow(self) -> Int[Tensor, "b n"]:
        """Make room for the elements of one more token per row; their positions."""
        positions = torch.cat([super(FillerCache, self).grow() for _ in range(self.size)], 1)
        slots = torch.arange(self.used, device=positions.device)
        ahead = slots > slots[-self.size :, None]
        assert self.visible is not None
        self.visible = self.visible.masked_fill(ahead, -torch.inf)
        return positions

    def keep(
        self, layer: int, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.visible is None:
            return super().keep(layer, k, v)
        kept = self.data[layer, ..., : self.used, :]
        kept[0, :, :, -self.size :], kept[1, :, :, -self.size :] = k, v
        return kept[0], kept[1], self.visible


class Block(nn.Module):
    """Attention, then feed-forward, each on the normed stream and added to it."""

    def __init__(self, config: Decoder.Config):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.heads = AttentionProjections(config.dim, config.num_heads, config.num_kv_heads)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.feed_forward = SwiGLU(config.dim, config.hidden or swiglu_width(config.dim))
        self.dropout = config.dropout

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        table: tuple[Tensor, Tensor],
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "b t c"]:
        normed = self.attention_norm(x)
        q = rotate(self.heads.queries(normed), table)
        k, v = self.heads.keys_values(normed)
        k, visible = rotate(k, table), None
        if cache is not None:
            k, v, visible = cache.keep(layer, k, v)
        record_weights("words", q, k, visible, causal=visible is None)
        found = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=visible is None,
            enable_gqa=self.heads.num_kv_heads < q.shape[1],
        )
        x = x + self._drop(self.heads.merge(found))
        return x + self._drop(self.feed_forward(self.feed_forward_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def flops(self, batch: int, length: int) -> int:
        """Of one pass over whole rows."""
        rows, dim = batch * length, self.heads.query.in_features
        attention = attention_flops(batch, length, length, dim)
        return self.heads.flops(rows, rows) + attention + self.feed_forward.flops(rows)
