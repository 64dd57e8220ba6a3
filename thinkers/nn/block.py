"""The pre-norm transformer block of LLaMA, shared by several models."""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.nn.kv_cache import KeepsKeys
from thinkers.nn.layers import (
    AttentionProjections,
    GELUFeedForward,
    SwiGLU,
    attention_flops,
    rotate,
    swiglu_width,
)
from thinkers.nn.tracing import record_weights

Table = tuple[Tensor, Tensor] | None
"""Cosines and sines of `Rotary.table`; None if positions are added to the embeddings."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention over queries (b, h, t, d), keys and values (b, g, t, d); the result is (b, h, t, d)."""


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on the normed stream and added to it.

        x <- x + W_o attend(R W_q n, R W_k n, W_v n), n = norm(x)
        x <- x + SwiGLU(norm(x))

    norm is the root-mean-square norm and R the rotation by positions; there are no biases
    (Touvron et al. 2023, https://arxiv.org/abs/2302.13971).

    Args:
        hidden: Width of the feed-forward; None means 8/3 of dim.
        num_kv_heads: Key and value heads; None means one for each query head.
        dropout: Probability with which entries of both branches are zeroed in training.
    """

    attention_norm: nn.Module
    feed_forward_norm: nn.Module
    feed_forward: SwiGLU | GELUFeedForward

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int | None = None,
        num_kv_heads: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.heads = AttentionProjections(dim, num_heads, num_kv_heads)
        self.feed_forward_norm = nn.RMSNorm(dim, eps=1e-6)
        self.feed_forward = SwiGLU(dim, hidden or swiglu_width(dim))
        self.dropout = dropout

    def forward(
        self, x: Float[Tensor, "b t c"], table: Table, attend: Attend
    ) -> Float[Tensor, "b t c"]:
        return self.after_attention(x, attend(*self.before_attention(x, table)))

    def before_attention(
        self, x: Float[Tensor, "b t c"], table: Table
    ) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b g t d"], Float[Tensor, "b g t d"]]:
        """Compute queries, keys and values."""
        n = self.attention_norm(x)
        q, (k, v) = self.heads.queries(n), self.heads.keys_values(n)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return q, k, v

    def after_attention(
        self, x: Float[Tensor, "b t c"], attended: Float[Tensor, "b h t d"]
    ) -> Float[Tensor, "b t c"]:
        """Add the attention and the feed-forward to the stream."""
        return self.add_feed_forward(x + self.drop(self.heads.merge(attended)))

    def add_attention(
        self, x: Float[Tensor, "b t c"], table: Table, attend: Attend
    ) -> Float[Tensor, "b t c"]:
        """Compute the first half of the block."""
        attended = attend(*self.before_attention(x, table))
        return x + self.drop(self.heads.merge(attended))

    def add_feed_forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Compute the second half of the block."""
        return x + self.drop(self.feed_forward(self.feed_forward_norm(x)))

    def drop(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Zero entries of a branch in training."""
        return F.dropout(x, self.dropout, self.training)

    def flops(self, batch: int, length: int, keys: int) -> int:
        """Count the operations of one pass over `length` elements, each attending to `keys`."""
        rows = batch * length
        attention = attention_flops(batch, length, keys, self.heads.query.in_features)
        return self.heads.flops(rows, rows) + attention + self.feed_forward.flops(rows)


def causal_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b g t d"],
    v: Float[Tensor, "b g t d"],
    *,
    cache: KeepsKeys | None = None,
    slot: int = 0,
    dropout: float = 0.0,
    name: str = "words",
) -> Float[Tensor, "b h t d"]:
    """Compute softmax(q k^T / sqrt(d)) v over each position and those before it.

    Args:
        cache: Stores keys and values at `slot`, and returns them after those of earlier tokens.
        dropout: Probability with which attention weights are zeroed.
        name: Name under which the weights are recorded inside `record_attention`.
    """
    mask = None
    if cache is not None:
        k, v, mask = cache.keep(slot, k, v)
    record_weights(name, q, k, mask, causal=mask is None)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        enable_gqa=k.shape[1] < q.shape[1],
    )


def run_blocks(
    blocks: nn.ModuleList,
    x: Float[Tensor, "b t c"],
    table: Table,
    cache: KeepsKeys | None = None,
    slot: int = 0,
    dropout: float = 0.0,
) -> Float[Tensor, "b t c"]:
    """Pass `x` through the blocks with causal attention; block i keeps its keys at `slot` + i."""
    for i, block in enumerate(blocks):
        x = block(x, table, partial(causal_attention, cache=cache, slot=slot + i, dropout=dropout))
    return x
