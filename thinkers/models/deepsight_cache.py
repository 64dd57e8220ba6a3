"""Cache of a DeepSight: keys and values of encoder and decoder, and those of the plans."""

from typing import Any

from jaxtyping import Int
from torch import Tensor

from thinkers.nn.kv_cache import KeyValueCache


class DeepSightCache(KeyValueCache):
    """Keys and values of encoder and decoder, and those of the plan in each decoder layer."""

    def __init__(self, config: Any, lengths: Int[Tensor, " b"], capacity: int, like: Tensor):
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
