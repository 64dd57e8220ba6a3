"""Recipes on states: equal sizes and equal training FLOPs of the models of a task."""

from dataclasses import replace

import pytest

import thinkers
from thinkers.config.conflicts import check_depth
from thinkers.config.experiment import build

TASKS = ("cups", "automaton", "links")
NAMES = [name for name in thinkers.RECIPES if name.partition("/")[0] in TASKS]


def update_flops(config):
    """The mean FLOPs of an update, over all sizes of rows and all numbers of spare steps."""
    small, large = (x.replace("length", "updates") for x in ("min_length", "max_length"))
    if hasattr(config.task, "min_length"):
        small, large = "min_length", "max_length"
    settings, total = config.training, 0.0
    _, model = build(config)
    sizes = range(getattr(config.task, small), getattr(config.task, large) + 1)
    for size in sizes:
        one = replace(config, task=replace(config.task, **{small: size, large: size}))
        task = thinkers.tasks.from_config(one.task)
        task.skip_curriculum()
        batch = task.batch(0, settings.batch_size)
        steps = None
        if settings.depth == "due":
            steps = int(batch.due.max()) + settings.spare_steps // 2
        total += model.batch_flops(batch, steps, training=True)
    return total / len(sizes)


@pytest.mark.parametrize("name", NAMES)
def test_models_of_a_task_have_equal_sizes(name):
    config = thinkers.RECIPES[name]()
    task, model = build(config)
    check_depth(task, model, config.training)
    task.check(model)
    assert model.config.max_length >= 64
    _, looped = build(thinkers.RECIPES[f"{name.partition('/')[0]}/looped"]())
    sizes = [sum(p.numel() for p in x.parameters()) for x in (model, looped)]
    if name.endswith("deep_decoder"):
        steps = looped.config.num_steps
        assert model.config.num_layers == steps + 1 and sizes[0] > 4 * sizes[1]
    else:
        assert abs(sizes[0] / sizes[1] - 1) < 0.03


@pytest.mark.parametrize("name", [x for x in NAMES if not x.startswith("links/")])
def test_models_of_a_task_are_trained_with_equal_flops(name):
    config, looped = (thinkers.RECIPES[x]() for x in (name, f"{name.partition('/')[0]}/looped"))
    flops = [x.training.num_updates * update_flops(x) for x in (config, looped)]
    assert abs(flops[0] / flops[1] - 1) < 0.03


def test_the_models_of_a_task_differ_in_the_model_alone():
    for name in NAMES:
        config, looped = (thinkers.RECIPES[x]() for x in (name, f"{name.partition('/')[0]}/looped"))
        changed = {"cups/written": {"task.written"}, "cups/thinker": {"task.targets"}}
        assert {x for x in config.changes(looped) if x.startswith("task.")} == changed.get(
            name, set()
        )
