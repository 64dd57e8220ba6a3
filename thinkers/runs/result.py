"""What came of a training, and the ways back to its model and its task."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thinkers import tasks
from thinkers.config.experiment import parts_of
from thinkers.config.overrides import override_task
from thinkers.devices import find_device
from thinkers.errors import DataError, UsageError
from thinkers.models import load_model
from thinkers.models.base import Model
from thinkers.runs.folder import read_record
from thinkers.tasks import Task


@dataclass(frozen=True)
class Run:
    """What came of a training.

    Args:
        model: With its final weights, averaged if `ema` is on.
        scores: {metric: value} on held-out test examples, at the usual number of steps.
        folder: Where everything is.
    """

    model: Model
    scores: dict[str, float]
    folder: Path


def load(folder: str | Path) -> Model:
    """The model of a model folder, or of a run: its newest, averaged if the run averages."""
    path = Path(folder)
    if (path / "model").is_dir():
        return load_model(path / "model")
    if (path / "metrics.jsonl").exists() or (path / "checkpoints").is_dir():
        raise DataError(f"{path} is a run that has saved no model yet; go on with --resume {path}")
    return load_model(path)


def task_of(folder: Path, flags: Sequence[str] = ()) -> Task:
    """The task of the run in `folder`, or in the folder that this model folder is in.

    Args:
        flags: Settings of it to change, such as --task.test_path=other.txt.
    """
    home = folder.parent if folder.name == "model" else folder
    _, task, training = parts_of(read_record(home)["config"])
    return tasks.from_run(override_task(task, flags), training.seed, home)


def model_and_task(run: Run | Model | str | Path, task: Task | None) -> tuple[Model, Task]:
    """Of a run, or of a model that comes with its task."""
    if task is None and isinstance(run, Model):
        raise UsageError("task must be given for a model that comes without its run")
    if task is None:
        task = task_of(run.folder if isinstance(run, Run) else Path(run))  # type: ignore
    if isinstance(run, Model):
        return run, task
    if isinstance(run, Run):
        return run.model, task
    return load(run).to(find_device("auto")), task


def folder_of(run: Run | Model | str | Path) -> str:
    """What the run is called by."""
    if isinstance(run, Model):
        return ""
    return str(run.folder if isinstance(run, Run) else run)
