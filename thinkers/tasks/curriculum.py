"""A curriculum: what is drawn in training grows harder each time it is mastered."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import UsageError
from thinkers.tasks.answers import AnswerTask

ROUNDING = 1e-9
"""A mean of nothing but right answers may end that far below 1."""


def check_curriculum(config: Any) -> None:
    """UsageError if no curriculum can go by the `threshold` and `window` of a task's Config."""
    check_int("window", config.window, 1)
    if not 0 < config.threshold <= 1:
        raise UsageError(f"threshold must be above 0 and at most 1, got {config.threshold}")


class CurriculumTask(AnswerTask):
    """A task that may begin with its easiest examples.

    Its Config holds `curriculum`, `threshold` and `window`; `difficulty` is the hardest that a
    training example may now be, one of `levels`.
    """

    levels: Sequence[int]
    difficulty: int
    accuracy = 0.0

    def skip_curriculum(self) -> None:
        self.difficulty = self.levels[-1]

    def observe(self, correct: Bool[Tensor, " b"]) -> None:
        """Follow the accuracy in training; at the threshold, allow the next level."""
        if not self.config.curriculum or not len(correct):
            return
        share = int(correct.sum()) / len(correct)
        self.accuracy += (share - self.accuracy) * min(1.0, len(correct) / self.config.window)
        is_mastered = self.accuracy >= self.config.threshold - ROUNDING
        if is_mastered and self.difficulty < self.levels[-1]:
            self.difficulty += 1
            self.accuracy = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The difficulty and the running accuracy."""
        return {"difficulty": self.difficulty, "accuracy": self.accuracy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` gave."""
        if set(state) != {"difficulty", "accuracy"}:
            raise UsageError(f"state must hold difficulty and accuracy, got {sorted(state)}")
        first, last = self.levels[0], self.levels[-1]
        self.difficulty = check_int("difficulty", state["difficulty"], first, last)
        self.accuracy = float(state["accuracy"])
