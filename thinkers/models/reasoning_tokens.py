"""Self-reasoning tokens: learned elements after each token, trained by later predictions alone."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import check_choices, check_int
from thinkers.models import base
from thinkers.models.base import Model, Thought
from thinkers.models.batch import Batch, Loss, as_batch, graded_last, next_token_loss
from thinkers.models.halt import Halt, check_halt, full_steps
from thinkers.models.reasoning_attention import PairStops
from thinkers.models.reasoning_cache import ReasoningCache
from thinkers.models.reasoning_masks import (
    FACTORS,
    FactorSetting,
    apply_thought_hook,
    as_factor,
    gradient_stops,
    of_first_queries,
    visible_pairs,
)
from thinkers.nn.layers import (
    GELUFeedForward,
    Head,
    Rotary,
    SwiGLU,
    attention_flops,
    initialize,
    rotate,
    swiglu_width,
)
from thinkers.nn.tracing import AttentionRecord, record_weights
from thinkers.ops import masks


class ReasoningTokens(Model):
    """Decoder with n learned reasoning tokens after each token, optimised for later predictions.

        x = [e_1, r_1 .. r_n, e_2, r_1 .. r_n, ..]; h = blocks(x); logits_i = E norm(h of e_i)
        gradient of a (query, key) pair to q, k, v: multiplied by near_.. or far_.. of `Config`

    n is `num_steps`, 0 for the decoder. e_i = E[token_i] and the reasoning tokens r_j are vectors
    (c,); e_i and the r_j after it form time step i and share its position. A reasoning token is
    near the queries of the `window` time steps after its own, far from later ones. Near queries
    attend to it and give it no gradient (in mask mode they do not attend to it), so that only the
    predictions of far queries train it.

    Idea: F. Bonetto 2024, https://reasoning-tokens.ghost.io/reasoning-tokens/. The published
    variant is https://github.com/lucidrains/self-reasoning-tokens-pytorch, a decoder with norms
    sqrt(c) g x / |x|, GELUs, learned positions and an untied output.
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
        """Settings; `num_steps` is the number of reasoning tokens after each token.

        The gradient that a pair of a query and a reasoning token gives to the query, the key and
        the value is multiplied by `near_..` or `far_..`: a number for all heads, or one for each.
        """

        variant: Literal["published", "modern"] = "modern"
        mode: Literal["stop_grad", "mask"] = "stop_grad"
        """stop_grad: near pairs attend, and gradients are multiplied; mask: they do not attend."""
        window: int = 4
        """Time steps after its own to which a reasoning token is near."""
        prediction: Literal["ordinary", "all"] = "ordinary"
        """Elements that are trained to predict the next token: e alone, or e and r."""
        num_learned: int | None = None
        """Rows of reasoning tokens; None means num_steps. Beyond them the last one is repeated.

        They are learned unless num_steps is 0.
        """
        head_dim: int | None = None
        """Width of a head; None means dim / num_heads."""
        hidden: int | None = None
        """Width of the feed-forward; None means 8/3 of dim, or 4 dim if published."""
        near_query: FactorSetting = 1.0
        near_key: FactorSetting = 0.0
        near_value: FactorSetting = 0.0
        far_query: FactorSetting = 1.0
        far_key: FactorSetting = 1.0
        far_value: FactorSetting = 1.0

        least_steps: ClassVar[int] = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.variant == "published":
                self.refuse_unused(("tie_head",), "variant is published")
            check_int("window", self.window, 0)
            check_choices(self)
            if self.num_learned is None:
                object.__setattr__(self, "num_learned", self.num_steps)
            check_int("num_learned", self.num_learned, min(1, self.num_steps))
            for name in ("hidden", "head_dim"):
                if getattr(self, name) is not None:
                    check_int(name, getattr(self, name), 1)
            for name in FACTORS:
                object.__setattr__(self, name, as_factor(name, getattr(self, name), self.num_heads))
            if self.mode == "mask":
                self.refuse_unused(FACTORS[:3], "mode is mask")
            if self.window == 0:
                self.refuse_unused(FACTORS[:3], "window is 0")

        def check_heads(self) -> None:
            if self.head_dim is None:
                super().check_heads()

    mask_caption = (
        "Each token is followed by its reasoning tokens, which may be hidden from the next tokens."
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
        self.norm = make_norm(config)
        self.head = Head(self.embedding, tied=config.tie_head and not published)
        initialize(self, num_residuals=2 * config.num_layers)
        if self.head.weight is not None and published:
            nn.init.normal_(self.head.weight, std=dim**-0.5)

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
        """Run the model; `extra["reasoning"]` (b, n, t, c) are the states of reasoning tokens."""
        check_halt(self, halt)
        steps = self.check_steps(num_steps)
        tokens = self.check_tokens(tokens, lengths, prompt_lengths)
        x = self._run(tokens, steps, whole=keep_states)
        logits = self._answer(x[:, :, 0])
        if not keep_states:
            return Thought(logits, steps=full_steps(tokens, steps))
        # The state of a position is that of e_i: the same at every step, since there is one pass.
        states = x[:, None, :, 0].expand(-1, max(1, steps), -1, -1)
        return Thought(
            logits, states, {"reasoning": x[:, :, 1:].transpose(1, 2)}, full_steps(tokens, steps)
        )

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Any = None,
    ) -> Loss:
        """Compute the loss as `Model.loss`; if all elements predict, each token has their mean."""
        if self.config.prediction == "ordinary":
            return super().loss(batch, num_steps=num_steps, counts=counts)
        batch, steps = as_batch(batch, self), self.check_steps(num_steps)
        own, targets = self.count_terms(batch), batch.targets
        logits = self.read_out(self._run(batch.tokens, steps, whole=True))
        terms = (counts or own)["next_token"] * (steps + 1)
        wide = targets.repeat_interleave(steps + 1, 1)
        total = next_token_loss(logits.flatten(1, 2), wide, terms)
        last = graded_last(logits[:, :, 0], targets)
        return Loss(total, {"next_token": total.detach()}, own, *last)

    def _run(
        self,
        tokens: Int[Tensor, "b t"],
        steps: int,
        cache: ReasoningCache | None = None,
        whole: bool = False,
    ) -> Float[Tensor, "b t n c"]:
        """Compute the states after all blocks: of e alone, or with `whole` of e and r.

        Without `whole`, reasoning tokens are keys and values of the last block, but no queries.
        """
        size, t, config = steps + 1, tokens.shape[1], self.config
        x = self._elements(tokens, steps)
        if cache is not None and cache.visible is not None:
            times, visible = cache.lengths[:, None] - 1, cache.visible
        else:
            times, visible = torch.arange(t, device=x.device), None
            if steps and config.mode == "mask":
                visible = masks.table(visible_pairs(config, steps), t * size, device=x.device)[0]
        stops = None
        if cache is None and _has_gradients() and gradient_stops(config, steps):
            stops = PairStops(config, steps)
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
                visible = of_first_queries(size, t, visible, x.device)
                stops = None if stops is None else PairStops(config, steps, size)
                stride = size
            x = block(x, table, visible, stops, stride, cache, layer)
        return x.unflatten(1, (t, size // stride))

    def mask(self, length: int, num_steps: int | None = None) -> Bool[Tensor, "t s"]:
        steps = self.check_steps(num_steps)
        return masks.table(visible_pairs(self.config, steps), length * (steps + 1))[0]

    def attention(
        self, record: AttentionRecord, length: int, num_steps: int, prompt_length: int | None = None
    ) -> dict[str, Float[Tensor, "k t n"]]:
        """Return the weights of the tokens, the same at every step: there is one pass."""
        weights = torch.cat([x[:, :: x.shape[1] // length] for x in record.named("elements")])
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
        return self.head(self.norm(x), self.embedding)

    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        return self._answer(states)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], ReasoningCache]:
        cache = ReasoningCache(self.config, lengths, capacity, num_steps, self.embedding.weight)
        x = self._run(tokens, num_steps, cache)
        return self._answer(x[torch.arange(len(x)), lengths - 1, 0]), cache

    def extend(self, tokens: Int[Tensor, " b"], cache: ReasoningCache) -> Float[Tensor, "b v"]:
        cache.grow()
        return self._answer(self._run(tokens[:, None], cache.size - 1, cache)[:, 0, 0])

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        steps, config = self.check_steps(num_steps), self.config
        whole, size = training and config.prediction == "all", length * (steps + 1)
        queries = [size] * (config.num_layers - 1) + [size if whole else length]
        blocks: Any = self.blocks
        forward = sum(
            block.flops(batch_size, n, size) for block, n in zip(blocks, queries, strict=True)
        )
        forward += 2 * batch_size * queries[-1] * config.dim * config.vocab_size
        if not training or not gradient_stops(config, steps):
            return 3 * forward if training else forward
        # If gradients are stopped, the backward pass recomputes the scores.
        inner = blocks[0].output.in_features
        return 3 * forward + attention_flops(batch_size, sum(queries), size, inner) // 2


class Block(nn.Module):
    """Attention, then feed-forward, each on the normed stream and added to it.

    Unlike `thinkers.nn.block.Block` it computes queries of every `stride`-th element alone, stops
    gradients of pairs, and may have heads of any width.
    """

    def __init__(self, config: ReasoningTokens.Config):
        super().__init__()
        dim, self.num_heads = config.dim, config.num_heads
        inner = self.num_heads * (config.head_dim or dim // self.num_heads)
        self.attention_norm = make_norm(config)
        self.query = nn.Linear(dim, inner, bias=False)
        self.key_value = nn.Linear(dim, 2 * inner, bias=False)
        self.output = nn.Linear(inner, dim, bias=False)
        self.feed_forward_norm = make_norm(config)
        if config.variant == "published":
            self.feed_forward: GELUFeedForward | SwiGLU = GELUFeedForward(
                dim, config.hidden or 4 * dim
            )
        else:
            self.feed_forward = SwiGLU(dim, config.hidden or swiglu_width(dim))

    def forward(
        self,
        x: Float[Tensor, "b s c"],
        table: tuple[Tensor, Tensor] | None,
        visible: Tensor | None,
        stops: PairStops | None,
        stride: int,
        cache: ReasoningCache | None,
        layer: int,
    ) -> Float[Tensor, "b t c"]:
        """Return the states of every `stride`-th element."""
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
        if stops is not None:
            found = stops.attend(q, k, v, causal, visible)
        else:
            found = F.scaled_dot_product_attention(q, k, v, visible, is_causal=causal)
        x = x + self.output(rearrange(found, "b h t d -> b t (h d)"))
        return x + self.feed_forward(self.feed_forward_norm(x))

    def flops(self, batch: int, queries: int, keys: int) -> int:
        """Count the operations of one pass of `queries` over `keys`."""
        matrices = sum(x.numel() for x in self.parameters() if x.ndim == 2)
        kept = self.key_value.weight.numel()
        projected = 2 * batch * (queries * (matrices - kept) + keys * kept)
        return projected + attention_flops(batch, queries, keys, self.output.in_features)


class UnitNorm(nn.Module):
    """sqrt(c) g x / |x|."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1]) * self.weight


def _has_gradients() -> bool:
    """Return True if a backward pass may follow; none follows a graph of ONNX."""
    in_onnx = torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    return torch.is_grad_enabled() and not in_onnx


def make_norm(config: ReasoningTokens.Config) -> nn.Module:
    """Build the norm of this variant."""
    published = config.variant == "published"
    return UnitNorm(config.dim) if published else nn.RMSNorm(config.dim, eps=1e-6)
