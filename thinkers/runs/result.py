"""The result of a training, and `open_run`: from a run, a folder or a model to model and task."""

import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from thinkers import tasks
from thinkers.config.experiment import check_vocabulary, parts_of
from thinkers.config.overrides import check_flags, override_task
from thinkers.devices import find_device
from thinkers.errors import DataError, UsageError, usage_error
from thinkers.files import exists, open_file, own_folder
from thinkers.models import load_model
from thinkers.models.base import Model
from thinkers.runs.folder import MODEL, is_run, read_record
from thinkers.tasks import Task
from thinkers.user_paths import user_path


@dataclass(frozen=True)
class Run:
    """The result of a training.

    Args:
        model: The model with its final weights (averaged if `ema` is set), in evaluation mode.
        scores: {metric: value} on held-out examples of the test split, at the model's own steps.
        folder: The run folder.
    """

    model: Model
    scores: dict[str, float]
    folder: Path

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {score:.4f}" for name, score in self.scores.items())
        return f"Run({self.model.name}: {scores}; {self.folder})"

    def _repr_html_(self) -> str:
        shown = {
            "model": self.model.name,
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            **{name: f"{score:.4f}" for name, score in self.scores.items()},
            "folder": str(self.folder),
        }
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in shown.items()
        )
        return f"<table><tbody>{rows}</tbody></table>"


RunLike = Run | Model | str | Path | tuple[Model, Task]
"""A trained model: a run, its folder, a model folder, a model, or a model and a task."""


def load(folder: str | Path) -> Model:
    """Load the model of a model folder, or the newest one of a run, in evaluation mode.

    Raises:
        DataError: The folder holds no model.
        DamagedError: A file has changed since it was written, or is a link.
        FormatError: Another version wrote it.
    """
    path = user_path(folder, "folder")
    if own_folder(path / MODEL):
        path = path / MODEL
    elif exists(path / "metrics.jsonl") or own_folder(path / "checkpoints"):
        raise DataError(
            f"{path} is a run that has saved no model yet; continue with --resume {path}"
        )
    return load_model(path).eval()


def weights_digest(folder: str | Path) -> str | None:
    """Return the SHA-256 of the file of weights that `load` reads; None if there is none."""
    path = user_path(folder, "folder")
    file = (path / MODEL if own_folder(path / MODEL) else path) / "model.safetensors"
    if not exists(file):
        return None
    with open_file(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_run(run: RunLike, *, flags: Sequence[str] = ()) -> tuple[Model, Task | None]:
    """Return the model of a run, and its task, as it was trained on.

    A model from a folder is on the fastest device and in evaluation mode, as by `load`. A
    pair (model, task) is returned as it is. The task is None for a model, and for a model folder
    outside a run, since their task is not recorded.

    Args:
        flags: Settings of the run's task to change, such as --task.test_path=other.txt.

    Raises:
        UsageError: There is no such run, or flags were given without one.
        DataError: The run has saved no model.
        DamagedError: A file of the run is not as it was written.
        FormatError: Another version wrote it.
    """
    check_flags(flags)
    if isinstance(run, Model | tuple):
        if flags:
            raise UsageError(f"flags must be left out for a model outside a run, got {list(flags)}")
        return (run, None) if isinstance(run, Model) else _checked_pair(run)
    if isinstance(run, Run):
        asked = _task_of(run.folder, flags)
        check_meanings(asked, _task_of(run.folder, ()) if flags else asked, flags)
        return run.model.eval(), asked
    if not isinstance(run, str | Path):
        what = "a Run, a folder, a model or (model, task)"
        raise UsageError(f"run must be {what}, got {type(run).__name__}")
    path = user_path(run, "run")
    home = _run_folder(path)
    if home is None and flags:
        raise UsageError(f"flags must be left out for a model outside a run, got {list(flags)}")
    # The task first: it is quick to read, and its errors name the run folder.
    task = None if home is None else _task_of(home, flags)
    model = load(path)
    if home is not None and task is not None:
        # Only the run's own task shows the version of a run.
        own_task = _task_of(home, ()) if flags else task
        check_vocabulary(model.config.vocab_size, own_task, home)
        check_meanings(task, own_task, flags)
    return model.to(find_device("auto")), task


def check_meanings(task: Task, own: Task, flags: Sequence[str]) -> None:
    """Raise UsageError if flags of the task give ids another meaning than in training."""
    if task is own:
        return
    here, before = ([x.decode([i]) for i in range(x.vocab_size)] for x in (task, own))
    if here != before:
        raise usage_error(
            f"{' '.join(flags)}, with which tokens mean something else than in training",
            "settings that keep the vocabulary of the run",
            "leave them out, or train a run with them",
        )


def _checked_pair(pair: tuple[Any, ...]) -> tuple[Any, Task]:
    # Any module that answers as a Model does will do: oracles in tests, or wrapped models.
    if len(pair) == 2 and isinstance(pair[0], nn.Module) and isinstance(pair[1], Task):
        return pair[0], pair[1]
    found = ", ".join(type(x).__name__ for x in pair)
    raise UsageError(f"run must be a pair (model, task) where it is a tuple, got ({found})")


def open_with_task(run: RunLike, *, flags: Sequence[str] = ()) -> tuple[Model, Task]:
    """`open_run` for callers that need a task.

    Raises:
        UsageError: As `open_run`, or the model has no task.
    """
    model, task = open_run(run, flags=flags)
    if task is None:
        raise usage_error(
            f"{folder_of(run) or model.name}, a model without its task",
            "a run, its folder, or (model, task)",
            "pass (model, task), such as (thinkers.load(folder), thinkers.build_task(name))",
        )
    return model, task


def folder_of(run: RunLike) -> str:
    """Return the folder that was given, for messages; empty for a model."""
    if isinstance(run, Model | tuple):
        return ""
    return str(run.folder if isinstance(run, Run) else run)


def _run_folder(path: Path) -> Path | None:
    """Return the run folder of `path`, itself or its parent; None for a model outside a run."""
    if not exists(path / "model.safetensors"):
        return path
    parent = path.absolute().parent
    return parent if is_run(parent) else None


def _task_of(folder: Path, flags: Sequence[str]) -> Task:
    _, task, training = parts_of(read_record(folder)["config"])
    named = [flag.partition("=")[0].removeprefix("--task.") for flag in flags]
    return tasks.from_run(override_task(task, flags), training.seed, folder, named)
