"""Settings of a model on a task that no recipe has: those of the nearest recipe."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from thinkers import models, registry
from thinkers.config.experiment import DEPTH_SETTINGS, STEP_SETTINGS, TASK_SIZES, Config
from thinkers.errors import nearest, usage_error
from thinkers.models import MODELS
from thinkers.recipes import RECIPES
from thinkers.tasks import TASKS


def find(name: str) -> Config:
    """Return the recipe of this name, or else the settings of the pair TASK/MODEL.

    Raises:
        UsageError: It is neither.
    """
    if name in RECIPES:
        return replace(RECIPES[name](), recipe=name)
    registry.check(MODELS, "model")
    registry.check(TASKS, "task")
    task, _, model = name.partition("/")
    if task in TASKS and model in MODELS:
        return replace(base(model, task_settings(task, [model])), recipe=name)
    for part in (task, model):
        if part not in TASKS and part not in MODELS:
            registry.check_extra(part)
    pairs = (f"{task}/{model}" for task in TASKS for model in MODELS)
    raise usage_error(
        f"unknown recipe {name!r}",
        nearest(name, {*RECIPES, *pairs}),
        "thinkers list lists the recipes; TASK/MODEL names any model on any task",
    )


def task_settings(task: str, names: Sequence[str]) -> Any:
    """Return the task settings of the first recipe on a task, recipes of the named models first."""
    kind = TASKS[task].Config
    usable = [recipe for recipe in _recipes() if type(recipe.task) is kind]
    named = [MODELS[name].Config for name in names]
    places = {own: place for place, own in enumerate(named)}
    usable.sort(key=lambda recipe: places.get(type(recipe.model), len(named)))
    return usable[0].task if usable else kind()


def base(name: str, task_config: Any) -> Config:
    """Return the recipe of a model on a task, else on another task, with the sizes of this one.

    A model without recipes uses those of the class that it extends, or else add/decoder.
    """
    kind, recipes = MODELS[name].Config, _recipes()
    ordered = sorted(recipes, key=lambda recipe: not isinstance(task_config, type(recipe.task)))
    inherited = (recipe for own in kind.__mro__ for recipe in ordered if type(recipe.model) is own)
    recipe = next(inherited, None) or next(x for x in recipes if x.recipe == "add/decoder")
    of = type(recipe.model) if issubclass(kind, type(recipe.model)) else models.base.Config
    shared = {field.name: getattr(recipe.model, field.name) for field in fields(of) if field.init}
    if not recipe.model.takes_steps:
        # Its one step says nothing about a model that takes steps.
        shared = {name: value for name, value in shared.items() if name not in STEP_SETTINGS}
    is_own = type(recipe.model) is kind and recipe.task == task_config
    model: Any = kind(**shared | ({} if is_own else dict.fromkeys(TASK_SIZES)))
    if not model.takes_steps:
        recipe = replace(recipe, training=replace(recipe.training, **DEPTH_SETTINGS))
    return replace(recipe, recipe=recipe.recipe if is_own else "", model=model, task=task_config)


def _recipes() -> list[Config]:
    return [make() for make in RECIPES.values()]
