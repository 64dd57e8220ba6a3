"""MODELS: one class, and one file, for each architecture.

A new model is a file here and one line in MODELS; docs/own_model.md writes one from start to end.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from thinkers import registry
from thinkers.errors import DamagedError, DataError, UsageError
from thinkers.files import check_format
from thinkers.models.base import FORMAT, Model, Thought
from thinkers.models.batch import Batch, Loss, collate
from thinkers.models.decoder import Decoder
from thinkers.models.deepsight import DeepSight
from thinkers.models.looped import Looped
from thinkers.models.multi_token import MultiToken
from thinkers.models.names import MODELS as _MODELS
from thinkers.models.pause import Pause
from thinkers.models.reasoning_tokens import ReasoningTokens
from thinkers.models.thinker import Thinker
from thinkers.models.thoughtsformer import ThoughtsFormer
from thinkers.models.unused_weights import PREFIX as UNREAD
from thinkers.models.unused_weights import keep_unread
from thinkers.process_state import keep_process_state

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


def build_model(name: str, **settings: Any) -> Model:
    """Build a model of this name; its weights are drawn from torch's global generator.

    Raises:
        UsageError: The model or a setting is unknown.
        ValueError: A setting is invalid, or vocab_size is not set.
    """
    check_names(name, settings)
    return MODELS[name](MODELS[name].Config(**settings))


def check_names(name: Any, settings: Mapping[str, Any]) -> None:
    """Raise UsageError if there is no model of this name, or if it lacks one of the settings."""
    registry.check(MODELS, "model")
    if not isinstance(name, str) or name not in MODELS:
        raise UsageError(f"unknown model {name!r}; choose from {sorted(MODELS)}")
    known = [f.name for f in dataclasses.fields(MODELS[name].Config)]
    for field in settings:
        if field not in known:
            raise UsageError(f"unknown setting {field!r} of {name}; choose from {known}")


def from_config(config: Any) -> Model:
    """Build a model of the class that this configuration belongs to."""
    return MODELS[registry.name_of_config(config, MODELS, "model")](config)


@keep_process_state()  # the first weights of a model are drawn, and then replaced
def load_model(folder: str | Path) -> Model:
    """Load the model that `Model.save` wrote into `folder`.

    Raises:
        DataError: A file is missing.
        DamagedError: A file cannot be read, or does not describe a model.
    """
    path = Path(folder)
    try:
        found = json.loads((path / "config.json").read_text())
    except FileNotFoundError:
        raise DataError(f"{path} holds no config.json, so it is not a model folder") from None
    except ValueError as error:
        raise DamagedError(f"{path / 'config.json'} is not JSON: {error}") from None
    found = found if isinstance(found, dict) else {}
    check_format(path / "config.json", found.get("format"), FORMAT)
    if "model" not in found or not isinstance(found.get("config"), dict):
        raise DamagedError(f"{path / 'config.json'} must hold model and config, got {list(found)}")
    if not isinstance(found["model"], str):
        raise DamagedError(f"{path / 'config.json'} must name a model, got {found['model']!r}")
    # An unknown name is not damage: it may be of another version, or of a file not imported.
    check_names(found["model"], found["config"])
    try:
        model = build_model(found["model"], **found["config"])
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{path / 'config.json'} describes no model: {error}") from None
    try:
        weights = load_file(path / "model.safetensors")
    except FileNotFoundError:
        raise DataError(f"{path} holds no model.safetensors") from None
    except Exception as error:
        raise DamagedError(f"{path / 'model.safetensors'} cannot be read: {error}") from None
    for name, weight in weights.items():
        if name.startswith(UNREAD):
            keep_unread(model, name.removeprefix(UNREAD), weight)
    check_weights(model, weights, path)
    for name, parameter in model.named_parameters():
        model.to(weights[name].dtype if parameter.dtype != weights[name].dtype else None)
        break
    model.load_state_dict(weights)
    return model


def check_weights(model: Model, weights: dict[str, Any], path: Path) -> None:
    """Raise DamagedError naming the first weight that `model` lacks, or has in another shape."""
    wanted = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise DamagedError(
                f"{path}: {name} must have shape {wanted.get(name)}, got {found.get(name)}"
            )


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
