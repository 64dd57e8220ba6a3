"""The class that was named is built, trained, recorded, loaded and compared: models and tasks."""

import dataclasses
import json
import pickle

import pytest
import torch
from training_cases import QUICK

import thinkers
from thinkers import registry
from thinkers.cli.main import main
from thinkers.config.experiment import missing_settings
from thinkers.config.overrides import override
from thinkers.errors import UsageError
from thinkers.models import MODELS, load_model
from thinkers.models.decoder import Decoder
from thinkers.models.looped import Looped
from thinkers.published import system_of
from thinkers.tasks import TASKS
from thinkers.tasks.arithmetic import Add

pytestmark = pytest.mark.usefixtures("plain_pages")
SIZE = dict(dim=8, num_heads=2)


class Gated(Looped):
    """A looped transformer that halves each thought; it has no Config and no name of its own."""

    def _think(self, *given):
        return super()._think(*given) / 2


class Sums(Add):
    """Addition under another name."""


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(MODELS, "gated", Gated)
    monkeypatch.setitem(TASKS, "sums", Sums)


def make_config(**settings):
    training = thinkers.Training(**(QUICK | dict(num_updates=3, batch_size=5) | settings))
    return thinkers.Config.fit(Gated, TASKS["sums"].Config(max_digits=1), training, **SIZE)


def test_a_class_without_settings_of_its_own_is_trained_recorded_and_loaded(registered, tmp_path):
    run = thinkers.train(make_config(), tmp_path / "a", until=2)
    assert type(run.model) is Gated
    record = json.loads((run.folder / "config.json").read_text())["config"]
    assert (record["model"]["name"], record["task"]["name"]) == ("gated", "sums")
    assert json.loads((run.folder / "model" / "config.json").read_text())["model"] == "gated"
    assert type(thinkers.resume(run.folder).model) is Gated
    model, task = thinkers.open_run(run.folder)
    assert (type(model), type(task)) == (Gated, Sums)
    assert thinkers.Config.from_dict(record).to_dict() == record
    assert thinkers.reproduce(run.folder).equal


class Kinds(Add):
    """Sums of a kind, which has a name."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Add.Config):
        name: str = "short"


def test_a_setting_called_name_is_kept_beside_the_name_of_the_class(monkeypatch):
    monkeypatch.setitem(TASKS, "kinds", Kinds)
    assert thinkers.build_task("kinds", name="long").config.name == "long"
    training = thinkers.Training(num_updates=3)
    config = thinkers.Config.fit(Looped, Kinds.Config(name="long"), training, **SIZE)
    found = config.to_dict()
    assert (found["task"]["name"], found["task"]["own_name"]) == ("kinds", "long")
    assert thinkers.Config.from_dict(found) == config
    assert missing_settings(found) == []
    del found["task"]["own_name"]
    assert missing_settings(found) == ["task.name"]
    assert override(config, flags=["--task.name=longer"]).task.name == "longer"


def test_a_name_that_lacks_an_extra_is_refused_with_the_command_that_installs_it(
    monkeypatch, tmp_path, capsys
):
    needed = ("no_such_module", "some", "the task gone")
    monkeypatch.setitem(registry.OF_EXTRAS, "gone", needed)
    record = thinkers.RECIPES["add/looped"]().to_dict()
    record["task"]["name"] = "gone"
    calls = [
        lambda: thinkers.build_task("gone"),
        lambda: thinkers.build_model("gone"),
        lambda: thinkers.Config.from_dict(record),
        lambda: thinkers.compare("gone", ["looped"], out=tmp_path / "a"),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r'the task gone needs(?s:.*)install "thinkers\[some'):
            call()
    assert main(["train", "gone/looped"]) == 2
    assert 'pip install "thinkers[some]"' in capsys.readouterr().err


def test_evaluation_runs_the_class_that_was_trained(registered, tmp_path, monkeypatch):
    run = thinkers.train(make_config(), tmp_path / "a")
    called = []
    monkeypatch.setattr(Gated, "_think", lambda self, s, *rest: called.append(1) or s)
    thinkers.evaluate(run.folder, num_examples=3, num_steps=1)
    assert called


def test_a_comparison_trains_each_class(registered, tmp_path):
    settings = {
        "task.max_digits": 1,
        "model.dim": 8,
        "model.num_heads": 2,
        "training.device": "cpu",
    }
    asked = dict(match="parameters", budget=3, seeds=1, num_examples=5, settings=settings)
    found = thinkers.compare("sums", ["looped", "gated"], out=tmp_path / "a", **asked)
    assert [one.name for one in found.plan.contenders] == ["looped", "gated"]
    looped, gated = (
        thinkers.load(tmp_path / "a" / "runs" / f"{name}-0") for name in ("looped", "gated")
    )
    assert (type(looped), type(gated)) == (Looped, Gated)
    weights = zip(looped.parameters(), gated.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in weights)
    # Only the class differs: a subclass has the recipe of the class that it extends.
    configs = [one.config for one in found.plan.contenders]
    assert configs[0].training == configs[1].training
    assert configs[0].changes(configs[1]).keys() == {"model.name"}


def test_a_name_is_the_key_in_the_registry(registered, tmp_path):
    model = thinkers.build_model("gated", vocab_size=5, **SIZE)
    assert model.name == Gated.name == "gated" and Looped.name == "looped"
    assert "Gated.Config" in repr(model.config) and type(model.config) is Gated.Config
    with pytest.raises(UsageError, match="'gated' has no published system"):
        system_of(model)

    class Other(Gated):
        name = "gated"

    MODELS["other"] = Other
    try:
        assert Other.name == "other" and Gated.name == "gated"
        thinkers.build_model("other", vocab_size=5, **SIZE).save(tmp_path)
        assert type(load_model(tmp_path)) is Other
    finally:
        del MODELS["other"]


def test_an_unregistered_class_is_never_saved_as_another(tmp_path):
    class Plain(Looped):
        pass

    class Named(Looped):
        name = "looped"

    settings = dict(vocab_size=5, **SIZE)
    assert Plain.name == "Plain"
    Plain(Plain.Config(**settings)).save(tmp_path)
    with pytest.raises(UsageError, match="unknown model 'Plain'"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match="Named with the name 'looped', which is that of Looped"):
        Named(Named.Config(**settings)).save(tmp_path / "a")
    config = make_config_of(Plain)
    with pytest.raises(
        UsageError, match=r"Plain.Config is not the Config of a model(.|\n)*register"
    ):
        thinkers.train(config, tmp_path / "b")


def make_config_of(model):
    task = TASKS["add"].Config(max_digits=1)
    return thinkers.Config.fit(model, task, thinkers.Training(**QUICK), **SIZE)


def test_settings_that_no_class_defines_are_settings_like_others(registered):
    config = Gated.Config(num_steps=2)
    assert pickle.loads(pickle.dumps(config)) == config != Looped.Config(num_steps=2)
    assert dataclasses.replace(config, num_steps=3) == Gated.Config(num_steps=3, max_steps=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_steps = 3
    changed = override(make_config(), flags=["--model.num_steps=7", "--task.max_digits=2"])
    assert (type(changed.model), changed.model.num_steps) == (Gated.Config, 7)
    assert (type(changed.task), changed.task.max_digits) == (Sums.Config, 2)

    class Borrowed(Decoder):
        Config = Looped.Config

    assert Borrowed.Config is not Looped.Config and issubclass(Borrowed.Config, Looped.Config)


def test_settings_of_the_extended_class_are_taken_over():
    model = Gated(Looped.Config(vocab_size=5, num_steps=3, **SIZE))
    assert model.config == Gated.Config(vocab_size=5, num_steps=3, max_steps=12, **SIZE)
    assert type(Sums(Add.Config(max_digits=1)).config) is Sums.Config
    with pytest.raises(UsageError, match="config must be a Gated.Config, got a Decoder.Config"):
        Gated(Decoder.Config(vocab_size=5))


@pytest.mark.parametrize(
    "use",
    [
        lambda: thinkers.build_model("decoder", vocab_size=5),
        lambda: make_config_of(Looped).to_dict(),
        lambda: thinkers.compare("add", ["decoder"]),
        lambda: Looped(Looped.Config(vocab_size=5)).save("unused"),
    ],
)
def test_two_names_of_one_model_are_refused(use, monkeypatch):
    monkeypatch.setitem(MODELS, "twin", Looped)
    with pytest.raises(UsageError, match="models 'looped' and 'twin' are one class, Looped"):
        use()


def test_two_names_of_one_task_are_refused(monkeypatch):
    config = make_config_of(Looped)
    monkeypatch.setitem(TASKS, "twin", Add)
    for use in (lambda: thinkers.build_task("copy"), config.to_dict):
        with pytest.raises(UsageError, match="tasks 'add' and 'twin' are one class, Add"):
            use()


@pytest.mark.parametrize("wrong", [3, torch.nn.Linear, thinkers.Task, lambda config: None])
def test_only_models_can_be_registered(wrong, monkeypatch):
    monkeypatch.setitem(MODELS, "wrong", wrong)
    with pytest.raises(UsageError, match="model 'wrong' is (.|\n)*extends thinkers.Model"):
        thinkers.build_model("decoder", vocab_size=5)


def test_no_model_has_the_name_of_a_control(monkeypatch):
    from thinkers.comparison.matching import CONTROLS

    assert not set(CONTROLS) & set(MODELS)
    monkeypatch.setitem(MODELS, "untied", Gated)
    with pytest.raises(UsageError, match="'untied', which is that of a control(.|\n)*MODELS"):
        thinkers.compare("add", ["untied", "looped"])
