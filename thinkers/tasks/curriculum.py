"""Curriculum by accuracy: training examples get harder each time a level is mastered."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import UsageError
from thinkers.tasks.answers import AnswerTask

ROUNDING = 1e-9
"""Tolerance of the threshold: a running mean of right answers alone may stay this far below 1."""


def check_curriculum(config: Any) -> None:
    """Raise UsageError if the `threshold` or `window` of a task's Config is out of range."""
    check_int("window", config.window, 1)
    if not 0 < config.threshold <= 1:
        raise UsageError(f"threshold must be above 0 and at most 1, got {config.threshold}")


class CurriculumTask(AnswerTask):
    """Task that can begin with its easiest examples.

    Its Config must have `curriculum`, `threshold` and `window`. A subclass sets `levels` and the
    first `difficulty`, and draws training examples up to that difficulty.
    """

    levels: Sequence[int]
    """Consecutive integers, from the easiest level to the hardest."""
    difficulty: int
    """The hardest level of training examples at present."""
    accuracy = 0.0
    """Running mean of the accuracy in training since the level was reached."""

    def skip_curriculum(self) -> None:
        self.difficulty = self.levels[-1]

    def observe(self, correct: Bool[Tensor, " b"]) -> None:
        """Update the running accuracy; at the threshold, reset it and advance to the next level.

        The mean is exponential, with `window` examples as its time constant, so that its state is
        one number that a checkpoint holds.
        """
        if not self.config.curriculum or not len(correct):
            return
        # An exact count: a mean in float32 could differ between devices.
        share = int(correct.sum()) / len(correct)
        self.accuracy += (share - self.accuracy) * min(1.0, len(correct) / self.config.window)
        is_mastered = self.accuracy >= self.config.threshold - ROUNDING
        if is_mastered and self.difficulty < self.levels[-1]:
            self.difficulty += 1
            self.accuracy = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the difficulty and the running accuracy."""
        return {"difficulty": self.difficulty, "accuracy": self.accuracy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        if set(state) != {"difficulty", "accuracy"}:
            raise UsageError(f"state must hold difficulty and accuracy, got {sorted(state)}")
        first, last = self.levels[0], self.levels[-1]
        self.difficulty = check_int("difficulty", state["difficulty"], first, last)
        self.accuracy = float(state["accuracy"])
