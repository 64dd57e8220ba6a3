"""Key/value cache of the rows being generated, which may differ in length.

A row has the same index in every buffer. `data` is (slots, 2, b, g, capacity, d), with a slot for
each layer and step that attends. Generation drops finished rows by `select`.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class KeepsKeys(Protocol):
    """A store of keys and values that causal attention writes to and reads from."""

    def keep(
        self, layer: int, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s d"], Float[Tensor, "*b t s"] | None]:
        """Store keys and values; return all so far, and the mask to be added to their scores.

        The mask is None where `k` and `v` are the first, whose attention is causal.
        """


class KeyValueCache:
    """Keys and values of every layer, in buffers of fixed capacity.

    Prompts are stored padded on the right. Each later token takes the next slot in all rows, and
    a mask hides the slots of the padding.

    Args:
        num_layers: Keys and values per token: layers times steps.
        lengths: Number of each row's real tokens so far.
        capacity: Slots of a row.
        like: A tensor of the dtype and device of keys.
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
        self.layers = [(layer[0], layer[1]) for layer in self.data]
        self.lengths = lengths
        self.used = 0
        self.visible: Float[Tensor, "b 1 1 s"] | None = None
        self.hidden: Float[Tensor, "b s"] | None = None

    @property
    def mask(self) -> Float[Tensor, "b 1 t s"] | None:
        """The mask of 0 and -inf of the newest tokens; None for whole prompts."""
        return self.visible

    def grow(self) -> Int[Tensor, "b 1"]:
        """Make room for one more token per row; return its position."""
        positions = self.lengths[:, None]
        if self.hidden is None:
            # Numbers to be added: attention would convert a boolean mask in every layer.
            slots = torch.arange(self.data.shape[-2], device=positions.device)
            padding = (slots >= positions) & (slots < self.used)
            self.hidden = self.data.new_zeros(padding.shape).masked_fill(padding, -torch.inf)
        self.lengths = self.lengths + 1
        self.used += 1
        self.visible = self.hidden[:, None, None, : self.used]
        return positions

    def keep(
        self, layer: int, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s d"], Float[Tensor, "b 1 t s"] | None]:
        """Store keys and values of whole prompts, or after `grow` of one token per row.

        Returns:
            All keys and values so far, and the mask of 0 and -inf to be added to their scores.
            The mask is None for whole prompts, whose attention is causal.
        """
        keys, values = self.layers[layer]
        if self.visible is None:
            self.used = k.shape[2]
            keys[:, :, : self.used], values[:, :, : self.used] = k, v
            return k, v, self.mask
        new = slice(self.used - 1, self.used)
        keys[:, :, new], values[:, :, new] = k, v
        return keys[:, :, : self.used], values[:, :, : self.used], self.mask

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep only these rows."""
        self.data, self.lengths = self.data[:, :, rows], self.lengths[rows]
        self.layers = [(layer[0], layer[1]) for layer in self.data]
        if self.hidden is not None:
            self.hidden = self.hidden[rows]
