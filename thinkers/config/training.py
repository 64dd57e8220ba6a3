"""Training: how a model is trained, as one value."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from thinkers.checks import check_int

PRECISIONS = ("float32", "bf16", "float64")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained."""

    num_updates: int
    """Steps of the optimiser; the learning rate is planned over all of them."""
    max_minutes: float | None = None
    """Stop earlier after so many minutes, those before a resume included."""
    max_flops: float | None = None
    """Stop earlier after so many floating-point operations."""
    batch_size: int = 64
    """Rows of an update, over all ranks and micro-batches."""
    accumulation: int = 1
    """Micro-batches of a rank in each update: less memory, the same result."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    """The learning rate after warming up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_updates: int = 100
    min_lr_ratio: float = 0.1
    """Where the schedule ends, as a share of lr."""
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    """The largest norm of the gradient; a longer one is shortened to it."""
    ema: float | None = None
    """Decay of an average of the weights, which is then what is scored and kept in model/."""
    random_steps: tuple[int, int] | None = None
    """Thinking steps of an update are drawn from low .. high; None is what the model has."""
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_last: int = 3
    """Checkpoints that stay, beside the best."""
    evaluate_every: int | None = None
    """Updates between scores on the validation split; None is never."""
    evaluate_examples: int = 1000
    """Held-out examples of a score, in between and at the end."""
    device: str = "auto"
    precision: Literal["float32", "bf16", "float64", "auto"] = "float32"
    """auto: the faster of float32 and bf16, measured once before the first update."""
    init_from: str | None = None
    """A model folder whose weights are where training starts."""

    def __post_init__(self) -> None:
        for name in ("num_updates", "batch_size", "accumulation", "log_every", "keep_last"):
            check_int(name, getattr(self, name), 1)
        for name in ("checkpoint_every", "evaluate_examples"):
            check_int(name, getattr(self, name), 1)
        if self.evaluate_every is not None:
            check_int("evaluate_every", self.evaluate_every, 1)
        check_int("warmup_updates", self.warmup_updates, 0)
        check_int("seed", self.seed, 0, 2**63 - 1)
        _check("batch_size", self.batch_size, "be a multiple of accumulation", not self._rest())
        for name in ("lr", "clip"):
            value = getattr(self, name)
            _check(name, value, "be above 0", 0 < value < math.inf)
        for name in ("max_minutes", "max_flops"):
            value = getattr(self, name)
            _check(name, value, "be above 0", value is None or value > 0)
        decay = self.weight_decay
        _check("weight_decay", decay, "be at least 0", 0 <= decay < math.inf)
        _check("min_lr_ratio", self.min_lr_ratio, "be in 0 .. 1", 0 <= self.min_lr_ratio <= 1)
        _check("betas", self.betas, "be two, from 0 to below 1", _are_betas(self.betas))
        _check("ema", self.ema, "be in 0 .. 1", self.ema is None or 0 <= self.ema < 1)
        if self.random_steps is not None:
            steps = self.random_steps
            for num_steps in steps:
                check_int("random_steps", num_steps, 0)
            low_first = len(steps) == 2 and 0 <= steps[0] <= steps[1]
            _check("random_steps", steps, "be a low and a high number of steps", low_first)
        for name, known in (
            ("optimizer", ("adamw", "muon")),
            ("schedule", ("cosine", "linear", "constant")),
            ("precision", (*PRECISIONS, "auto")),
        ):
            _check(name, repr(getattr(self, name)), f"be in {known}", getattr(self, name) in known)

    def _rest(self) -> int:
        return self.batch_size % self.accumulation


def _are_betas(betas: tuple[float, float]) -> bool:
    return len(betas) == 2 and all(0 <= beta < 1 for beta in betas)


def _check(name: str, value: Any, rule: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name} must {rule}, got {value}")
