"""Tasks: `TASKS` maps names to classes that make batches and score models.

A new task is a file here and one line in TASKS; docs/own_task.md writes one from start to end.
"""

from collections.abc import Collection
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from thinkers import registry
from thinkers.errors import UsageError, join_errors
from thinkers.optional import is_installed
from thinkers.tasks.answers import AnswerTask as AnswerTask
from thinkers.tasks.arithmetic import Add, Arithmetic, Multiply, Subtract
from thinkers.tasks.babi import Babi
from thinkers.tasks.base import SPLITS as SPLITS
from thinkers.tasks.base import Task as Task
from thinkers.tasks.cellular_automaton import Automaton
from thinkers.tasks.factorise import Factorise
from thinkers.tasks.facts import Facts
from thinkers.tasks.lookup import Lookup
from thinkers.tasks.mixed import Mixed
from thinkers.tasks.reasoning_gym import ReasoningGym
from thinkers.tasks.sequences import Copy, Jump, Reverse, Rotate, RunningSum, Shift, Sort
from thinkers.tasks.star_graph import StarGraph
from thinkers.tasks.state_tracking import Cups, Links
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
    "cups": Cups,
    "automaton": Automaton,
    "links": Links,
    "mixed": Mixed,
    "lookup": Lookup,
    "facts": Facts,
}
if is_installed("reasoning_gym"):
    TASKS["reasoning_gym"] = ReasoningGym


def build_task(name: str, /, seed: int = 0, **settings: Any) -> Task:
    """Build a task by its name in `TASKS`.

    Args:
        settings: Fields of its Config.

    Raises:
        UsageError: There is no such task, or settings are unknown or invalid: all of them are
            named, with the nearest known ones.
    """
    registry.check(TASKS, "task")
    if name not in TASKS:
        registry.check_extra(name)
        raise UsageError(f"unknown task {name!r}; {_suggestion(name, list(TASKS))}")
    task = TASKS[name]
    known = [field.name for field in fields(task.Config)]
    problems = {
        setting: UsageError(f"unknown setting {setting!r} of {name}; {_suggestion(setting, known)}")
        for setting in settings
        if setting not in known
    }
    of_task = {key: value for key, value in settings.items() if key not in problems}
    config, invalid = registry.construct_all(task.Config, of_task)
    if problems or invalid:
        raise join_errors([*problems.values(), *invalid])
    return task(config, seed)


def from_config(config: Any, seed: int = 0) -> Task:
    """Build the task whose Config this is."""
    return _class_of(config)(config, seed)


def from_run(config: Any, seed: int, folder: Path, named: Collection[str] = ()) -> Task:
    """Build the task whose Config this is, with the files that the run in `folder` has of it.

    Args:
        named: Settings that the user gave; those of the run may not name files to read.
    """
    task = _class_of(config).from_run(config, seed, folder)
    task.allow_sources(named)
    return task


def _class_of(config: Any) -> type[Task]:
    return TASKS[registry.name_of_config(config, TASKS, "task")]


def _suggestion(given: str, known: list[str]) -> str:
    near = get_close_matches(given, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
