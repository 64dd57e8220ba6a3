"""Config: the settings of a run, of model, task and training, as one value."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thinkers import tasks
from thinkers.config.training import Training
from thinkers.errors import UsageError, nearest, usage_error
from thinkers.models import MODELS
from thinkers.tasks import TASKS

PARTS = ("model", "task", "training")
FOLLOWERS = {"vocab_size": "vocabulary", "max_length": "longest row"}
"""Settings of a model that follow its task, and what of the task they must hold."""


@dataclass(frozen=True)
class Config:
    """What a run is made of: the settings of its model, its task and its training.

    Args:
        model: The `Config` of a class in MODELS; large enough for the task.
        task: The `Config` of a class in TASKS.
        recipe: The name in RECIPES that this came from, if it did.
    """

    model: Any
    task: Any
    training: Training
    recipe: str = ""

    def __post_init__(self) -> None:
        for field, needed in sizes(self.task).items():
            given = getattr(self.model, field)
            if given < needed:
                raise usage_error(
                    f"model.{field} {given}",
                    f"at least {needed}, the {FOLLOWERS[field]} of the task",
                    f"set --model.{field} {needed}, or leave it out to follow the task",
                )

    @classmethod
    def fit(cls, model: type, task: Any, training: Training, **settings: Any) -> "Config":
        """A configuration of this class of model, made as large as the task needs."""
        return cls(model.Config(**(sizes(task) | settings)), task, training)  # type: ignore

    def to_dict(self) -> dict[str, Any]:
        """The configuration in types that JSON has."""
        parts: dict[str, Any] = {
            "model": {"name": _name_of(self.model, MODELS)} | dataclasses.asdict(self.model),
            "task": {"name": _name_of(self.task, TASKS)} | dataclasses.asdict(self.task),
            "training": dataclasses.asdict(self.training),
        }
        return json.loads(json.dumps({"recipe": self.recipe} | parts))

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Config":
        """The configuration that `to_dict` described."""
        return Config(*parts_of(data), recipe=data.get("recipe", ""))

    def changes(self, other: "Config") -> dict[str, Any]:
        """What differs here from `other`: {"model.num_steps": 8}."""
        ours, theirs = self.to_dict(), other.to_dict()
        return {
            f"{part}.{name}": value
            for part in PARTS
            for name, value in ours[part].items()
            if name not in theirs[part] or theirs[part][name] != value
        }


def parts_of(data: Mapping[str, Any]) -> tuple[Any, Any, Training]:
    """The settings of model, task and training that `Config.to_dict` described, each alone."""

    for part in PARTS:
        if not isinstance(data.get(part), Mapping):
            raise usage_error(f"a configuration without {part}", " and ".join(PARTS), "add it")
    model, task, training = (dict(data[part]) for part in PARTS)
    return (
        build_part(_class_named(model, "model", MODELS), model, "model"),
        build_part(_class_named(task, "task", TASKS), task, "task"),
        build_part(Training, training, "training"),
    )


def sizes(task: Any) -> dict[str, int]:
    """The least sizes of a model for a task, by its `Config`."""
    built = tasks.from_config(task, seed=0)
    return {field: getattr(built, field) for field in FOLLOWERS}


def _name_of(config: Any, registry: Mapping[str, Any]) -> str:
    for name, owner in registry.items():
        if type(config) is owner.Config:
            return name
    raise UsageError(f"{type(config).__qualname__} is the Config of nothing in {list(registry)}")


def _class_named(settings: dict[str, Any], kind: str, registry: Mapping[str, Any]) -> type:
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in registry:
        close = nearest(str(name), registry)
        raise usage_error(f"unknown {kind} {name!r}", close, "add yours with --import_module FILE")
    return registry[name].Config


def build_part(kind: type, settings: dict[str, Any], part: str) -> Any:
    """The dataclass `kind` of these settings, its complaints turned into three lines."""
    known = [f.name for f in dataclasses.fields(kind) if f.init]
    for field in settings:
        if field not in known:
            raise usage_error(
                f"unknown {part}.{field}", nearest(field, known), "remove or rename it"
            )
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    try:
        return kind(**tuples)
    except (ValueError, TypeError) as error:
        raise _value_problem(str(error), part, known) from None


def _value_problem(message: str, part: str, known: list[str]) -> UsageError:
    parts = re.fullmatch(r"(?s)(.+?), got (.+)", " ".join(message.split()))
    field = next((word for word in re.findall(r"\w+", message) if word in known), None)
    flag = f"--{part}.{field}" if field else f"the settings --{part}.*"
    if not parts:
        return usage_error(f"a value in {part} that cannot be", message, f"change {flag}")
    return usage_error(f"{flag} {parts[2]}", parts[1], f"change {flag}")
