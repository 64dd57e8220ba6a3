"""Keys and values kept between tokens, for rows of unequal length."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class KeyValueCache:
    """The keys and values of every layer, in buffers of fixed capacity.

    Row i holds its real tokens in slots 0 .. lengths[i] - 1, so that nothing padded is ever read.

    Args:
        num_layers: How often keys and values are kept per token: layers times steps.
        lengths: Real tokens of each row so far.
        like: A tensor of the dtype and device that keys will have.
    """

    def __init__(
        self,
        num_layers: int,
        lengths: Int[Tensor, " b"],
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        like: Tensor,
    ):
        shape = (num_layers, 2, len(lengths), num_kv_heads, capacity, head_dim)
        self.data = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.lengths = lengths
        self.used = 0
        self.visible: Bool[Tensor, "b 1 1 s"] | None = None

    def grow(self) -> Int[Tensor, "b 1"]:
        """Make room for one more token per row; its position."""
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        self.used += 1
        slots = torch.arange(self.used, device=positions.device)
        self.visible = (slots <= positions)[:, None, None]
        return positions

    def keep(
        self, layer: int, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s d"], Bool[Tensor, "b 1 1 s"] | None]:
        """Keep whole prompts, or after `grow` one token per row; all keys and values so far.

        Returns:
            Keys, values and which of them may be read: None for whole prompts, where each
            position reads those up to its own.
        """
        kept = self.data[layer]
        if self.visible is None:
            self.used = k.shape[2]
            kept[0, :, :, : self.used], kept[1, :, :, : self.used] = k, v
            return k, v, None
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        kept[0, rows, :, self.lengths - 1] = k[:, :, 0]
        kept[1, rows, :, self.lengths - 1] = v[:, :, 0]
        return kept[0, :, :, : self.used], kept[1, :, :, : self.used], self.visible

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep only these rows."""
        self.data, self.lengths = self.data[:, :, rows], self.lengths[rows]
