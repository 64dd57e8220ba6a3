"""MODELS: one class, and one file, for each architecture.

A new model is a file here and one line in MODELS; docs/own_model.md writes one from start to end.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from thinkers import registry
from thinkers.checks import missing_settings
from thinkers.errors import DamagedError, DataError, UsageError, join_errors
from thinkers.json_files import read_with_digest
from thinkers.models.base import FORMAT, Model, Thought, settings_digest
from thinkers.models.batch import Batch, Loss, collate
from thinkers.models.decoder import Decoder
from thinkers.models.deepsight import DeepSight
from thinkers.models.hf_looped import HFLooped
from thinkers.models.looped import Looped
from thinkers.models.multi_token import MultiToken
from thinkers.models.names import MODELS as _MODELS
from thinkers.models.pause import Pause
from thinkers.models.reasoning_tokens import ReasoningTokens
from thinkers.models.thinker import Thinker
from thinkers.models.thoughtsformer import ThoughtsFormer
from thinkers.models.unused_weights import PREFIX as UNREAD
from thinkers.models.unused_weights import keep_unread
from thinkers.models.weights_file import (
    Header,
    check_shapes,
    read_header,
    read_tensors,
    shapes_of,
    sizes_within,
    verify,
)
from thinkers.optional import is_installed
from thinkers.process_state import keep_process_state
from thinkers.user_paths import user_path

MODELS: dict[str, type[Model]] = _MODELS
MODELS |= {
    "decoder": Decoder,
    "deepsight": DeepSight,
    "looped": Looped,
    "multi_token": MultiToken,
    "pause": Pause,
    "reasoning_tokens": ReasoningTokens,
    "thinker": Thinker,
    "thoughtsformer": ThoughtsFormer,
}

if is_installed("transformers"):
    MODELS["hf_looped"] = HFLooped

# torch.export must know how to take a model's result apart.
torch.export.register_dataclass(Thought, serialized_type_name="thinkers.Thought")


def build_model(name: str, **settings: Any) -> Model:
    """Build a model of this name; its weights are drawn from torch's global generator.

    Raises:
        UsageError: The model is unknown, or settings are unknown or invalid: all of them are
            named; or vocab_size is not set.
    """
    _check_name(name)
    problems = _unknown_settings(name, settings)
    known = {key: x for key, x in settings.items() if key not in problems}
    config, invalid = registry.construct_all(MODELS[name].Config, known)
    if problems or invalid:
        raise join_errors([*problems.values(), *invalid])
    return MODELS[name](config)


def check_names(name: Any, settings: Mapping[str, Any]) -> None:
    """Raise UsageError if there is no model of this name, or if it lacks one of the settings."""
    _check_name(name)
    if unknown := _unknown_settings(name, settings):
        raise join_errors(unknown.values())


def _check_name(name: Any) -> None:
    registry.check(MODELS, "model")
    if not isinstance(name, str) or name not in MODELS:
        registry.check_extra(name)
        raise UsageError(f"unknown model {name!r}; choose from {sorted(MODELS)}")


def _unknown_settings(name: str, settings: Iterable[str]) -> dict[str, UsageError]:
    known = [f.name for f in dataclasses.fields(MODELS[name].Config)]
    return {
        field: UsageError(f"unknown setting {field!r} of {name}; choose from {known}")
        for field in settings
        if field not in known
    }


def from_config(config: Any) -> Model:
    """Build a model of the class that this configuration belongs to."""
    return MODELS[registry.name_of_config(config, MODELS, "model")](config)


@keep_process_state()  # the first weights of a model are drawn, and then replaced
def load_model(folder: str | Path) -> Model:
    """Load the model that `Model.save` wrote into `folder`.

    Raises:
        DataError: The folder holds no model.
        DamagedError: A file of it has changed since it was written.
        FormatError: Another version wrote it.
        UsageError: Nothing in MODELS has its name, or its Config lacks one of the settings.
    """
    path = user_path(folder, "folder")
    file, weights_file = path / "config.json", path / "model.safetensors"
    try:
        found = read_with_digest(file, {"model": str, "config": dict}, FORMAT)
    except FileNotFoundError:
        raise DataError(f"{path} holds no config.json, so it is not a model folder") from None
    try:
        header = read_header(weights_file)
    except FileNotFoundError:
        raise DataError(f"{path} holds no model.safetensors") from None
    digest = settings_digest(found["model"], found["config"])
    # In a thread of its own, since hashing takes a sixth of the time of loading.
    with ThreadPoolExecutor(1) as pool:
        verified = pool.submit(verify, weights_file, header, digest)
        model = _build_within(found, header, file)
        verified.result()
    known = {name: x for name, x in header.shapes.items() if not name.startswith(UNREAD)}
    check_shapes(known, shapes_of(model.state_dict()), str(weights_file))
    weights = read_tensors(weights_file)
    for name, weight in weights.items():
        if name.startswith(UNREAD):
            keep_unread(model, name.removeprefix(UNREAD), weight)
    set_dtypes(model, header.dtypes)
    model.load_state_dict(weights)
    return model


def _build_within(found: dict[str, Any], header: Header, file: Path) -> Model:
    """Build the model that config.json describes, if the weights are as large."""
    name, settings = found["model"], found["config"]
    # Names may be those of another version, or of a file that was not imported: no damage.
    check_names(name, settings)
    missing = missing_settings(MODELS[name].Config, settings)
    if missing:
        raise DamagedError(f"{file} lacks {missing[0]}, a setting of {name}")
    values = {key: tuple(x) if isinstance(x, list) else x for key, x in settings.items()}
    try:
        with sizes_within(header, str(file)):
            return build_model(name, **values)
    except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
        # A single tensor that memory has no room for fails before its size is counted.
        raise DamagedError(f"{file} describes no model: {error}") from None


def set_dtypes(model: Model, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give a model the dtypes of its saved weights, and its other buffers that of the first."""
    first = next((x for x in dtypes.values() if x.is_floating_point), None)
    model.to(first)
    for name, x in model.state_dict(keep_vars=True).items():
        x.data = x.data.to(dtypes[name])


__all__ = [
    "MODELS",
    "Batch",
    "Loss",
    "Model",
    "Thought",
    "build_model",
    "collate",
    "from_config",
    "load_model",
]
