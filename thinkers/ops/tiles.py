"""Masks and gradient factors, evaluated for one block of queries: never for all pairs at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from thinkers.ops.masks import Banded
from thinkers.ops.validation import PairValues, check_pair_tensor

Shape = tuple[int, int, int, int]
"""(b, h, t, s)"""


@dataclass(frozen=True)
class QueryBlock:
    """Consecutive queries `start` to `end`, and the keys that any of them may see."""

    shape: Shape
    start: int
    end: int
    num_keys: int
    """Keys from the first on; later ones are hidden from the whole block by causality."""
    device: torch.device


def tile(values: PairValues, block: QueryBlock, first: int, last: int) -> Tensor | None:
    """Pair values of the block's queries and keys `first` to `last`, broadcastable to (b, h, t, s).

    Axes of size 1 stay so: a mask of keys alone is not spread over queries.
    """
    if values is None:
        return None
    if isinstance(values, bool | float):
        dtype = torch.bool if isinstance(values, bool) else torch.float64
        return torch.full((1, 1, 1, 1), values, dtype=dtype, device=block.device)
    if isinstance(values, Tensor):
        value = values.reshape((1,) * (4 - values.ndim) + values.shape)
        value = value if value.shape[2] == 1 else value[:, :, block.start : block.end]
        return value if value.shape[3] == 1 else value[:, :, :, first:last]
    ends = ((0, block.shape[0]), (0, block.shape[1]), (block.start, block.end), (first, last))
    b, h, q, k = (torch.arange(*pair, device=block.device) for pair in ends)
    value = values(
        b[:, None, None, None], h[None, :, None, None], q[None, None, :, None], k[None, None, None]
    )
    check_pair_tensor("the result of a stop", value, q, (len(b), len(h), len(q), len(k)))
    return value.reshape((1,) * (4 - value.ndim) + value.shape)


@dataclass(frozen=True)
class FactorTile:
    """Gradient factors of a block for the keys `start` to `end`; for all other keys they are 1."""

    factor: Tensor | None
    """Broadcastable to (b, h, queries, keys); None where all factors are 1."""
    start: int
    end: int

    def within(self, first: int, last: int) -> "FactorTile":
        """The part of the keys from `first` to `last`, with keys counted from `first`."""
        start, end = max(self.start, first), min(self.end, last)
        if self.factor is None or start >= end:
            return FactorTile(None, 0, 0)
        factor = self.factor
        if factor.shape[3] > 1:
            factor = factor[..., start - self.start : end - self.start]
        return FactorTile(factor, start - first, end - first)


def factor_tiles(
    stops: tuple[PairValues, PairValues, PairValues],
    needs: tuple[bool, bool, bool],
    block: QueryBlock,
    dtype: torch.dtype,
) -> tuple[list[FactorTile], tuple[int, int]]:
    """Factors for the gradients of q, k and v, and the active range of keys.

    Outside of the active range, no gradient that is needed gets anything from this block.
    """
    # By identity: one mask often serves as stop_k and as stop_v, and is then evaluated once.
    found = {id(stop): _factor_tile(stop, block, dtype) for stop in stops}
    ranges = [found[id(stop)][1] for stop, need in zip(stops, needs, strict=True) if need]
    first, last = min(x[0] for x in ranges), max(x[1] for x in ranges)
    return [found[id(stop)][0].within(first, last) for stop in stops], (first, last)


def _factor_tile(
    stop: PairValues, block: QueryBlock, dtype: torch.dtype
) -> tuple[FactorTile, tuple[int, int]]:
    """Factors of one stop, and the range of keys that are not stopped for all queries."""
    all_keys = (0, block.num_keys)
    first, last = all_keys
    if isinstance(stop, Banded):
        # Outside its span the mask is False, and the factor 1: it need not be evaluated there.
        first, last = stop.span(block.start, block.end)
        first, last = max(0, first), min(block.num_keys, last)
    value = tile(stop, block, first, last) if first < last else None
    if value is None:
        return FactorTile(None, 0, 0), all_keys
    if value.dtype != torch.bool:
        return FactorTile(value.to(dtype), first, last), all_keys
    active = all_keys
    if (first, last) == all_keys:
        active = _true_range(~value, last)
    start, end = _true_range(value, last - first)
    if start >= end:
        return FactorTile(None, 0, 0), active
    value = value if value.shape[3] == 1 else value[..., start:end]
    return FactorTile((~value).to(dtype), first + start, first + end), active


def _true_range(x: Tensor, width: int) -> tuple[int, int]:
    """The range of keys outside of which a bool tile is False; off the CPU all `width` keys."""
    # Reading values back from a GPU would wait for it; the whole range is right as well.
    if x.device.type != "cpu":
        return 0, width
    # A tile with one key is broadcast to all of them.
    found = x.flatten(0, 2).view(torch.uint8).amax(0).expand(width).nonzero()
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (width, 0)
