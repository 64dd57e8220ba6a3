"""DeepSight: an encoder plans the next few tokens, and a decoder predicts from the plan."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import check_choices, check_int
from thinkers.errors import UsageError
from thinkers.models import base
from thinkers.models.base import Model, Thought
from thinkers.models.batch import (
    Batch,
    Loss,
    as_batch,
    graded_last,
    next_token_loss,
    real_positions,
)
from thinkers.models.deepsight_cache import DeepSightCache
from thinkers.models.deepsight_loss import EmbeddingLoss, PlanLoss, TokenLoss
from thinkers.models.halt import Halt, check_halt, full_steps
from thinkers.nn.block import Attend, Block, Table, causal_attention
from thinkers.nn.layers import (
    AttentionProjections,
    GELUFeedForward,
    Head,
    Rotary,
    attention_flops,
    initialize,
    rotate,
)

AIMS = ("partial_horizon", "plan_mix", "plan_norm")
"""Settings of the sums of embeddings that plans resemble, unless they predict tokens."""


class DeepSight(Model):
    """Encoder that plans the next `horizon` tokens, and decoder that predicts from the plan alone.

        e = E[tokens]; plan = encoder(e); h = norm(decoder(W plan, plan)); logits = E h
        loss = next-token loss + plan_weight * plan loss, see `PlanLoss` and `TokenLoss`

    e, plan and h are (b, t, c). A decoder layer attends causally to h, then to the plan, then feeds
    forward. After DeepSight, or DeepPlan, https://github.com/yiphei/yif-AI. The published variant
    has its layer norms, GELUs, learned positions, and planning norms with gains. The modern one has
    the decoder's parts, and planning norms without gains: shrinking them cannot lower the loss.
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
        """Settings; `num_layers` is the depth of the encoder; `num_steps`, `max_steps` become 1."""

        variant: Literal["modern", "published"] = "modern"
        num_decoder_layers: int | None = None
        """Depth of the decoder; None means that of the encoder."""
        num_cross_heads: int | None = None
        """Heads that attend to the plan; None means num_heads, or twice that if published."""
        hidden: int | None = None
        """Width of the feed-forward; None means 8/3 of dim, or 4 dim if published."""
        positions: Literal["rotary", "learned"] | None = None
        """Encoding of positions; None means rotary, or learned if published."""
        horizon: int = 4
        """Number of next tokens that a plan is trained to resemble."""
        horizon_weights: Literal["decay", "decay_normalized", "average", "learned"] = "decay"
        """Weights of the next tokens: 1/k for the k-th, 1/k with sum 1, equal, or learned."""
        partial_horizon: bool | None = None
        """Grade plans near the end by the tokens left; None means True, or False if published."""
        plan_mix: Literal["equal", "length", "future"] = "equal"
        """Weights of past and future in a plan: equal, by their lengths, or the future alone."""
        plan_norm: Literal["before", "after", "both", "none"] = "after"
        """Norm of embeddings before or after they are summed, both or neither."""
        plan_loss: Literal["mse", "cosine", "log_cosine", "tokens", "none"] = "mse"
        """Distance of a plan from its target, or `tokens`: the cross-entropy of the next tokens."""
        plan_weight: float = 1.0
        """Factor of the planning loss."""
        center: bool = False
        """Subtract the mean embedding from the targets; see PlanLoss.set_token_counts."""
        subtract_position: bool = False
        """Subtract the next token's learned position before the output."""
        embedding_loss: Literal["mse", "cosine", "log_cosine", "none"] = "none"
        """Distance of the running mean of the embeddings from the plan, as a further loss."""
        embedding_weight: float = 1.0
        bias: bool = False
        """Biases in linear layers, for the published variant."""
        dropout: float = 0.0

        takes_steps: ClassVar[bool] = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.variant == "published":
                self.refuse_unused(("tie_head",), "variant is published")
            check_choices(self)
            for name in ("horizon", "num_decoder_layers", "num_cross_heads", "hidden"):
                if name == "horizon" or getattr(self, name) is not None:
                    check_int(name, getattr(self, name), 1)
            for name in ("plan_weight", "embedding_weight"):
                if not 0 < getattr(self, name) < math.inf:
                    raise UsageError(f"{name} must be above 0, got {getattr(self, name)}")
            if not 0 <= self.dropout < 1:
                raise UsageError(f"dropout must be at least 0 and below 1, got {self.dropout}")
            if self.dim % self.cross_heads:
                both = f"{self.dim} and {self.cross_heads}"
                raise UsageError(f"dim must be a multiple of num_cross_heads, got {both}")
            if self.subtract_position and not self.has_positions:
                raise UsageError("subtract_position must have learned positions, got rotary ones")
            if self.plan_loss == "tokens" and (self.center or self.horizon_weights == "learned"):
                raise UsageError("plans of tokens must have neither center nor learned weights")
            if self.bias and not self.published:
                raise UsageError("bias must be False in the modern variant, got True")
            self.refuse_unread_plans()

        def refuse_unread_plans(self) -> None:
            """Raise UsageError if a setting of a loss has a value that the loss does not read."""
            if self.plan_loss == "none":
                unread = ("plan_weight", "horizon", "horizon_weights", "center", *AIMS)
                self.refuse_unused(unread, "plan_loss is none")
            elif self.plan_loss == "tokens":
                self.refuse_unused(AIMS, "plan_loss is tokens")
            if self.horizon == 1:
                self.refuse_unused(("horizon_weights",), "horizon is 1")
            if self.embedding_loss == "none":
                self.refuse_unused(("embedding_weight",), "embedding_loss is none")

        @property
        def published(self) -> bool:
            return self.variant == "published"

        @property
        def decoder_layers(self) -> int:
            """The depth of the decoder."""
            return self.num_decoder_layers or self.num_layers

        @property
        def cross_heads(self) -> int:
            """The number of heads that attend to the plan."""
            # gcd: twice num_heads where that divides dim, else num_heads, which always does.
            usual = math.gcd(2 * self.num_heads, self.dim) if self.published else self.num_heads
            return self.num_cross_heads or usual

        @property
        def has_positions(self) -> bool:
            return (self.positions or ("learned" if self.published else "rotary")) == "learned"

        @property
        def looks_partly(self) -> bool:
            """True if plans near the end resemble the tokens that are left."""
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
        self.encoder = nn.ModuleList(make_block(config) for _ in range(config.num_layers))
        self.bridge = nn.Linear(dim, dim, bias=config.bias)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = make_norm(config)
        self.head = Head(self.embedding, config.tie_head)
        make = TokenLoss if config.plan_loss == "tokens" else PlanLoss
        self.plan_loss: Any = None if config.plan_loss == "none" else make(config)
        self.embedding_loss = None if config.embedding_loss == "none" else EmbeddingLoss(config)
        initialize(self, num_residuals=2 * config.num_layers + 3 * config.decoder_layers)

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
        check_halt(self, halt)
        steps = self.check_steps(num_steps)
        _, plan, h = self.run(self.check_tokens(tokens, lengths, prompt_lengths))
        states = h[:, None] if keep_states else None
        return Thought(self.read_out(h), states, {"plan": plan}, full_steps(tokens, steps))

    def run(
        self, tokens: Int[Tensor, "b t"], cache: DeepSightCache | None = None
    ) -> tuple[Float[Tensor, "b t c"], ...]:
        """Return e, plan and h at every position."""
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
        p = config.dropout if self.training else 0.0
        e, plan = x, F.dropout(x, p, self.training)
        attend = partial(causal_attention, cache=cache, dropout=p)
        for slot, block in enumerate(self.encoder):
            plan = block(plan, tables[0], partial(attend, slot=slot))
        h, kept = self.bridge(plan), None if cache is None else cache.cross
        read = partial(causal_attention, cache=kept, dropout=p, name="plans")
        for i, layer in enumerate(self.decoder):
            slot = len(self.encoder) + i
            h = layer(h, plan, tables, partial(attend, slot=slot), partial(read, slot=i))
        h = self.norm(h)
        return e, plan, h - self.positions(positions + 1) if config.subtract_position else h

    def read_out(self, states: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        return self.head(states, self.embedding)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], DeepSightCache]:
        cache = DeepSightCache(self.config, lengths, capacity, self.embedding.weight)
        _, _, h = self.run(tokens, cache)
        return self.read_out(h[torch.arange(len(h)), lengths - 1]), cache

    def extend(self, tokens: Int[Tensor, " b"], cache: DeepSightCache) -> Float[Tensor, "b v"]:
        cache.grow()
        return self.read_out(self.run(tokens[:, None], cache)[-1][:, 0])

    def plan_inputs(self, embedded: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Return the embeddings that plans resemble: detached, minus their mean with `center`."""
        if self.plan_loss is None or not self.config.center:
            return embedded.detach()
        mean = self.plan_loss.mean_token(self.embedding.weight)
        if self.config.has_positions:
            # Of all positions: a mean over the columns would make a row's loss depend on its batch.
            mean = mean + self.positions.weight[: self.config.max_length].mean(0)
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
        """Compute the loss, and its parts with their graphs."""
        batch = as_batch(batch, self)
        own, config = self.count_terms(batch), self.config
        counts = counts or own
        e, plan, h = self.run(batch.tokens)
        logits = self.read_out(h)
        total = next_token_loss(logits, batch.targets, counts["next_token"])
        parts = {"next_token": total}
        if self.plan_loss is not None:
            summed = self.plan_loss.summed(self, batch, e, plan, own["plan"])
            parts["plan"] = summed / max(1, counts["plan"])
            total = total + config.plan_weight * parts["plan"]
        if self.embedding_loss is not None:
            real = real_positions(batch.tokens, batch.lengths)
            summed = self.embedding_loss(plan, e, real)
            parts["embedding"] = summed / max(1, counts["embedding"])
            total = total + config.embedding_weight * parts["embedding"]
        detached = {name: part.detach() for name, part in parts.items()}
        last = graded_last(logits, batch.targets)
        return Loss(total, detached, own, *last), parts

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        self.check_steps(num_steps)
        rows, config = batch_size * length, self.config
        block: Any = self.encoder[0]
        cross = attention_flops(batch_size, length, length, config.dim)
        cross += block.heads.flops(rows, rows)
        depth = config.num_layers + config.decoder_layers
        forward = depth * block.flops(batch_size, length, length) + config.decoder_layers * cross
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


class PublishedBlock(Block):
    """The block of the published variant: layer norms, GELUs, and biases if configured."""

    def __init__(self, config: DeepSight.Config):
        nn.Module.__init__(self)  # all parts of Block are replaced
        self.attention_norm = make_norm(config)
        self.heads = AttentionProjections(config.dim, config.num_heads, bias=config.bias)
        self.feed_forward_norm = make_norm(config)
        hidden = config.hidden or 4 * config.dim
        self.feed_forward = GELUFeedForward(config.dim, hidden, config.bias)
        self.dropout = config.dropout


class DecoderLayer(nn.Module):
    """A block that attends to the plan between its attention and its feed-forward.

    h <- h + Attention(norm(h)); h <- h + W_o attend(R W_q norm(h), R W_k p, W_v p)
    h <- h + FeedForward(norm(h)), with p = norm(plan)
    """

    def __init__(self, config: DeepSight.Config):
        super().__init__()
        self.block = make_block(config)
        self.plan_norm = make_norm(config)
        self.cross_norm = make_norm(config)
        self.cross_heads = AttentionProjections(config.dim, config.cross_heads, bias=config.bias)

    def forward(
        self,
        h: Float[Tensor, "b t c"],
        plan: Float[Tensor, "b t c"],
        tables: tuple[Table, Table],
        attend: Attend,
        read_plan: Attend,
    ) -> Float[Tensor, "b t c"]:
        h = self.block.add_attention(h, tables[0], attend)
        q = self.cross_heads.queries(self.cross_norm(h))
        k, v = self.cross_heads.keys_values(self.plan_norm(plan))
        if tables[1] is not None:
            q, k = rotate(q, tables[1]), rotate(k, tables[1])
        h = h + self.block.drop(self.cross_heads.merge(read_plan(q, k, v)))
        return self.block.add_feed_forward(h)


def make_block(config: DeepSight.Config) -> Block:
    """Build a layer of the encoder."""
    if config.published:
        return PublishedBlock(config)
    return Block(config.dim, config.num_heads, config.hidden, dropout=config.dropout)


def make_norm(config: DeepSight.Config) -> nn.Module:
    """Build the norm of this variant."""
    if config.published:
        return nn.LayerNorm(config.dim, eps=1e-5, bias=config.bias)
    return nn.RMSNorm(config.dim, eps=1e-6)
