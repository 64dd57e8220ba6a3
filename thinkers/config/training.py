"""Training: the settings of the training loop."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from thinkers.checks import added, check_choices, check_int
from thinkers.errors import UsageError
from thinkers.registry import typed
from thinkers.user_paths import user_path

PRECISIONS = ("float32", "bf16", "float64")


@typed
@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of the training loop; an update is one step of the optimiser."""

    num_updates: int
    """Updates of the run, over which the learning rate is scheduled."""
    max_minutes: float | None = None
    """Limit in minutes of wall-clock time, over all resumes; None means no limit."""
    max_flops: float | None = None
    """Limit in floating-point operations, over all resumes; None means no limit."""
    batch_size: int = 64
    """Rows of an update, over all ranks and micro-batches."""
    accumulation: int = 1
    """Micro-batches of an update on each rank: less memory, the same result."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for all weights, or muon for the matrices of hidden layers and adamw for the rest."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    muon_lr: float | None = added(None)
    """Learning rate of the matrices that muon updates, after the warm-up; None means lr."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate from the end of the warm-up to the last update."""
    warmup_updates: int = 100
    """Updates over which the learning rate rises linearly to lr."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end of the schedule, as a fraction of lr."""
    weight_decay: float = 0.1
    """Decay of the matrices in each update, as a fraction of the learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moment."""
    clip: float = 1.0
    """Largest norm of the gradient; a gradient of a larger norm is scaled to it."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then the model that is
    scored and saved in model/; None keeps no average."""
    depth: Literal["fixed", "random", "due"] = added("fixed")
    """Thinking steps of an update: the model's num_steps; drawn from random_steps; or as many as
    the latest due target of the update's rows needs, and up to spare_steps more."""
    random_steps: tuple[int, int] | None = None
    """Lowest and highest number of thinking steps, drawn per update where depth is random."""
    spare_steps: int = added(0)
    """Most steps beyond the latest due one, drawn per update where depth is due."""
    seed: int = 0
    """Seed of the initial weights, the batches, dropout and the thinking steps."""
    log_every: int = 10
    """Updates between lines of metrics.jsonl."""
    checkpoint_every: int = 500
    """Updates between checkpoints."""
    keep_last: int = 3
    """Newest checkpoints that are kept, besides the best on the validation split."""
    evaluate_every: int | None = None
    """Updates between scores on the validation split; None means never."""
    evaluate_examples: int = 1000
    """Held-out examples of each score, on the validation split and, at the end, the test split."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is cuda if there is one, else cpu."""
    precision: Literal["float32", "bf16", "float64", "auto"] = "float32"
    """Precision of matrix products (bf16 keeps weights in float32); auto measures once, before
    the first update, whether float32 or bf16 is faster."""
    compile: bool = added(False)
    """Compile the layers, for any length: seconds to minutes before the first update, faster
    updates. The last bits of a result differ from those of plain layers."""
    sharding: Literal["none", "full"] = added("none")
    """full: each rank of torchrun holds a part of every weight, gradient and optimiser state; one
    process holds all of them."""
    init_from: str | None = None
    """Folder of a model or run whose weights training begins with; None means random weights."""

    def __post_init__(self) -> None:
        if self.init_from is not None:  # absolute, so that a run finds it from every folder
            place = user_path(self.init_from, "--training.init_from").absolute()
            object.__setattr__(self, "init_from", str(place))
        for name in ("num_updates", "batch_size", "accumulation", "log_every", "keep_last"):
            check_int(name, getattr(self, name), 1)
        for name in ("checkpoint_every", "evaluate_examples"):
            check_int(name, getattr(self, name), 1)
        if self.evaluate_every is not None:
            check_int("evaluate_every", self.evaluate_every, 1)
        check_int("warmup_updates", self.warmup_updates, 0)
        check_int("seed", self.seed, 0, 2**63 - 1)
        _check(
            "batch_size",
            self.batch_size,
            "be a multiple of accumulation",
            self.batch_size % self.accumulation == 0,
        )
        for name in ("lr", "clip"):
            value = getattr(self, name)
            _check(name, value, "be above 0", 0 < value < math.inf)
        for name in ("max_minutes", "max_flops"):
            value = getattr(self, name)
            _check(name, value, "be above 0", value is None or value > 0)
        rate = self.muon_lr
        _check("muon_lr", rate, "be above 0", rate is None or 0 < rate < math.inf)
        unused = rate is not None and self.optimizer != "muon"
        _check("muon_lr", rate, "be left out unless optimizer is muon", not unused)
        decay = self.weight_decay
        _check("weight_decay", decay, "be at least 0", 0 <= decay < math.inf)
        _check("min_lr_ratio", self.min_lr_ratio, "be in 0 .. 1", 0 <= self.min_lr_ratio <= 1)
        _check("betas", self.betas, "be two numbers in 0 .. 1, below 1", _are_betas(self.betas))
        _check("ema", self.ema, "be in 0 .. 1, below 1", self.ema is None or 0 <= self.ema < 1)
        check_int("spare_steps", self.spare_steps, 0)
        for name, value, depth in (
            ("random_steps", self.random_steps or None, "random"),
            ("spare_steps", self.spare_steps or None, "due"),
        ):
            unused = value is not None and self.depth != depth
            _check(name, value, f"be left out unless depth is {depth}", not unused)
        drawn = self.depth != "random" or self.random_steps is not None
        _check("random_steps", self.random_steps, "be set where depth is random", drawn)
        if self.random_steps is not None:
            steps = self.random_steps
            for num_steps in steps:
                check_int("random_steps", num_steps, 0)
            low_first = len(steps) == 2 and 0 <= steps[0] <= steps[1]
            _check("random_steps", steps, "be a low and a high number of steps", low_first)
        check_choices(self)


def _are_betas(betas: tuple[float, float]) -> bool:
    return len(betas) == 2 and all(0 <= beta < 1 for beta in betas)


def _check(name: str, value: Any, rule: str, holds: bool) -> None:
    if not holds:
        raise UsageError(f"{name} must {rule}, got {value}")
