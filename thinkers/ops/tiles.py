"""Quantities per pair of query and key, cut to a panel: never written out for all pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from thinkers.ops.masks import Banded
from thinkers.ops.validation import Pairs, check_value

Shape = tuple[int, int, int, int]
"""(b, h, t, s)"""


@dataclass(frozen=True)
class Panel:
    """Some queries, and the keys from the first on that they may see."""

    shape: Shape
    start: int
    end: int
    seen: int
    device: torch.device


def tile(pairs: Pairs, panel: Panel, first: int, last: int) -> Tensor | None:
    """The part of a quantity for the panel's queries and a range of keys, with four axes."""
    if pairs is None:
        return None
    if isinstance(pairs, bool | float):
        dtype = torch.bool if isinstance(pairs, bool) else torch.float64
        return torch.full((1, 1, 1, 1), pairs, dtype=dtype, device=panel.device)
    if isinstance(pairs, Tensor):
        value = pairs.reshape((1,) * (4 - pairs.ndim) + pairs.shape)
        value = value if value.shape[2] == 1 else value[:, :, panel.start : panel.end]
        return value if value.shape[3] == 1 else value[:, :, :, first:last]
    ends = ((0, panel.shape[0]), (0, panel.shape[1]), (panel.start, panel.end), (first, last))
    b, h, q, k = (torch.arange(*pair, device=panel.device) for pair in ends)
    value = pairs(
        b[:, None, None, None], h[None, :, None, None], q[None, None, :, None], k[None, None, None]
    )
    check_value("the result of a stop", value, q, (len(b), len(h), len(q), len(k)))
    return value.reshape((1,) * (4 - value.ndim) + value.shape)


@dataclass(frozen=True)
class Keep:
    """The gradient factors of a panel for a range of keys; outside of it they are 1."""

    factor: Tensor | None
    start: int
    end: int

    def within(self, first: int, last: int) -> "Keep":
        """The same for the keys from `first` to `last`, counted from `first`."""
        start, end = max(self.start, first), min(self.end, last)
        if self.factor is None or start >= end:
            return Keep(None, 0, 0)
        factor = self.factor
        if factor.shape[3] > 1:
            factor = factor[..., start - self.start : end - self.start]
        return Keep(factor, start - first, end - first)


def keeps(
    stops: tuple[Pairs, Pairs, Pairs],
    needs: tuple[bool, bool, bool],
    panel: Panel,
    dtype: torch.dtype,
) -> tuple[list[Keep], tuple[int, int]]:
    """The factors for q, k and v, and the range of keys that gets any gradient that is needed."""
    found = {id(stop): _keep(stop, panel, dtype) for stop in stops}
    ranges = [found[id(stop)][1] for stop, need in zip(stops, needs, strict=True) if need]
    first, last = min(x[0] for x in ranges), max(x[1] for x in ranges)
    return [found[id(stop)][0].within(first, last) for stop in stops], (first, last)


def _keep(stop: Pairs, panel: Panel, dtype: torch.dtype) -> tuple[Keep, tuple[int, int]]:
    """The factors of one stop, and the range of keys that are not all stopped."""
    everything = (0, panel.seen)
    first, last = everything
    if isinstance(stop, Banded):
        first, last = stop.span(panel.start, panel.end)
        first, last = max(0, first), min(panel.seen, last)
    value = tile(stop, panel, first, last) if first < last else None
    if value is None:
        return Keep(None, 0, 0), everything
    if value.dtype != torch.bool:
        return Keep(value.to(dtype), first, last), everything
    active = everything
    if (first, last) == everything:
        active = _columns(~value, last)
    start, end = _columns(value, last - first)
    if start >= end:
        return Keep(None, 0, 0), active
    value = value if value.shape[3] == 1 else value[..., start:end]
    return Keep((~value).to(dtype), first + start, first + end), active


def _columns(x: Tensor, width: int) -> tuple[int, int]:
    """The range of keys outside which a bool tile is False; all of it where looking would wait."""
    if x.device.type != "cpu":
        return 0, width
    found = x.flatten(0, 2).view(torch.uint8).amax(0).expand(width).nonzero()
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (width, 0)
