"""What a training would need, found without writing anything."""

import resource
import statistics
import sys
import time
from dataclasses import dataclass

import torch

from thinkers.config.experiment import Config, build
from thinkers.devices import find_device
from thinkers.training import optim
from thinkers.training.distributed import Ranks
from thinkers.training.loop import start_from
from thinkers.training.step import Learner, LossOf, check_random_steps, gradients, thinking_steps

TIMED_UPDATES = 4
COUNTED_UPDATES = 32


@dataclass(frozen=True)
class Estimate:
    """What a training needs.

    Args:
        flops: Floating-point operations of one update, with a curriculum of one at its end.
        memory: The most bytes that the process, or the device, held at once.
        minutes: For all updates, scoring left out.
    """

    parameters: int
    flops: float
    memory: int
    minutes: float

    def __str__(self) -> str:
        return (
            f"parameters        {self.parameters:,}\n"
            f"FLOPs per update  {self.flops:.3g}\n"
            f"memory            {self.memory / 2**20:,.0f} MiB\n"
            f"minutes           {self.minutes:.1f}"
        )


def estimate(config: Config) -> Estimate:
    """The needs of a training, from a few updates made in memory."""
    settings = config.training
    ranks = Ranks(0, 1, find_device(settings.device))
    task, model = build(config)
    model = model.to(ranks.device)
    check_random_steps(model, settings)
    task.check(model)
    if settings.init_from is not None:
        start_from(model, settings.init_from)
    learner = Learner(config, model, None, optim.build(model, settings), task)
    forward = LossOf(model)
    precision = "float32" if settings.precision == "auto" else settings.precision
    if precision == "float64":
        model.double()

    task.skip_curriculum()
    flops = [
        model.batch_flops(
            task.batch(update, settings.batch_size), thinking_steps(update, settings), training=True
        )
        for update in range(min(COUNTED_UPDATES, settings.num_updates))
    ]
    rates = []
    for update in range(min(TIMED_UPDATES, settings.num_updates)):
        start = time.perf_counter()
        batch = task.batch(update, settings.batch_size)
        num_steps = thinking_steps(update, settings)
        gradients(forward, learner, batch, num_steps, precision, [False] * 3, ranks)
        optim.step(learner.optimizers, settings.lr)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        rates.append((time.perf_counter() - start) / flops[update])
    return Estimate(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=statistics.mean(flops),
        memory=_peak(ranks.device),
        minutes=statistics.median(rates) * statistics.mean(flops) * settings.num_updates / 60,
    )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
