"""`evaluate`: the score of a trained model at several numbers of thinking steps."""

from collections.abc import Sequence
from typing import Any

from thinkers.checks import check_int
from thinkers.errors import usage_error
from thinkers.evaluation.halting import measure_effort
from thinkers.evaluation.statistics import Fall, worst_fall
from thinkers.models.base import Model
from thinkers.models.documents import step_counts_of
from thinkers.models.halt import Halt, check_halt, halt_option, rule_record, with_policy
from thinkers.models.tools import Tool
from thinkers.runs.result import RunLike, open_with_task
from thinkers.tasks.answers import AnswerTask
from thinkers.tasks.base import Task, check_split, example_groups
from thinkers.tasks.due import Steps, check_steps_of_task
from thinkers.tasks.graded_rows import check_no_oracle
from thinkers.tasks.tools import find_tools


def evaluate(
    run: RunLike,
    num_steps: Sequence[Steps] | Steps = None,
    num_examples: int = 2000,
    split: str = "test",
    *,
    halt: Halt = None,
    tools: Sequence[str | Tool] | None = None,
    policy: bool = False,
    by_example: bool = False,
    flags: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Score a model: one row {"num_steps": k, metric: value, ..} for each number of steps.

    Args:
        run: A run, its folder, or (model, task).
        num_steps: Numbers of thinking steps; None means all in `model.step_counts`, from 2 where
            documents are read, and "due" where the task is judged by it. "due" gives each example
            as many as its answers need, an oracle; its row is {"num_steps": "due", "oracle": True,
            ..}.
        num_examples: Held-out examples of each row, the same for all.
        halt: Let tokens halt before `num_steps`: see `thinkers.models.halt`. A row then has `halt`
            and its measured `mean_steps` and `flops_share`: see `thinkers.evaluation.halting`.
        tools: The tools that the model may call; None means those that the rows of the task call
            (`Task.scored_with`), and () none. A row then has `tools`, their names.
        policy: Let the model choose the block of each step, at most `num_steps`. A row then has
            `policy`, and the measured numbers too; steps are blocks.
        by_example: Add `examples` to each row, a list with the numbers of each example.
        flags: Settings of the run's task to change, such as --task.test_path=other.txt.

    Raises:
        UsageError: The model has no task or cannot halt so, the task has no due steps or no such
            tool, or there is no such split.
    """
    _check(split, num_examples)
    model, task = open_with_task(run, flags=flags)
    called = _tools_of(task, tools)
    halt = check_halt(model, with_policy(halt, policy))
    counts = _step_counts(model, task, num_steps)
    is_judged_so = task.judged_at == "due" and model.config.takes_steps and halt is None
    if num_steps is None and is_judged_so:
        counts = ["due", *counts]
    for k in counts:
        check_no_oracle(k, halt)
        check_steps_of_task(k, task.max_due)
    return [_row(model, task, split, num_examples, k, halt, called, by_example) for k in counts]


def _tools_of(task: Task, tools: Sequence[str | Tool] | None) -> dict[str, Any]:
    """Return the keyword argument `tools` of `Task.score` if it is set: a task may not take it."""
    found = find_tools(task, task.scored_with if tools is None else tools)
    if found and not isinstance(task, AnswerTask):
        raise usage_error(
            f"the tool {found[0].name} for the scores of {type(task).__name__}",
            "a task whose answers are generated, since a tool follows what the model writes",
            "leave it out; thinkers generate takes it",
        )
    return {"tools": tools} if tools is not None and (found or task.scored_with) else {}


def _row(
    model: Model,
    task: Task,
    split: str,
    num_examples: int,
    num_steps: Steps,
    halt: Halt,
    called: dict[str, Any],
    by_example: bool,
) -> dict[str, Any]:
    """Return the row of `evaluate` at one number of steps."""
    row: dict[str, Any] = {"num_steps": num_steps}
    tools = called.get("tools", task.scored_with)
    if tools:
        row["tools"] = [x if isinstance(x, str) else x.name for x in tools]
    if num_steps == "due":
        row["oracle"] = True
    given = model, split, num_examples, num_steps
    if halt is None or num_steps == "due":
        scores = task.score(*given, **called)
        if by_example:
            grades = task.grade(model, split, num_examples, num_steps, **called).tolist()
            named = [{"row": n, task.primary_metric: x} for n, x in enumerate(grades)]
            scores = {**scores, "examples": named}  # type: ignore[dict-item]
        return row | scores
    # First, since a task that does not show its rows refuses it.
    effort = measure_effort(model, task, split, num_examples, num_steps, halt, called)
    row |= rule_record(halt) | task.score(*given, halt=halt, **called)
    row |= {"mean_steps": effort.mean_steps, "flops_share": effort.flops_share}
    if by_example:
        row["examples"] = effort.by_example(task.primary_metric)
    return row


def find_fall(
    run: RunLike,
    num_steps: Sequence[int | None] | int | None = None,
    num_examples: int = 2000,
    split: str = "test",
    *,
    halt: Halt = None,
    tools: Sequence[str | Tool] | None = None,
    policy: bool = False,
    flags: Sequence[str] = (),
) -> Fall | None:
    """Return the largest significant loss of score from fewer to more steps; None if there is none.

    None too for a task that is judged at due steps, where more of them ask for something else.

    The arguments are those of `evaluate`. The same examples are graded at every number of steps, so
    that the differences are paired.
    """
    _check(split, num_examples)
    model, task = open_with_task(run, flags=flags)
    halt = with_policy(halt, policy)
    if task.judged_at == "due":
        return None
    sign = 1 if task.higher_is_better else -1
    options, grades = halt_option(halt) | _tools_of(task, tools), {}
    for k in _step_counts(model, task, num_steps):
        grade = task.grade(model, split, num_examples, k, **options).numpy()
        grades[model.check_steps(k)] = sign * grade
    return worst_fall(grades, example_groups(task, split, num_examples, grade))


def _check(split: str, num_examples: int) -> None:
    check_split(split)
    check_int("num_examples", num_examples, 1)


def _step_counts(model: Model, task: Task, num_steps: Sequence[Steps] | Steps) -> Sequence[Any]:
    if num_steps is None:
        return step_counts_of(model, task.section_length)
    return [num_steps] if isinstance(num_steps, int | str) else num_steps
