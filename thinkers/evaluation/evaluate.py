"""evaluate(run): the score of a trained model at every number of thinking steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thinkers.checks import check_int
from thinkers.devices import find_device
from thinkers.errors import UsageError
from thinkers.evaluation.statistics import Fall, worst_fall
from thinkers.models.base import Model
from thinkers.runs.result import Run, load, task_of
from thinkers.tasks import SPLITS, Task
from thinkers.tasks.base import example_groups


def evaluate(
    run: Run | Model | str | Path,
    num_steps: Sequence[int | None] | int | None = None,
    num_examples: int = 2000,
    split: str = "test",
    *,
    task: Task | None = None,
    flags: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One row {"num_steps": k, metric: value, ..} for each number of thinking steps.

    Args:
        run: What `train` returned, its folder, or a model or model folder together with `task`.
        num_steps: Which; None is all that the model finds worth testing.
        num_examples: How many held-out examples each row is measured on, the same for all.
        task: What to be judged on; of a run, None is what it was trained on.
        flags: Settings of that task to change, such as --task.test_path=other.txt.
    """
    model, task = _resolve(run, split, num_examples, task, flags)
    return [
        {"num_steps": k, **task.score(model, split, num_examples, k)}
        for k in _depths(model, num_steps)
    ]


def find_fall(
    run: Run | Model | str | Path,
    num_steps: Sequence[int | None] | int | None = None,
    num_examples: int = 2000,
    split: str = "test",
    *,
    task: Task | None = None,
    flags: Sequence[str] = (),
) -> Fall | None:
    """Where more thinking answers worse, by more than chance explains; None if nowhere.

    The arguments are those of `evaluate`; the same examples are answered at every depth.
    """
    model, task = _resolve(run, split, num_examples, task, flags)
    sign = 1 if task.higher_is_better else -1
    grades = {}
    for k in _depths(model, num_steps):
        grade = task.grade(model, split, num_examples, k).numpy()
        grades[model.check_steps(k)] = sign * grade
    return worst_fall(grades, example_groups(task, split, num_examples, grade))


def _depths(model: Model, num_steps: Sequence[int | None] | int | None) -> Sequence[int | None]:
    steps = model.step_counts if num_steps is None else num_steps
    return [steps] if isinstance(steps, int) else steps


def _resolve(
    run: Run | Model | str | Path,
    split: str,
    num_examples: int,
    task: Task | None,
    flags: Sequence[str],
) -> tuple[Model, Task]:
    """The model to be judged, and the task to judge it on."""
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    check_int("num_examples", num_examples, 1)
    if task is None and isinstance(run, Model):
        raise UsageError("task must be given to evaluate a model that comes without its run")
    if task is None:
        folder = run.folder if isinstance(run, Run) else Path(run)  # type: ignore[arg-type]
        task = task_of(folder, flags)
    elif flags:
        raise UsageError("flags must be left out where a task is given")
    if isinstance(run, Run):
        model = run.model
    elif isinstance(run, Model):
        model = run
    else:
        model = load(run).to(find_device("auto"))
    return model, task
