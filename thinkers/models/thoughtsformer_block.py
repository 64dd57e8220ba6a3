"""The layer of the published ThoughtsFormer: post-norm, ReLU and biases, as in torch's encoder."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.nn.block import Attend, Table
from thinkers.nn.layers import AttentionProjections, attention_flops


def drop(x: Float[Tensor, "*b c"], part: Any) -> Float[Tensor, "*b c"]:
    """Apply dropout with the rate of `part`, in training."""
    return F.dropout(x, part.dropout) if part.training and part.dropout else x


class PublishedBlock(nn.Module):
    """x <- norm(x + attention(x)); x <- norm(x + W2 relu(W1 x)), as nn.TransformerEncoderLayer."""

    def __init__(self, config: Any):
        super().__init__()
        self.heads = AttentionProjections(config.dim, config.num_heads, bias=True)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.hidden or config.dim, config.dropout)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.dropout = config.dropout

    def forward(
        self, x: Float[Tensor, "b t c"], table: Table, attend: Attend
    ) -> Float[Tensor, "b t c"]:
        return self.after_attention(x, attend(*self.before_attention(x, table)))

    def before_attention(
        self, x: Float[Tensor, "b t c"], table: Table
    ) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t d"], Float[Tensor, "b h t d"]]:
        """Compute queries, keys and values; positions are in `x`."""
        return self.heads.queries(x), *self.heads.keys_values(x)

    def after_attention(
        self, x: Float[Tensor, "b t c"], attended: Float[Tensor, "b h t d"]
    ) -> Float[Tensor, "b t c"]:
        """Add the attention and the feed-forward to the stream, each before its norm."""
        x = self.attention_norm(x + drop(self.heads.merge(attended), self))
        return self.feed_forward_norm(x + drop(self.feed_forward(x), self))

    def flops(self, batch: int, length: int, keys: int) -> int:
        """Count the operations of one pass over `length` elements, each attending to `keys`."""
        rows = batch * length
        attention = attention_flops(batch, length, keys, self.heads.query.in_features)
        return self.heads.flops(rows, rows) + attention + self.feed_forward.flops(rows)


class FeedForward(nn.Module):
    """W2 relu(W1 x), with biases."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        return self.down(drop(self.up(x).relu(), self))

    def flops(self, rows: int) -> int:
        """Count the operations on `rows` vectors."""
        return 4 * rows * self.up.in_features * self.up.out_features
