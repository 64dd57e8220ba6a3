"""Conflicts: settings that are valid alone and do not fit each other, found before training."""

import dataclasses
import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import torch

from thinkers import models, tasks
from thinkers.config.experiment import TASK_SIZES, Config, resolve_sizes
from thinkers.config.training import Training
from thinkers.errors import DataError, UsageError, join_errors, usage_error
from thinkers.models import Model
from thinkers.models.step_loss import check_has_early
from thinkers.problems import Collector
from thinkers.process_state import keep_process_state
from thinkers.tasks import Task


def conflicts(config: Config, task: Task) -> list[UsageError]:
    """Return the conflicts of these settings with each other and with the task, sizes included.

    The model is built without weights, and a few rows are made.
    """
    problems = Collector()
    with problems:
        resolve_sizes(config.model, task)
    with problems, keep_process_state():
        unsized = dataclasses.replace(config.model, **dict.fromkeys(TASK_SIZES))
        with torch.device("meta"):
            model = models.from_config(resolve_sizes(unsized, task))
        problems.found += training_conflicts(
            config, task, model, min(8, config.training.batch_size)
        )
    return problems.found


def training_conflicts(config: Config, task: Task, model: Model, rows: int) -> list[UsageError]:
    """Return the conflicts of the settings of training with the task and the model.

    Args:
        rows: Rows of the batch that must be possible.
    """
    problems, settings = Collector(), config.training
    with problems:
        check_depth(task, model, settings)
    with problems:
        check_policy(config, model)
    with problems:
        task.check(model)
    if not (problems.found and reads_files(config.task)):
        # Before anything is written: a batch may be impossible, or nothing to learn from.
        with problems:
            batch = task.batch(0, rows)
            check_has_early(getattr(config.model, "step_loss", "last"), batch.due, batch.early)
    return problems.found


def remaining_conflicts(config: Config, not_given: Collection[str]) -> list[UsageError]:
    """Return the conflicts that are left where other values stand in for wrong settings.

    No file is read: a task whose settings name some is not built, and its conflicts are not known
    before its settings are right. Nor are those of a task whose data is missing.

    Args:
        not_given: Names of settings with another value than the one given; a conflict that is about
            one of them is left out.
    """
    if reads_files(config.task):
        return []
    problems = Collector()
    with problems, suppress(DataError), keep_process_state():
        task = tasks.from_config(config.task, config.training.seed)
        problems.found += conflicts(config, task)
    return [x for x in problems.found if not {*re.findall(r"\w+", str(x))} & {*not_given}]


def reads_files(task: Any) -> bool:
    """Return True if the `Config` of a task names files to read."""
    return any(x.name.endswith("path") and getattr(task, x.name) for x in dataclasses.fields(task))


def check_depth(task: Task, model: Model, settings: Training) -> None:
    """Raise a UsageError unless the model can take every number of steps of training."""
    problems = Collector()
    for num_steps in settings.random_steps or ():
        with problems:
            try:
                model.check_steps(num_steps)
            except ValueError as error:
                expected, _, found = str(error).rpartition(", got ")
                raise usage_error(
                    f"--training.random_steps with {found}", expected, "choose steps it can take"
                ) from None
    with problems:
        if settings.depth == "due":
            _check_due(task, model, settings)
    problems.raise_all()


def _check_due(task: Task, model: Model, settings: Training) -> None:
    found, fixed = "--training.depth due", "set --training.depth fixed"
    if not model.config.takes_steps:
        raise usage_error(f"{found} for {model.name}", "a model that takes thinking steps", fixed)
    if task.max_due is None:
        expected = "a task whose targets have a due step, such as cups"
        raise usage_error(f"{found} for {type(task).__name__}", expected, fixed)
    most, limit = task.max_due + settings.spare_steps, model.config.max_steps
    if most > limit:
        raise usage_error(
            f"{found} with up to {most} steps: {task.max_due} of the task and "
            f"{settings.spare_steps} spare ones",
            f"at most model.max_steps, {limit}",
            f"set --model.max_steps {most}, or fewer --training.spare_steps",
        )


def check_policy(config: Config, model: Model) -> None:
    """Raise a UsageError unless these settings can train a policy, if they ask for it."""
    own, problems = config.reinforce, []
    if own is None:
        return
    if "policy" not in model.halts_by:
        problems.append(
            usage_error(
                f"reinforce for {model.name} without a policy",
                "thinker with policy (--model.policy true)",
                "set it, and train the model first or begin with it",
            )
        )
    elif model.config.num_steps < 2:
        problems.append(
            usage_error(
                f"--model.num_steps {model.config.num_steps} with reinforce",
                "at least 2: after one step there is no choice",
                "train a model with more --model.num_steps",
            )
        )
    problems += [
        usage_error(f"--training.{name} {found} with reinforce", f"{value}", f"leave {name} out")
        for name, value in (("depth", "fixed"), ("compile", False))
        if (found := getattr(config.training, name)) != value
    ]
    planned = config.training.num_updates
    if planned != own.num_updates:
        problems.append(
            usage_error(
                f"--training.num_updates {planned} with reinforce.num_updates {own.num_updates}",
                "the same number",
                "set one of them, which both follow",
            )
        )
    elif not own.counts(planned)[1]:
        problems.append(
            usage_error(
                f"{planned} updates of reinforce, none of which trains the policy",
                f"more than reinforce.supervised_updates, {own.supervised_updates}",
                "set more --reinforce.num_updates, or fewer --reinforce.supervised_updates",
            )
        )
    if problems:
        raise join_errors(problems)
