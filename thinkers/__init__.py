"""Transformers that think in latent space before they answer.

    config = thinkers.RECIPES["add/thinker"]()
    run = thinkers.train(config, out="runs/a")

Public names are imported on first use, so that importing the package takes no torch.
"""

import gc
import importlib
from typing import Any

from thinkers.version import __version__ as __version__

_HOMES = {
    "models": (
        "MODELS",
        "Batch",
        "Loss",
        "Model",
        "Thought",
        "build_model",
        "collate",
        "load_model",
    ),
    "tasks": ("TASKS", "Task", "build_task"),
    "recipes": ("RECIPES",),
    "config.experiment": ("Config",),
    "config.training": ("Training",),
    "training.loop": ("resume", "train"),
    "training.grow": ("grow",),
    "training.reinforce": ("reinforce",),
    "training.reproduce": ("reproduce",),
    "runs.result": ("Run", "load", "open_run"),
    "runs.trackers": ("TRACKERS",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.generate": ("answer", "generate", "stream"),
    "inspection.inspect": ("inspect",),
    "inspection.ablate": ("ablate",),
    "comparison.runner": ("compare",),
    "nn.processor": ("Output", "Probe", "Process", "Read"),
    "nn.image_input": ("ImageInput",),
    "nn.latent_noise": ("Disturb",),
    "nn.latent_store": ("LatentStore",),
    "errors": ("ThinkersError",),
}
"""Public names by the module that defines them."""
_ROOMS = ("memory", "models", "ops", "published", "recipes", "tasks", "testing")
"""Packages whose own names are public too."""
_ROOMS_OF_EXTRAS = ("hf",)
_HOMES_OF_EXTRAS = {"hf.retrofit": ("retrofit",)}
"""Such packages and names that need an extra, so that `from thinkers import *` leaves them out."""

__all__ = ["__version__", *_ROOMS, *(name for names in _HOMES.values() for name in names)]


def __getattr__(name: str) -> Any:
    if name in (*_ROOMS, *_ROOMS_OF_EXTRAS):
        return _import(name)
    for home, names in (_HOMES | _HOMES_OF_EXTRAS).items():
        if name in names:
            return getattr(_import(home), name)
    raise AttributeError(f"module 'thinkers' has no attribute {name!r}")


def _import(name: str) -> Any:
    """Import a module of the package, with the garbage collector off.

    Importing torch creates very many objects and next to no garbage: the collector would walk over
    them again and again.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"thinkers.{name}")
    finally:
        if collecting:
            gc.enable()


def __dir__() -> list[str]:
    of_extras = (name for names in _HOMES_OF_EXTRAS.values() for name in names)
    return sorted({*__all__, *_ROOMS_OF_EXTRAS, *of_extras})
