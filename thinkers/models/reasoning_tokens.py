"""Self-reasoning tokens: after every token some that are learned for the far future alone."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import check_int
from thinkers.models import base
from thinkers.models.base import Model, Thought
from thinkers.models.batch import Batch, Loss, as_batch, correct_rows, next_token_loss
from thinkers.models.reasoning_masks import (
    Factor,
    Stops,
    apply_thought_hook,
    as_factor,
    asked,
    seen,
    stopped,
)
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.nn.layers import Rotary, SwiGLU, attention_flops, initialize, rotate, swiglu_width
from thinkers.nn.tracing import AttentionRecord, record_weights
from thinkers.ops import masks, stop_grad_attention

HIDDEN = 2**62
FACTORS = ("near_query", "near_key", "near_value", "far_query", "far_key", "far_value")
CHOICES = {
    "variant": ("published", "modern"),
    "mode": ("stop_grad", "mask"),
    "prediction": ("ordinary", "all"),
}


class ReasoningTokens(Model):
    """x = [e_1, r_1, .., r_n, e_2, r_1, .., r_n, ..]; a decoder over x; logits from the e alone.

    All elements of a time step share its position. A reasoning token is near to the queries of
    the `window` time steps after its own: these see it, but give it no gradient (or, in mask
    mode, do not see it), so that it is optimised by what comes later than the next tokens.

    Idea: F. Bonetto 2024, https://reasoning-tokens.ghost.io/reasoning-tokens/. Published form:
    https://github.com/lucidrains/self-reasoning-tokens-pytorch, a decoder with norms
    sqrt(c) g x / |x|, GELUs, learned positions and an output of its own; ours is `Decoder`.
    """

    name = "reasoning_tokens"
    test_variants = (
        {"mode": "mask"},
        {"prediction": "all", "window": 2, "far_key": 0.5},
        {"variant": "published", "mode": "mask", "prediction": "all", "head_dim": 7},
        {"variant": "published", "window": 1, "num_learned": 1},
        {"num_steps": 0},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """`num_steps` is the number of reasoning tokens after every token; 0 is the decoder.

        The gradient that a pair of a query and a reasoning token gives to the query, the key and
        the value is multiplied by `near_..` or `far_..`: a number for all heads, or one for each.
        """

        variant: Literal["published", "modern"] = "modern"
        mode: Literal["stop_grad", "mask"] = "stop_grad"
        """What happens to near pairs: seen, their gradients multiplied; or not seen at all."""
        window: int = 4
        """For how many time steps a reasoning token is near."""
        prediction: Literal["ordinary", "all"] = "ordinary"
        """Which elements the loss trains to predict the next token."""
        num_learned: int | None = None
        """Rows of reasoning tokens, the last of which serves beyond them; None is num_steps.

        They are learned unless num_steps is 0.
        """
        head_dim: int | None = None
        """Width of a head; None is dim / num_heads."""
        hidden: int | None = None
        """Width of the feed-forward; None is 8/3 of dim, 4 in the published variant."""
        near_query: Factor = 1.0
        near_key: Factor = 0.0
        near_value: Factor = 0.0
        far_query: Factor = 1.0
        far_key: Factor = 1.0
        far_value: Factor = 1.0

        least_steps: ClassVar[int] = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            check_int("window", self.window, 0)
            for name, allowed in CHOICES.items():
                value = getattr(self, name)
                if value not in allowed:
                    raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
            if self.num_learned is None:
                object.__setattr__(self, "num_learned", self.num_steps)
            check_int("num_learned", self.num_learned, min(1, self.num_steps))
            for name in ("hidden", "head_dim"):
                if getattr(self, name) is not None:
                    check_int(name, getattr(self, name), 1)
            for name in FACTORS:
                object.__setattr__(self, name, as_factor(name, getattr(self, name), self.num_heads))

        def check_heads(self) -> None:
            if self.head_dim is None:
                super().check_heads()

    mask_caption = (
        "Each word is followed by its thoughts, who may be hidden from those that come next."
    )
    by_position = ("reasoning",)
    reasoning: Tensor | None

    def __init__(self, config: Config):
        super().__init__(config)
        published, dim = config.variant == "published", config.dim
        self.embedding = nn.Embedding(self.config.vocab_size, dim)
        rows = 0.02 * torch.randn(config.num_learned or 0, dim)
        if config.num_steps:
            self.reasoning = nn.Parameter(rows)
        else:
            self.register_buffer("reasoning", rows if len(rows) else None)
        if published:
            self.positions = nn.Embedding(self.config.max_length, dim)
        else:
            self.rotary = Rotary(config.head_dim or dim // config.num_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = norm(config)
        self.head = nn.Linear(dim, self.config.vocab_size, bias=False) if published else None
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
    ) -> Thought:
        """As in every model; the reasoning tokens' states are `extra["reasoning"]` (b, n, t, c)."""
        steps = self.check_steps(num_steps)
        tokens = self.check_tokens(tokens, lengths, prompt_lengths)
        x = self._run(tokens, steps, whole=keep_states)
        logits = self._answer(x[:, :, 0])
        if not keep_states:
            return Thought(logits)
        # A position is read from its ordinary element, which no reasoning token can change.
        states = x[:, None, :, 0].expand(-1, max(1, steps), -1, -1)
        return Thought(logits, states, {"reasoning": x[:, :, 1:].transpose(1, 2)})

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Any = None,
    ) -> Loss:
        """As in every model; where all predict, a token's loss is the mean over its elements."""
        if self.config.prediction == "ordinary":
            return super().loss(batch, num_steps=num_steps, counts=counts)
        batch, steps = as_batch(batch, self), self.check_steps(num_steps)
        own, targets = self.count_terms(batch), batch.targets
        logits = self.read_out(self._run(batch.tokens, steps, whole=True))
        terms = (counts or own)["next_token"] * (steps + 1)
        wide = targets.repeat_interleave(steps + 1, 1)
        total = next_token_loss(logits.flatten(1, 2), wide, terms)
        correct = correct_rows(logits[:, :, 0], targets)
        return Loss(total, {"next_token": total.detach()}, own, correct)

    def _run(
        self,
        tokens: Int[Tensor, "b t"],
        steps: int,
        cache: "ReasoningCache | None" = None,
        whole: bool = False,
    ) -> Float[Tensor, "b t n c"]:
        """The vectors of the ordinary elements after the last block; if `whole`, of all.

        Otherwise the last block serves reasoning tokens no further than as keys and values.
        """
        size, t, config = steps + 1, tokens.shape[1], self.config
        x = self._elements(tokens, steps)
        if cache is not None and cache.visible is not None:
            times, visible = cache.lengths[:, None] - 1, cache.visible
        else:
            times, visible = torch.arange(t, device=x.device), None
            if steps and config.mode == "mask":
                visible = masks.table(seen(config, steps), t * size, device=x.device)[0]
        stops = stopped(config, steps) if cache is None and torch.is_grad_enabled() else {}
        if config.variant == "published":
            # Padded columns may lie beyond the last position.
            rows = self.positions(times.clamp(max=config.max_length - 1))
            x, table = x + rows.unsqueeze(-2), None
        else:
            table = self.rotary.table(times.repeat_interleave(size, -1), x.dtype)
        x, stride = x.flatten(1, 2), 1
        for layer, block in enumerate(self.blocks):
            if steps and layer and self._replacement is not None:
                x = apply_thought_hook(x, size, partial(self.thought_hook, step=layer - 1))
            if steps and not whole and layer == config.num_layers - 1:
                visible, stops = asked(size, t, visible, stops, x.device)
                stride = size
            x = block(x, table, visible, stops, stride, cache, layer)
        return x.unflatten(1, (t, size // stride))

    def mask(self, length: int, num_steps: int | None = None) -> Bool[Tensor, "t s"]:
        steps = self.check_steps(num_steps)
        return masks.table(seen(self.config, steps), length * (steps + 1))[0]

    def attention(
        self, watch: AttentionRecord, length: int, num_steps: int, prompt_length: int | None = None
    ) -> dict[str, Float[Tensor, "k t n"]]:
        """What the words read, in the one pass that there is; the same at every step."""
        weights = torch.cat([x[:, :: x.shape[1] // length] for x in watch.named("elements")])
        by_place = weights.mean(0).unflatten(-1, (length, -1)).expand(max(1, num_steps), -1, -1, -1)
        return {"words": by_place[..., 0], "thoughts by position": by_place[..., 1:].sum(-1)}

    def _elements(self, tokens: Int[Tensor, "b t"], steps: int) -> Float[Tensor, "b t n c"]:
        ordinary = self.embedding(tokens)[:, :, None]
        if self.reasoning is None:
            rows = ordinary.new_zeros(steps, self.config.dim)
        else:
            index = torch.arange(steps, device=tokens.device)
            rows = self.reasoning[index.clamp(max=len(self.reasoning) - 1)]
        return torch.cat([ordinary, rows.expand(*tokens.shape, -1, -1)], 2)

    def _answer(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(self.norm(x), weight)

    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        return self._answer(states)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], "ReasoningCache"]:
        cache = ReasoningCache(self.config, lengths, capacity, num_steps, self.embedding.weight)
        x = self._run(tokens, num_steps, cache)
        return self._answer(x[torch.arange(len(x)), lengths - 1, 0]), cache

    def extend(self, tokens: Int[Tensor, " b"], cache: "ReasoningCache") -> Float[Tensor, "b v"]:
        cache.grow()
        return self._answer(self._run(tokens[:, None], cache.size - 1, cache)[:, 0, 0])

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        steps, config = self.check_steps(num_steps), self.config
        whole, size = training and config.prediction == "all", length * (steps + 1)
        asking = [size] * (config.num_layers - 1) + [size if whole else length]
        blocks: Any = self.blocks
        forward = sum(
            block.flops(batch_size, n, size) for block, n in zip(blocks, asking, strict=True)
        )
        forward += 2 * batch_size * asking[-1] * config.dim * config.vocab_size
        if not training or not stopped(config, steps):
            return 3 * forward if training else forward
        # Where gradients are stopped, the backward pass computes the scores anew.
        inner = blocks[0].output.in_features
        return 3 * forward + attention_flops(batch_size, sum(asking), size, inner) // 2


class ReasoningCache(KeyValueCache):
    """The keys and values of each token and of its reasoning tokens.

    New ones go behind the longest row of the prompt in all rows; which element of its row a slot
    holds stands in `elements`, and in the gap a number that no query reaches.
    """

    def __init__(
        self,
        config: ReasoningTokens.Config,
        lengths: Int[Tensor, " b"],
        capacity: int,
        steps: int,
        like: Tensor,
    ):
        self.size, self.seen = steps + 1, seen(config, steps)
        slots = torch.arange(capacity * self.size, device=like.device)
        self.elements = slots.where(slots < lengths[:, None] * self.size, HIDDEN)
        head_dim = config.head_dim or config.dim // config.num_heads
        capacity *= self.size
        super().__init__(config.num_layers, lengths, capacity, config.num_heads, head_dim, like)

    def grow(self) -> Int[Tensor, "b 1"]:
        """Make room for one more token per row and its reasoning tokens; its position."""
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        self.new = slice(self.used, self.used + self.size)
        self.used += self.size
        within = torch.arange(self.size, device=positions.device)
        self.elements[:, self.new] = positions * self.size + within
        q, k = self.elements[:, None, self.new, None], self.elements[:, None, None, : self.used]
        # As a number to add, which attention otherwise makes of it in every layer anew.
        hidden = torch.full_like(self.data[0, 0, :, :1, : self.size, :1], -torch.inf)
        self.visible = hidden.masked_fill(self.seen(q, q, q, k), 0.0)
        return positions

    def keep(
        self, layer: int, k: Float[Tensor, "b h t d"], v: Float[Tensor, "b h t d"]
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"], Tensor | None]:
        """Keep whole prompts, or after `grow` the elements of one token per row; all so far."""
        if self.visible is None:
            return super().keep(layer, k, v)
        kept = self.data[layer, ..., : self.used, :]
        kept[0, :, :, self.new], kept[1, :, :, self.new] = k, v
        return kept[0], kept[1], self.visible

    def select(self, rows: Int[Tensor, " b"]) -> None:
        super().select(rows)
        self.elements = self.elements[rows]


class Block(nn.Module):
    """Attention, then feed-forward, each on the normed stream and added to it."""

    def __init__(self, config: ReasoningTokens.Config):
        super().__init__()
        dim, self.num_heads = config.dim, config.num_heads
        inner = self.num_heads * (config.head_dim or dim // self.num_heads)
        self.attention_norm = norm(config)
        self.query = nn.Linear(dim, inner, bias=False)
        self.key_value = nn.Linear(dim, 2 * inner, bias=False)
        self.output = nn.Linear(inner, dim, bias=False)
        self.feed_forward_norm = norm(config)
        if config.variant == "published":
            self.feed_forward: GELUs | SwiGLU = GELUs(dim, config.hidden or 4 * dim)
        else:
            self.feed_forward = SwiGLU(dim, config.hidden or swiglu_width(dim))

    def forward(
        self,
        x: Float[Tensor, "b s c"],
        table: tuple[Tensor, Tensor] | None,
        visible: Tensor | None,
        stops: Stops,
        stride: int,
        cache: ReasoningCache | None,
        layer: int,
    ) -> Float[Tensor, "b t c"]:
        """The vectors of every `stride`-th element, which reads those that it sees."""
        normed, x = self.attention_norm(x), x[:, ::stride]
        q = rearrange(self.query(normed[:, ::stride]), "b t (h d) -> b h t d", h=self.num_heads)
        k, v = rearrange(self.key_value(normed), "b s (n h d) -> n b h s d", n=2, h=self.num_heads)
        if table is not None:
            cos, sin = table
            q = rotate(q, (cos[..., ::stride, :], sin[..., ::stride, :]))
            k = rotate(k, table)
        if cache is not None:
            k, v, _ = cache.keep(layer, k, v)
        causal = visible is None
        record_weights("elements", q, k, visible, causal)
        if stops:
            found = stop_grad_attention(q, k, v, causal=causal, mask=visible, **stops)
        else:
            found = F.scaled_dot_product_attention(q, k, v, visible, is_causal=causal)
        x = x + self.output(rearrange(found, "b h t d -> b t (h d)"))
        return x + self.feed_forward(self.feed_forward_norm(x))

    def flops(self, batch: int, queries: int, keys: int) -> int:
        """Of one pass in which so many elements read so many."""
        matrices = sum(x.numel() for x in self.parameters() if x.ndim == 2)
        kept = self.key_value.weight.numel()
        projected = 2 * batch * (queries * (matrices - kept) + keys * kept)
        return projected + attention_flops(batch, queries, keys, self.output.in_features)


class GELUs(nn.Module):
    """gelu(x W1 + b1) W2 + b2 (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        return self.down(F.gelu(self.up(x)))


class UnitNorm(nn.Module):
    """sqrt(c) g x / |x|."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1]) * self.weight


def norm(config: ReasoningTokens.Config) -> nn.Module:
    """The norm of this variant."""
    published = config.variant == "published"
    return UnitNorm(config.dim) if published else nn.RMSNorm(config.dim, eps=1e-6)
