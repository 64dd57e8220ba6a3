"""Pairs of elements of a row with reasoning tokens: who sees whom, and gives what gradient."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from thinkers.ops import masks

Factor = float | tuple[float, ...]
"""What a gradient is multiplied by: in all heads, or in each."""
Stops = dict[str, Any]
"""Arguments of `stop_grad_attention`: functions of the indices of a pair."""


def as_factor(name: str, value: Any, num_heads: int) -> Factor:
    """`value` as a float, or as one for each head; ValueError if it is neither."""
    several = isinstance(value, list | tuple)
    numbers = tuple(value) if several else (value,)
    usable = all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
    if not usable or (several and len(numbers) != num_heads):
        raise ValueError(f"{name} must be a finite number, or {num_heads} of them, got {value!r}")
    return tuple(float(x) for x in numbers) if several else float(value)


def seen(config: Any, steps: int) -> masks.PairMask:
    """Which pairs of elements attend, of rows with so many reasoning tokens after every token."""
    if config.mode == "stop_grad":
        return masks.causal
    near = masks.reasoning_near(steps, config.window)
    return masks.both(masks.causal, masks.invert(near))


def stopped(config: Any, steps: int) -> Stops:
    """What the gradients to queries, keys and values are multiplied by, where not by 1 alone."""
    if steps == 0:
        return {}
    places = {"far": masks.reasoning_far(steps, config.window)}
    if config.mode == "stop_grad":
        places["near"] = masks.reasoning_near(steps, config.window)
    stops = {}
    for part in ("query", "key", "value"):
        scales = [(mask, getattr(config, f"{place}_{part}")) for place, mask in places.items()]
        stops[f"stop_{part[0]}"] = stop_where(scales, config.num_heads)
    return {name: stop for name, stop in stops.items() if stop is not None}


def stop_where(
    scales: list[tuple[masks.PairMask, Factor]], num_heads: int
) -> masks.PairMask | None:
    """The function of pairs that multiplies by each scale where its mask is; None if all are 1.

    Scales of 0 and 1 alone give the boolean function that is True where gradients stop.
    """
    places: dict[float, masks.PairMask] = {}
    for mask, scale in scales:
        by_head = scale if isinstance(scale, tuple) else (scale,) * num_heads
        for value in set(by_head) - {1.0}:
            heads = tuple(h for h, x in enumerate(by_head) if x == value)
            place = mask if len(heads) == num_heads else masks.only_heads(mask, heads)
            places[value] = masks.either(places[value], place) if value in places else place
    if set(places) <= {0.0}:
        return places.get(0.0)

    def factor(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        found = torch.ones((), device=k.device)
        for value, place in places.items():
            found = torch.where(place(b, h, q, k), value, found)
        return found

    return factor


def apply_thought_hook(
    x: Float[Tensor, "b s c"], size: int, thought_hook: Callable[[Tensor], Tensor]
) -> Float[Tensor, "b s c"]:
    """Pass all but the first of every `size` elements through the hook that may replace them."""
    words, thoughts = x.unflatten(1, (-1, size)).split([1, size - 1], 2)
    handed = thought_hook(thoughts.flatten(1, 2)).unflatten(1, (-1, size - 1))
    return torch.cat([words, handed], 2).flatten(1, 2)


def asked(
    size: int, t: int, visible: Tensor | None, stops: Stops, device: torch.device
) -> tuple[Shaped[Tensor, "*b t s"], Stops]:
    """Both for the queries of ordinary elements alone, each the first of `size`."""

    def at(stop: masks.PairMask) -> masks.PairMask:
        return lambda b, h, q, k: stop(b, h, q * size, k)

    if visible is None:
        visible = masks.table(at(masks.causal), t, t * size, device=device)[0]
    else:
        visible = visible[..., ::size, :]
    return visible, {name: at(stop) for name, stop in stops.items()}
