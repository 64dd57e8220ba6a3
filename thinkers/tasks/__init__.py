"""What there is to learn: `TASKS`, each a source of batches that can also judge a model."""

from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from thinkers.errors import UsageError
from thinkers.tasks.answers import AnswerTask as AnswerTask
from thinkers.tasks.arithmetic import Add, Arithmetic, Factorise, Multiply, Subtract
from thinkers.tasks.babi import Babi
from thinkers.tasks.base import SPLITS as SPLITS
from thinkers.tasks.base import Task as Task
from thinkers.tasks.sequences import Copy, Jump, Reverse, Rotate, RunningSum, Shift, Sort
from thinkers.tasks.star_graph import StarGraph
from thinkers.tasks.text import Text

TASKS: dict[str, type[Task]] = {
    "copy": Copy,
    "reverse": Reverse,
    "sort": Sort,
    "rotate": Rotate,
    "shift": Shift,
    "jump": Jump,
    "running_sum": RunningSum,
    "add": Add,
    "subtract": Subtract,
    "multiply": Multiply,
    "arithmetic": Arithmetic,
    "factorise": Factorise,
    "text": Text,
    "star_graph": StarGraph,
    "babi": Babi,
}


def build_task(name: str, seed: int = 0, **own: Any) -> Task:
    """The task of this name, with its own settings.

    Raises:
        UsageError: if there is no such task or setting, naming the nearest that there is.
    """
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}; {_choices(name, list(TASKS))}")
    task = TASKS[name]
    known = [field.name for field in fields(task.Config)]
    for setting in own:
        if setting not in known:
            raise UsageError(f"unknown setting {setting!r} of {name}; {_choices(setting, known)}")
    return task(task.Config(**own), seed)


def from_config(config: Any, seed: int = 0) -> Task:
    """The task that this is the configuration of."""
    return _owner(config)(config, seed)


def from_run(config: Any, seed: int, folder: Path) -> Task:
    """The task of this configuration, with what the run in `folder` keeps of it."""
    return _owner(config).from_run(config, seed, folder)


def _owner(config: Any) -> type[Task]:
    for task in TASKS.values():
        if type(config) is task.Config:
            return task
    raise UsageError(f"config must be the Config of a task, got a {type(config).__qualname__}")


def _choices(given: str, known: list[str]) -> str:
    near = get_close_matches(given, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
