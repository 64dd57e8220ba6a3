"""Grow: the settings of a training that a finished model guides."""

import math
from dataclasses import dataclass

from thinkers.errors import UsageError
from thinkers.registry import typed
from thinkers.user_paths import user_path


@typed
@dataclass(frozen=True, kw_only=True)
class Grow:
    """The settings of `thinkers.grow`: the finished model, and how strongly it guides."""

    guide: str
    """Folder of the run whose newest model guides; whoever resumes the new run names it again."""
    weight: float = 1.0
    """Weight of the divergence from the guide in the loss of the first update."""
    decay: float = 0.5
    """Share of the updates over which the weight falls linearly to 0."""

    def __post_init__(self) -> None:
        # Absolute, so that a run finds it from every folder.
        object.__setattr__(self, "guide", str(user_path(self.guide, "--grow.guide").absolute()))
        if not 0 <= self.weight < math.inf:
            raise UsageError(f"weight must be at least 0 and finite, got {self.weight}")
        if not 0 < self.decay <= 1:
            raise UsageError(f"decay must be above 0 and at most 1, got {self.decay}")

    def weight_at(self, update: int, num_updates: int) -> float:
        """Return the weight of an update, counted from 0, of as many as are planned."""
        return self.weight * max(0.0, 1 - update / (self.decay * num_updates))
