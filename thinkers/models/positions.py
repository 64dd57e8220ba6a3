"""Coupled positions: tokens that belong together share a position, whatever lies between them."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.checks import check_positions
from thinkers.errors import usage_error

Positions = Tensor | Callable[[Tensor], Tensor]
"""Positions (b, t) of tokens, or a function from left-aligned tokens (b, t) to them. What the
function gives for a token must depend on it and on those before it alone; tokens of padding are
arbitrary ids, and what it gives for them is not read."""


def option(positions: Positions | None) -> dict[str, Any]:
    """Return the keyword argument `positions` if they are set: a model may not take it."""
    return {} if positions is None else {"positions": positions}


def refuse_positions(model: Any, positions: Positions | None) -> None:
    """Raise UsageError if there are positions, and the model takes none."""
    if positions is not None and not model.takes_positions:
        raise usage_error(
            f"positions for {model.name}, which numbers tokens in order",
            "a model that takes coupled positions, such as decoder or looped",
            "choose another model, or leave positions out (coupled=False of a task)",
        )


def find_positions(
    model: Any,
    positions: Positions | None,
    tokens: Int[Tensor, "b t"],
    lengths: Int[Tensor, " b"] | None,
) -> Int[Tensor, "b t"] | None:
    """Return the positions of rows padded on the right, 0 at padding; None for those in order.

    Raises:
        TypeError: They are not int64.
        ValueError: The model takes none, or their shape or a value is invalid.
    """
    if positions is None:
        return None
    refuse_positions(model, positions)
    found = positions(tokens) if callable(positions) else positions
    check_positions(found, tokens, lengths)
    if lengths is None:
        return found
    return found.where(torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None], 0)


class Places:
    """Coupled positions of rows that are being written.

    Args:
        rows: The prompts, left-aligned.
        room: The most tokens that are written after them.
    """

    def __init__(
        self,
        model: Any,
        positions: Positions,
        rows: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        room: int,
    ):
        self.model, self.positions = model, positions
        self.rows = F.pad(rows, (0, room))
        self.width, self.lengths = rows.shape[1], lengths

    def whole(self) -> Int[Tensor, "b t"]:
        """Return the positions of the tokens so far."""
        rows = self.rows[:, : self.width]
        found = find_positions(self.model, self.positions, rows, self.lengths)
        assert found is not None
        return found

    def newest(self) -> Int[Tensor, " b"]:
        """Return the position of the last token of each row."""
        return self.whole().gather(1, self.lengths[:, None] - 1)[:, 0]

    def write(self, tokens: Int[Tensor, " b"]) -> None:
        """Append a token to each row."""
        self.rows = self.rows.scatter(1, self.lengths[:, None], tokens[:, None])
        self.width, self.lengths = self.width + 1, self.lengths + 1

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep only these rows."""
        self.rows, self.lengths = self.rows[rows], self.lengths[rows]


def in_order(tokens: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Return the column of each token: its position where none are given."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
