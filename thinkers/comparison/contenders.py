"""Contenders: the names that a comparison takes, and the settings that follow from them.

MODEL is the recipe of a model; MODEL+halt has a gate by which tokens halt, MODEL+policy a policy
that chooses blocks, and MODEL+one_step takes one step: they are trained so, and graded so. All may
begin with the weights of one model: that of --training.init_from.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from thinkers.config.experiment import DEPTH_SETTINGS, STEP_SETTINGS, Config
from thinkers.config.overrides import override
from thinkers.config.reinforce import Reinforce
from thinkers.errors import UsageError, usage_error
from thinkers.models import MODELS
from thinkers.models.halt import Halt
from thinkers.problems import Collector
from thinkers.recipes.pairs import base
from thinkers.registry import name_of_config
from thinkers.strict_json import check_schema

HALTS, HALT = "+halt", 0.5
"""Suffix of a contender that is built with a gate, and the threshold at which its tokens halt."""
CHOOSES = "+policy"
"""Suffix of a contender that is trained with a policy, which chooses its blocks when graded."""
ONCE = "+one_step"
"""Suffix of a contender that takes one step: of a retrofitted model, the untouched one."""
RULES: dict[str, Halt] = {HALTS: HALT, CHOOSES: "policy", ONCE: None}
"""{suffix: the rule by which such a contender stops when it is graded; None for none}."""
DEPTH_FLAGS = tuple(f"--training.{field}" for field in DEPTH_SETTINGS)
STEP_FLAGS = tuple(f"--model.{field}" for field in STEP_SETTINGS)


@dataclass(frozen=True)
class Contender:
    """One of the models or controls that are compared.

    Args:
        what: A description for the page, where the name does not say all; empty for none.
    """

    name: str
    config: Config
    what: str = ""

    @property
    def halt(self) -> Halt:
        """The rule by which rows stop when the contender is graded; None for none."""
        return RULES.get(suffix_of(self.name))


def read_contenders(records: Sequence[Any], where: str) -> tuple[Contender, ...]:
    """Return the contenders that the plan of a comparison holds.

    Args:
        where: The file of the plan, for errors.
    """
    for one in records:
        check_schema(one, {"name": str, "what": str, "config": dict}, f"{where}: contenders")
    return tuple(Contender(x["name"], Config.from_dict(x["config"]), x["what"]) for x in records)


def suffix_of(name: str) -> str:
    """Return the suffix of a contender, such as +halt; empty for none."""
    return next((suffix for suffix in RULES if name.endswith(suffix)), "")


def model_of(name: str) -> str:
    """Return the name in MODELS of the model of a contender."""
    return name.removesuffix(suffix_of(name))


def what_of(name: str, begins_with: str = "") -> str:
    """Return the description of a contender; empty where its name says all.

    Args:
        begins_with: The folder of the weights with which its training begins.
    """
    graded = {
        HALTS: f"with a gate, graded with tokens that halt where it is above {HALT}",
        CHOOSES: "with a policy, trained in turn with it, graded with the blocks that it chooses",
        ONCE: "with one step, in training and when it is graded",
    }
    suffix, said = suffix_of(name), []
    if suffix:
        said.append(f"{model_of(name)} {graded[suffix]}")
    if begins_with:
        said.append(f"begins with the weights of {begins_with}")
    return "; ".join(said)


def base_of(name: str, task_config: Any, start: Any = None) -> Config:
    """Return the settings of a contender: of its model, and of what its suffix adds.

    Args:
        start: Settings of the model whose weights all contenders begin with; None for none.

    Raises:
        UsageError: The model has no gate, no policy or no steps, or is not that of `start`.
    """
    found, suffix = base(model_of(name), task_config), suffix_of(name)
    if start is not None:
        if type(start) is not type(found.model):
            kind = name_of_config(start, MODELS, "model")
            raise usage_error(
                f"{name} with --training.init_from, the weights of {kind}",
                f"contenders that have these weights: {kind}, {kind}{ONCE}",
                "change --models",
            )
        found = replace(found, model=start, recipe="")
    known = {field.name: getattr(found.model, field.name) for field in fields(found.model)}
    if known.get("policy") and suffix != CHOOSES:
        # The recipe has a policy for `reinforce`, whose weights this contender would not use.
        found = replace(found, model=replace(found.model, policy=False), recipe="")
    if suffix == HALTS:
        # With a gate, a target is graded from its due step on, and gradients flow through all
        # steps.
        gate = {"halting": True, "step_loss": "due", "wait_token": None, "backprop_steps": None}
        return _with_part(name, found, gate, "a model whose tokens may halt, such as looped")
    if suffix == CHOOSES:
        policy = {"policy": True, "halting": False, "backprop_steps": None}
        found = _with_part(name, found, policy, "a model that may choose its blocks, thinker")
        training = replace(found.training, **DEPTH_SETTINGS)  # roll-outs take their own steps
        own = Reinforce(num_updates=training.num_updates)
        return replace(found, training=training, reinforce=own)
    return _with_one_step(name, found) if suffix == ONCE else found


def _with_one_step(name: str, found: Config) -> Config:
    if not found.model.takes_steps:
        raise usage_error(
            f"{name}, but {model_of(name)} takes one step",
            "a model that takes thinking steps, such as looped",
            f"leave {ONCE} out",
        )
    training = replace(found.training, **DEPTH_SETTINGS)
    model = replace(found.model, num_steps=1, max_steps=1)
    return replace(found, model=model, training=training, recipe="")


def _with_part(name: str, found: Config, settings: dict[str, Any], expected: str) -> Config:
    """Return these settings of the model, the first of which adds the part.

    Raises:
        UsageError: The model has no such setting.
    """
    known, part = [field.name for field in fields(found.model)], next(iter(settings))
    if part not in known:
        raise usage_error(
            f"{name}, but {model_of(name)} has no setting {part}",
            expected,
            f"leave {suffix_of(name)} out, or choose another model",
        )
    own = {key: value for key, value in settings.items() if key in known}
    return replace(found, model=replace(found.model, **own), recipe="")


def override_all(configs: Sequence[Config], flags: Sequence[str]) -> list[Config]:
    """Override configurations by the same flags, each by those that it has a use for.

    Numbers of steps are for models that take steps; how many of them training takes, for those
    among them without a policy, whose roll-outs decide it; --reinforce.* for those with one. Flags
    without a use are refused.
    """
    rest = [flag for flag in flags if not any(_is_of_use(flag, config) for config in configs)]
    problems, found = Collector(), []
    for flag in rest:
        with problems:
            if _key(flag).startswith("--reinforce."):
                raise usage_error(
                    f"{_key(flag)} without a contender that has a policy",
                    f"one whose name ends in {CHOOSES}, such as thinker{CHOOSES}",
                    f"leave {_key(flag)} out, or add thinker{CHOOSES} to --models",
                )
    known = [x for x in flags if x not in rest or not _key(x).startswith("--reinforce.")]
    for config in configs:
        with problems:
            own = [x for x in known if x in rest or _is_of_use(x, config)]
            found.append(override(config, (), own))
    # What several lack is reported for the first of them; the fix has the name of the recipe too.
    alike: dict[str, UsageError] = {}
    for error in problems.found:
        about = str(error).partition("\nfix: ")[0]
        alike.setdefault(re.sub(", which .* does not have", "", about), error)
    problems.found = list(alike.values())
    problems.raise_all()
    return found


def _is_of_use(flag: str, config: Config) -> bool:
    """Return True if a configuration has a use for a flag."""
    if _key(flag).startswith("--reinforce."):
        return config.reinforce is not None
    thinks = config.model.takes_steps and config.model.max_steps > 1
    if _key(flag) in DEPTH_FLAGS:
        return thinks and config.reinforce is None
    return thinks or _key(flag) not in STEP_FLAGS


def _key(flag: str) -> str:
    return flag.partition("=")[0]
