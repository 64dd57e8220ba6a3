"""Checks of what is exported, in any format."""

from thinkers.errors import usage_error
from thinkers.tasks import Task


def refuse_coupled(task: Task | None) -> None:
    """Raise UsageError if the positions of a task are not the order of its tokens."""
    if task is not None and task.positions is not None:
        raise usage_error(
            f"a run on {type(task).__name__} with coupled positions, which follow from the tokens "
            "by a function of the task",
            "a model whose tokens are numbered in order",
            "train with --task.coupled false, or use the run by thinkers.answer",
        )
