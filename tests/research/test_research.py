"""A search by experiments: what is kept, what is repeated, what sees the test split."""

import json
import signal
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

from thinkers.cli.main import main
from thinkers.comparison.subprocesses import run_all
from thinkers.errors import (
    DamagedError,
    FormatError,
    Interrupted,
    LockedError,
    ResourceError,
    UsageError,
)
from thinkers.evaluation import statistics
from thinkers.json_files import with_digest
from thinkers.research import experiment, loop, report
from thinkers.research.ledger import LEDGER, LEFTOVERS, Ledger
from thinkers.runs import folder as run_folder

ADD = "add/looped"
META = {"recipe": ADD, "minutes": 1.0, "task_flags": []} | {
    "metric": "exact",
    "higher_is_better": True,
}
TINY = ["--task.max_digits=1", "--model.dim=8", "--model.num_heads=1", "--model.num_layers=1"]


@pytest.fixture
def scored(monkeypatch):
    """Experiments whose scores are given; `jobs` lists what would have been trained."""
    jobs, scores = [], []

    def run_all(commands, workers, on_end):
        for words, _ in commands:
            job = experiment.Job(**json.loads(words[-1]))
            jobs.append(job)
            job.result.write_bytes(with_digest(scores.pop(0)))

    monkeypatch.setattr(loop, "run_all", run_all)

    def give(*found):
        scores.extend({"metric": x} if isinstance(x, float) else x for x in found)
        return jobs

    return give


def make(out, *flags, recipe=ADD, minutes=1.0, **more):
    return loop.experiment(recipe, out, minutes, flags=flags, **more)


def statuses(out):
    with Ledger(out) as ledger:
        return [x.status for x in ledger.experiments()]


def test_a_better_change_is_kept_and_the_next_one_builds_on_it(scored, tmp_path):
    jobs = scored(0.5, 0.6, 0.4, 0.6, 0.7)
    first, second = make(tmp_path, "--model.dim=32")
    assert (first.status, first.base, first.metric) == ("keep", None, 0.5)
    assert (second.status, second.base) == ("keep", 1)
    make(tmp_path, "--training.lr=0.01", description="faster")
    make(tmp_path, "--training.lr=0.02")  # equal is not better
    make(tmp_path, "--model.num_steps=3")
    assert statuses(tmp_path) == ["keep", "keep", "discard", "discard", "keep"]
    assert [list(job.flags) for job in jobs][1:3] == [
        ["--model.dim=32"],
        ["--model.dim=32", "--training.lr=0.01"],
    ]
    assert list(jobs[4].flags) == ["--model.dim=32", "--model.num_steps=3"]
    with Ledger(tmp_path) as ledger:
        assert [x.number for x in ledger.chain(ledger.best())] == [1, 2, 5]
        assert ledger.experiments()[2].description == "faster"


def test_lower_is_better_where_the_metric_is_a_loss(scored, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 200)
    other = tmp_path / "other.txt"
    other.write_text("to be or not to be " * 300)
    jobs = scored(2.0, 2.5, 1.5)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "search"
    texts = "--task.path=text.txt", "--task.test_path=other.txt"
    make(out, *texts, "--model.dim=32", recipe="shakespeare/looped")
    monkeypatch.chdir("/")
    assert jobs[0].task_flags == [f"--task.path={text}", f"--task.test_path={other}"]
    make(out, "--model.dim=16", recipe="shakespeare/looped")
    assert statuses(out) == ["keep", "discard", "keep"]
    with pytest.raises(UsageError, match="task_flags"):
        make(out, f"--task.path={other}", jobs[0].task_flags[1], recipe="shakespeare/looped")


@pytest.mark.parametrize("others", [(), ("test",), ("valid", "test")])
def test_a_test_split_that_the_search_sees_is_refused(tmp_path, others):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 200)
    flags = [f"--task.path={text}", *(f"--task.{x}_path={text}" for x in others)]
    if others == ("test",):  # the last tenth of the other text
        text = tmp_path / "tail.txt"
        text.write_bytes((tmp_path / "text.txt").read_bytes()[-380:])
        flags[1] = f"--task.test_path={text}"
    with pytest.raises(UsageError, match="test split is its validation split"):
        make(tmp_path / "search", *flags, recipe="shakespeare/looped")
    assert not (tmp_path / "search").exists()


def test_a_change_is_made_once_unless_it_crashed(scored, tmp_path):
    scored(0.5, 0.4, {"error": "ValueError: no"}, {"error": "ValueError: no"}, 0.6)
    make(tmp_path, "--model.dim=32")
    with pytest.raises(UsageError, match="experiment 2, again"):
        make(tmp_path, "--model.dim=32")
    make(tmp_path, "--model.dim=16")
    make(tmp_path, "--model.dim=16")
    make(tmp_path, "--model.dim=32", seed=1)
    assert statuses(tmp_path) == ["keep", "discard", "crash", "crash", "keep"]


def test_an_interrupted_experiment_is_continued(scored, tmp_path, monkeypatch):
    scored(0.5)
    with pytest.raises(IndexError):  # the second has no score: as if the process had died
        make(tmp_path, "--model.dim=32")
    assert statuses(tmp_path) == ["keep", "running"]
    jobs = scored(0.9)
    (found,) = make(tmp_path, "--model.dim=32")
    assert (found.number, found.status) == (2, "keep")
    assert jobs[-1].home == jobs[-2].home


def test_a_file_is_copied_and_stays_in_the_chain(scored, tmp_path):
    jobs = scored(0.5, 0.6, 0.7)
    file = tmp_path / "wider.py"
    file.write_text("A = 1\n")
    out = tmp_path / "search"
    make(out, files=[file])
    file.write_text("A = 2\n")
    make(out, files=[file])
    texts = [Path(name).read_text() for name in jobs[-1].files]
    assert texts == ["A = 1\n", "A = 2\n"]


def test_what_differs_from_the_folder_is_refused(scored, tmp_path):
    scored(0.5, 0.6)
    make(tmp_path, "--model.dim=32")
    for other in (dict(recipe="add/decoder"), dict(minutes=2.0)):
        with pytest.raises(UsageError, match="as in all experiments"):
            make(tmp_path, "--model.dim=16", **other)
    with pytest.raises(UsageError, match="no change"):
        make(tmp_path)
    for wrong in ("--model.dmi=16", "--model.dim=none"):
        with pytest.raises(UsageError):
            make(tmp_path, wrong)
    assert statuses(tmp_path) == ["keep", "keep"]  # no row for a mistyped setting
    with run_folder.locked(tmp_path), pytest.raises(LockedError):
        make(tmp_path, "--model.dim=16")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="thesis"):
        make(tmp_path / "other", "--model.dim=16")


def test_the_test_split_is_used_once(scored, tmp_path):
    questions = None
    runs = [
        {"metric": 0.0, "grades": grades, "questions": questions}
        for grades in ([0.0, 1, 0, 1], [0, 1, 0, 0], [1.0, 1, 0, 1], [1, 1, 1, 1])
    ]
    scored(0.5)
    make(tmp_path)
    with pytest.raises(UsageError, match="only the first"):
        loop.judge(tmp_path, 2)
    jobs = scored(0.6, *runs)
    make(tmp_path, "--model.dim=32")
    found = loop.judge(tmp_path, 2)
    judged = jobs[-4:]
    assert [job.split for job in judged] == ["test"] * 4
    assert {job.seed for job in judged} == {1000, 1001}
    assert [list(job.flags) for job in judged] == [[], [], ["--model.dim=32"], ["--model.dim=32"]]
    first, best = (np.array([x["grades"] for x in part]) for part in (runs[:2], runs[2:]))
    wanted = statistics.difference(best, first)
    assert found["of_gain"] == {"value": wanted.value, "low": wanted.low, "high": wanted.high}
    assert loop.judge(tmp_path, 2) == found  # nothing is trained again
    text = "\n".join(report.lines(tmp_path))
    assert "used once" in text and f"{wanted.value:+.4f}" in text


def test_what_a_killed_beginning_left_is_removed(scored, tmp_path):
    for name in LEFTOVERS:
        (tmp_path / name).write_bytes(b"half of it")
    scored(0.5)
    make(tmp_path)
    assert statuses(tmp_path) == ["keep"]
    assert not any((tmp_path / name).exists() for name in LEFTOVERS)


def test_a_disk_that_fails_as_a_ledger_is_made_is_an_error_of_the_system(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite3, "connect", fail)
    with pytest.raises(ResourceError, match="disk I/O error"):
        Ledger.create(tmp_path, META)


def test_a_judgement_that_failed_is_made_again_where_it_failed(scored, tmp_path):
    run = {"metric": 0.0, "grades": [0.0, 1.0], "questions": None}
    jobs = scored(0.5, 0.6, run, {"error": "OSError: no disk"}, run, run)
    make(tmp_path, "--model.dim=32")
    with pytest.raises(UsageError, match="no disk"):
        loop.judge(tmp_path, 2)
    scored(run)
    assert loop.judge(tmp_path, 2)["seeds"] == 2
    assert jobs[-1] == jobs[3]


def test_files_that_are_no_ledger_are_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no experiments"):
        Ledger(tmp_path)
    (tmp_path / LEDGER).write_bytes(b"no database" * 100)
    with pytest.raises(DamagedError):
        Ledger(tmp_path)
    (tmp_path / LEDGER).unlink()
    Ledger.create(tmp_path, META).close()
    with sqlite3.connect(tmp_path / LEDGER) as db:
        db.execute("UPDATE meta SET value = '99' WHERE name = 'format'")
    db.close()
    with pytest.raises(FormatError, match="format 99"):
        Ledger(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        *("base = 2", "base = 3", "base = 'x'", "status = 'kept'", "seed = 'x'"),
        *("result = '[]'", "result = '{}'", "result = x'ff'", """result = '{"metric": "x"}'"""),
        *("change = '{}'", """change = '{"flags": [1], "files": []}'""", "description = x'00'"),
        *("""change = '{"flags": {}, "files": []}'""", """result = '{"metric": 1, "error": 3}'"""),
        *("""result = '{"metric": 1, "seconds": null}'""", "started = 'x'"),
        """change = '{"flags": [], "files": ["../x.py"]}'""",
        """change = '{"flags": "ab", "files": []}'""",
    ],
)
def test_rows_that_no_version_writes_are_damage(tmp_path, change):
    with Ledger.create(tmp_path, META) as ledger:
        for base in (None, 1):
            number = ledger.begin(base, "0", {"flags": [], "files": []}, "", 0)
            ledger.end(number, "keep", {"metric": 0.5})
        assert [x.number for x in ledger.chain(ledger.best())] == [1, 2]
        with sqlite3.connect(tmp_path / LEDGER) as db:
            db.execute(f"UPDATE experiment SET {change} WHERE id = 2")
        db.close()
        with pytest.raises(DamagedError, match="ledger.db"):
            ledger.experiments()


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM meta WHERE name = 'task_flags'",
        "UPDATE meta SET value = '\"x\"' WHERE name = 'minutes'",
        "UPDATE meta SET value = '[1]' WHERE name = 'task_flags'",
        "INSERT INTO judgement VALUES (1, 0, '3')",
        """INSERT INTO judgement VALUES (1, 0, '{"seeds": 3, "first": 1, "best": 2}')""",
    ],
)
def test_a_report_of_what_no_version_writes_is_damage(tmp_path, change):
    Ledger.create(tmp_path, META).close()
    assert main(["research", "--report", str(tmp_path)]) == 0
    with sqlite3.connect(tmp_path / LEDGER) as db:
        db.execute(change)
    db.close()
    assert main(["research", "--report", str(tmp_path)]) == 4


def test_an_experiment_whose_base_is_gone_is_damage(tmp_path):
    with Ledger.create(tmp_path, META) as ledger:
        for base in (None, 1):
            ledger.end(ledger.begin(base, "0", {"flags": [], "files": []}, "", 0), "crash", {})
        last = ledger.experiments()[1]
        with sqlite3.connect(tmp_path / LEDGER) as db:
            db.execute("DELETE FROM experiment WHERE id = 1")
        db.close()
        with pytest.raises(DamagedError, match="experiment 1 is missing"):
            ledger.chain(last)


def test_an_experiment_trains_for_its_time_and_never_sees_the_test_split(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "stop_with_parent", lambda: None)
    monkeypatch.setattr(experiment, "seconds_per_update", lambda config: (0.5,))
    file = tmp_path / "change_of_rate.py"
    file.write_text(
        "from dataclasses import replace\n\n\ndef change(config):\n"
        "    return replace(config, training=replace(config.training, lr=0.02, batch_size=4,\n"
        "                   evaluate_examples=8))\n"
    )
    home = tmp_path / "0001"
    job = experiment.Job(str(home), ADD, 0.05, 3, TINY[:1], [str(file)], TINY[1:])
    assert experiment.main(job.command[-1]) == 0
    found = json.loads(job.result.read_text())
    assert found["updates"] == 6 and 0 <= found["metric"] <= 1 and found["memory"] > 2**20
    config = json.loads((home / "config.json").read_text())["config"]
    assert config["training"]["lr"] == 0.02 and config["training"]["seed"] == 3
    metrics = (home / "metrics.jsonl").read_text()
    assert '"valid"' in metrics and '"test"' not in metrics


def test_a_change_that_raises_is_a_crash_with_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "stop_with_parent", lambda: None)
    texts = {
        "1 / 0": "division by zero",
        "def change(config):\n    return 3": "returns a int",
        "import sys\n\ndef change(config):\n    sys.exit(0)": "SystemExit: 0",
    }
    for number, (text, wanted) in enumerate(texts.items()):
        file = tmp_path / f"broken_{number}.py"
        file.write_text(text + "\n")
        job = experiment.Job(str(tmp_path / f"{number}"), ADD, 0.05, 0, files=[str(file)])
        assert experiment.main(job.command[-1]) == 0
        assert wanted in json.loads(job.result.read_text())["error"]


def test_an_experiment_that_is_killed_is_a_crash(scored, tmp_path, monkeypatch):
    scored(0.5)

    def kill(number):
        command = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {number})"]
        monkeypatch.setattr(experiment.Job, "command", command)
        monkeypatch.setattr(loop, "run_all", run_all)

    with pytest.raises(IndexError):  # the first alone has a score
        make(tmp_path, "--model.dim=32")
    kill(signal.SIGKILL)
    (found,) = make(tmp_path, "--model.dim=32")
    assert found.status == "crash" and "signal 9, SIGKILL" in found.result["error"]
    kill(signal.SIGSEGV)
    (found,) = make(tmp_path, "--model.dim=16")
    assert (found.number, found.status) == (3, "crash") and "SIGSEGV" in found.result["error"]
    kill(0)  # no signal: it ends with 0, as by os._exit
    (found,) = make(tmp_path, "--model.dim=24")
    assert found.status == "crash" and "ended before" in found.result["error"]
    kill(signal.SIGTERM)  # a stop request is not a crash: the same command continues
    with pytest.raises(Interrupted):
        make(tmp_path, "--model.dim=8")
    assert statuses(tmp_path) == ["keep", "crash", "crash", "crash", "running"]


def test_the_command_makes_an_experiment_and_prints_the_ledger(scored, tmp_path, capsys):
    scored(0.5, 0.75)
    out = str(tmp_path / "search")
    words = ["research", ADD, "--minutes", "1", "--out", out, "--model.dim", "32"]
    assert main([*words, "--description", "narrow"]) == 0
    printed = capsys.readouterr().out
    assert "experiment 2" in printed and "keep exact 0.7500 (best before 0.5000)" in printed
    assert main(["research", "--report", out]) == 0
    assert "narrow --model.dim=32" in capsys.readouterr().out
    for wrong in (["research"], ["research", ADD], [*words[:2], "--judge", "3", *words[2:]]):
        assert main(wrong) == 2
    assert main(["research", "--report", str(tmp_path)]) == 2


def test_all_that_is_wrong_with_a_first_experiment_is_reported_and_nothing_is_made(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    begin = ["research", ADD, "--minutes=1", "--out=search"]
    wrong = {"--task.max_digit=2": "--task.max_digits", "--model.dimm=3": "expected: --model.dim"}
    wrong |= {"--minutes=x": "a number", "--seed=1000": "0 .. 999", "--training.lr=0": "above 0"}
    wrong["--description=\udcff"] = "UTF-8"
    assert main([*begin, *wrong]) == 2
    printed = capsys.readouterr().err
    assert all(printed.count(x) == 1 for x in wrong.values()), printed
    assert printed.count("\n\n") == len(wrong) - 1
    for line in (
        [*begin, "--training.lr=0"],
        [*begin, "--minutes=nan"],
        [*begin, "--minutes=1e9"],
        ["research", "--report=search", "--judge=3"],
        ["research", "--report=search", "--minutes=3"],
        ["research", "--report=search", "--seed=0"],
    ):
        assert main(line) == 2
    assert not [*tmp_path.iterdir()]
