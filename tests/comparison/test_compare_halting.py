"""A contender with a gate, whose tokens halt when it is graded."""

import json
import re

import pytest

import thinkers
from thinkers.comparison import matching, one_run, plan
from thinkers.comparison.plan import Plan
from thinkers.comparison.runner import compare
from thinkers.comparison.summary import Findings, by_steps, limits
from thinkers.errors import UsageError
from thinkers.evaluation.halting import measure_effort

SMALL = {
    "task.max_length": 4,
    "model.dim": 16,
    "model.num_heads": 2,
    "model.num_steps": 4,
    "model.max_steps": 8,
    "training.batch_size": 7,
}
FLAGS = [f"--{key}={value}" for key, value in SMALL.items()]
NAMES = ["looped", "looped+halt"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, plain_pages):
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(plan, "POINTS", 2)


def test_a_contender_with_a_gate_is_trained_with_it_and_graded_with_halting(tmp_path):
    sizes = dict(budget="3 updates", seeds=2, num_examples=40, settings=SMALL, out=tmp_path)
    found = compare("cups", NAMES, **sizes)
    assert not found.failures and list(found.results) == NAMES
    by_name = {name: runs[0].record for name, runs in found.results.items()}
    assert not {"halt", "mean_steps", "flops_share"} & set(by_name["looped"])
    record = by_name["looped+halt"]
    assert record["halt"] == 0.5 and record["num_steps"] == 4
    model, task = thinkers.open_run(tmp_path / "runs" / "looped+halt-0")
    assert model.halts_by == ("gate",)
    own = type(task)(task.config, one_run.EXAMPLES_SEED)
    effort = measure_effort(model, own, "test", 40, 4, 0.5)
    assert record["mean_steps"]["4"] == effort.mean_steps
    assert record["flops_share"]["4"] == effort.flops_share
    assert (
        record["score"]
        == float(effort.grades.mean())
        == float(own.grade(model, "test", 40, 4, 0.5).mean())
    )
    config = Plan.read(tmp_path).contender("looped+halt").config
    assert config.model.halting
    assert record["answer_flops"]["4"] == pytest.approx(
        matching.answer_flops(config) * effort.flops_share
    )
    findings = Findings(found)
    assert any("looped+halt" in x for x in limits(findings))
    page = (tmp_path / "report.html").read_text()
    mean = by_steps(found.results["looped+halt"], "mean_steps")["4"]
    share = by_steps(found.results["looped+halt"], "flops_share")["4"]
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page)
    assert "at most 4" in cells and f"{mean:.2f}" in cells and f"{100 * share:.0f} %" in cells
    assert "share of FLOPs" in cells and "--models=looped,looped+halt" in page
    again = compare(out=tmp_path, resume=True)
    assert json.loads((tmp_path / "runs/looped+halt-0/result.json").read_text())["halt"] == 0.5
    assert again.mean_scores == found.mean_scores


def test_contenders_with_a_gate_have_equal_sizes():
    found = matching.contenders("cups", ["looped+halt", "looped", "decoder"], ("untied",), FLAGS)
    sizes = [matching.parameters(one.config.model) for one in found[:3]]
    assert max(sizes) <= 1.03 * min(sizes)
    assert [one.config.model.halting for one in found[:2]] == [True, False]
    assert [one.halt for one in found] == [0.5, None, None, None]
    assert "looped with a gate" in found[0].what and not found[1].what


def test_a_recipe_that_waits_is_graded_from_its_due_steps_on():
    (one,) = matching.contenders("links", ["looped+halt"], (), [])
    assert one.config.model.step_loss == "due" and one.config.model.wait_token is None


def test_no_oracle_judges_a_contender_that_halts():
    task = thinkers.build_task("automaton", width=4, max_updates=4)
    (one,) = matching.contenders("automaton", ["looped+halt"], (), [])
    model = matching.build(one.config.model)
    assert one_run.usual_steps(model, task) == "due"
    assert one_run.usual_steps(model, task, one.halt) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["decoder+halt"], r"decoder\+halt, but decoder has no setting halting"),
        (["loped+halt"], "unknown model 'loped'"),
        (["looped+halt", "looped+halt"], r"looped\+halt twice"),
        (["looped+stop"], r"unknown model 'looped\+stop'"),
        (["+halt"], "unknown model ''"),
    ],
)
def test_names_that_cannot_halt_are_refused(names, message):
    none = dict(match=None, budget="3 updates", seeds=1, lrs=[], controls=[], num_examples=9)
    with pytest.raises(UsageError, match=message):
        Plan.of(task="cups", models=names, settings=SMALL, **none)
