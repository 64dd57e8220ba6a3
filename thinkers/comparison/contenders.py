"""Contenders: the names that a comparison takes, and the settings that follow from them.

MODEL is the recipe of a model; MODEL+halt has a gate by which tokens halt, and MODEL+policy a
policy that chooses blocks: both are trained so, and graded so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from thinkers.config.experiment import DEPTH_SETTINGS, STEP_SETTINGS, Config
from thinkers.config.overrides import override
from thinkers.config.reinforce import Reinforce
from thinkers.errors import usage_error
from thinkers.models.halt import Halt
from thinkers.recipes.pairs import base

HALTS, HALT = "+halt", 0.5
"""Suffix of a contender that is built with a gate, and the threshold at which its tokens halt."""
CHOOSES = "+policy"
"""Suffix of a contender that is trained with a policy, which chooses its blocks when graded."""
RULES: dict[str, Halt] = {HALTS: HALT, CHOOSES: "policy"}
"""{suffix: the rule by which such a contender stops when it is graded}."""
DEPTH_FLAGS = tuple(f"--training.{field}" for field in DEPTH_SETTINGS)
STEP_FLAGS = tuple(f"--model.{field}" for field in STEP_SETTINGS)


@dataclass(frozen=True)
class Contender:
    """One of the models or controls that are compared.

    Args:
        what: A description of a control, of a gate or of a policy, for the page.
    """

    name: str
    config: Config
    what: str = ""

    @property
    def halt(self) -> Halt:
        """The rule by which rows stop when the contender is graded; None for none."""
        return RULES.get(suffix_of(self.name))


def suffix_of(name: str) -> str:
    """Return the suffix of a contender, such as +halt; empty for none."""
    return next((suffix for suffix in RULES if name.endswith(suffix)), "")


def model_of(name: str) -> str:
    """Return the name in MODELS of the model of a contender."""
    return name.removesuffix(suffix_of(name))


def what_of(name: str) -> str:
    """Return the description of a contender with a gate or a policy; empty without them."""
    graded = {
        HALTS: f"with a gate, graded with tokens that halt where it is above {HALT}",
        CHOOSES: "with a policy, trained in turn with it, graded with the blocks that it chooses",
    }
    suffix = suffix_of(name)
    return f"{model_of(name)} {graded[suffix]}" if suffix else ""


def base_of(name: str, task_config: Any) -> Config:
    """Return the settings of a contender: of its model, and of a gate or a policy if it has one.

    Raises:
        UsageError: The model has no gate, or no policy.
    """
    found, suffix = base(model_of(name), task_config), suffix_of(name)
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
    return found


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
    for flag in rest:
        if _key(flag).startswith("--reinforce."):
            raise usage_error(
                f"{_key(flag)} without a contender that has a policy",
                f"one whose name ends in {CHOOSES}, such as thinker{CHOOSES}",
                f"leave {_key(flag)} out, or add thinker{CHOOSES} to --models",
            )
    return [
        override(config, (), [x for x in flags if x in rest or _is_of_use(x, config)])
        for config in configs
    ]


def _is_of_use(flag: str, config: Config) -> bool:
    """Return True if a configuration has a use for a flag."""
    if _key(flag).startswith("--reinforce."):
        return config.reinforce is not None
    if _key(flag) in DEPTH_FLAGS:
        return config.model.takes_steps and config.reinforce is None
    return config.model.takes_steps or _key(flag) not in STEP_FLAGS


def _key(flag: str) -> str:
    return flag.partition("=")[0]
