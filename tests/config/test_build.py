"""A Config is a value; `build` makes its task and its model, once, and resolves their sizes."""

import dataclasses

import pytest
import torch
from training_cases import make

from thinkers import RECIPES, models
from thinkers.cli import main
from thinkers.comparison import matching
from thinkers.comparison.plan import Plan
from thinkers.config.experiment import Config, build
from thinkers.config.overrides import dump, override
from thinkers.errors import UsageError
from thinkers.runs import folder as run_folder
from thinkers.tasks import TASKS
from thinkers.tasks.arithmetic import Add
from thinkers.training.loop import train


@pytest.fixture
def constructed(monkeypatch):
    """The tasks that are constructed during a test."""
    found = []

    def counting(kind):
        init = kind.__init__

        def wrapper(self, *args, **kwargs):
            if type(self) is kind:  # not once more for each __init__ that it calls in turn
                found.append(self)
            init(self, *args, **kwargs)

        return wrapper

    for kind in set(TASKS.values()):
        monkeypatch.setattr(kind, "__init__", counting(kind))
    return found


def test_configurations_build_no_task(constructed, capsys):
    each_task = {}
    for recipe in RECIPES.values():
        config = recipe()
        assert Config.from_dict(config.to_dict()) == config
        assert dataclasses.replace(config, recipe="x").changes(config) == {}
        each_task[type(config.task)] = config
    for config in each_task.values():
        flags = ["--training.lr=0.5", "--model.max_length=999"]
        assert override(config, flags=flags).model.max_length == 999
        assert "max_length: 999" in dump(config, flags=flags)
    assert main.main(["train", "add/thinker", "--print_config"]) == 0
    assert main.main(["train", "add/thinker", "--help"]) == 0
    assert main.main(["list"]) == 0
    assert constructed == []


def test_a_training_builds_one_task(constructed, tmp_path):
    run = train(make(), tmp_path / "a")
    assert len(constructed) == 1
    del constructed[:]
    main.main(["train", f"--resume={run.folder}", "--training.num_updates=13"])
    assert len(constructed) == 1


def test_planning_a_comparison_builds_few_tasks(constructed):
    small = {"task.max_digits": 1, "model.dim": 16, "training.batch_size": 7}
    asked = dict(match=None, seeds=None, lrs=(), controls=(), settings=small, num_examples=None)
    matching.rows_of.cache_clear()  # another test may have counted the same rows
    matching.last_stage_batches.cache_clear()
    matching._last_stage.cache_clear()
    Plan.of(task="add", models=["decoder", "thinker"], budget="1e9", **asked)
    # One for sizes, one whose rows are counted, and one for each model that is timed.
    assert len(constructed) == 4


def test_sizes_are_those_of_the_task():
    config = make("looped", Add.Config(max_digits=4))
    assert (config.model.vocab_size, config.model.max_length) == (None, None)
    task, model = build(config)
    assert type(task) is Add and task.seed == config.training.seed
    assert model.config.vocab_size == task.vocab_size == Add.vocab_size
    assert model.config.max_length == task.max_length == Add(config.task).max_length
    assert dataclasses.replace(model.config, vocab_size=None, max_length=None) == config.model


def test_sizes_that_are_given_stay():
    _, model = build(make(vocab_size=97, max_length=53))
    assert (model.config.vocab_size, model.config.max_length) == (97, 53)


@pytest.mark.parametrize("field", ["vocab_size", "max_length"])
def test_sizes_below_the_task_are_refused_with_the_flag_to_set(field):
    with pytest.raises(UsageError, match=rf"found: model.{field} 4\n.*\nfix: set --model.{field}"):
        build(make(**{field: 4}))


def test_a_model_is_not_built_without_its_sizes():
    with pytest.raises(ValueError, match="vocab_size must be set before a model is built"):
        models.from_config(make().model)


def test_the_folder_of_a_run_holds_the_sizes(tmp_path):
    run = train(make(settings=dict(num_updates=1)), tmp_path / "a")
    record = run_folder.read_record(run.folder)["config"]
    task = TASKS["copy"](Config.from_dict(record).task)
    assert record["model"]["vocab_size"] == run.model.config.vocab_size == task.vocab_size
    assert record["model"]["max_length"] == run.model.config.max_length == task.max_length


@pytest.mark.parametrize("name", TASKS)
def test_building_a_task_draws_nothing_from_the_generator_of_the_weights(name):
    before = torch.random.get_rng_state()
    TASKS[name]()
    assert torch.equal(torch.random.get_rng_state(), before)
