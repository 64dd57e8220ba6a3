"""The modern causal transformer: the yardstick that does not think."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.cache import KeyValueCache
from thinkers.checks import check_int
from thinkers.layers import Heads, Rotary, SwiGLU, attention_flops, rotate, swiglu_width
from thinkers.models import base
from thinkers.models.base import Model, Thought, initialize


class Decoder(Model):
    """x <- x + Attention(norm(x)); x <- x + SwiGLU(norm(x)); logits = E norm(x).

    Root-mean-square norms before each part, rotary positions, no biases, the output tied to the
    embedding, as in LLaMA (Touvron et al. 2023, https://arxiv.org/abs/2302.13971).
    """

    name = "decoder"
    test_variants = ({"num_kv_heads": 2}, {"num_kv_heads": 1, "hidden": 40})

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """`num_steps` is accepted as in every model; a decoder always takes one."""

        num_kv_heads: int | None = None
        """Key and value heads; None is one for each query head."""
        hidden: int | None = None
        """Width of the feed-forward; None is 8/3 of dim."""
        dropout: float = 0.0

        def __post_init__(self) -> None:
            super().__post_init__()
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
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.rotary = Rotary(config.dim // config.num_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        initialize(self, num_residuals=2 * config.num_layers)

    @property
    def step_counts(self) -> tuple[int, ...]:
        """One: a decoder answers after its only pass."""
        return (1,)

    def check_steps(self, num_steps: Any) -> int:
        return 1 if num_steps is None else check_int("num_steps", num_steps, 1, 1, self.name)

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
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
        x = F.dropout(self.embedding(tokens), self.config.dropout, self.training)
        table = self.rotary.table(torch.arange(tokens.shape[1], device=x.device), x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, table, cache, layer)
        return x

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
        weight = self.norm.weight
        cache = KeyValueCache(len(self.blocks), lengths, capacity, groups, head_dim, weight)
        x = self._run(tokens, cache)
        return self._answer(x[torch.arange(len(x)), lengths - 1]), cache

    def extend(self, tokens: Int[Tensor, " b"], cache: KeyValueCache) -> Float[Tensor, "b v"]:
        x = self.embedding(tokens[:, None])
        table = self.rotary.table(cache.grow(), x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, table, cache, layer)
        return self._answer(x[:, 0])

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        self.check_steps(num_steps)
        rows, config = batch_size * length, self.config
        block: Any = self.blocks[0]
        layers = config.num_layers * block.flops(batch_size, length)
        forward = layers + 2 * rows * config.dim * config.vocab_size
        return 3 * forward if training else forward


class Block(nn.Module):
    """Attention, then feed-forward, each on the normed stream and added to it."""

    def __init__(self, config: Decoder.Config):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.heads = Heads(config.dim, config.num_heads, config.num_kv_heads)
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
