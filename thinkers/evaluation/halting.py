"""Steps that tokens take before they halt, and the arithmetic that this saves, by example."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.errors import usage_error
from thinkers.models.generation import eval_mode
from thinkers.models.halt import Halt, halt_option
from thinkers.models.positions import option
from thinkers.models.thinker_policy_flops import of_all_steps, of_blocks
from thinkers.models.thinker_sizes import answer_room
from thinkers.tasks.answers import SCORED_PAIRS
from thinkers.tasks.base import Task

SCORED_ROWS = 250
"""Rows of a pass that finds the blocks of prompts."""
FEW_ROWS = 16
"""Rows by which a task of questions is known: the shortest may have one target in any task."""


@dataclass(frozen=True)
class Effort:
    """Steps and operations that each held-out example took of a model, and its grade.

    Steps are those of the tokens of prompt and answer that the model reads, the start token left
    out; operations are those of `Model.flops` with these steps, of one row at a time.

    Args:
        grades: The primary metric.
        tokens: The number of these tokens.
        steps: The sum of the steps that they took.
        flops: Operations with these steps.
        full_flops: Operations with all steps.
    """

    grades: Float[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    steps: Float[Tensor, " n"]
    flops: Float[Tensor, " n"]
    full_flops: Float[Tensor, " n"]

    @property
    def mean_steps(self) -> float:
        """The mean over the tokens of all examples."""
        return float(self.steps.sum() / self.tokens.sum())

    @property
    def flops_share(self) -> float:
        """The share that was done of what all steps take."""
        return float(self.flops.sum() / self.full_flops.sum())

    def by_example(self, metric: str) -> list[dict[str, Any]]:
        """Return the numbers of each example."""
        columns = {
            metric: self.grades,
            "mean_steps": self.steps / self.tokens,
            "flops_share": self.flops / self.full_flops,
        }
        rows = zip(*(x.tolist() for x in columns.values()), strict=True)
        return [
            {"row": number} | dict(zip(columns, row, strict=True))
            for number, row in enumerate(rows)
        ]


def measure_effort(
    model: Any,
    task: Task,
    split: str,
    num_examples: int,
    num_steps: int | None,
    halt: Halt,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Effort:
    """Score a model whose tokens may halt, and measure the steps that they take.

    With a policy, steps are the blocks that a prompt chooses, and operations those of its answer.

    Args:
        options: Further arguments of `Task.graded_rows`.
    """
    if halt == "policy":
        return _policy_effort(model, task, split, num_examples, num_steps, options)
    device = next(model.parameters()).device
    first = 0 if task.start_token is None else 1
    count = model.check_steps(num_steps)

    @cache
    def cost(taken: tuple[int, ...] | None, length: int) -> int:
        if taken is None:
            return model.flops(1, length, count)
        # What asks a token after each step costs by its kind: a gate, or a whole read-out.
        asked = halt_option(halt if halt == "answered" else None)
        return model.flops(1, length, count, steps=torch.tensor([taken]), **asked)

    grades, tokens, steps, done, full = [], [], [], [], []
    with eval_mode(model):
        for rows in task.graded_rows(model, split, num_examples, num_steps, halt, **options):
            grades.append(rows.grades)
            most = max(1, SCORED_PAIRS // rows.tokens.shape[1] ** 2)
            for some in torch.arange(len(rows.tokens)).split(most):
                lengths, prompts = rows.lengths[some], rows.prompt_lengths
                taken = model(
                    rows.tokens[some].to(device),
                    num_steps=num_steps,
                    lengths=lengths.to(device),
                    prompt_lengths=None if prompts is None else prompts[some].to(device),
                    halt=halt,
                    **option(task.positions),
                    **rows.inputs_of(some, model),
                ).steps
                for row, length in zip(taken.tolist(), lengths.tolist(), strict=True):
                    tokens.append(length - first)
                    steps.append(sum(row[first:length]))
                    done.append(cost(tuple(row[:length]), length))
                    full.append(cost(None, length))
    return Effort(
        torch.cat(grades),
        torch.tensor(tokens),
        torch.tensor(steps, dtype=torch.float64),
        torch.tensor(done, dtype=torch.float64),
        torch.tensor(full, dtype=torch.float64),
    )


def _policy_effort(
    model: Any,
    task: Task,
    split: str,
    num_examples: int,
    num_steps: int | None,
    options: Mapping[str, Any],
) -> Effort:
    device = next(model.parameters()).device
    count = model.check_steps(num_steps)
    first = task.batch(0, FEW_ROWS, split)
    if first.prompt_lengths is None or not answer_room(first.targets, first.prompt_lengths):
        # Sections choose too, and no figure of a prompt's end would be that of the row.
        raise usage_error(
            f"policy for {type(task).__name__}",
            "a task of questions, whose prompts choose their blocks before anything is graded",
            "leave policy out",
        )
    grades, steps, done, full = [], [], [], []
    with eval_mode(model):
        for rows in task.graded_rows(model, split, num_examples, num_steps, "policy", **options):
            grades.append(rows.grades)
            prompts = rows.prompt_lengths
            assert prompts is not None
            for some in torch.arange(len(rows.tokens)).split(SCORED_ROWS):
                inputs = rows.inputs_of(some, model)
                thought = model(
                    rows.tokens[some].to(device),
                    num_steps=num_steps,
                    lengths=rows.lengths[some].to(device),
                    prompt_lengths=prompts[some].to(device),
                    policy=True,
                    **inputs,
                )
                actions, at_end = thought.extra["actions"].cpu(), prompts[some][:, None] - 1
                steps.append(thought.steps.cpu().gather(1, at_end)[:, 0])
                sizes = prompts[some], rows.lengths[some] - prompts[some] + 1
                known = inputs["memory"].counts() if "memory" in inputs else None
                done.append(of_blocks(model, actions, *sizes, known))
                full.append(of_all_steps(model, count, *sizes, known))
    return Effort(
        torch.cat(grades),
        torch.ones(len(torch.cat(grades)), dtype=torch.int64),
        torch.cat(steps).double(),
        torch.cat(done).double(),
        torch.cat(full).double(),
    )
