"""Transformers that think in latent space before they answer.

    config = thinkers.RECIPES["add/thinker"]()
    run = thinkers.train(config, out="runs/a")

The names below are found when they are first used, so that importing the package is quick.
"""

import gc
import importlib
from typing import Any

from thinkers.version import __version__ as __version__

_HOMES = {
    "models": ("MODELS", "Batch", "Loss", "Model", "Thought", "build_model", "load_model"),
    "tasks": ("TASKS", "Task", "build_task"),
    "recipes": ("RECIPES",),
    "config.experiment": ("Config",),
    "config.training": ("Training",),
    "training": ("train",),
    "runs.result": ("Run", "load"),
    "evaluating": ("evaluate",),
    "comparing": ("compare",),
    "answering": ("answer", "generate", "stream"),
    "reproducing": ("reproduce",),
    "inspecting": ("inspect",),
    "ablating": ("ablate",),
    "nn.processor": ("Disturb", "LatentStore", "Output", "Probe", "Process", "Read"),
    "errors": ("ThinkersError",),
}
_MODULES = ("ops", "published", "testing", *_HOMES)

__all__ = ["__version__", *_MODULES, *(name for names in _HOMES.values() for name in names)]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _import(name)
    for home, names in _HOMES.items():
        if name in names:
            return getattr(_import(home), name)
    raise AttributeError(f"module 'thinkers' has no attribute {name!r}")


def _import(name: str) -> Any:
    """A module of the package, and torch with the first: faster while no garbage is sought.

    An import makes next to none, and torch's makes very many objects to search.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"thinkers.{name}")
    finally:
        if collecting:
            gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
