"""DeepSight: an encoder plans the next few tokens, a decoder writes the next one from the plan."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import check_choices, check_int
from thinkers.models import base
from thinkers.models.base import Model, Thought
from thinkers.models.batch import (
    Batch,
    Loss,
    as_batch,
    correct_rows,
    next_token_loss,
    real_positions,
)
from thinkers.models.deepsight_loss import EmbeddingLoss, PlanLoss, TokenLoss
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

Table = tuple[Tensor, Tensor] | None


class DeepSight(Model):
    """plan = encoder(E); x = decoder(bridge(plan), plan); logits = E norm(x). All of it causal.

    Plans are trained to resemble what the next `horizon` tokens bring: see `PlanLoss`. After
    DeepSight, or DeepPlan, https://github.com/yiphei/yif-AI, whose layer norms, GELUs, learned
    positions and planning norms with gains are the published variant. Ours has the decoder's
    parts, and planning norms without gains, which cannot collapse.
    """

    name = "deepsight"
    by_position = ("plan",)
    test_variants = (
        {"variant": "published"},
        {
            "variant": "published",
            "bias": True,
            "plan_loss": "log_cosine",
            "plan_norm": "both",
            "plan_mix": "length",
            "horizon_weights": "decay_normalized",
            "subtract_position": True,
            "embedding_loss": "mse",
        },
        {
            "num_decoder_layers": 1,
            "horizon": 3,
            "horizon_weights": "learned",
            "plan_loss": "cosine",
            "plan_mix": "future",
            "plan_norm": "before",
            "center": True,
            "positions": "learned",
        },
        {"plan_loss": "none", "embedding_loss": "cosine", "hidden": 40},
        {"plan_loss": "tokens", "horizon": 3},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """`num_layers` is the depth of the encoder; one pass is taken, whatever `num_steps`."""

        variant: Literal["modern", "published"] = "modern"
        num_decoder_layers: int | None = None
        """None is as many as the encoder has."""
        num_cross_heads: int | None = None
        """Heads that read the plan; None is num_heads, published: twice that if dim allows."""
        hidden: int | None = None
        """Width of the feed-forward; None is 8/3 of dim, published: four times dim."""
        positions: Literal["rotary", "learned"] | None = None
        """None is rotary, published: learned."""
        horizon: int = 4
        """How many tokens ahead a plan looks."""
        horizon_weights: Literal["decay", "decay_normalized", "average", "learned"] = "decay"
        """How they count: 1/k for the k-th, the same with sum 1, alike, or learned with sum 1."""
        partial_horizon: bool | None = None
        """Whether plans near the end look at the tokens there are; None is yes, published: no."""
        plan_mix: Literal["equal", "length", "future"] = "equal"
        """What past and future weigh in a plan: alike, by their lengths, or the future alone."""
        plan_norm: Literal["before", "after", "both", "none"] = "after"
        """Whether embeddings are normed before they are summed, after it, both or neither."""
        plan_loss: Literal["mse", "cosine", "log_cosine", "tokens", "none"] = "mse"
        """How far a plan is from those embeddings, or from saying each of the next tokens."""
        plan_weight: float = 1.0
        """What the planning loss is multiplied by."""
        center: bool = False
        """Whether plans are of embeddings less their mean; see PlanLoss.set_token_counts."""
        subtract_position: bool = False
        """Whether the next token's learned position is taken away before the output."""
        embedding_loss: Literal["mse", "cosine", "log_cosine", "none"] = "none"
        """What pulls the running mean of the embeddings towards the plan, if anything."""
        embedding_weight: float = 1.0
        bias: bool = False
        """Whether the published variant has biases."""
        dropout: float = 0.0

        def __post_init__(self) -> None:
            super().__post_init__()
            check_choices(self)
            for name in ("horizon", "num_decoder_layers", "num_cross_heads", "hidden"):
                if name == "horizon" or getattr(self, name) is not None:
                    check_int(name, getattr(self, name), 1)
            for name in ("plan_weight", "embedding_weight"):
                if not 0 < getattr(self, name) < math.inf:
                    raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
            if self.dim % self.cross_heads:
                both = f"{self.dim} and {self.cross_heads}"
                raise ValueError(f"dim must be a multiple of num_cross_heads, got {both}")
            if self.subtract_position and not self.has_positions:
                raise ValueError("subtract_position must have learned positions, got rotary ones")
            if self.plan_loss == "tokens" and (self.center or self.horizon_weights == "learned"):
                raise ValueError("plans of tokens must have neither center nor learned weights")
            if self.bias and not self.published:
                raise ValueError("bias must be False in the modern variant, got True")

        @property
        def published(self) -> bool:
            return self.variant == "published"

        @property
        def decoder_layers(self) -> int:
            """The depth of the decoder."""
            return self.num_decoder_layers or self.num_layers

        @property
        def cross_heads(self) -> int:
            """The heads that read the plan."""
            # gcd: twice num_heads where that divides dim, else num_heads, which always does.
            usual = math.gcd(2 * self.num_heads, self.dim) if self.published else self.num_heads
            return self.num_cross_heads or usual

        @property
        def has_positions(self) -> bool:
            return (self.positions or ("learned" if self.published else "rotary")) == "learned"

        @property
        def looks_partly(self) -> bool:
            """Whether plans near the end look at the tokens there are."""
            return not self.published if self.partial_horizon is None else self.partial_horizon

    def __init__(self, config: Config):
        super().__init__(config)
        dim = config.dim
        self.embedding = nn.Embedding(self.config.vocab_size, dim)
        if config.has_positions:
            self.positions = nn.Embedding(self.config.max_length + config.subtract_position, dim)
        else:
            self.rotary = Rotary(dim // config.num_heads)
            self.cross_rotary = Rotary(dim // config.cross_heads)
        self.encoder = nn.ModuleList(Encoding(config) for _ in range(config.num_layers))
        self.bridge = nn.Linear(dim, dim, bias=config.bias)
        self.decoder = nn.ModuleList(Decoding(config) for _ in range(config.decoder_layers))
        self.norm = make_norm(config)
        make = TokenLoss if config.plan_loss == "tokens" else PlanLoss
        self.plan_loss: Any = None if config.plan_loss == "none" else make(config)
        self.embedding_loss = None if config.embedding_loss == "none" else EmbeddingLoss(config)
        initialize(self, num_residuals=2 * config.num_layers + 3 * config.decoder_layers)

    @property
    def step_counts(self) -> tuple[int, ...]:
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
        _, plan, state = self.run(self.check_tokens(tokens, lengths, prompt_lengths))
        states = state[:, None] if keep_states else None
        return Thought(self.read_out(state), states, {"plan": plan})

    def run(
        self, tokens: Int[Tensor, "b t"], cache: "DeepSightCache | None" = None
    ) -> tuple[Float[Tensor, "b t c"], ...]:
        """Embeddings, plans, and the states from which they are read out, at every position."""
        config, x = self.config, self.embedding(tokens)
        positions = torch.arange(tokens.shape[1], device=x.device)
        if cache is not None and cache.visible is not None:
            positions = cache.lengths[:, None] - 1
        tables: tuple[Table, Table] = (None, None)
        if config.has_positions:
            # Padded columns may lie beyond the last position.
            positions = positions.clamp(max=config.max_length - 1)
            x = x + self.positions(positions)
        else:
            cross = self.cross_rotary.table(positions, x.dtype)
            tables = self.rotary.table(positions, x.dtype), cross
        embedded, x = x, F.dropout(x, config.dropout, self.training)
        for layer, block in enumerate(self.encoder):
            x = block(x, tables[0], cache, layer)
        plan, x = x, self.bridge(x)
        for layer, block in enumerate(self.decoder):
            x = block(x, plan, tables, cache, len(self.encoder) + layer, layer)
        x = self.norm(x)
        return embedded, plan, x - self.positions(positions + 1) if config.subtract_position else x

    def read_out(self, states: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        return F.linear(states, self.embedding.weight)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], "DeepSightCache"]:
        cache = DeepSightCache(self.config, lengths, capacity, self.embedding.weight)
        state = self.run(tokens, cache)[-1]
        return self.read_out(state[torch.arange(len(state)), lengths - 1]), cache

    def extend(self, tokens: Int[Tensor, " b"], cache: "DeepSightCache") -> Float[Tensor, "b v"]:
        cache.grow()
        return self.read_out(self.run(tokens[:, None], cache)[-1][:, 0])

    def plan_inputs(self, embedded: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """What plans are made of: the embeddings, detached, less their mean if so configured."""
        if self.plan_loss is None or not self.config.center:
            return embedded.detach()
        mean = self.plan_loss.mean_token(self.embedding.weight)
        if self.config.has_positions:
            mean = mean + self.positions.weight[: embedded.shape[1]].mean(0)
        return (embedded - mean).detach()

    def count_terms(self, batch: Batch) -> dict[str, int]:
        found = super().count_terms(batch)
        if self.plan_loss is not None:
            found["plan"] = int(self.plan_loss.counted(batch).sum())
        if self.embedding_loss is not None:
            found["embedding"] = int(real_positions(batch.tokens, batch.lengths).sum())
        return found

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        self.check_steps(num_steps)
        return self.grade(batch, counts)[0]

    def grade(
        self, batch: Batch | Int[Tensor, "b t"], counts: Mapping[str, int] | None = None
    ) -> tuple[Loss, dict[str, Float[Tensor, ""]]]:
        """The loss, and each of its parts with its graph."""
        batch = as_batch(batch, self)
        own, config, targets = self.count_terms(batch), self.config, batch.targets
        counts = counts or own
        embedded, plan, state = self.run(batch.tokens)
        logits, real = self.read_out(state), real_positions(batch.tokens, batch.lengths)
        total = next_token_loss(logits, targets, counts["next_token"])
        parts = {"next_token": total}
        if self.plan_loss is not None:
            summed = self.plan_loss.summed(self, batch, embedded, plan, own["plan"])
            parts["plan"] = summed / max(1, counts["plan"])
            total = total + config.plan_weight * parts["plan"]
        if self.embedding_loss is not None:
            summed = self.embedding_loss(plan, embedded, real)
            parts["embedding"] = summed / max(1, counts["embedding"])
            total = total + config.embedding_weight * parts["embedding"]
        detached = {name: part.detach() for name, part in parts.items()}
        return Loss(total, detached, own, correct_rows(logits, targets)), parts

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        self.check_steps(num_steps)
        rows, config = batch_size * length, self.config
        block: Any = self.encoder[0]
        products = attention_flops(batch_size, length, length, config.dim)
        attention = products + block.heads.flops(rows, rows)
        depth = config.num_layers + config.decoder_layers
        forward = (depth + config.decoder_layers) * attention
        matrices = sum(x.numel() for x in block.feed_forward.parameters() if x.ndim == 2)
        forward += depth * 2 * rows * matrices
        forward += 2 * rows * config.dim * (config.dim + config.vocab_size)
        if training and self.plan_loss is not None:
            forward += rows * self.plan_loss.flops()
        return 3 * forward if training else forward

    def batch_flops(
        self, batch: Batch, num_steps: int | None = None, training: bool = False
    ) -> int:
        found = super().batch_flops(batch, num_steps, training)
        if not training or self.plan_loss is None:
            return found
        unplanned = batch.tokens.numel() - int(self.plan_loss.counted(batch).sum())
        return found - 3 * unplanned * self.plan_loss.flops()


class DeepSightCache(KeyValueCache):
    """Keys and values of both halves, and of the plan as every layer of the decoder reads it."""

    def __init__(
        self, config: DeepSight.Config, lengths: Int[Tensor, " b"], capacity: int, like: Tensor
    ):
        depth, dim, heads = config.decoder_layers, config.dim, config.num_heads
        super().__init__(config.num_layers + depth, lengths, capacity, heads, dim // heads, like)
        heads = config.cross_heads
        self.cross = KeyValueCache(depth, lengths, capacity, heads, dim // heads, like)

    def grow(self) -> Int[Tensor, "b 1"]:
        self.cross.grow()
        return super().grow()

    def select(self, rows: Int[Tensor, " b"]) -> None:
        super().select(rows)
        self.cross.select(rows)


class Encoding(nn.Module):
    """Attention, then feed-forward, each on the normed stream and added to it."""

    def __init__(self, config: DeepSight.Config):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.heads = AttentionProjections(config.dim, config.num_heads, bias=config.bias)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = make_feed_forward(config)
        self.dropout = config.dropout

    def forward(
        self, x: Float[Tensor, "b t c"], table: Table, cache: DeepSightCache | None, slot: int
    ) -> Float[Tensor, "b t c"]:
        normed = self.attention_norm(x)
        x = x + self._attend(self.heads, normed, normed, table, cache, slot)
        return x + self._drop(self.feed_forward(self.feed_forward_norm(x)))

    def _attend(
        self,
        heads: AttentionProjections,
        x: Float[Tensor, "b t c"],
        source: Float[Tensor, "b t c"],
        table: Table,
        cache: KeyValueCache | None,
        slot: int,
    ) -> Float[Tensor, "b t c"]:
        q, (k, v), visible = heads.queries(x), heads.keys_values(source), None
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        if cache is not None:
            k, v, visible = cache.keep(slot, k, v)
        p = self.dropout if self.training else 0.0
        record_weights("words" if heads is self.heads else "plans", q, k, visible, visible is None)
        found = F.scaled_dot_product_attention(q, k, v, visible, p, is_causal=visible is None)
        return self._drop(heads.merge(found))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class Decoding(Encoding):
    """Attention, then attention to the plan so far, then feed-forward."""

    def __init__(self, config: DeepSight.Config):
        super().__init__(config)
        self.plan_norm = make_norm(config)
        self.cross_norm = make_norm(config)
        self.cross_heads = AttentionProjections(config.dim, config.cross_heads, bias=config.bias)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b t c"],
        plan: Float[Tensor, "b t c"],
        tables: tuple[Table, Table],
        cache: DeepSightCache | None,
        slot: int,
        cross_slot: int,
    ) -> Float[Tensor, "b t c"]:
        normed = self.attention_norm(x)
        x = x + self._attend(self.heads, normed, normed, tables[0], cache, slot)
        normed, plan = self.cross_norm(x), self.plan_norm(plan)
        kept = None if cache is None else cache.cross
        x = x + self._attend(self.cross_heads, normed, plan, tables[1], kept, cross_slot)
        return x + self._drop(self.feed_forward(self.feed_forward_norm(x)))


def make_norm(config: DeepSight.Config) -> nn.Module:
    """The norm before each part."""
    if config.published:
        return nn.LayerNorm(config.dim, eps=1e-5, bias=config.bias)
    return nn.RMSNorm(config.dim, eps=1e-6)


def make_feed_forward(config: DeepSight.Config) -> Any:
    """The feed-forward of each block."""
    if config.published:
        hidden, bias = config.hidden or 4 * config.dim, config.bias
        up, down = nn.Linear(config.dim, hidden, bias), nn.Linear(hidden, config.dim, bias)
        return nn.Sequential(OrderedDict(up=up, gelu=nn.GELU(), down=down))
    return SwiGLU(config.dim, config.hidden or swiglu_width(config.dim))
