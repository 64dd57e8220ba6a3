"""The modern causal transformer: the baseline, which answers after one pass."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import added, check_int
from thinkers.errors import UsageError
from thinkers.models import base
from thinkers.models.base import Model, Thought
from thinkers.models.halt import Halt, check_halt, full_steps
from thinkers.models.positions import Positions, find_positions, in_order
from thinkers.nn.block import Block, run_blocks
from thinkers.nn.kv_cache import KeepsKeys, KeyValueCache
from thinkers.nn.layers import Head, Rotary, initialize
from thinkers.nn.window import WholeRows, grow, make_cache


class Decoder(Model):
    """Causal transformer with one pass: the baseline.

        h = blocks(E[tokens]); logits = E norm(h)
        block: x <- x + Attention(norm(x)); x <- x + SwiGLU(norm(x))

    E (v, c) is the embedding, to which the output is tied, and h is (b, t, c). Norms are
    root-mean-square norms, positions are rotary, and there are no biases, as in LLaMA (Touvron et
    al. 2023, https://arxiv.org/abs/2302.13971). With `window` a token attends to those before it
    whose position, coupled or in order, is at most so far away: see `thinkers.nn.window`.
    """

    name = "decoder"
    takes_positions = True
    test_variants = ({"num_kv_heads": 2}, {"num_kv_heads": 1, "hidden": 40, "window": 3})

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """Settings; `num_steps` and `max_steps`, which every model accepts, become 1."""

        num_kv_heads: int | None = None
        """Key and value heads; None means one for each query head."""
        hidden: int | None = None
        """Width of the feed-forward; None means 8/3 of dim."""
        rotary_base: float = added(10_000.0)
        """Base b of the frequencies b^(-2i/d). Distances beyond those of training resemble short
        ones where a frequency completes a turn there: a larger base leaves fewer such."""
        window: int | None = added(None)
        """Attend only to tokens whose position is at most so far away; None means to all before."""
        dropout: float = 0.0

        takes_steps: ClassVar[bool] = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1 < self.rotary_base < math.inf:
                raise UsageError(f"rotary_base must be above 1 and finite, got {self.rotary_base}")
            if self.window is not None:
                check_int("window", self.window, 1)
            groups = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
            check_int("num_kv_heads", groups, 1, self.num_heads, "num_heads")
            if self.num_heads % groups:
                raise UsageError(
                    f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} "
                    f"and {groups}"
                )
            if self.hidden is not None:
                check_int("hidden", self.hidden, 1)
            if not 0 <= self.dropout < 1:
                raise UsageError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    def __init__(self, config: Config):
        super().__init__(config)
        self.embedding = nn.Embedding(self.config.vocab_size, config.dim)
        self.rotary = Rotary(config.dim // config.num_heads, config.rotary_base)
        self.blocks = nn.ModuleList(make_block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.head = Head(self.embedding, config.tie_head)
        initialize(self, num_residuals=2 * config.num_layers)

    @property
    def shard_units(self) -> tuple[nn.Module, ...]:
        return (*self.blocks,)

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        lengths: Int[Tensor, " b"] | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
        keep_states: bool = False,
        positions: Positions | None = None,
        halt: Halt = None,
    ) -> Thought:
        check_halt(self, halt)
        steps = self.check_steps(num_steps)
        tokens = self.check_tokens(tokens, lengths, prompt_lengths)
        h = self._run(tokens, positions=find_positions(self, positions, tokens, lengths))
        states = h[:, None] if keep_states else None
        return Thought(self._answer(h), states, steps=full_steps(tokens, steps))

    def _run(
        self,
        tokens: Int[Tensor, "b t"],
        cache: KeyValueCache | None = None,
        positions: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Compute the states after all blocks; positions None means those of whole rows."""
        p = self.config.dropout if self.training else 0.0
        x = F.dropout(self.embedding(tokens), p, self.training)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=x.device)
        keeps: KeepsKeys | None = cache
        if cache is None and self.config.window is not None:
            keeps = WholeRows(positions, self.config.window, x)
        return run_blocks(self.blocks, x, self.rotary.table(positions, x.dtype), keeps, dropout=p)

    def _answer(self, h: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        return self.head(self.norm(h), self.embedding)

    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        return self._answer(states)

    def mask(self, length: int, num_steps: int | None = None) -> Bool[Tensor, "t s"]:
        seen = super().mask(length, num_steps)
        return seen if self.config.window is None else seen.triu(-self.config.window)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
        *,
        positions: Int[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b v"], KeyValueCache]:
        config, like = self.config, self.norm.weight
        heads = config.num_kv_heads or config.num_heads, config.dim // config.num_heads
        places = in_order(tokens) if positions is None else positions
        cache = make_cache(
            config.num_layers, places, lengths, capacity, *heads, like, config.window
        )
        h = self._run(tokens, cache, positions)
        return self._answer(h[torch.arange(len(h)), lengths - 1]), cache

    def extend(
        self,
        tokens: Int[Tensor, " b"],
        cache: KeyValueCache,
        *,
        positions: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b v"]:
        return self._answer(self._run(tokens[:, None], cache, grow(cache, positions))[:, 0])

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        self.check_steps(num_steps)
        block: Any = self.blocks[0]
        head = 2 * batch_size * length * self.config.dim * self.config.vocab_size
        forward = self.config.num_layers * block.flops(batch_size, length, length) + head
        return 3 * forward if training else forward


def make_block(config: Decoder.Config) -> Block:
    """Build one layer of a decoder of this size."""
    return Block(config.dim, config.num_heads, config.hidden, config.num_kv_heads, config.dropout)
