"""Matched compute: contenders of equal size, and the number of updates that a budget allows.

Size is the number of parameters: `fit` chooses widths so that any two models are within 3 %.
Compute is FLOPs, counted by `Model.batch_flops` on rows of the task: `updates_for` divides a budget
of FLOPs by those of an update, and `answer_flops` is the cost of one answer. A budget in seconds is
divided by the measured `seconds_per_update`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from math import ceil
from typing import Any

import torch

from thinkers import models, tasks
from thinkers.config.experiment import DEPTH_SETTINGS, STEP_SETTINGS, Config, resolve_sizes
from thinkers.config.overrides import override
from thinkers.devices import find_device
from thinkers.errors import usage_error
from thinkers.models import MODELS
from thinkers.models.base import Model
from thinkers.models.batch import Batch
from thinkers.process_state import keep_process_state
from thinkers.recipes.pairs import base, task_settings
from thinkers.registry import name_of_config
from thinkers.tasks import Task
from thinkers.tasks.due import Steps, step_groups
from thinkers.training.distributed import Ranks
from thinkers.training.state import TrainState
from thinkers.training.step import LossModule, step, thinking_steps

TOLERANCE = 0.014
"""Largest relative difference in size from the baseline: any two models are then within 3 %."""
CONTROLS = ("fillers", "untied", "wider")
UNTIMED, TIMED = 3, 20
"""Warm-up updates, and timed updates, by which the seconds of an update are measured."""
ESTIMATED = 4
"""Timed updates if only the duration of a run is estimated."""
SAMPLE = 100
"""Rows over which the FLOPs of an answer are averaged."""
CURRICULUM_SAMPLE = 32
"""Updates whose FLOPs are averaged if a curriculum makes them differ."""
STEP_FLAGS = tuple(f"--model.{field}" for field in STEP_SETTINGS) + tuple(
    f"--training.{field}" for field in DEPTH_SETTINGS
)
HALTS, HALT = "+halt", 0.5
"""Suffix of a contender that is built with a gate, and the threshold at which its tokens halt."""
WIDEST = 16
"""Largest ratio of feed-forward width to model width; the smallest is 1/4."""


@dataclass(frozen=True)
class Contender:
    """One of the models or controls that are compared.

    Args:
        what: A description of a control, for the page.
    """

    name: str
    config: Config
    what: str = ""

    @property
    def halt(self) -> float | None:
        """The threshold above which tokens halt when the contender is graded; None for none."""
        return HALT if self.name.endswith(HALTS) else None


def contenders(
    task: str, names: Sequence[str], controls: Sequence[str], flags: Sequence[str]
) -> list[Contender]:
    """Build the configurations of the models and of the controls, matched to the first model.

    Args:
        flags: Settings for all, such as --task.max_digits=2.
    """
    task_config = task_settings(task, [model_of(name) for name in names])
    bases = override_all([base_of(name, task_config) for name in names], flags)
    task_built = tasks.from_config(bases[0].task)  # all have the same flags, so the same task
    bases = [replace(x, model=resolve_sizes(x.model, task_built)) for x in bases]
    wanted = parameters(bases[0].model)
    found = [
        Contender(name, replace(own, model=fit(own.model, parameters, wanted)), what_of(name))
        for name, own in zip(names, bases, strict=True)
    ]
    for one in found:
        task_built.check(build(one.config.model))
    if not controls:
        return found
    reference = _reference(found)
    decoder = override_all([base("decoder", task_config), *bases], flags)[0]
    decoder = replace(decoder, model=resolve_sizes(decoder.model, task_built))
    makers = {"fillers": _fillers, "untied": _untied, "wider": _wider}
    return found + [makers[name](decoder, reference, wanted) for name in controls]


def model_of(name: str) -> str:
    """Return the name in MODELS of the model of a contender."""
    return name.removesuffix(HALTS)


def what_of(name: str) -> str:
    """Return the description of a contender with a gate; empty without one."""
    if not name.endswith(HALTS):
        return ""
    return f"{model_of(name)} with a gate, graded with tokens that halt where it is above {HALT}"


def base_of(name: str, task_config: Any) -> Config:
    """Return the settings of a contender: those of its model, with a gate where the name says so.

    Raises:
        UsageError: The model has no gate.
    """
    found = base(model_of(name), task_config)
    if not name.endswith(HALTS):
        return found
    model, names = found.model, [field.name for field in fields(found.model)]
    if "halting" not in names:
        raise usage_error(
            f"{name}, but {model_of(name)} has no setting halting",
            "a model whose tokens may halt, such as looped",
            f"leave {HALTS} out, or choose another model",
        )
    # With a gate, a target is graded from its due step on, and gradients flow through all steps.
    own = {"halting": True, "step_loss": "due", "wait_token": None, "backprop_steps": None}
    model = replace(model, **{key: value for key, value in own.items() if key in names})
    return replace(found, model=model, recipe="")


def override_all(configs: Sequence[Config], flags: Sequence[str]) -> list[Config]:
    """Override configurations by the same flags; numbers of steps are for models that take steps.

    If no model does, they are refused.
    """
    if any(config.model.takes_steps for config in configs):
        others = [flag for flag in flags if flag.partition("=")[0] not in STEP_FLAGS]
    else:
        others = list(flags)
    return [override(c, (), flags if c.model.takes_steps else others) for c in configs]


def _reference(found: Sequence[Contender]) -> Contender:
    """Return the model whose FLOPs the controls match: looped, or else the first that thinks."""
    thinking = [one for one in found if len(build(one.config.model).step_counts) > 1]
    if not thinking:
        raise usage_error(
            f"--controls with {', '.join(one.name for one in found)}",
            "a model that thinks, whose FLOPs the controls match",
            "add one to --models, such as looped",
        )
    by_model = {model_of(one.name): one for one in reversed(thinking)}
    return by_model.get("looped", thinking[0])


def _fillers(decoder: Config, reference: Contender, wanted: int) -> Contender:
    """Build the model pause with the parameters and the FLOPs of the reference."""
    work = answer_flops(reference.config)
    shared = {field.name: getattr(decoder.model, field.name) for field in fields(decoder.model)}
    model = MODELS["pause"].Config(**shared)

    def with_fillers(number: int) -> Any:
        return replace(model, num_steps=number, max_steps=None)

    for _ in range(2):  # the fillers' own weights are few: the second round changes little
        costs = {n: work_of(with_fillers(n), decoder.task) for n in (1, 2)}
        count = max(1, round(1 + (work - costs[1]) / (costs[2] - costs[1])))
        model = fit(with_fillers(count), parameters, wanted)
    fillers = "1 filler" if count == 1 else f"{count} fillers"
    what = f"a decoder with {fillers} after each token, with the FLOPs of {reference.name}"
    return Contender("fillers", replace(decoder, model=model, recipe=""), what)


def _untied(decoder: Config, reference: Contender, wanted: int) -> Contender:
    """Build a decoder with the depth of all passes of looped, each with its own weights."""
    looped = reference.config.model
    if model_of(reference.name) != "looped":
        raise usage_error(
            "--controls untied without looped",
            "looped among --models: the core of looped is untied",
            "add looped to --models",
        )
    depth = looped.num_prelude_layers + looped.num_steps * looped.num_layers
    depth += looped.num_coda_layers
    model = replace(
        decoder.model, dim=looped.dim, num_heads=looped.num_heads, num_layers=depth, hidden=None
    )
    model = fit(model, lambda x: work_of(x, decoder.task), answer_flops(reference.config))
    what = f"a decoder of {depth} layers, as many as looped passes, each with its own weights"
    return Contender("untied", replace(decoder, model=model, recipe=""), what)


def _wider(decoder: Config, reference: Contender, wanted: int) -> Contender:
    """Build a decoder of the usual depth, wide enough to match the FLOPs in one pass."""
    work = answer_flops(reference.config)
    step = 2 * decoder.model.num_heads

    def cost(model: Any) -> float:
        return work_of(model, decoder.task)

    model = replace(decoder.model, hidden=None)
    while cost(model) < work:
        model = replace(model, dim=model.dim + step)
    model = fit(model, cost, work)
    what = f"a decoder of width {model.dim}, with the FLOPs of {reference.name} in one pass"
    return Contender("wider", replace(decoder, model=model, recipe=""), what)


def fit(model: Any, measure: Callable[[Any], float], wanted: float) -> Any:
    """Choose the feed-forward width, and if necessary the model width, to measure `wanted`.

    Args:
        model: The Config of a class in MODELS.
        measure: Parameters or FLOPs of a Config; linear in `hidden`.

    Raises:
        UsageError: No width within the allowed range gives `wanted`.
    """

    def is_near(candidate: Any) -> bool:
        return abs(measure(candidate) - wanted) <= TOLERANCE * wanted

    if is_near(model):
        return model
    has_hidden = any(field.name == "hidden" for field in fields(model))
    step = 2 * model.num_heads  # rotary positions need heads of even width
    dims = {model.dim} | set(range(step, 8 * model.dim + 1, step))
    for dim in sorted(dims, key=lambda dim: (abs(dim - model.dim), dim)):
        candidate = replace(model, dim=dim)
        if has_hidden:
            low, high = (measure(replace(candidate, hidden=hidden)) for hidden in (dim, 2 * dim))
            hidden = round(dim + (wanted - low) / (high - low) * dim)
            if not dim / 4 <= hidden <= WIDEST * dim:
                continue
            candidate = replace(candidate, hidden=hidden)
        if is_near(candidate):
            return candidate
    name = name_of_config(model, MODELS, "model")
    raise usage_error(
        f"no width at which {name} has {wanted:,.0f} parameters or FLOPs",
        f"a size that {name} reaches within 3 %",
        "choose other sizes with --model.*, or name the models in another order",
    )


def build(model: Any) -> Model:
    """Build a model, without a change to torch's global generator."""
    with keep_process_state():
        return models.from_config(model)


def parameters(model: Any) -> int:
    """Count the parameters of a model."""
    return sum(p.numel() for p in build(model).parameters())


@lru_cache(maxsize=8)
def rows_of(task: Any, number: int) -> Batch:
    """Return rows of the validation split, which has every size of the task."""
    return _last_stage(task).batch(0, number, "valid")


@lru_cache(maxsize=2)
def _last_stage(task: Any) -> Task:
    """Build a task and set its curriculum to the last stage."""
    built = tasks.from_config(task)
    built.skip_curriculum()
    return built


@lru_cache(maxsize=2)
def last_stage_batches(task: Any, number: int) -> tuple[Batch, ...]:
    """Return training batches, of the last stage of a curriculum, as a sample of all updates."""
    built = _last_stage(task)
    return tuple(built.batch(update, number) for update in range(CURRICULUM_SAMPLE))


def answer_flops(config: Config, num_steps: Steps = None) -> float:
    """Count the FLOPs of reading one row and writing its answer, in the mean of a sample."""
    return work_of(config.model, config.task, num_steps)


def work_of(model: Any, task: Any, num_steps: Steps = None) -> float:
    """Count the same as `answer_flops`, given the Configs of a model and a task."""
    built, batch = build(model), rows_of(task, SAMPLE)
    groups = step_groups(batch, built, num_steps)
    return sum(built.batch_flops(batch.rows(rows), steps) for rows, steps in groups) / SAMPLE


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

    if settings.depth == "due":
        sampled = [
            model.batch_flops(batch, thinking_steps(update, settings, batch), training=True)
            for update, batch in enumerate(batches)
        ]
        mean = sum(sampled) / len(sampled)
    else:
        mean = cost(thinking_steps(0, settings, batches[0]))
    if flops < mean:
        raise usage_error(
            f"--budget {flops:g} for {model.name}",
            f"at least one update, {mean:.3g} FLOPs",
            "increase --budget",
        )
    if settings.depth != "random":
        return ceil(flops / mean)
    done, used = 0, 0.0
    while used < flops:
        used += cost(thinking_steps(done, settings, batches[0]))
        done += 1
    return done


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: process time then does not depend on other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds_per_update(config: Config, timed: int = TIMED) -> float:
    """Measure the process time of an update on one thread, as the mean of `timed` updates."""
    with keep_process_state(find_device(config.training.device)), one_thread():
        ends = [time.process_time() for _ in _updates(config, UNTIMED + timed)]
    return (ends[-1] - ends[UNTIMED - 1]) / timed


def warm_up(config: Config) -> None:
    """Make a few updates: the first ones of a process are slower than the others."""
    with keep_process_state(find_device(config.training.device)):
        for _ in _updates(config, UNTIMED):
            pass


def _updates(config: Config, number: int) -> Iterator[int]:
    ranks = Ranks(0, 1, find_device(config.training.device))
    task = tasks.from_config(config.task, config.training.seed)
    task.skip_curriculum()
    model = build(config.model).to(ranks.device)
    state, loss_module = TrainState.new(config, task, model), LossModule(model)
    for update in range(number):
        batch = task.batch(update, config.training.batch_size)
        step(state, batch, loss_module, "float32", ranks)
        yield update
