"""What the importers share: settings, names, tied copies, and weights that nothing reads."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from thinkers.checks import describe
from thinkers.errors import DataError
from thinkers.models.base import Model
from thinkers.models.unused_weights import keep_unread

PREFIX = "_orig_mod."

Get = Callable[[Tensor], Tensor]
"""Takes a parameter and returns its value or its gradient."""

Layout = Mapping[str, tuple[Tensor, ...]]
"""Our parameters by published name: several make up one published weight, along its first axis."""


def decode(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as values; those of a file's metadata are JSON texts, and are decoded."""
    if not all(isinstance(value, str) for value in settings.values()):
        return dict(settings)
    return {name: decode_value(value) for name, value in settings.items()}


def decode_value(text: str) -> Any:
    """What the JSON text says; any other text is itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def pick(settings: Mapping[str, Any], *names: str, **default: Any) -> Any:
    """The setting that goes by one of these names; without `default=`, one must be there."""
    for name in names:
        if name in settings:
            return settings[name]
    if "default" in default:
        return default["default"]
    raise DataError(f"settings must have {names[0]!r}, got {sorted(settings)}")


def clean(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefix that compiling adds, and without what is derived."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        name = name.removeprefix(PREFIX)
        if name in found:
            raise DataError(f"weights must name {name} once, got it with and without {PREFIX!r}")
        if is_derived(name):
            continue
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or not weight.ndim:
            raise DataError(f"{name} must be a floating tensor of axes, got {describe(weight)}")
        found[name] = weight
    return found


def is_derived(name: str) -> bool:
    """Whether a published buffer follows from the settings."""
    last = name.rpartition(".")[2]
    return last in ("future_context_weights", "tril") or last.startswith("merge_")


def untie(weights: Mapping[str, Tensor], name: str, *copies: str) -> dict[str, Tensor]:
    """The weights with `name` alone of the names that share one tensor; all must be equal."""
    found = dict(weights)
    given = [n for n in (name, *copies) if n in found]
    for other in given[1:]:
        if not torch.equal(found[given[0]], found[other]):
            raise DataError(f"{other} must equal {given[0]}, to which it is tied; it differs")
    if given:
        found = {n: x for n, x in found.items() if n not in given} | {name: found[given[0]]}
    return found


def fill(layout: Layout, weights: Mapping[str, Tensor]) -> None:
    """Copy each published weight into the parameters that hold it; DataError if one is amiss."""
    for name in sorted(layout.keys() | weights.keys()):
        shape = published_shape(layout[name]) if name in layout else None
        found = tuple(weights[name].shape) if name in weights else None
        if shape != found:
            raise DataError(f"{name} must have shape {shape}, got {found}")
    with torch.no_grad():
        for name, parts in layout.items():
            sizes = [len(part) for part in parts]
            for part, value in zip(parts, weights[name].split(sizes), strict=True):
                part.copy_(value)


def published_shape(parts: tuple[Tensor, ...]) -> tuple[int, ...]:
    """The shape of the published weight that these parameters make up."""
    return (sum(len(part) for part in parts), *parts[0].shape[1:])


def getters(layout: Layout) -> dict[str, Callable[[Get], Tensor]]:
    """How each published weight, or its gradient, is put together."""

    def joined(parts: tuple[Tensor, ...]) -> Callable[[Get], Tensor]:
        return lambda get: get(parts[0]) if len(parts) == 1 else torch.cat([*map(get, parts)])

    return {name: joined(parts) for name, parts in layout.items()}


def keep_all_unread(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Keep weights that the published forward never reads: saved, but not trained."""
    for name, weight in weights.items():
        keep_unread(model, name, weight)


def dtype_of(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The one floating dtype of the weights."""
    found = {x.dtype for x in weights.values()}
    if len(found) != 1:
        raise DataError(f"weights must have one floating dtype, got {sorted(map(str, found))}")
    return found.pop()
