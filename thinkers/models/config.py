"""Settings that all models share."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from thinkers.checks import added, check_int
from thinkers.errors import UsageError

SIZES = ("vocab_size", "max_length")
"""Settings that follow the task where they are None; a model needs both."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings that all models share.

    A size that is None follows the task; `thinkers.config.experiment.build` resolves it.
    """

    vocab_size: int | None = None
    """Number of token ids."""
    dim: int = 128
    """Width of the vectors between layers."""
    num_layers: int = 2
    num_heads: int = 4
    num_steps: int = 4
    """Thinking steps taken unless a call says otherwise."""
    tie_head: bool = added(True)
    """Compute the logits by the matrix of the token embedding; False: by one of their own."""
    max_length: int | None = 256
    """The most real tokens of a row, prompt and new together."""
    max_steps: int | None = None
    """The most thinking steps that a call may ask for; None means max(4, 4 * num_steps)."""

    least_steps: ClassVar[int] = 1
    takes_steps: ClassVar[bool] = True
    """False: the model takes one step; `num_steps` and `max_steps` become 1, whatever is given."""

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers", "num_heads"):
            check_int(name, getattr(self, name), 1)
        for name in SIZES:
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1)
        check_int("num_steps", self.num_steps, self.least_steps)
        if self.max_steps is None:
            object.__setattr__(self, "max_steps", max(4, 4 * self.num_steps))
        check_int("max_steps", self.max_steps, max(1, self.num_steps))
        if not self.takes_steps:
            # Every model accepts the common settings; the command line refuses these here.
            object.__setattr__(self, "num_steps", 1)
            object.__setattr__(self, "max_steps", 1)
        self.check_heads()

    def refuse_unused(self, names: Iterable[str], reason: str) -> None:
        """Raise UsageError if one of these settings, which nothing reads here, was given a value.

        Args:
            reason: The setting that leaves them without effect: "plan_loss is none".
        """
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if setting.name in names and value != setting.default:
                raise UsageError(
                    f"{setting.name} must be {setting.default!r}, its default, where {reason} and "
                    f"it has no effect, got {value!r}"
                )

    def check_heads(self) -> None:
        """Raise ValueError if the width cannot be divided into the heads."""
        if self.dim % self.num_heads:
            raise UsageError(
                f"dim must be a multiple of num_heads, got {self.dim} and {self.num_heads}"
            )
