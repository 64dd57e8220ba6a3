"""Jobs in processes of their own: what they return, how they end, whom a signal reaches."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import thinkers
from thinkers.comparison.runner import compare
from thinkers.comparison.workers import run_each
from thinkers.errors import Interrupted, NonFiniteError, ThinkersError
from thinkers.files import read_lines

SMALL = {"task.max_digits": 1, "model.dim": 16, "model.num_heads": 2, "training.batch_size": 7}


def square(number):
    return number**2, os.getpid(), torch.get_num_threads()


class Unsendable(Exception):
    def __init__(self, one, two):
        super().__init__(one + two)


def ends(how):
    if how == "unsendable":
        raise Unsendable("lost on ", "the way")
    if how == "error":
        raise NonFiniteError("not a number")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "interrupted":
        raise Interrupted("asked to stop", signal.SIGTERM)
    return how


def waits(folder, number):
    """Says that it is there, and whether it was asked to stop."""
    (folder / f"begun-{number}").touch()
    end = []
    signal.signal(signal.SIGTERM, lambda *_: end.append(1))
    while not end:
        time.sleep(0.01)
    (folder / f"saved-{number}").touch()
    raise Interrupted("asked to stop", signal.SIGTERM)


def until(happened, seconds=60):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_every_job_is_done_once_in_a_process_of_its_own():
    here = dict(run_each(square, [(n,) for n in range(3)], 1))
    assert {place: x[0] for place, x in here.items()} == {0: 0, 1: 1, 2: 4}
    assert {x[1] for x in here.values()} == {os.getpid()}
    there = dict(run_each(square, [(n,) for n in range(3)], 2))
    assert {place: x[0] for place, x in there.items()} == {0: 0, 1: 1, 2: 4}
    assert len({x[1] for x in there.values()} | {os.getpid()}) == 4
    assert {x[2] for x in there.values()} == {1}
    assert list(run_each(square, [], 2)) == []


def test_a_job_that_fails_or_dies_stops_no_other():
    found = dict(run_each(ends, [("error",), ("killed",), ("unsendable",), ("fine",)], 2))
    assert isinstance(found[0], NonFiniteError) and str(found[0]) == "not a number"
    assert isinstance(found[1], ThinkersError) and "killed by signal 9" in str(found[1])
    assert "Unsendable: lost on the way" in str(found[2])
    assert found[3] == "fine"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_was_asked_to_stop_stops_all(workers):
    with pytest.raises(Interrupted) as error:
        list(run_each(ends, [("interrupted",), ("fine",)], workers))
    assert error.value.exit_code == 143


SCRIPT = """
import sys
from pathlib import Path
from thinkers.errors import Interrupted
from thinkers.comparison.workers import run_each
sys.path.insert(0, {tests!r})
from test_workers import waits
if __name__ == "__main__":
    try:
        list(run_each(waits, [(Path({folder!r}), n) for n in range(3)], 2))
    except Interrupted as error:
        raise SystemExit(error.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_what_is_under_way(number, tmp_path):
    script = tmp_path / "script.py"
    tests = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(tests=tests, folder=str(tmp_path)))
    root = Path(thinkers.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    until(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
    parent.send_signal(number)
    code = parent.wait(60)
    assert code == (-9 if number == signal.SIGKILL else 128 + number)
    until(lambda: len(list(tmp_path.glob("saved-*"))) == 2)
    assert len(list(tmp_path.glob("begun-*"))) == 2


def test_a_comparison_is_the_same_with_two_workers(tmp_path):
    asked = dict(budget=4e7, seeds=2, num_examples=31, settings=SMALL)
    one = compare("add", ["decoder", "looped"], out=tmp_path / "one", **asked)
    two = compare("add", ["decoder", "looped"], out=tmp_path / "two", workers=2, **asked)
    own = ("seconds", "memory")  # which differ from one call to the next
    for name, results in one.results.items():
        for a, b in zip(results, two.results[name], strict=True):
            assert {k: v for k, v in a.line.items() if k not in own} == {
                k: v for k, v in b.line.items() if k not in own
            }
            assert (a.points == b.points).all()
    assert (tmp_path / "two" / "report.html").exists()
    assert (tmp_path / "two" / "runs" / "looped-1.log").read_text().count("saved update") > 3


def test_rates_are_searched_for_by_two_workers(tmp_path):
    asked = dict(budget=4e7, seeds=1, num_examples=31, settings=SMALL, lrs=[1e-3, 3e-3])
    found = compare("add", ["decoder", "looped"], out=tmp_path / "a", workers=2, **asked)
    searched = read_lines(tmp_path / "a" / "search.jsonl")
    assert sorted((x["model"], x["lr"]) for x in searched) == [
        (name, lr) for name in ("decoder", "looped") for lr in (1e-3, 3e-3)
    ]
    for name, (result,) in found.results.items():
        merits = {x["lr"]: x["merit"] for x in searched if x["model"] == name}
        assert merits[result.line["lr"]] == max(merits.values())


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_what_is_no_number_of_workers_is_refused(workers, tmp_path):
    with pytest.raises((ValueError, TypeError), match="workers"):
        compare("add", ["decoder"], out=tmp_path / "a", workers=workers)
    assert not (tmp_path / "a").exists()


UNGUARDED = """
import sys
sys.path.insert(0, {tests!r})
from test_workers import square
from thinkers.comparison.workers import run_each
print(list(run_each(square, [(1,), (2,)], 2)))
"""


@pytest.mark.parametrize("by_file", [True, False])
def test_a_script_without_a_guard_is_told_so(by_file, tmp_path):
    script = UNGUARDED.format(tests=str(Path(__file__).parent))
    (tmp_path / "script.py").write_text(script)
    line = [sys.executable, str(tmp_path / "script.py")] if by_file else [sys.executable, "-"]
    environment = os.environ | {"PYTHONPATH": str(Path(thinkers.__file__).parents[1])}
    given = None if by_file else script
    ended = subprocess.run(line, env=environment, input=given, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stdout == ""
    assert "UsageError: found: workers that cannot begin" in ended.stderr


def slow(seconds):
    time.sleep(seconds)


def test_a_signal_ends_a_job_in_this_process_at_once():
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    start = time.monotonic()
    with pytest.raises(Interrupted) as error:
        list(run_each(slow, [(60,), (60,)], 1))
    assert error.value.exit_code == 143 and time.monotonic() - start < 20
