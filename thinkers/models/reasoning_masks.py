"""Pairs of a query and a key in rows with reasoning tokens: which attend, and their gradients."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from thinkers.errors import UsageError
from thinkers.ops import masks

FACTORS = ("near_query", "near_key", "near_value", "far_query", "far_key", "far_value")
Factor = float | tuple[float, ...]
"""Factor of a gradient: one for all heads, or one for each."""
FactorSetting = Factor | list[float | int]
"""A factor in a configuration; files hold lists."""
Stops = dict[str, Any]
"""Arguments stop_q, stop_k and stop_v of `stop_grad_attention`: functions of a pair's indices."""


def as_factor(name: str, value: Any, num_heads: int) -> Factor:
    """Return `value` as a float, or as one for each head; raise ValueError if it is neither."""
    several = isinstance(value, list | tuple)
    numbers = tuple(value) if several else (value,)
    usable = all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
    if not usable or (several and len(numbers) != num_heads):
        raise UsageError(f"{name} must be a finite number, or {num_heads} of them, got {value!r}")
    return tuple(float(x) for x in numbers) if several else float(value)


def visible_pairs(config: Any, steps: int) -> masks.PairMask:
    """Return the mask of pairs that attend, with `steps` reasoning tokens after every token."""
    if config.mode == "stop_grad":
        return masks.causal
    near = masks.reasoning_near(steps, config.window)
    return masks.both(masks.causal, masks.invert(near))


def gradient_stops(config: Any, steps: int) -> Stops:
    """Return the gradient factors of queries, keys and values, leaving out those that are all 1."""
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
    """Return the function of pairs that gives each scale where its mask is True; None if all are 1.

    Where all scales are 0 or 1 it is a boolean function, True where gradients stop.
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
    replaced = thought_hook(thoughts.flatten(1, 2)).unflatten(1, (-1, size - 1))
    return torch.cat([words, replaced], 2).flatten(1, 2)


def of_first_queries(
    size: int, t: int, visible: Tensor | None, device: torch.device
) -> Shaped[Tensor, "*b t s"]:
    """Restrict a mask to the queries of ordinary elements: the first of every `size`."""
    if visible is not None:
        return visible[..., ::size, :]
    (causal,) = at_first(size, {"causal": masks.causal}).values()
    return masks.table(causal, t, t * size, device=device)[0]


def at_first(size: int, functions: Stops) -> Stops:
    """Restrict functions of pairs to queries of ordinary elements, the first of every `size`."""

    def at(function: masks.PairMask) -> masks.PairMask:
        return lambda b, h, q, k: function(b, h, q * size, k)

    return {name: at(function) for name, function in functions.items()}
