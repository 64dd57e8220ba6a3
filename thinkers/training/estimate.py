"""Estimate of parameters, FLOPs, memory and minutes of a training, from a few updates."""

import resource
import statistics
import sys
import time
from dataclasses import dataclass

import torch

from thinkers.config.experiment import Config
from thinkers.devices import find_device
from thinkers.process_state import keep_process_state
from thinkers.training.distributed import Ranks
from thinkers.training.state import TrainState, build_on
from thinkers.training.step import flops_of, loss_module, step, thinking_steps

TIMED_UPDATES = 4
COUNTED_UPDATES = 32


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a training.

    Args:
        flops: Floating-point operations of one update, the mean over several; with a curriculum,
            of updates at its end; with a policy, over the updates of both kinds.
        memory: Peak memory of the process, or of its CUDA device, in bytes.
        minutes: Wall-clock minutes of all updates, without scoring.
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
    """Measure the cost of a training by a few updates; nothing is written."""
    with keep_process_state(find_device(config.training.device)):
        return _measured(config)


def _measured(config: Config) -> Estimate:
    settings, counts = config.training, config.update_counts(config.training.num_updates)
    config, kinds = config.to_measure(), len(counts)
    ranks = Ranks(0, 1, find_device(settings.device))
    task, model = build_on(ranks.device, config, initialize=True)
    precision = "float32" if settings.precision == "auto" else settings.precision
    if precision == "float64":
        model.double()
    state = TrainState.new(config, task, model)
    loss = loss_module(state)

    task.skip_curriculum()
    flops = []
    for update in range(kinds * min(COUNTED_UPDATES, settings.num_updates)):
        batch = task.batch(update, settings.batch_size)
        flops.append(flops_of(state, update, batch, thinking_steps(update, settings, batch)))
    rates = []
    for update in range(kinds * min(TIMED_UPDATES, settings.num_updates)):
        start = time.perf_counter()
        batch = task.batch(update, settings.batch_size)
        step(state, batch, loss, precision, ranks)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        rates.append((time.perf_counter() - start) / flops[update])
    # Minutes per FLOP times mean FLOPs: the timed updates may have drawn few or many steps.
    of_kind = [statistics.mean(flops[kind::kinds]) for kind in range(kinds)]
    rate = [statistics.median(rates[kind::kinds]) for kind in range(kinds)]
    total = [number * each for number, each in zip(counts, of_kind, strict=True)]
    seconds = sum(each * of_all for each, of_all in zip(rate, total, strict=True))
    return Estimate(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=sum(total) / settings.num_updates,
        memory=_peak(ranks.device),
        minutes=seconds / 60,
    )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
