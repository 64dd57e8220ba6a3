"""Contenders that take one step, and contenders that all begin with the weights of one model."""

import dataclasses
import json

import pytest
import torch

import thinkers
from thinkers.cli.main import main
from thinkers.comparison import plan
from thinkers.comparison.matching import answer_flops, contenders
from thinkers.comparison.plan import Plan
from thinkers.comparison.runner import compare
from thinkers.errors import UsageError

pytestmark = pytest.mark.usefixtures("plain_pages")
SMALL = ["--task.max_digits=1", "--model.dim=16", "--model.num_heads=2"]
QUICK = {"task.max_digits": 1, "training.batch_size": 7}
NAMES = ["looped+one_step", "looped"]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(plan, "POINTS", 2)


@pytest.fixture
def begun(tmp_path):
    """The folder of a model of another size than that of the recipe."""
    task = thinkers.build_task("add", max_digits=1)
    sizes = {"vocab_size": task.vocab_size, "max_length": task.max_length}
    torch.manual_seed(0)
    model = thinkers.build_model("looped", dim=24, num_layers=1, num_heads=2, num_steps=3, **sizes)
    model.save(tmp_path / "begun")
    return tmp_path / "begun"


def test_a_contender_with_one_step_is_the_same_model_at_the_cost_of_one_step():
    one, usual = contenders("add", NAMES, (), [*SMALL, "--model.num_steps=3"])
    wanted = dataclasses.replace(usual.config.model, num_steps=1, max_steps=1)
    assert one.config.model == wanted and usual.config.model.num_steps == 3
    assert one.what == "looped with one step, in training and when it is graded"
    assert one.halt is None and usual.what == ""
    assert answer_flops(one.config) < answer_flops(usual.config)


def test_numbers_of_steps_are_not_for_a_contender_with_one_step():
    flags = ["--training.depth=random", "--training.random_steps=[2,4]"]
    one, usual = contenders("add", NAMES, (), [*SMALL, *flags])
    assert (one.config.training.depth, usual.config.training.depth) == ("fixed", "random")
    with pytest.raises(UsageError, match="max_steps"):
        contenders("add", NAMES[:1], (), ["--model.num_steps=3"])


def test_a_model_that_takes_one_step_has_no_such_contender():
    with pytest.raises(UsageError, match=r"decoder\+one_step, but decoder takes one step"):
        contenders("add", ["decoder+one_step"], (), [])


def test_all_contenders_have_the_settings_of_the_weights_that_they_begin_with(begun):
    own = thinkers.load(begun).config
    one, usual = contenders("add", NAMES, (), [*SMALL[:1], f"--training.init_from={begun}"])
    assert usual.config.model == own and usual.config.training.init_from == str(begun)
    assert one.config.model == dataclasses.replace(own, num_steps=1, max_steps=1)
    assert usual.what == f"begins with the weights of {begun}"
    assert one.what.endswith(f"; {usual.what}")


@pytest.mark.parametrize(
    ("names", "controls", "flags", "message"),
    [
        (["decoder", "looped"], (), [], r"decoder with --training.init_from, the weights of loo"),
        (["looped"], ("fillers",), [], r"--controls fillers with --training.init_from"),
        (["looped+halt"], (), [], r"init_from must hold the weights of this model: gate"),
        (["looped"], (), ["--model.dim=32"], r"init_from must hold the weights of this model"),
        (["looped"], (), ["--task.max_digits=3"], r"model.max_length"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_runs(
    begun, names, controls, flags, message
):
    given = [*SMALL[:1], f"--training.init_from={begun}", *flags]
    with pytest.raises(UsageError, match=message):
        contenders("add", names, controls, given)


def test_runs_begin_with_the_weights_and_are_resumed_with_them(begun, tmp_path, capsys):
    settings = QUICK | {"training.init_from": str(begun), "training.min_lr_ratio": 1.0}
    asked = dict(budget="3 updates", seeds=1, num_examples=9, out=tmp_path / "out")
    found = compare("add", NAMES, settings=settings, lrs=(1e-12,), **asked)
    assert not found.failures
    initial = thinkers.load(begun).state_dict()
    for name in NAMES:
        home = tmp_path / "out" / "runs" / f"{name}-0"
        for key, x in thinkers.load(home).state_dict().items():
            torch.testing.assert_close(x, initial[key], rtol=0, atol=1e-9)
        record = json.loads((home / "config.json").read_text())
        assert record["config"]["training"]["init_from"] == str(begun)
    assert str(begun) in (tmp_path / "out" / "report.html").read_text()
    line = ["compare", "--out", str(tmp_path / "out"), "--resume"]
    assert main(line) == 2 and "name these weights too" in capsys.readouterr().err
    other = ["--training.init_from", str(tmp_path)]
    assert main([*line, *other]) == 2 and "name these weights too" in capsys.readouterr().err
    assert main([*line, "--training.init_from", str(begun)]) == 0


def test_a_comparison_without_given_weights_takes_none_as_it_is_resumed(begun):
    asked = dict(match=None, budget="3 updates", lrs=[], controls=[], num_examples=9)
    made = Plan.of(task="add", models=["looped"], settings=QUICK, seeds=1, **asked)
    nothing = dict.fromkeys(["task", "models", "settings", "seeds", *asked])
    with pytest.raises(UsageError, match="--settings .* with --resume"):
        made.extended(**nothing | {"settings": {"training.init_from": str(begun)}})
