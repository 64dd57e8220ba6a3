"""Budgets: the number of updates that FLOPs or seconds allow, from the cost of an update.

Where a policy is trained in turn with its model, updates of the two kinds cost differently, and
come in the order of `Reinforce`: their costs are counted and measured separately.
"""

import time
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from math import ceil

from thinkers import tasks
from thinkers.comparison.matching import build, last_stage_batches
from thinkers.config.experiment import Config
from thinkers.devices import find_device
from thinkers.errors import usage_error
from thinkers.policies.loss import update_flops
from thinkers.process_state import keep_process_state, one_thread
from thinkers.training.distributed import Ranks
from thinkers.training.state import TrainState
from thinkers.training.step import loss_module, step, thinking_steps

UNTIMED, TIMED = 3, 20
"""Warm-up updates, and timed updates, of each kind, by which their seconds are measured."""
ESTIMATED = 4
"""Timed updates of each kind if only the duration of a run is estimated."""

Costs = tuple[float, ...]
"""The cost of an update of each kind, in the order of `Config.update_counts`."""


def updates_for(config: Config, flops: float) -> int:
    """Count the updates that a budget of FLOPs allows; the last one reaches or exceeds it.

    The count is exact where the thinking steps of an update follow from the seed alone. Where rows
    or steps differ by update, it is that of the mean of sampled updates; with a curriculum, whose
    rows are shorter at first, training uses fewer FLOPs.
    """
    settings, model = config.training, build(config.model)
    batches = last_stage_batches(config.task, settings.batch_size)

    @lru_cache
    def cost(num_steps: int | None) -> float:
        costs = [model.batch_flops(batch, num_steps, training=True) for batch in batches]
        return sum(costs) / len(costs)

    kinds: Costs
    if (own := config.reinforce) is not None:
        of_kind = own.alternating()
        sums = [sum(update_flops(model, of_kind, kind, x) for x in batches) for kind in (0, 1)]
        kinds = tuple(total / len(batches) for total in sums)
    elif settings.depth == "due":
        sampled = [
            model.batch_flops(batch, thinking_steps(update, settings, batch), training=True)
            for update, batch in enumerate(batches)
        ]
        kinds = (sum(sampled) / len(sampled),)
    else:
        kinds = (cost(thinking_steps(0, settings, batches[0])),)
    if flops < kinds[0]:
        raise usage_error(
            f"--budget {flops:g} for {model.name}",
            f"at least one update, {kinds[0]:.3g} FLOPs",
            "increase --budget",
        )
    if settings.depth != "random":
        return reaching(config, flops, kinds)
    done, used = 0, 0.0
    while used < flops:
        used += cost(thinking_steps(done, settings, batches[0]))
        done += 1
    return done


def total(config: Config, num_updates: int, costs: Costs) -> float:
    """Return the cost of the first updates."""
    counts = config.update_counts(num_updates)
    return sum(number * cost for number, cost in zip(counts, costs, strict=True))


def reaching(config: Config, amount: float, costs: Costs) -> int:
    """Return the fewest updates whose cost reaches an amount above 0."""
    low, high = 0, ceil(amount / min(costs))
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if total(config, middle, costs) >= amount else (middle, high)
    return high


def nearest(config: Config, amount: float, costs: Costs) -> int:
    """Return the number of updates, at least 1, whose cost is nearest to an amount."""
    above = reaching(config, amount, costs)
    excess = total(config, above, costs) - amount
    return max(1, above - (excess > amount - total(config, above - 1, costs)))


def seconds_per_update(config: Config, timed: int = TIMED) -> Costs:
    """Measure the process time of an update of each kind on one thread, the mean of `timed`."""
    with keep_process_state(find_device(config.training.device)), one_thread():
        ends = [time.process_time() for _ in _updates(config, UNTIMED + timed)]
    kinds = len(config.update_counts(1))
    spent = [end - start for start, end in pairwise(ends[kinds * UNTIMED - 1 :])]
    return tuple(sum(spent[kind::kinds]) / timed for kind in range(kinds))


def warm_up(config: Config) -> None:
    """Make a few updates: the first ones of a process are slower than the others."""
    with keep_process_state(find_device(config.training.device)):
        for _ in _updates(config, UNTIMED):
            pass


def _updates(config: Config, number: int) -> Iterator[int]:
    """Make this number of updates of each kind, in turn."""
    config, kinds = config.to_measure(), len(config.update_counts(1))
    ranks = Ranks(0, 1, find_device(config.training.device))
    task = tasks.from_config(config.task, config.training.seed)
    task.skip_curriculum()
    model = build(config.model).to(ranks.device)
    state = TrainState.new(config, task, model)
    loss = loss_module(state)
    for update in range(kinds * number):
        batch = task.batch(update, config.training.batch_size)
        step(state, batch, loss, "float32", ranks)
        yield update
