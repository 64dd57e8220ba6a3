"""Published checkpoints: load, run and dump them under the names of their authors."""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from thinkers.errors import DataError, UsageError
from thinkers.models.base import Model
from thinkers.models.unused_weights import unread
from thinkers.process_state import keep_process_state
from thinkers.published.common import clean, decode

SYSTEMS = {
    "thoughtsformer": "thoughtsformer",
    "self_reasoning_tokens": "reasoning_tokens",
    "deepsight": "deepsight",
    "thinker": "thinker",
}
"""{published system: name of the model that it becomes}; the system names its file here."""


class NoGradient(Exception):
    """A parameter without gradient."""


@keep_process_state()
def load(system: str, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Model:
    """Build the model that computes what the published one does, in the dtype of its weights.

    Args:
        weights: Tensors by published name; copies of a tied weight must be equal.
        settings: Published hyper-parameters, as values or as the metadata of a safetensors file.

    Raises:
        UsageError: The system is unknown.
        DataError: A weight or a setting is missing, unknown or of the wrong shape, or differs
            from the weight that it is tied to.
    """
    decoded = decode(settings)
    if decoded.get("system", system) != system:
        raise DataError(
            f"settings of {decoded['system']!r} do not fit the system {system!r}; "
            "pass the settings that belong to the checkpoint"
        )
    load_system, cleaned = importer(system).load, clean(weights)
    try:
        return load_system(cleaned, decoded)
    except DataError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"settings cannot configure {system!r}: {error}") from error


def outputs(
    model: Model, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Run the model; return its outputs by their published names and in their published shapes."""
    return importer(system_of(model)).outputs(model, inputs, decode(settings))


def dump(model: Model, grads: bool = False) -> dict[str, Tensor]:
    """Return weights by published name, or their gradients, without those that are None."""

    def get(parameter: Tensor) -> Tensor:
        if not grads:
            return parameter.detach()
        if parameter.grad is None:
            raise NoGradient
        return parameter.grad

    found = {} if grads else unread(model)
    for name, assemble in importer(system_of(model)).parameters(model).items():
        try:
            found[name] = assemble(get)
        except NoGradient:
            continue
    return found


def importer(system: str) -> Any:
    """Return the module of `thinkers.published` that imports this system."""
    if system not in SYSTEMS:
        raise UsageError(f"unknown published system {system!r}; choose from {sorted(SYSTEMS)}")
    return importlib.import_module(f"thinkers.published.{system}")


def system_of(model: Model) -> str:
    """Return the published system of a model."""
    for system, name in SYSTEMS.items():
        if model.name == name:
            return system
    raise UsageError(
        f"{model.name!r} has no published system; pass one of {sorted(SYSTEMS.values())}"
    )
