"""Shared parts of the importers: settings, names, tied copies, unused weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thinkers.checks import describe
from thinkers.errors import DataError
from thinkers.models.base import Model
from thinkers.models.unused_weights import keep_unread
from thinkers.strict_json import parse_json

PREFIX = "_orig_mod."

Get = Callable[[Tensor], Tensor]
"""Map a parameter to its value or its gradient."""

Layout = Mapping[str, tuple[Tensor, ...]]
"""{published name: our parameters that make up this weight, joined along the first axis}."""


def decode(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as values; those of a file's metadata are JSON texts and are decoded."""
    if not all(isinstance(value, str) for value in settings.values()):
        return dict(settings)
    return {name: decode_value(value) for name, value in settings.items()}


def decode_value(text: str) -> Any:
    """Decode a JSON text; any other text is returned unchanged."""
    try:
        return parse_json(text.encode("utf-8", "surrogatepass"), "a setting", DataError)
    except DataError:
        return text


def pick(settings: Mapping[str, Any], *names: str, **default: Any) -> Any:
    """Return the first setting present among these names, else `default`.

    Raises:
        DataError: None is present, and no default is given.
    """
    for name in names:
        if name in settings:
            return settings[name]
    if "default" in default:
        return default["default"]
    raise DataError(f"settings lack {names[0]!r}, which is required; found {sorted(settings)}")


def clean(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix that torch.compile adds, and buffers that follow from the settings."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        name = name.removeprefix(PREFIX)
        if name in found:
            raise DataError(
                f"weights hold {name} twice, with and without the prefix {PREFIX!r}; keep one"
            )
        if is_derived(name):
            continue
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or not weight.ndim:
            raise DataError(
                f"{name} must be a floating-point tensor of at least one axis, "
                f"got {describe(weight)}"
            )
        found[name] = weight
    return found


def is_derived(name: str) -> bool:
    """Return True if this is a published buffer that follows from the settings."""
    last = name.rpartition(".")[2]
    return last in ("future_context_weights", "tril") or last.startswith("merge_")


def untie(weights: Mapping[str, Tensor], name: str, *copies: str) -> dict[str, Tensor]:
    """Keep only `name` of the names of one tied weight.

    Raises:
        DataError: The copies differ.
    """
    found = dict(weights)
    given = [n for n in (name, *copies) if n in found]
    for other in given[1:]:
        if not torch.equal(found[given[0]], found[other]):
            raise DataError(f"{other} must equal {given[0]}, to which it is tied, but differs")
    if given:
        found = {n: x for n, x in found.items() if n not in given} | {name: found[given[0]]}
    return found


def fill(layout: Layout, weights: Mapping[str, Tensor]) -> None:
    """Copy each published weight into the parameters that hold it.

    Raises:
        DataError: A weight is missing, unknown or of another shape.
    """
    for name in sorted(layout.keys() | weights.keys()):
        shape = published_shape(layout[name]) if name in layout else None
        found = tuple(weights[name].shape) if name in weights else None
        if shape != found:
            raise DataError(mismatch(name, shape, found))
    with torch.no_grad():
        for name, parts in layout.items():
            sizes = [len(part) for part in parts]
            for part, value in zip(parts, weights[name].split(sizes), strict=True):
                part.copy_(value)


def mismatch(name: str, expected: Sequence[int] | None, found: Sequence[int] | None) -> str:
    """Describe a weight that is missing (`found` None), unknown (`expected` None) or misshaped."""
    if found is None:
        return (
            f"weights lack {name}, which these settings require with shape {list(expected or ())}"
        )
    if expected is None:
        return f"weights hold {name}, which a model with these settings lacks; check the settings"
    return f"{name} must have shape {list(expected)} with these settings, got {list(found)}"


def published_shape(parts: tuple[Tensor, ...]) -> tuple[int, ...]:
    """Return the shape of the published weight that these parameters make up."""
    return (sum(len(part) for part in parts), *parts[0].shape[1:])


def getters(layout: Layout) -> dict[str, Callable[[Get], Tensor]]:
    """Return, by published name, functions that assemble a weight or its gradient."""

    def joined(parts: tuple[Tensor, ...]) -> Callable[[Get], Tensor]:
        return lambda get: get(parts[0]) if len(parts) == 1 else torch.cat([*map(get, parts)])

    return {name: joined(parts) for name, parts in layout.items()}


def keep_all_unread(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Keep weights that the published forward never reads as buffers: saved, not trained."""
    for name, weight in weights.items():
        keep_unread(model, name, weight)


def dtype_of(weights: Mapping[str, Tensor]) -> torch.dtype:
    """Return the dtype that all weights share.

    Raises:
        DataError: They have several.
    """
    found = {x.dtype for x in weights.values()}
    if len(found) != 1:
        raise DataError(
            f"weights must share one floating-point dtype, got {sorted(map(str, found))}; "
            "convert them before loading"
        )
    return found.pop()
