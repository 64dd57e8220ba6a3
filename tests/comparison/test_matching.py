"""Matched compute: sizes, FLOPs, updates, seconds, settings."""

import re
from dataclasses import replace

import pytest
import torch

import thinkers
from thinkers.cli.main import main
from thinkers.comparison import budgets, matching
from thinkers.comparison.arguments import _budget
from thinkers.comparison.plan import Plan
from thinkers.config.experiment import build
from thinkers.errors import UsageError
from thinkers.models import MODELS

SMALL = {"task.max_digits": 1, "model.dim": 16, "model.num_heads": 2, "training.batch_size": 7}
FLAGS = [f"--{key}={value}" for key, value in SMALL.items()]
BUDGET = 6e7


@pytest.mark.parametrize("first", ["decoder", "thinker", "deepsight"])
def test_all_models_have_the_size_of_the_first(first):
    names = [first, *(name for name in MODELS if name != first)]
    found = matching.contenders("add", names, (), [])
    sizes = [sum(p.numel() for p in MODELS[x.name](x.config.model).parameters()) for x in found]
    _, own = build(thinkers.RECIPES[f"add/{first}"]())
    assert found[0].config.model == own.config
    assert max(sizes) <= 1.03 * min(sizes)


def test_controls_have_the_flops_of_the_model_that_thinks():
    names = ["decoder", "thinker", "looped"]
    found = {x.name: x for x in matching.contenders("add", names, matching.CONTROLS, [])}
    looped = found["looped"].config
    work = matching.answer_flops(looped)
    for name in ("untied", "wider"):
        assert matching.answer_flops(found[name].config) == pytest.approx(work, rel=0.03)
    # the number of fillers is an integer: no other is nearer
    model, task = found["fillers"].config.model, looped.task
    off = [
        abs(matching.work_of(replace(model, num_steps=n, max_steps=None), task) - work)
        for n in (model.num_steps - 1, model.num_steps, model.num_steps + 1)
    ]
    assert off[1] == min(off)
    sizes = {name: matching.parameters(x.config.model) for name, x in found.items()}
    assert sizes["fillers"] == pytest.approx(sizes["decoder"], rel=0.03)
    untied = found["untied"].config.model
    assert untied.num_layers == 1 + 4 * 1 + 1 and untied.dim == looped.model.dim
    assert found["wider"].config.model.dim > found["decoder"].config.model.dim
    assert found["wider"].config.model.num_layers == found["decoder"].config.model.num_layers


@pytest.mark.parametrize("name", ["decoder", "looped", "thinker"])
def test_the_last_update_of_a_plan_reaches_the_budget(name):
    (one,) = matching.contenders("add", [name], (), FLAGS)
    config = Plan.of(**asked(models=[name], budget=3e8)).config(one, 5)
    model, task = MODELS[name](config.model), thinkers.build_task("add", 5, max_digits=1)
    used = []
    for update in range(config.training.num_updates):
        batch = task.batch(update, config.training.batch_size)
        steps = comparing_steps(update, config.training, batch)
        used.append(model.batch_flops(batch, steps, training=True))
    assert sum(used) >= 3e8 > sum(used[:-1])


def comparing_steps(update, settings, batch):
    from thinkers.training.step import thinking_steps

    return thinking_steps(update, settings, batch)


def asked(**own):
    nothing = dict(match=None, budget=None, seeds=None, lrs=[], controls=[], num_examples=None)
    return dict(task="add", models=["decoder"], settings=SMALL) | nothing | own


def test_equal_updates_and_equal_seconds():
    plan = Plan.of(**asked(match="parameters", budget="12", models=["decoder", "looped"]))
    lengths = [plan.config(one, 0).training.num_updates for one in plan.contenders]
    assert lengths == [12, 12] and plan.config(plan.contenders[0], 0).training.max_flops is None
    plan = Plan.of(**asked(budget="0.5 min", models=["decoder", "looped"]))
    assert (plan.match, plan.budget) == ("seconds", 30)
    for one in plan.contenders:
        updates = plan.config(one, 0).training.num_updates
        assert updates * plan.seconds_per_update[one.name] == pytest.approx(30, rel=0.02)


@pytest.mark.parametrize(
    "budget, match, expected",
    [
        (None, None, ("flops", 2e12)),
        (None, "seconds", ("seconds", 60)),
        ("2e13", None, ("flops", 2e13)),
        (3e9, "flops", ("flops", 3e9)),
        ("5min", None, ("seconds", 300)),
        ("90s", "seconds", ("seconds", 90)),
        ("1.5h", None, ("seconds", 5400)),
        ("7", "seconds", ("seconds", 7)),
        (500, "parameters", ("parameters", 500)),
        ("3 updates", None, ("parameters", 3)),
        ("1 update", "parameters", ("parameters", 1)),
        ("2e12 FLOPs", None, ("flops", 2e12)),
        ("2E12flops", "flops", ("flops", 2e12)),
        ("90 sec", None, ("seconds", 90)),
    ],
)
def test_a_budget_is_read_in_its_unit(budget, match, expected):
    assert _budget(match, budget) == expected


@pytest.mark.parametrize(
    "budget, match, message",
    [
        ("3 weeks", None, "'2e13 FLOPs', '3000 updates', 90s, 5min or 2h"),
        ("updates", None, "'3000 updates'"),
        ("-3 updates", None, "a number above 0"),
        ("0 updates", None, "a number above 0"),
        ("1.5 updates", None, "an integer number of updates"),
        ("3 updates", "flops", "a budget in FLOPs"),
        ("3 updates", "seconds", "a budget in s, min or h"),
        ("2e12 flops", "parameters", "a budget in updates"),
        ("5min", "flops", "a budget in FLOPs"),
        ("inf", None, "a number above 0"),
        ("", None, "a number above 0"),
    ],
)
def test_a_budget_in_another_unit_is_refused_with_those_that_work(budget, match, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        _budget(match, budget)


def test_settings_come_from_the_nearest_recipe():
    sort = {x.name: x.config for x in matching.contenders("sort", ["decoder", "thinker"], (), [])}
    assert sort["thinker"].recipe == "sort/thinker" and sort["decoder"].recipe == ""
    assert sort["decoder"].task == sort["thinker"].task
    assert sort["thinker"].task == thinkers.RECIPES["sort/thinker"]().task
    assert sort["decoder"].training == thinkers.RECIPES["add/decoder"]().training
    (shift,) = matching.contenders("shift", ["looped"], (), ["--task.max_length=5"])
    assert shift.config.task.max_length == 5
    assert shift.config.model.max_length == thinkers.tasks.from_config(shift.config.task).max_length


def test_a_size_that_no_width_reaches_is_refused():
    model = replace(build(thinkers.RECIPES["add/decoder"]())[1].config, dim=16)
    with pytest.raises(UsageError, match="no width at which decoder has 90"):
        matching.fit(model, matching.parameters, 90)


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["compare", "add", "--models", "decoder,thinker", "--budget", "1e9", "--dry_run"]
    assert main([*line, *FLAGS]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["model", "parameters", "updates", "lr", "minutes"]
    assert [x.split()[0] for x in out[1:3]] == ["decoder", "thinker"]
    assert out[3].startswith("6 runs, about ") and list(tmp_path.iterdir()) == []


def test_seconds_are_measured_with_one_thread(monkeypatch):
    (one,) = matching.contenders("add", ["decoder"], (), FLAGS)
    step, seen = budgets.step, []

    def spy(*arguments):
        seen.append(torch.get_num_threads())
        return step(*arguments)

    monkeypatch.setattr(budgets, "step", spy)
    torch.set_num_threads(2)
    try:
        assert budgets.seconds_per_update(one.config)[0] > 0
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
