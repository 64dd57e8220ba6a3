"""Reinforce: the settings of a policy's training."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from thinkers.checks import check_choices, check_int
from thinkers.errors import UsageError
from thinkers.registry import typed

MOST_ROLLOUTS = 1000
"""Of a question: they are computed at once, and their memory grows with their number."""


@typed
@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """The settings of `thinkers.reinforce`, which trains a model and its policy in turn."""

    num_updates: int = 1500
    """Updates of the training, supervised and policy ones together."""
    supervised_updates: int = 200
    """Updates of the model, under blocks that the policy draws, in each phase before those of the
    policy."""
    policy_updates: int = 100
    """Updates of the policy alone, in each phase after supervised ones."""
    group_size: int = 8
    """Roll-outs of each question in a policy update, at once: 2 to 1,000."""
    cost_weight: float = 0.5
    """Share of the reward that an answer as dear as `max_steps` PROCESS steps loses."""
    entropy: float = 0.01
    """Weight of the policy's entropy, summed over the decisions of an answer, in the loss."""
    explore: float = 0.05
    """In supervised updates, probability that a block other than OUTPUT is drawn uniformly instead
    of from the policy."""
    lr: float = 2e-2
    """Highest learning rate of the policy; it has the schedule of training.lr."""
    reward: Literal["saved", "quotient"] = "saved"
    """saved: g (1 - cost_weight C / C_max), g = 1 for a right answer, else 0, and C its operations.
    quotient: g C_max / C, a control, under which guessing at once earns most."""

    def __post_init__(self) -> None:
        for name in ("num_updates", "supervised_updates", "policy_updates"):
            check_int(name, getattr(self, name), 1)
        check_int("group_size", self.group_size, 2, MOST_ROLLOUTS)
        for name in ("cost_weight", "explore"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be in 0 .. 1, got {getattr(self, name)}")
        if not 0 <= self.entropy < math.inf:
            raise UsageError(f"entropy must be at least 0 and finite, got {self.entropy}")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"lr must be above 0 and finite, got {self.lr}")
        check_choices(self)

    def is_supervised(self, update: int) -> bool:
        """Return True if an update, counted from 0, trains the model rather than its policy."""
        return update % (self.supervised_updates + self.policy_updates) < self.supervised_updates

    def counts(self, num_updates: int) -> tuple[int, int]:
        """Return the numbers of supervised and of policy updates among the first `num_updates`."""
        whole, rest = divmod(num_updates, self.supervised_updates + self.policy_updates)
        supervised = whole * self.supervised_updates + min(rest, self.supervised_updates)
        return supervised, num_updates - supervised

    def alternating(self) -> "Reinforce":
        """Return these settings with phases of one update, so that a few have both kinds."""
        return replace(self, supervised_updates=1, policy_updates=1)

    def cost_weight_at(self, update: int) -> float:
        """Return the weight of an update: it rises from 0 during the first third."""
        return self.cost_weight * min(1.0, 3 * update / self.num_updates)
