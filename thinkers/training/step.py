"""What happens in an update, and what is kept of it: everything that a checkpoint holds."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from thinkers.config.experiment import Config
from thinkers.errors import DamagedError, NonFiniteError, usage_error
from thinkers.models.base import Batch, Loss, Model
from thinkers.prng import draw, seed_generators
from thinkers.runs.checkpoint import Checkpoint
from thinkers.training import optim
from thinkers.training.distributed import Ranks
from thinkers.training.signals import Signals

if TYPE_CHECKING:
    from thinkers.config.training import Training


@dataclass
class Learner:
    """All that changes while training: what a checkpoint holds."""

    config: Config
    model: Model
    average: Model | None
    optimizers: list[torch.optim.Optimizer]
    task: Any
    update: int = 0
    minutes: float = 0.0
    flops: int = 0
    best: float | None = None

    def __post_init__(self) -> None:
        self.parameters = list(self.model.parameters())

    @property
    def result(self) -> Model:
        """The model to be used: the average, if there is one."""
        return self.model if self.average is None else self.average


@dataclass(frozen=True)
class Told:
    """What all ranks know of an update before they take its step."""

    loss: float
    parts: dict[str, float]
    correct: Bool[Tensor, " b"]
    norm: float
    is_cut: bool
    signal: int

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def gradients(
    forward: nn.Module,
    learner: Learner,
    batch: Batch,
    num_steps: int | None,
    precision: str,
    wishes: Sequence[bool],
    ranks: Ranks,
) -> Told:
    """Leave the gradient of the global batch in the model, and tell what every rank must know.

    Each part of the loss is divided by its number of terms in the global batch, so that shares of
    ranks and micro-batches add up to the same, however the batch is cut.
    """
    settings = learner.config.training
    counts = learner.model.counts(batch)
    mine = batch.rows(slice(ranks.rank, None, ranks.world)).to(ranks.device)
    size = len(mine) // settings.accumulation
    sums: Tensor | float = 0.0
    correct = []
    for micro in range(settings.accumulation):
        rows = mine.rows(slice(micro * size, (micro + 1) * size))
        seed_generators(ranks.device, settings.seed, learner.update, ranks.rank, micro)
        with ranks.alone(forward, when=micro + 1 < settings.accumulation):
            with autocast(precision, ranks.device):
                loss: Loss = forward(rows, num_steps, counts)
            # The ranks' gradients are averaged, and their sum is wanted.
            (loss.total * ranks.world).backward()
        sums = sums + torch.stack([loss.total.detach(), *loss.parts.values()])
        correct.append(loss.correct)

    flags = torch.zeros(len(batch), device=ranks.device)
    flags[ranks.rank :: ranks.world] = torch.cat(correct).float()
    votes = torch.tensor([float(wish) for wish in wishes], device=ranks.device)
    said = ranks.sum(torch.cat([sums, votes, flags]))  # type: ignore[list-item]
    norm = get_total_norm([p.grad for p in learner.parameters if p.grad is not None])
    total, *values = torch.cat([said, norm[None]]).tolist()
    num_parts = len(loss.parts)
    is_cut, *came = values[num_parts : num_parts + len(wishes)]
    return Told(
        loss=total,
        parts=dict(zip(loss.parts, values[:num_parts], strict=True)),
        correct=said[-len(batch) :].cpu() > 0.5,
        norm=values[-1],
        is_cut=is_cut > 0,
        signal=Signals.first_of(came),
    )


class LossOf(nn.Module):
    """`model.loss` as a forward call, which is what gradients are averaged around."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, num_steps: int | None, counts: dict[str, int]) -> Loss:
        return self.model.loss(batch, num_steps=num_steps, counts=counts)


def thinking_steps(update: int, settings: "Training") -> int | None:
    """How many steps this update thinks; None is what the model has."""
    if settings.random_steps is None:
        return None
    low, high = settings.random_steps
    return low + draw(settings.seed, update) % (high - low + 1)


def check_random_steps(model: Model, settings: "Training") -> None:
    """UsageError if the model cannot take every number of steps that may be drawn."""
    for num_steps in settings.random_steps or ():
        try:
            model.check_steps(num_steps)
        except ValueError as error:
            expected, _, found = str(error).rpartition(", got ")
            raise usage_error(
                f"--training.random_steps with {found}", expected, "choose steps it can take"
            ) from None


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Where matrix products are taken in bf16, if that is the precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def faster_precision(model: Model, batch: Batch) -> str:
    """float32 or bf16: the one that took less time on this batch, measured after warming up."""
    device = next(model.parameters()).device
    seconds = {}
    for precision in ("float32", "bf16"):
        for _ in range(3):
            start = time.perf_counter()
            with autocast(precision, device):
                total = model.loss(batch.to(device)).total
            total.backward()
            total.item()  # waits for the device
            seconds[precision] = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return min(seconds, key=lambda precision: seconds[precision])


def uses_all(model: Model, batch: Batch, num_steps: int | None) -> bool:
    """Whether the loss of this batch gives every parameter a gradient."""
    model.loss(batch.to(next(model.parameters()).device), num_steps=num_steps).total.backward()
    found = all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.zero_grad(set_to_none=True)
    return found


def require_finite(told: Told, learner: Learner) -> None:
    """NonFiniteError, before the optimiser, naming the update and a parameter."""
    if told.is_finite:
        return
    norms = {
        n: p.grad.norm().item() for n, p in learner.model.named_parameters() if p.grad is not None
    }
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    name = bad[0] if bad else max(norms, key=lambda n: norms[n], default="no parameter")
    raise NonFiniteError(
        f"update {learner.update}: loss {told.loss}, gradient norm {told.norm}, first in {name}; "
        f"the weights are as before this update; try a smaller lr or clip"
    )


def shorten(learner: Learner, factor: float) -> None:
    """Multiply the gradient."""
    torch._foreach_mul_([p.grad for p in learner.parameters if p.grad is not None], factor)


def move_average(learner: Learner, decay: float | None) -> None:
    """The average of the weights moves by 1 - decay; faster at first, to forget how it began."""
    if learner.average is None or decay is None:
        return
    decay = min(decay, learner.update / (9 + learner.update))
    with torch.no_grad():
        old = list(learner.average.parameters())
        get_ema_multi_avg_fn(decay)(old, learner.parameters, None)


def capture(learner: Learner) -> Checkpoint:
    """Everything that `restore` needs; NonFiniteError rather than weights that are not finite."""
    tensors = {"weights": learner.model.state_dict()}
    if learner.average is not None:
        tensors["ema"] = learner.average.state_dict()
    for name, x in tensors["weights"].items():
        if not x.isfinite().all():
            raise NonFiniteError(f"update {learner.update}: {name} is not finite; nothing is saved")
    tensors["optimizer"] = optim.state(learner.optimizers, learner.model)
    state = {
        "minutes": learner.minutes,
        "flops": learner.flops,
        "best": learner.best,
        "task": learner.task.state_dict(),
        "config": learner.config.to_dict(),
    }
    return Checkpoint(learner.update, tensors, state)


def restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Put everything back where `capture` found it."""
    state = checkpoint.state
    changed = learner.config.changes(Config.from_dict(state["config"]))
    for name in changed.keys() - {"training.num_updates"}:
        raise DamagedError(f"config.json of the run has another {name} than its checkpoints")
    learner.model.load_state_dict(checkpoint.tensors["weights"])
    if learner.average is not None:
        learner.average.load_state_dict(checkpoint.tensors["ema"])
    optim.restore(learner.optimizers, learner.model, dict(checkpoint.tensors["optimizer"]))
    learner.task.load_state_dict(state["task"])
    learner.update = checkpoint.update
    learner.minutes, learner.flops, learner.best = state["minutes"], state["flops"], state["best"]
