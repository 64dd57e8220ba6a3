"""Pause: a decoder with learned filler elements after each token, from which it predicts."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.models.base import Model, Thought
from thinkers.models.decoder import Decoder, make_block
from thinkers.models.halt import Halt, check_halt, full_steps
from thinkers.models.reasoning_masks import apply_thought_hook
from thinkers.nn.block import causal_attention
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.nn.layers import Head, Rotary, initialize
from thinkers.nn.tracing import AttentionRecord
from thinkers.ops import masks


class Pause(Model):
    """Decoder with n learned fillers after each token, which predicts from the last filler.

        x = [e_1, f_1 .. f_n, e_2, f_1 .. f_n, ..]; h = blocks(x); logits_i = E norm(h_(i, n))

    n is `num_steps`, 0 for the plain decoder. e_i = E[token_i] and the fillers f_j are vectors
    (c,). Each element has its own position, and attention between elements is causal; h_(i, n) is
    the state of the last filler of token i. The model computes n + 1 times as much for each token,
    in parallel, and hands no state from step to step: the control with the compute of thinking,
    without the recurrence.

    After Goyal et al. 2023, "Think before you speak", https://arxiv.org/abs/2310.02226, where
    copies of one filler follow random tokens or the prompt; here n different ones follow each
    token.
    """

    name = "pause"
    mask_caption = "Each token is followed by its fillers; every element attends to all before it."
    test_variants = ({"num_kv_heads": 2}, {"num_steps": 0})

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        """Settings; `num_steps` is the number of fillers; beyond it the last filler is repeated."""

        least_steps: ClassVar[int] = 0
        takes_steps: ClassVar[bool] = True

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse_unused(("window",), "the model is pause")

    def __init__(self, config: Config):
        super().__init__(config)
        self.embedding = nn.Embedding(self.config.vocab_size, config.dim)
        self.fillers: nn.Parameter | None = None
        if config.num_steps:
            self.fillers = nn.Parameter(0.02 * torch.randn(config.num_steps, config.dim))
        self.rotary = Rotary(config.dim // config.num_heads, config.rotary_base)
        self.blocks = nn.ModuleList(make_block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.head = Head(self.embedding, config.tie_head)
        initialize(self, num_residuals=2 * config.num_layers)

    @property
    def step_counts(self) -> tuple[int, ...]:
        return tuple(sorted({0, *super().step_counts}))

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        lengths: Int[Tensor, " b"] | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
        keep_states: bool = False,
        halt: Halt = None,
    ) -> Thought:
        """Run the model; `states` are those of the fillers, or of the tokens if there are none."""
        check_halt(self, halt)
        steps = self.check_steps(num_steps)
        h = self._run(self.check_tokens(tokens, lengths, prompt_lengths), steps)
        states = h[:, :, min(1, steps) :].transpose(1, 2) if keep_states else None
        return Thought(self._answer(h[:, :, -1]), states, steps=full_steps(tokens, steps))

    def _run(
        self,
        tokens: Int[Tensor, "b t"],
        steps: int,
        cache: KeyValueCache | None = None,
        positions: Int[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b t n c"]:
        """Compute the states of each token and its fillers; positions None means whole rows."""
        p, size = self.config.dropout if self.training else 0.0, steps + 1
        x = F.dropout(self._elements(tokens, steps).flatten(1, 2), p, self.training)
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        table = self.rotary.table(positions, x.dtype)
        for layer, block in enumerate(self.blocks):
            if layer and steps and self._replacement is not None:
                x = apply_thought_hook(x, size, partial(self.thought_hook, step=layer - 1))
            attend = partial(causal_attention, cache=cache, slot=layer, dropout=p, name="elements")
            x = block(x, table, attend)
        return x.unflatten(1, (-1, size))

    def _elements(self, tokens: Int[Tensor, "b t"], steps: int) -> Float[Tensor, "b t n c"]:
        e = self.embedding(tokens)[:, :, None]
        if self.fillers is None:  # trained without fillers: zeros
            f = e.new_zeros(steps, self.config.dim)
        else:
            index = torch.arange(steps, device=tokens.device)
            f = self.fillers[index.clamp(max=len(self.fillers) - 1)]
        return torch.cat([e, f.expand(*tokens.shape, -1, -1)], 2)

    def _answer(self, h: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        return self.head(self.norm(h), self.embedding)

    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        return self._answer(states)

    def mask(self, length: int, num_steps: int | None = None) -> Bool[Tensor, "t s"]:
        return masks.table(masks.causal, length * (self.check_steps(num_steps) + 1))[0]

    def attention(
        self, record: AttentionRecord, length: int, num_steps: int, prompt_length: int | None = None
    ) -> dict[str, Float[Tensor, "k t n"]]:
        """Return the weights of each filler (of tokens if there are none) on tokens and fillers."""
        layers = torch.cat(record.named("elements"))
        by_place = layers.mean(0).unflatten(1, (length, -1)).unflatten(0, (length, -1))
        weights = by_place.transpose(0, 1)[min(1, num_steps) :]
        return {"words": weights[..., 0], "fillers by position": weights[..., 1:].sum(-1)}

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], "FillerCache"]:
        config, like = self.config, self.norm.weight
        heads = config.num_kv_heads or config.num_heads, config.dim // config.num_heads
        cache = FillerCache(num_steps, config.num_layers, lengths, capacity, *heads, like)
        h = self._run(tokens, num_steps, cache)
        return self._answer(h[torch.arange(len(h)), lengths - 1, -1]), cache

    def extend(self, tokens: Int[Tensor, " b"], cache: "FillerCache") -> Float[Tensor, "b v"]:
        h = self._run(tokens[:, None], cache.size - 1, cache, cache.grow())
        return self._answer(h[:, 0, -1])

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        block: Any = self.blocks[0]
        elements = length * (self.check_steps(num_steps) + 1)
        head = 2 * batch_size * length * self.config.dim * self.config.vocab_size
        forward = self.config.num_layers * block.flops(batch_size, elements, elements) + head
        return 3 * forward if training else forward


class FillerCache(KeyValueCache):
    """Keys and values of tokens and their fillers: `size` elements of every token at once.

    Args:
        steps: Fillers of each token.
        lengths: Tokens of each row so far.
        capacity: Largest number of tokens of a row.
    """

    def __init__(
        self,
        steps: int,
        num_layers: int,
        lengths: Int[Tensor, " b"],
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        like: Tensor,
    ):
        self.size = n = steps + 1
        super().__init__(num_layers, n * lengths, n * capacity, num_kv_heads, head_dim, like)

    def grow(self) -> Int[Tensor, "b n"]:
        """Make room for the elements of one more token per row; return their positions."""
        positions = torch.cat([super(FillerCache, self).grow() for _ in range(self.size)], 1)
        # The new elements attend to each other causally, as in whole rows.
        slots = torch.arange(self.used, device=positions.device)
        ahead = slots > slots[-self.size :, None]
        assert self.visible is not None
        self.visible = self.visible.masked_fill(ahead, -torch.inf)
        return positions

    def keep(
        self, layer: int, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s d"], Float[Tensor, "b 1 t s"] | None]:
        if self.visible is None:
            return super().keep(layer, k, v)
        kept = self.data[layer, ..., : self.used, :]
        kept[0, :, :, -self.size :], kept[1, :, :, -self.size :] = k, v
        return kept[0], kept[1], self.visible
