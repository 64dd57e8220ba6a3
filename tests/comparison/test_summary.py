"""Conclusions, intervals and pages of comparisons with made-up grades."""

import math
import re
import shlex
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from html_reader import Reader, stands_alone

import thinkers
from thinkers.cli import commands
from thinkers.cli import main as cli
from thinkers.comparison.page import (
    curve_figure,
    scores_section,
    steps_figure,
    terminal_table,
    write_page,
)
from thinkers.comparison.plan import Plan
from thinkers.comparison.results import Result, read
from thinkers.comparison.runner import compare
from thinkers.comparison.summary import Findings, conclusion, limits, verdict
from thinkers.evaluation.statistics import Interval

SMALL = {"task.max_digits": 1, "model.dim": 16, "model.num_heads": 2, "training.batch_size": 7}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison whose grades are replaced."""
    folder = tmp_path_factory.mktemp("compared") / "a"
    models = ["decoder", "looped"]
    compare("add", models, budget=6e7, seeds=1, num_examples=31, settings=SMALL, out=folder)
    return folder


def test_a_verdict_needs_an_interval_without_zero_and_with_variance():
    assert verdict(Interval(0.1, 0.05, 0.15)) == "better"
    assert verdict(Interval(-0.1, -0.15, -0.05)) == "worse"
    assert verdict(Interval(0.1, -0.01, 0.2)) == "not distinguishable"
    assert verdict(Interval(0.1, 0.1, 0.1)) == "not distinguishable"
    assert verdict(Interval(0.1, -math.inf, math.inf)) == "not distinguishable"


def graded(comparison, scores, seeds=3, number=400, higher_is_better=True, asked=None):
    """The comparison with made-up grades: {name: {steps: share of right answers}}."""
    rng, results = np.random.default_rng(29), {}
    for name, by_steps in scores.items():
        results[name] = []
        for seed in range(seeds):
            grades = {k: (rng.random(number) < p).astype(float) for k, p in by_steps.items()}
            usual = 4 if 4 in grades else min(grades)
            record = dict(comparison.results["decoder"][0].record, model=name, seed=seed)
            record |= dict(num_steps=usual, score=float(grades[usual].mean()))
            record |= dict(scores={str(k): float(x.mean()) for k, x in grades.items()})
            points = grades[usual][None]
            questions = np.arange(number) if asked is None else asked
            results[name].append(Result(record, grades, points, questions))
    plan = replace(comparison.plan, seeds=seeds)
    return replace(comparison, plan=plan, results=results)


def test_conclusions_and_their_limits(finished):
    made = graded(
        read(finished),
        {"decoder": {1: 0.5}, "looped": {1: 0.3, 2: 0.6, 4: 0.9, 8: 0.4}, "thinker": {4: 0.5}},
    )
    findings = Findings(made)
    assert conclusion(findings) == (
        "Looped is better than decoder; thinker is not distinguishable from decoder."
    )
    text = " ".join(limits(findings))
    assert "looped improves with thinking" in text
    assert re.search(r"looped gets worse with more thinking in 3 of 3 runs, .* 4 steps to 8", text)
    assert "with 2 pairs tested here, about 2 in 100" in text
    one = Findings(graded(read(finished), {"decoder": {1: 0.5}, "looped": {4: 0.9}}, seeds=1))
    assert "one seed" in conclusion(one)


def test_repeated_questions_are_counted_once(finished):
    scores = {"decoder": {1: 0.5}, "looped": {1: 0.5, 4: 0.6}, "thinker": {4: 0.5}}
    asked = np.repeat(np.arange(20), 20)
    often = Findings(graded(read(finished), scores, asked=asked))
    once = Findings(graded(read(finished), scores))
    assert often.score("looped").value == pytest.approx(once.score("looped").value)
    assert often.score("looped") != once.score("looped")
    assert often.curves["looped"][0][1] == often.score("looped")
    assert often.differences["looped"] != once.differences["looped"]
    assert " examples (20 different questions" in " ".join(limits(often))
    assert "different questions" not in " ".join(limits(once))


def test_a_lower_loss_is_better(finished, monkeypatch):
    monkeypatch.setattr(thinkers.TASKS["add"], "higher_is_better", False)
    made = graded(read(finished), {"decoder": {1: 0.5}, "looped": {1: 0.9, 4: 0.2, 8: 0.6}})
    findings = Findings(made)
    assert conclusion(findings) == "Looped is better than decoder."
    assert findings.thinking["looped"].value > 0
    assert "looped gets worse with more thinking" in " ".join(limits(findings))


def failed(comparison, *which):
    """The same, where these runs (name, seed) failed."""
    results = {
        name: [run for run in runs if (name, run.record["seed"]) not in which]
        for name, runs in comparison.results.items()
    }
    records = [
        dict(model=n, seed=s, status="failed", error="it broke", exit_code=1) for n, s in which
    ]
    return replace(comparison, results=results, failures=records)


def test_runs_that_failed_are_not_counted(finished):
    made = graded(read(finished), {"decoder": {1: 0.5}, "looped": {2: 0.9, 4: 0.9}}, seeds=2)
    one = Findings(failed(made, ("looped", 1)))
    assert "from one seed" in conclusion(one)
    text = " ".join(limits(one))
    assert "2 seeds" not in text and "One seed does not show whether looped" in text
    none = Findings(failed(made, ("looped", 0), ("looped", 1)))
    assert conclusion(none).startswith("Only decoder was evaluated")
    assert conclusion(none).endswith("All runs of looped failed.")
    shown = scores_section(one).text
    assert "with 2 seeds (1 run failed)" in shown


def test_a_page_is_written_when_all_runs_failed(finished):
    made = graded(read(finished), {"decoder": {1: 0.5}, "looped": {4: 0.9}}, seeds=1)
    everything = failed(made, ("decoder", 0), ("looped", 0))
    write_page(everything)
    shown = (finished / "report.html").read_text()
    assert "Nothing can be concluded" in shown and shown.count("it broke") == 2
    assert "Nothing can be concluded" in terminal_table(everything)


def test_one_seed_draws_no_bands_and_has_unknown_intervals(finished):
    findings = Findings(graded(read(finished), {"decoder": {1: 0.5}, "looped": {4: 0.9}}, seeds=1))
    rows = scores_section(findings).rows
    assert [row[2] for row in rows] == ["unknown", "unknown"] and "(unknown)" in rows[1][3]
    axes = steps_figure(findings, by_flops=False).axes[0]
    assert not axes.collections


@pytest.mark.parametrize("scores", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.4, 0.6)], ids=str)
def test_axes_of_a_share_are_0_to_1(finished, scores):
    low, high = scores
    grades = {"decoder": {1: low}, "looped": {1: low, 4: high}}
    findings = Findings(graded(read(finished), grades, seeds=3))
    for figure in (steps_figure(findings, by_flops=False), curve_figure(findings)):
        (axes,) = figure.axes
        assert axes.get_ylim() == (0, 1)


def test_the_interval_of_a_single_point_has_caps(finished):
    grades = {"decoder": {1: 0.5}, "looped": {1: 0.4, 4: 0.9}}
    axes = steps_figure(Findings(graded(read(finished), grades, seeds=3)), by_flops=False).axes[0]
    (caps,) = [x for x in axes.collections if len(x.get_offsets()) == 2]
    assert [place for place, _ in caps.get_offsets()] == [1, 1]


def test_the_page_has_its_date_links_to_the_runs_and_the_command_that_repeats_it(finished):
    write_page(read(finished))
    page = (finished / "report.html").read_text()
    assert stands_alone(page)
    assert re.search(r"made by thinkers \S+ on \d{4}-\d\d-\d\d", page)
    links = [a["href"] for tag, a in Reader(page).tags if tag == "a"]
    assert all((finished / link).exists() for link in links)
    for name in ("decoder", "looped"):
        assert f"./runs/{name}-0/" in links
    (code,) = re.findall(r"(?s)<code>(.*?)</code>", page)
    words = shlex.split(unescape(re.sub(r"<[^>]*>", "", code)))
    own, settings = cli.split(words[1:])
    options, settings = cli.parse(own, settings)
    made = read(finished).plan
    asked = commands.comparison_request(options, settings)
    assert Plan.of(**asked).asked() == made.asked()
    assert options.out == f"{finished}-again"
