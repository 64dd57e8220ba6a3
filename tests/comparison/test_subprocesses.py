"""Subprocesses: each job once, one that dies stops no other, a stop request reaches all."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT

from thinkers.comparison import one_run, subprocesses
from thinkers.comparison.one_run import Job, perform
from thinkers.comparison.plan import Plan
from thinkers.comparison.results import read_result
from thinkers.comparison.runner import compare
from thinkers.comparison.subprocesses import last_progress, progress_of, run_all
from thinkers.errors import Interrupted, UsageError
from thinkers.models import MODELS
from thinkers.models.decoder import Decoder
from thinkers.plugins import import_file

pytestmark = pytest.mark.usefixtures("plain_pages")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
SMALL = {"task.max_digits": 1, "model.dim": 16, "model.num_heads": 2, "training.batch_size": 7}


def script(text):
    """A command that runs this text, without torch."""
    return [sys.executable, "-S", "-c", text]


def codes_of(commands, folder, workers=2):
    found = {}
    logged = [(command, folder / f"{n}.log") for n, command in enumerate(commands)]
    run_all(logged, workers, found.__setitem__)
    return found


def until(happened, seconds=60):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_every_command_runs_once_in_a_process_of_its_own(tmp_path):
    commands = [script(f"import os; print({n}, os.getppid())") for n in range(3)]
    assert codes_of(commands, tmp_path) == {0: 0, 1: 0, 2: 0}
    logs = [(tmp_path / f"{n}.log").read_text() for n in range(3)]
    assert logs == [f"{n} {os.getpid()}\n" for n in range(3)]
    assert codes_of([], tmp_path) == {}


def test_no_more_run_at_a_time_than_workers(tmp_path):
    alone = "import pathlib, time; p = pathlib.Path('one'); p.touch(exist_ok=False); p.unlink()"
    commands = [script(f"import os; os.chdir({str(tmp_path)!r}); {alone}") for _ in range(4)]
    assert set(codes_of(commands, tmp_path, workers=1).values()) == {0}


def test_one_that_fails_or_dies_stops_no_other(tmp_path):
    dies = script("import os; os.kill(os.getpid(), 9)")
    commands = [script("raise SystemExit(5)"), dies, script("1 / 0"), script("")]
    assert codes_of(commands, tmp_path) == {0: 5, 1: -9, 2: 1, 3: 0}
    assert "ZeroDivisionError" in (tmp_path / "2.log").read_text()


def test_one_that_was_asked_to_stop_stops_all(tmp_path):
    commands = [script("raise SystemExit(143)"), script("import sys; sys.stdin.read(); print(1)")]
    with pytest.raises(Interrupted) as error:
        codes_of([*commands, script("")], tmp_path)
    assert error.value.exit_code == 143
    assert (tmp_path / "1.log").read_text() == "1\n" and not (tmp_path / "2.log").exists()


def test_an_error_of_the_caller_stops_all(tmp_path):
    def on_end(index, code):
        raise ValueError("mine")

    commands = [script(""), script("import sys; sys.stdin.read(); print(1)")]
    with pytest.raises(ValueError, match="mine"):
        run_all([(x, tmp_path / f"{n}.log") for n, x in enumerate(commands)], 2, on_end)
    assert (tmp_path / "1.log").read_text() == "1\n"


PARENT = """
import sys
from pathlib import Path
from thinkers.comparison.subprocesses import run_all
from thinkers.errors import Interrupted
folder = Path(sys.argv[1])
text = '''
import pathlib, sys
pathlib.Path(sys.argv[1], "begun-" + sys.argv[2]).touch()
sys.stdin.read()
pathlib.Path(sys.argv[1], "saved-" + sys.argv[2]).touch()
'''
words = [[sys.executable, "-S", "-c", text, str(folder), str(n)] for n in range(3)]
try:
    run_all([(x, folder / "log") for x in words], 2, print)
except Interrupted as error:
    raise SystemExit(error.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stop_request_reaches_those_that_run_and_begins_no_other(number, tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], env=ENVIRONMENT)
    until(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
    parent.send_signal(number)
    code = parent.wait(60)
    assert code == (-9 if number == signal.SIGKILL else 128 + number)
    until(lambda: len(list(tmp_path.glob("saved-*"))) == 2)
    assert len(list(tmp_path.glob("begun-*"))) == 2


# Comparisons --------------------------------------------------------------------------------------


PLUGIN = """
import thinkers
from thinkers.models.looped import Looped

class Mine(Looped):
    name = "mine"

    class Config(Looped.Config):
        pass

thinkers.MODELS["mine"] = Mine
"""


@pytest.fixture
def plugin(tmp_path):
    """A file that adds a model, imported as --import_module does."""
    (tmp_path / "my_models.py").write_text(PLUGIN)
    import_file(str(tmp_path / "my_models.py"))
    yield
    del MODELS["mine"]


def compared(folder, **own):
    """A comparison of a model that a file adds."""
    asked = dict(budget=2e7, seeds=1, num_examples=31, settings=SMALL) | own
    return compare("add", ["mine"], out=folder, **asked)


def computed(record):
    """A result without what is measured, which differs from one call to the next."""
    return {k: v for k, v in record.items() if k not in ("seconds", "memory")}


def test_a_comparison_is_the_same_with_two_workers(plugin, tmp_path):
    one, two = compared(tmp_path / "one"), compared(tmp_path / "two", workers=2)
    (a,), (b,) = one.results["mine"], two.results["mine"]
    assert computed(a.record) == computed(b.record) and (a.points == b.points).all()
    assert b.record["seconds"] > 0
    assert (two.folder / "report.html").exists()
    logs = [(x.folder / "runs" / "mine-0.log").read_text() for x in (one, two)]
    saved = [re.findall("(?m)^saved update=.*", log) for log in logs]
    assert saved[0] == saved[1] != [] and "Error" not in logs[1] and "error" not in logs[1]


def test_a_search_is_the_same_by_the_words_of_its_commands(plugin, tmp_path, monkeypatch):
    """With a learning rate that no model can be trained with, and one that trains."""
    asked = compared(tmp_path / "a", lrs=[1e30, 1e-3])
    assert asked.results["mine"][0].record["lr"] == 1e-3 and asked.failures == []
    monkeypatch.setattr(one_run, "stop_with_parent", lambda: None)
    found = []
    for lr, status in ((1e30, "failed"), (1e-3, "done")):
        job = Job(str(asked.folder), "mine", None, lr)
        found.append(read_result(job.home))
        assert found[-1]["status"] == status
        shutil.rmtree(job.home)
        job.home.with_name(f"{job.home.name}.usage.json").unlink()
        assert one_run.main(job.command[-1]) == 0
        assert computed(read_result(job.home)) == computed(found[-1])
    assert "NonFiniteError" in found[0]["error"]


def test_a_run_in_a_process_of_its_own_saves_when_asked_to_stop(tmp_path):
    asked = dict(task="add", models=["decoder"], budget=2e9, seeds=1, num_examples=11)
    empty = dict(match=None, lrs=[], controls=[], settings=SMALL)
    Plan.of(**asked, **empty).write(tmp_path)
    job = Job(str(tmp_path), "decoder", 0)
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
    with subprocess.Popen(job.command, **pipes) as child:
        until(lambda: any(job.home.glob("checkpoints/0*")))
        child.stdin.close()
        assert b"interrupted" in child.stdout.read()
    assert child.returncode == 143 and read_result(job.home) is None
    assert json.loads((tmp_path / "runs" / "decoder-0.usage.json").read_bytes())["seconds"] > 0
    log = job.log.read_text()
    assert "saved update" in log and "rror" not in log
    resumed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_run, "resume", lambda home, **_: resumed.append(home))
        perform(job)
    assert resumed == [job.home]


def test_runs_that_die_are_listed_with_the_reason(tmp_path, monkeypatch):
    texts = ("import os; os.kill(os.getpid(), 9)", "raise SystemExit(3)")
    monkeypatch.setattr(Job, "command", property(lambda job: script(texts[job.seed])))
    asked = dict(budget=2e7, seeds=2, num_examples=11, settings=SMALL)
    found = compare("add", ["decoder"], out=tmp_path / "a", workers=2, **asked)
    assert found.exit_code == 1 and [x["seed"] for x in found.failures] == [0, 1]
    assert "killed by signal 9, perhaps out of memory" in found.failures[0]["error"]
    assert "ended with code 3" in found.failures[1]["error"]
    assert "decoder-1.log has its error" in found.failures[1]["error"]


class Mine(Decoder):
    """Defined where no other process looks."""

    name = "mine"

    class Config(Decoder.Config):
        pass


def test_a_class_that_no_importable_file_defines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "mine", Mine)
    asked = dict(budget=2e7, seeds=1, num_examples=11, settings=SMALL, workers=2)
    with pytest.raises(
        UsageError, match=r"test_subprocesses.Mine with several(.|\n)*--import_module"
    ):
        compare("add", ["mine"], out=tmp_path / "a", **asked)
    assert not (tmp_path / "a").exists()


# Progress -----------------------------------------------------------------------------------------

PROGRESS = "update 810/2600  loss 0.4120  accuracy 0.430  12.1 updates/s  2:28 remaining"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ""),
        ("saved update=3\n", ""),
        (f"{PROGRESS}\nsaved update=811\n", PROGRESS),
        (f"{PROGRESS}\nupdate 900/26", PROGRESS),
        ("x" * 5000 + f"\n{PROGRESS}\n", PROGRESS),
    ],
)
def test_the_last_complete_line_of_progress_is_found(content, expected, tmp_path):
    log = tmp_path / "a.log"
    log.write_text(content)
    assert last_progress(log) == expected


def test_progress_is_printed_of_logs_that_are_being_written(tmp_path, monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr("sys.stdout", printed)
    monkeypatch.setattr(subprocesses, "SECONDS_BETWEEN_LINES", 0.05)
    for name in ("now-0", "ended-0"):
        (tmp_path / f"{name}.log").write_text(PROGRESS + "\n")
    old = time.time() - 10 * subprocesses.SECONDS_OF_NEWS
    os.utime(tmp_path / "ended-0.log", (old, old))
    with progress_of(tmp_path) as report:
        monkeypatch.setattr("sys.stdout", io.StringIO())  # as a run in this process does
        until(lambda: "now-0" in printed.getvalue())
        report("ended-0: exact 1.0")
    lines = printed.getvalue().splitlines()
    assert f"now-0: {PROGRESS}" in lines and "ended-0: exact 1.0" in lines
    assert not any(line.startswith("ended-0: update") for line in lines)


def test_a_reader_that_leaves_does_not_end_the_comparison(tmp_path):
    text = (
        "import sys, time\nfrom pathlib import Path\n"
        "from thinkers.comparison.subprocesses import progress_of\n"
        f"with progress_of(Path({str(tmp_path)!r})) as report:\n"
        "    for i in range(50):\n        report(f'line {i}')\n        time.sleep(0.01)\n"
        "Path('done').touch()\n"
    )
    line = f'{sys.executable} -c "$0" | head -1'
    own = dict(cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    ended = subprocess.run(["bash", "-c", line, text], **own)
    assert ended.stdout == "line 0\n" and ended.stderr == "" and (tmp_path / "done").exists()
