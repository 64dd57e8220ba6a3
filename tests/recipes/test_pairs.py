"""Pairs TASK/MODEL without a recipe: trained with the settings that a comparison gives them."""

from dataclasses import replace

import pytest
import torch

import thinkers
from thinkers import models, tasks
from thinkers.comparison import matching
from thinkers.config.conflicts import check_depth
from thinkers.config.experiment import TASK_SIZES, resolve_sizes
from thinkers.errors import UsageError
from thinkers.recipes.pairs import find
from thinkers.tasks.text import Text

PAIRS = [f"{task}/{model}" for task in thinkers.TASKS for model in thinkers.MODELS]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A function from the Config of a task to the task, which is made once."""
    home = tmp_path_factory.mktemp("text")
    (home / "input.txt").write_text("some words\n" * 99)
    known = {}

    def build(config):
        if isinstance(config, Text.Config):
            config = replace(config, path=str(home / "input.txt"))
        if config not in known:
            known[config] = tasks.from_config(config)
        return known[config]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THINKERS_CACHE", str(home / "cache"))
        yield build


@pytest.mark.parametrize("name", thinkers.RECIPES)
def test_a_recipe_comes_first(name):
    assert find(name) == thinkers.RECIPES[name]()


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_can_be_built(pair, built):
    config = find(pair)
    assert config.recipe == pair
    task = built(config.task)
    small = {"dim": 8, "num_heads": 2, "hidden": None}
    own = {name: value for name, value in small.items() if hasattr(config.model, name)}
    model = models.from_config(resolve_sizes(replace(config.model, **own), task))
    if task.section_length and getattr(config.model, "memory", "none") == "none":
        with pytest.raises(UsageError, match="documents for .* without a memory"):
            task.check(model)
        return
    task.check(model)
    check_depth(task, model, config.training)
    tokens = torch.arange(min(5, task.vocab_size, task.max_length))[None]
    assert model.loss(thinkers.Batch(tokens, tokens)).total.isfinite()


@pytest.mark.parametrize("pair", ["copy/looped", "star_graph/pause", "add/thinker"])
def test_a_pair_has_the_settings_that_a_comparison_takes(pair):
    names = pair.split("/")
    (one,) = matching.contenders(names[0], names[1:], (), [])
    config = find(pair)
    task = tasks.from_config(config.task)
    sizes = {name: getattr(task, name) for name in TASK_SIZES}
    assert one.config.task == config.task and one.config.training == config.training
    own = models.from_config(replace(config.model, **sizes)).config
    assert models.from_config(one.config.model).config == own


@pytest.mark.parametrize("name", ["add", "add/", "/", "", "add/thinkr", "ad/thinker", "a/b/c"])
def test_what_is_neither_is_refused_with_the_nearest(name):
    with pytest.raises(UsageError, match="expected: \\S+/\\S+\nfix: .*TASK/MODEL"):
        find(name)


def test_the_nearest_name_may_be_a_pair():
    with pytest.raises(UsageError, match="expected: sort/pause"):
        find("sort/pase")
