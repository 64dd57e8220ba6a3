"""compare: matched compute, the same examples for all, resuming, failures, the page."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from html_reader import Reader

import thinkers
from thinkers import tasks
from thinkers.cli.main import main
from thinkers.comparison import one_run, plan
from thinkers.comparison.results import read
from thinkers.comparison.runner import compare
from thinkers.comparison.summary import Findings, conclusion
from thinkers.errors import DamagedError, Interrupted, UsageError
from thinkers.json_files import with_digest
from thinkers.models import MODELS
from thinkers.models.looped import Looped
from thinkers.runs import folder as run_folder
from thinkers.runs import trackers
from thinkers.tasks.base import example_groups

# The figures of `finished`, which is made before, are drawn.
pytestmark = pytest.mark.usefixtures("plain_pages")
SMALL = {"task.max_digits": 1, "model.dim": 16, "model.num_heads": 2, "training.batch_size": 7}
FLAGS = [f"--{key}={value}" for key, value in SMALL.items()]
BUDGET = 6e7


def small(out, models=("decoder", "looped"), **own):
    asked = dict(budget=BUDGET, seeds=2, num_examples=31, settings=SMALL, out=out)
    return compare("add", list(models), **(asked | own))


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Nothing here loses power: waiting for the disk is left out, and most checkpoints are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        patch.setattr(plan, "POINTS", 3)
        yield


def records(folder):
    """The result.json of each run, of a seed after the other."""
    files = (folder / "runs").glob("*-[0-9]/result.json")
    found = [json.loads(file.read_bytes()) for file in files]
    return sorted(found, key=lambda x: (x["seed"], x["model"]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison by the command line, of two models and two seeds."""
    folder = tmp_path_factory.mktemp("compared") / "a"
    line = ["compare", "add", "--models", "decoder,looped", "--budget", f"{BUDGET:g}", *FLAGS]
    assert main([*line, "--seeds", "2", "--num_examples", "31", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(finished, tmp_path / "b")


@pytest.fixture
def trained(monkeypatch):
    """The runs that are trained from here on, by name."""
    names, train, resume = [], one_run.train, one_run.resume

    def trained(config, home, **own):
        names.append(home.name)
        return train(config, home, **own)

    def resumed(home, **own):
        names.append(f"{home.name} resumed")
        return resume(home, **own)

    monkeypatch.setattr(one_run, "train", trained)
    monkeypatch.setattr(one_run, "resume", resumed)
    return names


# results


def test_every_run_has_a_result_with_its_costs(finished):
    found = records(finished)
    assert [(x["model"], x["seed"]) for x in found] == [
        (name, seed) for seed in (0, 1) for name in ("decoder", "looped")
    ]
    for line in found:
        assert line["status"] == "done" and line["seconds"] > 0
        assert line["memory"] is None or line["memory"] > 2**26
        model = thinkers.load(finished / line["run"])
        assert line["parameters"] == sum(p.numel() for p in model.parameters())
        assert list(line["scores"]) == [str(k) for k in model.step_counts]
        assert line["score"] == line["scores"][str(line["num_steps"])]
        flops = [point["flops"] for point in line["curve"]]
        assert flops == sorted(flops) and flops[-1] == line["flops"] >= BUDGET
        assert line["curve"][-1]["update"] == line["updates"]
        assert len(line["curve"]) in (3, 4)


def test_all_runs_are_graded_on_the_same_examples_at_every_depth(finished):
    comparison = read(finished)
    task = thinkers.tasks.from_config(comparison.plan.contenders[0].config.task, 0)
    for results in comparison.results.values():
        for result in results:
            model = thinkers.load(finished / result.record["run"])
            for k in model.step_counts:
                wanted = task.grade(model, "test", 31, k)
                assert torch.equal(torch.from_numpy(result.grades[k]), wanted)
            usual = result.record["num_steps"]
            assert np.array_equal(result.points[-1], result.grades[usual])


def test_the_schedule_ends_with_the_budget(finished):
    for line in records(finished):
        training = run_folder.read_record(finished / line["run"])["config"]["training"]
        assert training["num_updates"] == line["updates"]
        assert training["seed"] == line["seed"] and training["max_flops"] == BUDGET


def test_the_page_stands_alone_and_agrees_with_the_table(finished, capsys):
    page = (finished / "report.html").read_text()
    found = Reader(page)
    assert main(["compare", "--out", str(finished), "--resume"]) == 0
    out = capsys.readouterr().out
    sentence = conclusion(Findings(read(finished)))
    assert sentence in out and sentence in found.text
    assert f"page {finished}/report.html" in out
    assert not [a for _, a in found.tags if any(key[:2] == "on" for key in a)]
    for words in ("training FLOPs", "FLOPs per answer", "thinking steps", "process seconds"):
        assert words in found.text
    assert [tag for tag, _ in found.tags].count("figure") == 3


# resuming


def test_finished_runs_are_not_trained_again(copied, trained):
    small(copied, resume=True)
    assert trained == []
    (old,) = [x for x in records(copied) if (x["model"], x["seed"]) == ("looped", 1)]
    shutil.rmtree(copied / "runs" / "looped-1")
    for file in (copied / "runs").glob("looped-1.*"):
        file.unlink()
    comparison = compare(out=copied, resume=True)
    assert trained == ["looped-1"]
    own = ("seconds", "memory", "sha256")
    again = comparison.results["looped"][1].record
    assert all(again[key] == value for key, value in old.items() if key not in own)


def test_a_run_that_was_killed_is_resumed_and_its_seconds_are_not_known(copied, trained):
    home = copied / "runs" / "looped-1"
    (home / "result.json").unlink()
    (home.parent / "looped-1.usage.json").write_bytes(
        with_digest({"seconds": None, "memory": None})
    )
    compare(out=copied, resume=True)
    assert trained == ["looped-1 resumed"]
    found = read(copied).results["looped"][1].record
    assert found["seconds"] is None and found["memory"] is None
    assert "not measured" in (copied / "report.html").read_text()


def test_resuming_may_add_seeds_and_change_nothing_else(copied, trained):
    comparison = compare("add", out=copied, resume=True, seeds=3)
    assert trained == ["decoder-2", "looped-2"] and len(comparison.results["decoder"]) == 3
    for own, found in (
        (dict(seeds=2), "--seeds 2 with --resume"),
        (dict(budget=3e8), "--budget 300000000.0 with --resume"),
        (dict(models=["decoder"]), "--models decoder with --resume"),
        (dict(settings={"model.dim": 8}), "--settings"),
        (dict(task="sort"), "--task sort with --resume"),
    ):
        with pytest.raises(UsageError, match=re.escape(found)):
            compare(out=copied, resume=True, **own)


def test_an_interrupted_comparison_is_resumed(tmp_path, monkeypatch, capsys):
    train, resume, came = one_run.train, one_run.resume, []

    def stopped(config, out, **own):
        came.append(out)
        if len(came) == 2:
            train(config, out, until=3)
            raise Interrupted("stopped", 15)
        return train(config, out, **own)

    def resumed(folder, **own):
        came.append(folder)
        return resume(folder, **own)

    monkeypatch.setattr(one_run, "train", stopped)
    monkeypatch.setattr(one_run, "resume", resumed)
    line = ["compare", "add", "--models", "decoder,looped", "--budget", "4e7", *FLAGS]
    line += ["--seeds", "1", "--num_examples", "11", "--out", str(tmp_path / "a")]
    assert main(line) == 143
    assert f"thinkers compare --out {tmp_path / 'a'} --resume" in capsys.readouterr().err
    assert [x["model"] for x in records(tmp_path / "a")] == ["decoder"]
    assert main(line) == 2  # without --resume
    assert main([*line, "--resume"]) == 0
    assert [path.name for path in came] == ["decoder-0", "looped-0", "looped-0"]
    _, line = records(tmp_path / "a")
    usage = json.loads((tmp_path / "a" / "runs" / "looped-0.usage.json").read_bytes())
    assert line["seconds"] == usage["seconds"] > 0
    # the checkpoint of the interruption, after three updates, is no point of the curve
    every = run_folder.read_record(tmp_path / "a" / line["run"])["config"]["training"][
        "checkpoint_every"
    ]
    *points, last = [point["update"] for point in line["curve"]]
    assert 3 % every and points == list(range(every, last, every)) and last == line["updates"]


class Broken(Looped):
    """Its loss is not a number after a few updates."""

    name = "broken"
    calls = 0

    class Config(Looped.Config):
        pass

    def loss(self, batch, num_steps=None, counts=None):
        Broken.calls += 1
        found = super().loss(batch, num_steps=num_steps, counts=counts)
        return replace(found, total=found.total * (math.nan if Broken.calls > 15 else 1))


def test_a_run_that_fails_is_listed_and_stops_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "broken", Broken)
    line = ["compare", "add", "--models", "broken,decoder", "--budget", "1e8", "--seeds", "2"]
    line += ["--num_examples", "11", "--out", str(tmp_path / "a"), *FLAGS]
    assert main(line) == 5
    out = capsys.readouterr().out
    assert out.count("broken, seed 0: failed, NonFiniteError: update") == 2
    comparison = read(tmp_path / "a")
    assert [len(x) for x in comparison.results.values()] == [0, 2]
    assert "NonFiniteError" in (tmp_path / "a" / "report.html").read_text()
    assert "Nothing can be concluded" in out
    Broken.calls = -(10**9)  # mended
    assert main(["compare", "--out", str(tmp_path / "a"), "--resume"]) == 0
    assert [len(x) for x in read(tmp_path / "a").results.values()] == [2, 2]


def test_the_best_learning_rate_on_the_validation_split_is_taken(tmp_path, trained, monkeypatch):
    scores = {1e-3: 0.3, 1e-2: 0.7, 2e-3: 0.5}
    asked_of = []

    def score(self, model, split, *_):
        asked_of.append(split)
        return {"exact": scores[(1e-3, 1e-2, 2e-3)[len(asked_of) - 1]]}

    train = one_run.train

    def trained_only(*args, **own):
        with monkeypatch.context() as patch:
            patch.setattr("thinkers.training.loop.evaluate_split", lambda *_: {"exact": 0.0})
            return train(*args, **own)

    monkeypatch.setattr(one_run, "train", trained_only)
    monkeypatch.setattr(thinkers.TASKS["add"], "score", score)
    comparison = small(tmp_path / "a", ["decoder"], lrs=[1e-3, 1e-2, 2e-3], seeds=1)
    assert asked_of == ["valid"] * 3
    assert trained == [f"decoder-search-{lr}" for lr in ("0.001", "0.01", "0.002")] + ["decoder-0"]
    assert [x.record["lr"] for x in comparison.results["decoder"]] == [1e-2]
    assert "3 more runs" in (tmp_path / "a" / "report.html").read_text()


# errors


@pytest.mark.parametrize(
    "line, words",
    [
        (["compare", "--models", "decoder"], "no task"),
        (["compare", "ad", "--models", "decoder"], "unknown task 'ad'\nexpected: add"),
        (["compare", "add"], "no models"),
        (
            ["compare", "add", "--models", "decoder,lopped"],
            "unknown model 'lopped'\nexpected: looped",
        ),
        (["compare", "add", "--models", "decoder,decoder"], "decoder twice"),
        (["compare", "add", "--models", "decoder", "--controls", "filler"], "expected: fillers"),
        (["compare", "add", "--models", "decoder", "--controls", "fillers"], "a model that thinks"),
        (["compare", "add", "--models", "thinker", "--controls", "untied"], "add looped"),
        (["compare", "add", "--models", "decoder", "--match", "flop"], "expected: flops"),
        (["compare", "add", "--models", "decoder", "--budget", "lots"], "--budget lots"),
        (["compare", "add", "--models", "decoder", "--budget", "5 parsecs"], "--budget 5 parsecs"),
        (["compare", "add", "--models", "decoder", "--budget", "0"], "--budget 0"),
        (["compare", "add", "--models", "decoder", "--budget", "10"], "at least one update"),
        (
            ["compare", "add", "--models", "decoder", "--match", "flops", "--budget", "5min"],
            "expected: a budget in FLOPs",
        ),
        (["compare", "add", "--models", "decoder", "--lrs", "1e-3,x"], "--lrs 'x'"),
        (["compare", "add", "--models", "decoder", "--lrs", "-1"], "--lrs -1"),
        (["compare", "add", "--models", "decoder", "--seeds", "0"], "--seeds 0"),
        (["compare", "add", "--models", "decoder", "--training.lr=1"], "--training.lr"),
        (["compare", "add", "--models", "decoder", "--model.hidden=9"], "--model.hidden"),
        (["compare", "add", "--models", "decoder", "--model.dmi=9"], "--model.dim"),
        (["compare", "add", "--models", "decoder", "--task.max_digits=x"], "an integer"),
        (["compare", "add", "--models", "decoder", "--resume"], "runs/compare-add"),
        (["compare", "--models", "decoder", "--resume"], "no task"),
    ],
)
def test_usage_errors_have_three_lines_and_leave_nothing(
    line, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(line) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) <= 3
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_refused(finished, tmp_path):
    with pytest.raises(UsageError, match="holds a run; continue it with --resume"):
        small(finished)
    with pytest.raises(
        UsageError, match="the folder of a comparison; its config.json is of another kind"
    ):
        compare(out=finished / "runs" / "decoder-0", resume=True)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="must be a new folder"):
        small(tmp_path / "x")


def test_repeated_questions_are_one_group(finished):
    result = read(finished).results["decoder"][1]
    task = tasks.build_task("add")
    grades = result.grades[1]
    assert len(set(result.questions.tolist())) < len(grades) == len(result.questions)
    shorter = example_groups(task, "test", len(grades), grades[:9])
    assert (shorter == np.arange(9)).all()  # where a task does not number them


def test_a_damaged_file_is_named(copied, finished):
    grades = copied / "runs" / "decoder-1" / "grades.npz"
    grades.write_bytes(grades.read_bytes()[:100])
    with pytest.raises(DamagedError, match="grades.npz"):
        read(copied)
    grades.write_bytes((finished / "runs" / "decoder-1" / "grades.npz").read_bytes())
    read(copied)
    whole = (finished / "runs" / "decoder-1" / "result.json").read_text()
    for text in ("{ not json", "[]", "{}", "[" * 9999, whole.replace("1", "2", 1)):
        (copied / "runs" / "decoder-1" / "result.json").write_text(text)
        with pytest.raises(DamagedError, match="result.json"):
            read(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(DamagedError, match="config.json"):
        read(copied)


def test_each_run_and_the_comparison_are_tracked(tmp_path, monkeypatch):
    calls = []

    class Recording(trackers.Tracker):
        module = "json"

        def __init__(self, folder, record):
            self.name = folder.name
            calls.append((self.name, "open", record["config"].get("task")))

        def send(self, lines):
            calls.append((self.name, "send", lines))

        def finish(self, status):
            pages = {file.name for file in (tmp_path / "a").glob("*.html")}
            calls.append((self.name, status, pages))

    monkeypatch.setitem(trackers.TRACKERS, "recording", Recording)
    found = small(tmp_path / "a", seeds=1, tracking="recording")
    opened = [name for name, what, _ in calls if what == "open"]
    assert opened == ["a", "decoder-0", "looped-0"]
    assert [status for _, status, _ in calls if status == "FINISHED"] == ["FINISHED"] * 3
    (name, _, (line,)), (_, _, pages) = calls[-2:]
    scores = {model: results[0].record["score"] for model, results in found.results.items()}
    assert name == "a" and line["test"] == scores and pages == {"report.html"}


def test_unknown_tracking_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="one of mlflow, tensorboard"):
        small(tmp_path / "a", tracking="paper")
    assert not (tmp_path / "a").exists()
