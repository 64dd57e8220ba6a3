"""Sizes of a Thinker's prompts and answers that depend on the values of a batch.

Reading a value from a tensor waits for the device and cannot be compiled. It is done here, once
per call, before the model runs.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.errors import UsageError
from thinkers.models.batch import IGNORED


def prompt_sizes(
    prompt_lengths: Int[Tensor, " b"] | None,
    length: int,
    causal: bool,
    lengths: Int[Tensor, " b"] | None = None,
) -> tuple[int, int]:
    """Return the longest prompt, and the most positions from the last token of a prompt on.

    Args:
        length: Width of the rows.
        causal: False where output queries attend to all others, those of further positions too.
        lengths: Real tokens of the rows; without, or if `causal` is False, positions beyond them
            count too.

    Raises:
        UsageError: The result depends on the sizes, which are unknown under torch.compile.
    """
    if prompt_lengths is None:
        return length, length
    if torch.compiler.is_compiling():
        if not causal:
            raise UsageError(
                "prompt_lengths of a Thinker with variant='published' cannot be compiled, since "
                "each answer depends on the number of output queries; call the uncompiled model"
            )
        # Upper bounds for any values; masks hide the superfluous columns.
        return length, length
    ends = lengths if causal and lengths is not None else length
    longest, room = torch.stack([prompt_lengths.max(), (ends - prompt_lengths).max()]).tolist()
    return longest, room + 1


def check_room(config: Any, room: int) -> None:
    """Raise UsageError if an answer of `room` positions is longer than `max_outputs`."""
    if torch.compiler.is_compiling() or config.max_outputs is None:
        return
    if room > config.max_outputs:
        raise UsageError(
            f"an answer must have at most {config.max_outputs} positions (max_outputs), got {room}"
        )


def answer_room(targets: Int[Tensor, "b t"], prompt_lengths: Int[Tensor, " b"]) -> int:
    """Return the number of graded positions from a prompt's last token on.

    It is 0, for whole rows, if earlier positions are graded too, and under torch.compile.
    """
    if torch.compiler.is_compiling():
        return 0
    offsets = torch.arange(targets.shape[1], device=targets.device) - prompt_lengths[:, None] + 1
    graded = targets != IGNORED
    early = (graded & (offsets < 0)).any()
    most = (offsets + 1).where(graded, 0).max()
    has_early, room = torch.stack([early.long(), most]).tolist()
    return 0 if has_early else max(1, room)
