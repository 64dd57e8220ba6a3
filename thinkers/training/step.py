"""One update: gradients of the global batch, over ranks and micro-batches; then the optimiser."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from thinkers.checks import first_not_finite
from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.distillation.guide import GuidedLoss, guide_flops
from thinkers.errors import NonFiniteError, UsageError, usage_error
from thinkers.models.base import Model
from thinkers.models.batch import Batch, Loss
from thinkers.policies.loss import PolicyLoss, update_flops
from thinkers.prng import draw, seed_generators
from thinkers.training import optim
from thinkers.training.distributed import Ranks
from thinkers.training.sharding import check_sharding, gathered
from thinkers.training.signals import Signals
from thinkers.training.state import TrainState

NO_SIGNALS = (False, False)


@dataclass(frozen=True)
class StepResult:
    """The outcome of an update, the same on all ranks.

    Args:
        update: The number of this update, from 1.
        lr: Its learning rate.
        loss: Loss of the global batch, before the update.
        parts: The unweighted parts of the loss.
        correct: Rows of the global batch whose graded tokens were all predicted, in its order.
        norm: The norm of the gradient before clipping.
        over_budget: True if a rank has used up its minutes or FLOPs.
        token_accuracy: Share of the graded tokens of the global batch that were predicted; None if
            the model does not count them.
        signal: The number of the first signal that a rank has received; 0 for none.
    """

    update: int
    lr: float
    loss: float
    parts: dict[str, float]
    correct: Bool[Tensor, " b"]
    norm: float
    over_budget: bool
    signal: int
    token_accuracy: float | None = None

    @property
    def is_finite(self) -> bool:
        """Return True if loss and gradient are finite; otherwise the update was not made."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)

    @property
    def accuracy(self) -> float:
        """Share of the rows whose graded tokens were all predicted."""
        return float(self.correct.float().mean())

    def values(self) -> dict[str, float]:
        """Return the numbers to log."""
        own = {"loss": self.loss, "accuracy": self.accuracy}
        if self.token_accuracy is not None:
            own["token_accuracy"] = self.token_accuracy
        return own | self.parts | {"lr": self.lr, "norm": self.norm}


def step(
    state: TrainState,
    batch: Batch,
    loss_module: nn.Module,
    precision: str,
    ranks: Ranks,
    signals: Sequence[bool] = NO_SIGNALS,
) -> StepResult:
    """Make one update of the weights, their average, the curriculum and the counters.

    If the result is not finite, the weights stay as they were: see `require_finite`.

    Args:
        batch: The global batch, the same on all ranks.
        loss_module: The result of `loss_module`, wrapped by `Ranks.data_parallel`.
        signals: For each of SIGINT and SIGTERM, True if this rank received it.
    """
    settings = state.config.training
    num_steps = thinking_steps(state.update, settings, batch)
    state.flops += flops_of(state, state.update, batch, num_steps)
    result = forward_backward(state, batch, loss_module, num_steps, precision, ranks, signals)
    if not result.is_finite:
        return result
    if result.norm > settings.clip:
        scale_gradients_(state.parameters, settings.clip / result.norm)
    optim.step(state.optimizers, result.lr)
    state.update += 1
    update_average(state)
    state.task.observe(result.correct)
    return result


def forward_backward(
    state: TrainState,
    batch: Batch,
    loss_module: nn.Module,
    num_steps: int | None,
    precision: str,
    ranks: Ranks,
    signals: Sequence[bool] = NO_SIGNALS,
) -> StepResult:
    """Leave the gradient of the global batch in the model's parameters.

    Each part of the loss is divided by its number of terms in the global batch, so that the shares
    of ranks and micro-batches add up to the same gradient however the batch is divided.
    """
    settings = state.config.training
    counts = state.model.counts(batch)
    mine = batch.rows(slice(ranks.rank, None, ranks.world)).to(ranks.device)
    size = len(mine) // settings.accumulation
    sums: Tensor | float = 0.0
    correct, right = [], torch.zeros(1, device=ranks.device)
    for micro in range(settings.accumulation):
        rows = mine.rows(slice(micro * size, (micro + 1) * size))
        # Dropout is a function of (seed, update, rank, micro-batch), so that a resumed run draws
        # the same.
        seed_generators(ranks.device, settings.seed, state.update, ranks.rank, micro)
        with ranks.no_sync(loss_module, when=micro + 1 < settings.accumulation):
            with autocast(precision, ranks.device):
                loss: Loss = loss_module(rows, num_steps, counts)
            # Data parallelism averages the ranks' gradients; their sum is wanted.
            (loss.total * ranks.world).backward()
        sums = sums + torch.stack([loss.total.detach(), *loss.parts.values()])
        correct.append(loss.correct)
        right += torch.nan if loss.correct_tokens is None else loss.correct_tokens.sum()

    # One collective for losses, stop requests and graded rows: each costs a round trip. Stop
    # requests are included because all ranks must leave the loop after the same update.
    graded = torch.zeros(len(batch), device=ranks.device)
    graded[ranks.rank :: ranks.world] = torch.cat(correct).float()
    stops = [float(flag) for flag in (over_budget(state), *signals)]
    votes = torch.tensor(stops, device=ranks.device)
    summed = ranks.sum(torch.cat([sums, votes, right, graded]))  # type: ignore[list-item]
    norm = gathered(get_total_norm([p.grad for p in state.parameters if p.grad is not None]))
    # One copy to the CPU, which waits for the device.
    total, *values = torch.cat([summed, norm[None]]).tolist()
    num_parts = len(loss.parts)
    over, *received, num_right = values[num_parts : num_parts + len(stops) + 1]
    return StepResult(
        update=state.update + 1,
        lr=optim.learning_rate(state.update, settings),
        loss=total,
        parts=dict(zip(loss.parts, values[:num_parts], strict=True)),
        correct=summed[-len(batch) :].cpu() > 0.5,
        norm=values[-1],
        over_budget=over > 0,
        signal=Signals.first_received(received),
        token_accuracy=None if math.isnan(num_right) else num_right / max(1, counts["next_token"]),
    )


class LossModule(nn.Module):
    """`model.loss` as the forward of a module: DistributedDataParallel wraps forward alone."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, num_steps: int | None, counts: dict[str, int]) -> Loss:
        return self.model.loss(batch, num_steps=num_steps, counts=counts).without_logits()


def parts_of_batch(config: Config, ranks: Ranks) -> int:
    """Return the number of micro-batches of a batch, over all ranks.

    Raises:
        UsageError: They would differ in size, or several ranks would train a policy.
    """
    settings = config.training
    if config.reinforce is not None and ranks.world > 1:
        raise usage_error(
            f"{ranks.world} processes with reinforce", "one process", "start it without torchrun"
        )
    check_sharding(settings)
    parts = ranks.world * settings.accumulation
    if settings.batch_size % parts:
        rule = f"a multiple of ranks x accumulation, {parts}"
        raise UsageError(f"batch_size must be {rule}, got {settings.batch_size}")
    return parts


def loss_module(state: TrainState) -> nn.Module:
    """Return the loss that the settings ask for, as a module: of a model, guided or not, or of a
    policy."""
    config = state.config
    if state.guide is not None:
        return GuidedLoss(state.model, state.guide, lambda: guide_weight(state, state.update))
    if config.reinforce is None:
        return LossModule(state.model)
    rows = config.training.batch_size
    return PolicyLoss(state.model, config.reinforce, rows, lambda: state.update)


def flops_of(state: TrainState, update: int, batch: Batch, num_steps: int | None) -> int:
    """Count the operations of an update, given by its number, from 0."""
    settings = state.config.reinforce
    if settings is not None:
        return update_flops(state.model, settings, update, batch)
    own = state.model.batch_flops(batch, num_steps, training=True)
    if state.guide is None or not guide_weight(state, update):
        return own
    return own + guide_flops(state.guide, batch)


def guide_weight(state: TrainState, update: int) -> float:
    """Return the weight of the guide in the loss of an update, given by its number, from 0."""
    grow, num_updates = state.config.grow, state.config.training.num_updates
    return 0.0 if grow is None else grow.weight_at(update, num_updates)


def over_budget(state: TrainState) -> bool:
    """Return True if the minutes or FLOPs of the settings are used up."""
    settings = state.config.training
    minutes, flops = settings.max_minutes or math.inf, settings.max_flops or math.inf
    return state.minutes >= minutes or state.flops >= flops


def thinking_steps(update: int, settings: Training, batch: Batch) -> int | None:
    """Return the number of thinking steps of an update; None for that of the model.

    Args:
        batch: The global batch: every rank takes as many steps as the latest due target needs.
    """
    if settings.depth == "fixed":
        return None
    drawn = draw(settings.seed, update)
    if settings.depth == "due":
        assert batch.due is not None
        return int(batch.due.max()) + drawn % (settings.spare_steps + 1)
    assert settings.random_steps is not None
    low, high = settings.random_steps
    return low + drawn % (high - low + 1)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Compute matrix products in bf16 if that is the precision; weights stay in float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def faster_precision(model: Model, batch: Batch) -> str:
    """Return the faster of "float32" and "bf16" on this batch, measured after a warm-up."""
    device = next(model.parameters()).device
    seconds = {}
    for precision in ("float32", "bf16"):
        for _ in range(3):  # the last of three counts
            start = time.perf_counter()
            with autocast(precision, device):
                total = model.loss(batch.to(device)).total
            total.backward()
            total.item()  # waits for the device
            seconds[precision] = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return min(seconds, key=lambda precision: seconds[precision])


def uses_all_parameters(model: Model, batch: Batch, num_steps: int | None) -> bool:
    """Return True if the loss of this batch gives every parameter a gradient."""
    device = next(model.parameters()).device
    model.loss(batch.to(device), num_steps=num_steps).total.backward()
    found = all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.zero_grad(set_to_none=True)
    return found


def require_finite(result: StepResult, model: Model) -> None:
    """Raise a NonFiniteError that names the update and the first parameter that is not finite."""
    if result.is_finite:
        return
    # The weights may have been spoilt by an earlier update, by a rate that is far too large.
    if (name := first_not_finite(model.state_dict())) is not None:
        raise NonFiniteError(
            f"update {result.update}: loss {result.loss}, since {name} is not finite after an "
            f"earlier update; the last checkpoint is intact; try a smaller lr or clip in a new run"
        )
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    # The loss alone may be infinite: then the largest gradient is the best hint.
    name = bad[0] if bad else max(norms, key=lambda n: norms[n], default="no parameter")
    raise NonFiniteError(
        f"update {result.update}: loss {result.loss}, gradient norm {result.norm}, first in "
        f"{name}; the weights are as before this update; try a smaller lr or clip"
    )


def scale_gradients_(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply all gradients, in place."""
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


def update_average(state: TrainState) -> None:
    """Move the exponential moving average of the weights by 1 - decay towards the weights.

    The decay of the first updates is smaller, update / (9 + update), so that the average forgets
    the initial weights.
    """
    decay = state.config.training.ema
    if state.average is None or decay is None:
        return
    decay = min(decay, state.update / (9 + state.update))
    with torch.no_grad():
        old = list(state.average.parameters())
        get_ema_multi_avg_fn(decay)(old, state.parameters, None)
