"""Config and its overrides: derived values, invalid values, round trips through JSON and YAML."""

import dataclasses
import json
from dataclasses import replace

import pytest

from thinkers import RECIPES, open_run
from thinkers.config.experiment import Config, build
from thinkers.config.overrides import dump, override, override_task, parse
from thinkers.config.training import Training
from thinkers.errors import UsageError, nearest
from thinkers.models.decoder import Decoder
from thinkers.tasks.arithmetic import Add


@pytest.fixture(scope="module")
def looped():
    return RECIPES["add/looped"]()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_round_trips_through_json_with_its_name(name):
    config = RECIPES[name]()
    assert config.recipe == name
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_round_trips_through_yaml(name, tmp_path):
    config = RECIPES[name]()
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    assert override(config, [str(file)]) == config


def test_sizes_of_the_model_follow_the_task_unless_they_are_set(looped):
    wider = override(looped, flags=["--task.max_digits=7"])
    assert build(wider)[1].config.max_length == Add(wider.task).max_length
    assert Add(wider.task).max_length > Add(looped.task).max_length
    flags = ["--model.max_length=97", "--model.vocab_size=53"]
    model = override(looped, flags=flags).model
    assert (model.max_length, model.vocab_size) == (97, 53)
    assert override(replace(looped, model=model), flags=["--model.max_length=null"]).model == (
        replace(model, max_length=None)
    )


def test_a_size_that_was_enough_is_refused_for_a_larger_task(looped):
    needed = Add(looped.task).max_length
    config = override(looped, flags=[f"--model.max_length={needed}", "--task.max_digits=7"])
    with pytest.raises(UsageError, match=r"set --model.max_length \d+"):
        build(config)


@pytest.mark.misuse
@pytest.mark.parametrize(
    "flags, found",
    [
        ("--training.lr=1", "flags '--training.lr=1'"),
        (None, "flags of type NoneType"),
        ({"training.lr": 1}, "flags of type dict"),
        ([3], "the flag 3"),
        ([""], "the flag ''"),
        (["training.lr=1"], "the flag 'training.lr=1'"),
        (["--training.lr", "1"], "the flag '--training.lr'"),
    ],
)
def test_flags_are_texts_with_a_name_and_a_value(looped, flags, found):
    for call in (
        lambda: override(looped, (), flags),
        lambda: dump(looped, (), flags),
        lambda: override_task(looped.task, flags),
        lambda: open_run("nowhere", flags=flags),
    ):
        with pytest.raises(UsageError) as raised:
            call()
        assert str(raised.value).startswith(f"found: {found}\nexpected: ")


def test_max_steps_follows_num_steps_unless_it_is_set(looped):
    assert override(looped, flags=["--model.num_steps=11"]).model.max_steps == 44
    flags = ["--model.num_steps=11", "--model.max_steps=13"]
    assert override(looped, flags=flags).model.max_steps == 13


def test_flags_override_files_and_later_files_earlier_ones(looped, tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("model: {dim: 32, num_layers: 3}\ntraining: {lr: 1e-2}\n")
    second.write_text("model:\n  num_layers: 5\n")
    config = override(looped, [str(first), str(second)], ["--model.dim=48"])
    assert (config.model.dim, config.model.num_layers, config.training.lr) == (48, 5, 0.01)


def test_values_have_the_types_of_their_fields(looped):
    flags = ["--training.betas=[0.5,0.7]", "--training.random_steps=[2,3]", "--training.ema=0.9"]
    flags.append("--training.depth=random")
    training = override(looped, flags=flags).training
    assert training.betas == (0.5, 0.7) and training.random_steps == (2, 3) and training.ema == 0.9
    flags = ["--training.depth=fixed", "--training.random_steps=null"]
    assert override(looped, flags=flags).training.random_steps is None


def test_changes_name_what_differs(looped):
    other = override(looped, flags=["--model.dim=48", "--training.lr=0.5"])
    assert other.changes(looped) == {"model.dim": 48, "training.lr": 0.5}
    assert looped.changes(looped) == {}


def test_fit_leaves_the_sizes_of_the_model_to_the_task():
    config = Config.fit(Decoder, Add.Config(max_digits=4), Training(num_updates=7), dim=20)
    assert config.model == Decoder.Config(vocab_size=None, max_length=None, dim=20)


def test_nested_choices_are_checked_by_name(looped):
    with pytest.raises(UsageError, match="concat.*add.*none"):
        override(looped, flags=["--model.injection=concta"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "without model"),
        ({"model": {}, "task": {}, "training": {}}, "unknown model None"),
        ({"model": {"name": ["looped"]}, "task": {}, "training": {}}, "unknown model"),
        ({"model": {"name": "loped"}, "task": {}, "training": {}}, "expected: looped"),
    ],
)
def test_invalid_dictionaries_are_refused(data, message):
    with pytest.raises(UsageError, match=message):
        Config.from_dict(data)


def test_an_unknown_field_is_named_with_the_nearest(looped):
    data = looped.to_dict()
    data["training"]["num_update"] = 3
    with pytest.raises(UsageError, match="training.num_update\nexpected: num_updates"):
        Config.from_dict(data)


def test_every_field_of_a_recipe_can_be_set(looped):
    values = parse(looped, [], [])
    for part in ("model", "task", "training"):
        fields = {f.name for f in dataclasses.fields(getattr(looped, part))}
        assert set(values[part]) == fields


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lr", "training.lr"), ("model.dmi", "model.dim"), ("max_digit", "task.max_digits")],
)
def test_the_nearest_name_is_found_by_the_field_alone(name, expected):
    known = ["training.lr", "model.dim", "task.max_digits", "model.num_layers"]
    assert nearest(name, known) == expected


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model: {dim: !!bool abc}", "'abc' is no bool"),
        ("model: {dim: !!int ''}", "'' is no int"),
        ("model: {dim: !!timestamp soon}", "'soon' is no timestamp"),
    ],
)
def test_values_that_cannot_be_read_are_named_with_their_file(looped, tmp_path, text, found):
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"odd.yaml: {found}"):
        override(looped, [str(file)])


@pytest.mark.misuse
@pytest.mark.parametrize("text", ["model: {}", "{}"])
def test_a_file_of_one_huge_integer_is_refused(looped, tmp_path, text):
    file = tmp_path / "odd.yaml"
    file.write_text(text.format("0x" + "f" * 6000))
    with pytest.raises(UsageError, match="cannot be shown: .* in .*odd.yaml\nexpected: "):
        override(looped, [str(file)])
