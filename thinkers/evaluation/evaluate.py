"""`evaluate`: the score of a trained model at several numbers of thinking steps."""

from collections.abc import Sequence
from typing import Any

from thinkers.checks import check_int
from thinkers.evaluation.statistics import Fall, worst_fall
from thinkers.models.base import Model
from thinkers.runs.result import RunLike, open_with_task
from thinkers.tasks.base import check_split, example_groups
from thinkers.tasks.due import Steps, check_steps_of_task


def evaluate(
    run: RunLike,
    num_steps: Sequence[Steps] | Steps = None,
    num_examples: int = 2000,
    split: str = "test",
    *,
    flags: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Score a model: one row {"num_steps": k, metric: value, ..} for each number of steps.

    Args:
        run: A run, its folder, or (model, task).
        num_steps: Numbers of thinking steps; None means all in `model.step_counts`, and "due" where
            the task is judged by it. "due" gives each example as many as its answers need, an
            oracle; its row is {"num_steps": "due", "oracle": True, ..}.
        num_examples: Held-out examples of each row, the same for all.
        flags: Settings of the run's task to change, such as --task.test_path=other.txt.

    Raises:
        UsageError: The model has no task, the task has no due steps, or there is no such split.
    """
    _check(split, num_examples)
    model, task = open_with_task(run, flags=flags)
    counts = _step_counts(model, num_steps)
    if num_steps is None and task.judged_at == "due" and model.config.takes_steps:
        counts = ["due", *counts]
    for k in counts:
        check_steps_of_task(k, task.max_due)
    return [
        {"num_steps": k, **({"oracle": True} if k == "due" else {})}
        | task.score(model, split, num_examples, k)
        for k in counts
    ]


def find_fall(
    run: RunLike,
    num_steps: Sequence[int | None] | int | None = None,
    num_examples: int = 2000,
    split: str = "test",
    *,
    flags: Sequence[str] = (),
) -> Fall | None:
    """Return the largest significant loss of score from fewer to more steps; None if there is none.

    None too for a task that is judged at due steps, where more of them ask for something else.

    The arguments are those of `evaluate`. The same examples are graded at every number of steps, so
    that the differences are paired.
    """
    _check(split, num_examples)
    model, task = open_with_task(run, flags=flags)
    if task.judged_at == "due":
        return None
    sign = 1 if task.higher_is_better else -1
    grades = {}
    for k in _step_counts(model, num_steps):
        grade = task.grade(model, split, num_examples, k).numpy()
        grades[model.check_steps(k)] = sign * grade
    return worst_fall(grades, example_groups(task, split, num_examples, grade))


def _check(split: str, num_examples: int) -> None:
    check_split(split)
    check_int("num_examples", num_examples, 1)


def _step_counts(model: Model, num_steps: Sequence[Steps] | Steps) -> Sequence[Any]:
    if num_steps is None:
        return model.step_counts
    return [num_steps] if isinstance(num_steps, int | str) else num_steps
