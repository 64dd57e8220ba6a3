"""Accuracy by thinking step and by position: which answers each further step gets right."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from thinkers.errors import UsageError
from thinkers.models.base import Model
from thinkers.models.batch import IGNORED, Batch
from thinkers.models.documents import inputs_option
from thinkers.models.generation import eval_mode
from thinkers.models.halt import Halt, halt_option
from thinkers.models.positions import option

ROWS = 100
"""Rows of one forward pass: states after all steps are kept."""


def accuracy_by_step(
    model: Model,
    batches: Iterable[Batch],
    num_steps: int | None = None,
    halt: Halt = None,
    num_output_tokens: int | None = None,
) -> Float[Tensor, "k t"]:
    """Return the share of right answers after each thinking step at each position.

    One pass over the rows gives the answers after all steps up to `num_steps`; those after step k
    are the answers of a pass of k steps. A model without thinking steps has one row. With `halt`,
    tokens that have halted keep their states: see `thinkers.models.halt`.

    Args:
        batches: Rows with targets, of one width; a position that no row grades has NaN.
        num_output_tokens: Answers are below this id, as those of `Task.score`; None means any.

    Raises:
        UsageError: There are no batches.
    """
    steps = model.check_steps(num_steps if model.config.takes_steps else None)
    device = next(model.parameters()).device
    right, graded = torch.zeros(()), torch.zeros(())
    with eval_mode(model):
        for batch in batches:
            for start in range(0, len(batch), ROWS):
                rows = batch.rows(slice(start, start + ROWS)).to(device)
                states = model(
                    rows.tokens,
                    num_steps=steps,
                    lengths=rows.lengths,
                    prompt_lengths=rows.prompt_lengths,
                    keep_states=True,
                    **option(rows.positions),
                    **halt_option(halt),
                    **inputs_option(model, rows),
                ).states
                answers = model.read_out(states)[..., :num_output_tokens].argmax(-1)
                is_graded = rows.targets != IGNORED
                right = right + ((answers == rows.targets[:, None]) & is_graded[:, None]).sum(0)
                graded = graded + is_graded.sum(0)
    if not right.ndim:
        raise UsageError("batches must hold at least one batch, got none")
    return (right / graded).cpu()
