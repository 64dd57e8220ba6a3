"""The cache of ReasoningTokens: keys and values of tokens and their reasoning tokens."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.models.reasoning_masks import visible_pairs
from thinkers.nn.kv_cache import KeyValueCache

UNUSED = 2**62
"""An index beyond all queries, which a causal mask therefore hides."""


class ReasoningCache(KeyValueCache):
    """Keys and values of each token and of its reasoning tokens.

    New elements take the slots after the longest prompt in all rows. `elements` holds the index of
    each slot's element in its row, and UNUSED in the slots that a shorter prompt leaves empty.

    Args:
        config: A configuration of ReasoningTokens.
        steps: Reasoning tokens of each token.
        capacity: Largest number of tokens of a row.
    """

    def __init__(
        self,
        config: Any,
        lengths: Int[Tensor, " b"],
        capacity: int,
        steps: int,
        like: Tensor,
    ):
        self.size, self.visible_pairs = steps + 1, visible_pairs(config, steps)
        slots = torch.arange(capacity * self.size, device=like.device)
        self.elements = slots.where(slots < lengths[:, None] * self.size, UNUSED)
        head_dim = config.head_dim or config.dim // config.num_heads
        capacity *= self.size
        super().__init__(config.num_layers, lengths, capacity, config.num_heads, head_dim, like)

    def grow(self) -> Int[Tensor, "b 1"]:
        """Make room for one more token per row and its reasoning tokens; return its position."""
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        self.new = slice(self.used, self.used + self.size)
        self.used += self.size
        within = torch.arange(self.size, device=positions.device)
        self.elements[:, self.new] = positions * self.size + within
        q, k = self.elements[:, None, self.new, None], self.elements[:, None, None, : self.used]
        # Numbers to be added: attention would convert a boolean mask in every layer.
        hidden = torch.full_like(self.data[0, 0, :, :1, : self.size, :1], -torch.inf)
        self.visible = hidden.masked_fill(self.visible_pairs(q, q, q, k), 0.0)
        return positions

    def keep(
        self, layer: int, k: Float[Tensor, "b h t d"], v: Float[Tensor, "b h t d"]
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"], Tensor | None]:
        """Store the elements of whole prompts, or after `grow` of one token per row.

        Returns:
            All keys and values so far, and the mask to be added to their scores.
        """
        if self.visible is None:
            return super().keep(layer, k, v)
        kept = self.data[layer, ..., : self.used, :]
        kept[0, :, :, self.new], kept[1, :, :, self.new] = k, v
        return kept[0], kept[1], self.visible

    def select(self, rows: Int[Tensor, " b"]) -> None:
        super().select(rows)
        self.elements = self.elements[rows]
