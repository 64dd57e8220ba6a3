"""Evaluation at due steps: each row gets as many thinking steps as its answers need."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.errors import usage_error
from thinkers.models.batch import Batch

Steps = int | Literal["due"] | None
"""A number of thinking steps, "due", or None for the number that the model was built for."""


def check_steps_of_task(num_steps: Steps, max_due: int | None) -> None:
    """Raise UsageError if `num_steps` is "due" and the task has no due steps: no `max_due`."""
    if num_steps == "due" and max_due is None:
        raise usage_error(
            'num_steps "due" on a task whose answers have no due step',
            "a number of steps; cups, automaton and links have due steps",
            "pass numbers, or None for the number that the model was built for",
        )


def step_groups(
    batch: Batch, model: Any, num_steps: Steps
) -> Iterator[tuple[Int[Tensor, " r"], int | None]]:
    """Yield the rows of a batch that are evaluated together, and their number of steps.

    With "due", rows are grouped by their largest due step, which is then their number of steps. It
    is read from the right answers: such a score is that of an oracle that knows when to stop. A
    model that takes no steps evaluates all rows at once.
    """
    if num_steps != "due":
        yield torch.arange(len(batch)), num_steps
        return
    check_steps_of_task(num_steps, None if batch.due is None else 1)
    if not model.config.takes_steps:
        yield torch.arange(len(batch)), None
        return
    largest = batch.due.amax(1)  # type: ignore[union-attr]  # padding has due 0
    for steps in largest.unique().tolist():
        yield (largest == steps).nonzero()[:, 0], steps
