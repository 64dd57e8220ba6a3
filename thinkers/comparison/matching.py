"""Matched compute: contenders of equal size, and the number of updates that a budget allows.

Size is the number of parameters: `fit` chooses widths so that any two models are within 3 %.
Compute is FLOPs, counted by `Model.batch_flops` on rows of the task: `answer_flops` is the cost of
one answer; `thinkers.comparison.budgets` counts the updates that a budget allows.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from thinkers import models, tasks
from thinkers.comparison.contenders import (
    Contender,
    base_of,
    model_of,
    override_all,
    what_of,
)
from thinkers.config.conflicts import conflicts, training_conflicts
from thinkers.config.experiment import Config, resolve_sizes
from thinkers.errors import UsageError, join_errors, usage_error
from thinkers.models import MODELS
from thinkers.models.base import Model
from thinkers.models.batch import Batch
from thinkers.problems import Collector
from thinkers.process_state import keep_process_state
from thinkers.recipes.pairs import base, task_settings
from thinkers.registry import name_of_config
from thinkers.runs.result import load
from thinkers.tasks import Task
from thinkers.tasks.due import Steps, step_groups
from thinkers.training.state import check_questions, load_initial_weights

TOLERANCE = 0.014
"""Largest relative difference in size from the baseline: any two models are then within 3 %."""
CONTROLS = ("fillers", "untied", "wider")
SAMPLE = 100
"""Rows over which the FLOPs of an answer are averaged."""
CURRICULUM_SAMPLE = 32
"""Updates whose FLOPs are averaged if a curriculum makes them differ."""
BEGIN = "training.init_from"
"""Setting by which all contenders begin with the weights, and have the settings, of one model."""
WIDEST = 16
"""Largest ratio of feed-forward width to model width; the smallest is 1/4."""


def contenders(
    task: str, names: Sequence[str], controls: Sequence[str], flags: Sequence[str]
) -> list[Contender]:
    """Build the configurations of the models and of the controls, matched to the first model.

    Args:
        flags: Settings for all, such as --task.max_digits=2.

    Raises:
        UsageError: A contender cannot be built, or cannot begin with the weights that are given.
    """
    task_config = task_settings(task, [model_of(name) for name in names])
    folder = next((x.partition("=")[2] for x in flags if x.startswith(f"--{BEGIN}=")), "")
    start = load(folder).config if folder else None
    if start is not None and controls:
        raise usage_error(
            f"--controls {','.join(controls)} with --{BEGIN}",
            "contenders that begin with these weights, which controls do not have",
            "leave --controls out",
        )
    bases = override_all([base_of(name, task_config, start) for name in names], flags)
    task_built = tasks.from_config(bases[0].task)  # all have the same flags, so the same task
    problems = Collector()
    for x in bases:
        with problems:
            resolve_sizes(x.model, task_built)
    if problems.found:
        raise join_errors(error for x in bases for error in conflicts(x, task_built))
    bases = [replace(x, model=resolve_sizes(x.model, task_built)) for x in bases]
    wanted = parameters(bases[0].model)
    found = [
        Contender(
            name, replace(own, model=fit(own.model, parameters, wanted)), what_of(name, folder)
        )
        for name, own in zip(names, bases, strict=True)
    ]
    for one in found:
        model = build(one.config.model)
        if folder:
            load_initial_weights(model, folder)
        rows = one.config.training.batch_size
        problems.found += training_conflicts(one.config, task_built, model, rows)
        with problems:
            check_questions(one.config, task_built)
    problems.raise_all()
    if not controls:
        return found
    reference = _reference(found)
    decoder = override_all([base("decoder", task_config), *bases], flags)[0]
    decoder = replace(decoder, model=resolve_sizes(decoder.model, task_built))
    makers = {"fillers": _fillers, "untied": _untied, "wider": _wider}
    return found + [makers[name](decoder, reference, wanted) for name in controls]


def problems_of_flags(task: str, names: Sequence[str], flags: Sequence[str]) -> list[UsageError]:
    """Return the problems that settings for all have for these models."""
    problems = Collector()
    with problems:
        task_config = task_settings(task, [model_of(name) for name in names])
        override_all([base_of(name, task_config) for name in names], flags)
    return problems.found


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
