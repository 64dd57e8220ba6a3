"""GradedRows: what a model read and wrote when it was scored, and the grades for it."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.errors import usage_error
from thinkers.models.batch import IGNORED, Batch
from thinkers.models.documents import inputs_option
from thinkers.models.halt import Halt, rule_name
from thinkers.tasks.due import Steps


@dataclass(frozen=True)
class GradedRows:
    """Held-out examples as a model read them, with its own answers.

    Args:
        tokens: Prompts and what the model wrote after them, as far as it read that itself.
        lengths: Tokens of each row that are real.
        prompt_lengths: Tokens of each row that are its prompt; None for text.
        grades: The primary metric of each row, in float64.
        batch: The rows as the task made them, with the documents that they ask about; None where
            rows are all that there is to read.
    """

    tokens: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]
    prompt_lengths: Int[Tensor, " b"] | None
    grades: Float[Tensor, " b"]
    batch: Batch | None = None

    def inputs_of(self, rows: Int[Tensor, " r"], model: Any) -> dict[str, Any]:
        """Return what these rows read besides their tokens, as keyword arguments of a model."""
        if self.batch is None:
            return {}
        device = next(model.parameters()).device
        return inputs_option(model, self.batch.rows(rows).to(device))


def with_answers(
    batch: Batch, answers: Int[Tensor, "b n"], end_token: int | None
) -> tuple[Int[Tensor, "b t"], Int[Tensor, " b"]]:
    """Return prompts with these answers after them, and the lengths of these rows.

    An answer is read up to its end token, which is written and never read, as is the last token of
    one without an end.
    """
    assert batch.prompt_lengths is not None
    (b, n), starts = answers.shape, batch.prompt_lengths
    ends = torch.full_like(starts, n - 1)
    if end_token is not None:
        is_end = answers == end_token
        ends = is_end.int().argmax(1).where(is_end.any(1), ends).clamp(max=n - 1)
    width = int(starts.max()) + n
    tokens = batch.tokens.new_zeros(b, width)
    kept = min(width, batch.tokens.shape[1])
    tokens[:, :kept] = batch.tokens[:, :kept]
    columns = starts[:, None] + torch.arange(n)
    tokens = tokens.scatter(1, columns, answers.where(answers != IGNORED, 0))
    lengths = starts + ends
    longest = int(lengths.max())
    return tokens[:, :longest], lengths


def check_no_oracle(num_steps: Steps, halt: Halt) -> None:
    """Raise UsageError if both an oracle and the model itself are to choose the steps."""
    if num_steps == "due" and halt is not None:
        raise usage_error(
            f'num_steps "due" with {rule_name(halt)}',
            "one of both: due is the number of steps that an oracle knows; with the other the "
            "model stops by itself",
            "leave one of them out, or pass a number of steps, which is then the limit",
        )


def refuse_to_show_rows(task: Any) -> Any:
    """Raise UsageError about a task that does not define `graded_rows`."""
    raise usage_error(
        f"{type(task).__name__}, which does not say what a model reads when it is scored",
        "a task that defines graded_rows, as AnswerTask, StateTask and Text do",
        "leave halt and by_example out, or define it",
    )
