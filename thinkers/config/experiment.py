"""Config, the settings of model, task and training; `build`, the objects that it describes."""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinkers import checks, models, registry, tasks
from thinkers.config.grow import Grow
from thinkers.config.reinforce import Reinforce
from thinkers.config.training import Training
from thinkers.errors import FormatError, UsageError, join_errors, nearest, usage_error
from thinkers.models import MODELS, Model
from thinkers.problems import Collector
from thinkers.registry import class_named, name_of_config
from thinkers.tasks import TASKS, Task

PARTS = ("model", "task", "training")
KINDS: dict[str, Mapping[str, Any]] = {"model": MODELS, "task": TASKS}
"""{part that is the Config of a registered class: the registry}."""
OPTIONAL_PARTS: dict[str, type] = {"reinforce": Reinforce, "grow": Grow}
PLANNED = ("training.num_updates", "reinforce.num_updates")
"""The settings that hold the planned number of updates, the same in both."""
TASK_SIZES = {"vocab_size": "vocabulary", "max_length": "longest row"}
"""{model setting that follows the task if it is None: the property of the task that it holds}."""
STEP_SETTINGS = ("num_steps", "max_steps")
"""Model settings without effect in a model of one step."""
OWN_NAME = "own_name"
"""In a file: the setting `name` of a model or task, beside its `name` in MODELS or TASKS."""
DEPTH_SETTINGS: dict[str, Any] = {"depth": "fixed", "random_steps": None, "spare_steps": 0}
"""{training setting without effect in a model of one step: its value there}."""


@dataclass(frozen=True)
class Config:
    """The settings of a run: of its model, its task and its training.

    A value: constructing one builds no task, opens no file and touches no device. `build` does.

    Args:
        model: The `Config` of a class in MODELS; sizes that are None follow the task.
        task: The `Config` of a class in TASKS.
        recipe: The name in RECIPES that it came from; empty for none.
        reinforce: Training of a policy in turn with the model; None trains the model alone.
        grow: Guidance by a finished model; None trains without.
    """

    model: Any
    task: Any
    training: Training
    recipe: str = ""
    reinforce: Reinforce | None = None
    grow: Grow | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the groups of settings."""
        return (*PARTS, *(x for x in OPTIONAL_PARTS if getattr(self, x) is not None))

    def with_updates(self, num_updates: int) -> "Config":
        """Return this configuration with another planned number of updates."""
        own = self.reinforce
        return dataclasses.replace(
            self,
            training=dataclasses.replace(self.training, num_updates=num_updates),
            reinforce=None if own is None else dataclasses.replace(own, num_updates=num_updates),
        )

    def update_counts(self, num_updates: int) -> tuple[int, ...]:
        """Return how many of the first updates are of each kind: of the model, of its policy.

        Without a policy that is trained, all are of one kind.
        """
        return (num_updates,) if self.reinforce is None else self.reinforce.counts(num_updates)

    def to_measure(self) -> "Config":
        """Return settings for measuring a few updates: of each kind in turn, if there are two."""
        if self.reinforce is None:
            return self
        return dataclasses.replace(self, reinforce=self.reinforce.alternating())

    @classmethod
    def fit(cls, model: type[Model], task: Any, training: Training, **settings: Any) -> "Config":
        """Return a configuration of this class of model whose sizes follow the task."""
        return cls(model.Config(**(dict.fromkeys(TASK_SIZES) | settings)), task, training)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration in the types of JSON."""
        parts: dict[str, Any] = {
            "model": _described(name_of_config(self.model, MODELS, "model"), self.model),
            "task": _described(name_of_config(self.task, TASKS, "task"), self.task),
            "training": dataclasses.asdict(self.training),
        }
        for part in self.parts[len(PARTS) :]:
            parts[part] = dataclasses.asdict(getattr(self, part))
        # The round trip turns tuples into lists, so that the result equals the one read from a
        # file.
        return json.loads(json.dumps({"recipe": self.recipe} | parts))

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Config":
        """Return the configuration that `to_dict` described."""
        problems, own = Collector(), {}
        with problems:
            own = dict(zip(PARTS, parts_of(data), strict=True))
        for part, kind in OPTIONAL_PARTS.items():
            settings = data.get(part)
            with problems:
                if not isinstance(settings, Mapping | None):
                    raise usage_error(f"{part} {settings!r}", "settings", "remove or change it")
                if settings is not None:
                    own[part] = build_part(kind, dict(settings), part)
        problems.raise_all()
        return Config(recipe=data.get("recipe", ""), **own)

    def changes(self, other: "Config") -> dict[str, Any]:
        """Return the settings that differ from `other`: {"model.num_steps": 8}."""
        ours, theirs = self.to_dict(), other.to_dict()
        return {
            f"{part}.{name}": value
            for part in self.parts
            for name, value in ours[part].items()
            if name not in theirs.get(part, ()) or theirs[part][name] != value
        }


def build(config: Config, run: Path | None = None) -> tuple[Task, Model]:
    """Build the task, then the model, its sizes resolved; the model's weights are on the CPU.

    The weights are drawn from torch's global generator: seed it first for a reproducible model.

    Args:
        run: The folder of the run that is resumed; its task reads the files recorded there.

    Raises:
        UsageError: A size that was given is smaller than the task needs.
        FormatError: The run is of an older version, whose task had fewer tokens.
    """
    task = task_of(config, run)
    return task, models.from_config(resolve_sizes(config.model, task))


def task_of(config: Config, run: Path | None = None) -> Task:
    """Build the task alone; arguments and errors are those of `build`."""
    if run is None:
        return tasks.from_config(config.task, config.training.seed)
    task = tasks.from_run(config.task, config.training.seed, run)
    check_vocabulary(config.model.vocab_size, task, run)
    return task


def check_vocabulary(vocab_size: int | None, task: Task, run: Path) -> None:
    """Check that the model of a run has all tokens of its task.

    Raises:
        FormatError: It has fewer, as before rows began with a start token.
    """
    if vocab_size is not None and vocab_size < task.vocab_size:
        raise FormatError(
            f"{run} has a model of {vocab_size} tokens, of an older version; its task has "
            f"{task.vocab_size} here: train again, or use the version of thinkers that wrote it"
        )


def resolve_sizes(model: Any, task: Task) -> Any:
    """Fill in the sizes of a model's `Config` that are None from the task.

    Raises:
        UsageError: A size that was given is smaller than the task needs.
    """
    needed = {field: getattr(task, field) for field in TASK_SIZES}
    problems = Collector()
    for field, least in needed.items():
        given = getattr(model, field)
        with problems:
            if given is not None and given < least:
                raise usage_error(
                    f"model.{field} {given}",
                    f"at least {least}, the {TASK_SIZES[field]} of the task",
                    f"set --model.{field} {least}, or leave it out to follow the task",
                )
    problems.raise_all()
    missing = {field: least for field, least in needed.items() if getattr(model, field) is None}
    if getattr(model, "step_loss", "last") == "wait" and model.wait_token is None:
        missing["wait_token"] = task.wait_token
    return dataclasses.replace(model, **missing)


def parts_of(data: Mapping[str, Any]) -> tuple[Any, Any, Training]:
    """Return the settings of model, task and training that `Config.to_dict` described."""
    problems = Collector()
    parts: dict[str, Any] = {}
    for part in PARTS:
        with problems:
            if not isinstance(data.get(part), Mapping):
                raise usage_error(f"a configuration without {part}", " and ".join(PARTS), "add it")
            kind, settings = Training, dict(data[part])
            if part in KINDS:
                name, settings = _read(data[part])
                kind = class_named(name, KINDS[part], part).Config
            parts[part] = build_part(kind, settings, part)
    problems.raise_all()
    return parts["model"], parts["task"], parts["training"]


def _described(name: str, config: Any) -> dict[str, Any]:
    """Return the settings of a model or task with its name, in the form of a file."""
    settings = dataclasses.asdict(config)
    if "name" in settings:
        settings[OWN_NAME] = settings.pop("name")
    return {"name": name} | settings


def _read(found: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the name of a model or task, and its settings, from what `_described` returned."""
    settings = dict(found)
    name = settings.pop("name", None)
    if OWN_NAME in settings:
        settings["name"] = settings.pop(OWN_NAME)
    return name, settings


def missing_settings(data: Mapping[str, Any]) -> list[str]:
    """Return the settings that a record must hold and `data` lacks, such as "model.dim".

    Raises:
        UsageError: A part is missing, or its name is unknown.
    """
    missing = []
    for part in PARTS:
        settings = data.get(part)
        if not isinstance(settings, Mapping):
            missing.append(part)
            continue
        kind: Any = Training
        if part in KINDS:
            name, settings = _read(settings)
            kind = class_named(name, KINDS[part], part).Config
        missing += [f"{part}.{name}" for name in checks.missing_settings(kind, settings)]
    return missing


def build_part(kind: type, settings: dict[str, Any], part: str) -> Any:
    """Build the dataclass `kind` from settings; all their problems become one error.

    Raises:
        UsageError: In three lines for each problem, with the flag of the setting.
    """
    made, problems = check_part(kind, settings, part)
    if problems:
        raise join_errors(problems)
    return made


def check_part(
    kind: type, settings: Mapping[str, Any], part: str, reported: Collection[str] = ()
) -> tuple[Any, list[UsageError]]:
    """Build the dataclass `kind`, with other values in the place of wrong ones.

    Args:
        reported: Settings whose problems are known, and that have other values here.

    Returns:
        The dataclass, or None where no values could be found; and the problems.
    """
    known = [f.name for f in dataclasses.fields(kind) if f.init]
    problems = [
        usage_error(f"unknown {part}.{field}", nearest(field, known), "remove or rename it")
        for field in settings
        if field not in known
    ]
    values = tuples({key: value for key, value in settings.items() if key in known})
    steps: dict[str, UsageError] = {}
    if part == "model" and not kind.takes_steps:  # type: ignore[attr-defined]
        steps = _useless_steps(kind.__qualname__.removesuffix(".Config"), settings)
        values |= dict.fromkeys(steps, 1)
    problems += steps.values()
    made, found = registry.construct_all(kind, values, {*reported, *steps})
    return made, problems + [_of_flag(error, part, known) for error in found]


def tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with tuples in the place of the lists that JSON and YAML have."""
    return {key: tuple(x) if isinstance(x, list) else x for key, x in settings.items()}


def _useless_steps(name: str, settings: Mapping[str, Any]) -> dict[str, UsageError]:
    """Return {setting: error} of settings that ask a model of one step for thinking steps."""
    return {
        field: usage_error(
            f"--model.{field} {settings[field]}",
            f"1, since {name} takes one step and {field} has no effect",
            "leave it out, or choose a model that takes steps, such as looped",
        )
        for field in STEP_SETTINGS
        if settings.get(field) not in (None, 1)
    }


def _of_flag(error: UsageError, part: str, known: list[str]) -> UsageError:
    """Turn "FIELD must RULE, got VALUE" into an error of three lines that names the flag."""
    message = str(error)
    if message.startswith("found: "):
        return error  # in three lines already
    parts = re.fullmatch(r"(?s)(.+?), got (.+)", " ".join(message.split()))
    field = next((word for word in re.findall(r"\w+", message) if word in known), None)
    flag = f"--{part}.{field}" if field else f"the settings --{part}.*"
    if not parts:
        return usage_error(f"an invalid value in {part}", message, f"change {flag}")
    return usage_error(f"{flag} {parts[2]}", parts[1], f"change {flag}")
