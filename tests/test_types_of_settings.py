"""Settings and arguments of a wrong type: an error of usage that names them, whoever sets them."""

import dataclasses

import pytest
from training_cases import make

import thinkers
from thinkers.config.training import Training
from thinkers.errors import ThinkersError, UsageError

SIZES = dict(vocab_size=5, dim=8, num_layers=1, num_heads=2, num_steps=1, max_length=9)
WRONG = (object(), [object()], {"a": 1})
pytestmark = pytest.mark.misuse


def fields(kind):
    return [field.name for field in dataclasses.fields(kind) if field.init]


def refuses(call):
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("name", list(thinkers.MODELS))
def test_every_setting_of_a_model_refuses_another_type_by_name(name):
    for field in fields(thinkers.MODELS[name].Config):
        for value in WRONG:
            settings = SIZES | {field: value}
            assert field in refuses(
                lambda settings=settings: thinkers.build_model(name, **settings)
            )


@pytest.mark.parametrize("name", list(thinkers.TASKS))
def test_every_setting_of_a_task_refuses_another_type_by_name(name):
    for field in fields(thinkers.TASKS[name].Config):
        for value in WRONG:
            setting = {field: value}
            assert field in refuses(lambda setting=setting: thinkers.build_task(name, **setting))


@pytest.mark.parametrize("field", fields(Training))
def test_every_setting_of_training_refuses_another_type_by_name(field):
    for value in WRONG:
        assert field in refuses(
            lambda value=value: Training(**({"num_updates": 3} | {field: value}))
        )


def test_a_text_is_no_number_and_a_number_no_switch():
    assert "dropout must be a number, got 'x'" in refuses(
        lambda: thinkers.build_model("decoder", **SIZES, dropout="x")
    )
    assert "got 1" in refuses(lambda: thinkers.build_task("add", curriculum=1))
    assert thinkers.build_task("add", threshold=1).config.threshold == 1


TRAIN = ["out", "until", "overrides", "tracking", "callbacks"]
COMPARE = ["task", "models", "match", "budget", "seeds", "lrs", "controls", "settings", "workers"]
COMPARE += ["num_examples", "out", "tracking"]


@pytest.mark.parametrize("name", TRAIN)
def test_every_argument_of_train_refuses_another_type_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in (3.5, [3.5]):
        if (name, value) != ("overrides", [3.5]):
            assert name in refuses(lambda value=value: thinkers.train(make(), **{name: value}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMPARE)
def test_every_argument_of_compare_refuses_another_type(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = dict(task="add", models=["decoder"], budget="1 updates")
    for value in (object(), [object()]):
        with pytest.raises(ThinkersError):
            thinkers.compare(**(asked | {name: value}))
    assert list(tmp_path.iterdir()) == []
