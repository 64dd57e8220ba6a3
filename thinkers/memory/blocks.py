"""Blocks: latents of compressed text, their keys in the index, and where the text stood."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

UNKNOWN = 0
"""First and last line of a block whose lines are not known; lines begin with 1."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of compressed text, in the order of their ids.

    Args:
        latents: 0 beyond the `sizes` latents of a block; m is that of the largest block here.
        keys: Vectors of unit length, one for each latent; 0 beyond.
        sizes: Number of latents of each block.
        levels: From 1, sections of text.
        topics: Name of the topic of each block.
        sources: Name of the text that it was cut from; "" for text without a name, and for a block
            over several sources.
        spans: First token in its source, and the one after its last.
        lines: First and last line in its source, from 1; `UNKNOWN` where that is not known.
        texts: Its text; None if it was not kept.
        tokens: Its tokens; None if they were not kept.
        children: Ids of the blocks of the level below that it was compressed from, all of its
            topic; none at level 1.
        ids: Numbers in the store, never given twice.
    """

    latents: Float[Tensor, "n m c"]
    keys: Float[Tensor, "n m d"]
    sizes: Int[Tensor, " n"]
    levels: Int[Tensor, " n"]
    topics: Sequence[str]
    sources: Sequence[str]
    spans: Int[Tensor, "n 2"]
    lines: Int[Tensor, "n 2"]
    texts: Sequence[str | None]
    tokens: Sequence[Int[Tensor, " t"] | None]
    children: Sequence[tuple[int, ...]]
    ids: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.sizes)

    def select(self, rows: Sequence[int]) -> "Blocks":
        """Return these rows, in this order."""
        index = torch.tensor(rows, dtype=torch.int64)
        chosen: dict[str, Any] = {
            name: value[index] if isinstance(value, Tensor) else [value[i] for i in rows]
            for name, value in vars(self).items()
        }
        return Blocks(**chosen)


def join(parts: Sequence[Blocks]) -> Blocks:
    """Join blocks of any sizes, in their order; there is at least one part."""
    most = max(part.latents.shape[1] for part in parts)
    padded = [
        replace(part, latents=_pad(part.latents, most), keys=_pad(part.keys, most))
        for part in parts
    ]
    joined: dict[str, Any] = {}
    for name in vars(padded[0]):
        values = [getattr(part, name) for part in padded]
        is_tensor = isinstance(values[0], Tensor)
        joined[name] = torch.cat(values) if is_tensor else [x for part in values for x in part]
    return Blocks(**joined)


def _pad(vectors: Float[Tensor, "n m c"], most: int) -> Float[Tensor, "n k c"]:
    return F.pad(vectors, (0, 0, 0, most - vectors.shape[1]))
