"""The original authors' checkpoints: read, run and written back under their own names."""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from thinkers.errors import DataError, UsageError
from thinkers.models.base import Model
from thinkers.models.unused_weights import unread
from thinkers.published.common import clean, decode

SYSTEMS = {
    "thoughtsformer": "thoughtsformer",
    "self_reasoning_tokens": "reasoning_tokens",
    "deepsight": "deepsight",
    "thinker": "thinker",
}
"""Published systems, each read by the file of its name here, and the model that each becomes."""


class NoGradient(Exception):
    """A parameter that has none."""


def load(system: str, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Model:
    """A model that computes what the published one does, in the dtype of its weights.

    Args:
        weights: Tensors by published name; copies of a tied one must be equal.
        settings: The published hyper-parameters, as values or as a file's metadata.

    Raises:
        DataError: A weight or a setting is missing, unknown, of the wrong shape or not equal to
            the one that it is tied to.
    """
    decoded = decode(settings)
    if decoded.get("system", system) != system:
        raise DataError(f"settings must be of {system}, got those of {decoded['system']}")
    read, found = reader(system).load, clean(weights)
    try:
        return read(found, decoded)
    except DataError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"settings must be those of a {system}: {error}") from error


def outputs(
    model: Model, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """What the published model returns, by the published names and in its shapes."""
    return reader(system_of(model)).outputs(model, inputs, decode(settings))


def dump(model: Model, grads: bool = False) -> dict[str, Tensor]:
    """Weights by published name, or their gradients, leaving out those that there are not."""

    def get(parameter: Tensor) -> Tensor:
        if not grads:
            return parameter.detach()
        if parameter.grad is None:
            raise NoGradient
        return parameter.grad

    found = {} if grads else unread(model)
    for name, value in reader(system_of(model)).parameters(model).items():
        try:
            found[name] = value(get)
        except NoGradient:
            continue
    return found


def reader(system: str) -> Any:
    """The module that knows this system's names."""
    if system not in SYSTEMS:
        raise UsageError(f"unknown system {system!r}; choose from {sorted(SYSTEMS)}")
    return importlib.import_module(f"thinkers.published.{system}")


def system_of(model: Model) -> str:
    """The published system that a model belongs to."""
    for system, name in SYSTEMS.items():
        if model.name == name:
            return system
    raise UsageError(f"model must be one of {sorted(SYSTEMS.values())}, got {model.name}")
