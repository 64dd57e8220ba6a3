"""What is shown of runs while they are trained: their last progress, and of none that has ended."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import thinkers
from thinkers.comparison import following
from thinkers.comparison.following import Following, last_progress

PROGRESS = "update 810/2600  loss 0.4120  accuracy 0.430  12.1 updates/s  2:28 remaining"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", ""),
        ("saved update=3\n", ""),
        (f"{PROGRESS}\nsaved update=811\n", PROGRESS),
        (f"{PROGRESS}\nupdate 900/26", PROGRESS),
        ("x" * 5000 + f"\n{PROGRESS}\n", PROGRESS),
    ],
)
def test_the_last_whole_line_of_progress_is_found(content, wanted, tmp_path):
    log = tmp_path / "a.log"
    log.write_text(content)
    assert last_progress(log) == wanted


def test_lines_are_of_logs_that_are_being_written(tmp_path, monkeypatch):
    told = io.StringIO()
    monkeypatch.setattr("sys.stdout", told)
    monkeypatch.setattr(following, "SECONDS_BETWEEN_LINES", 0.05)
    for name in ("now-0", "ended-0"):
        (tmp_path / f"{name}.log").write_text(PROGRESS + "\n")
    old = time.time() - 10 * following.SECONDS_OF_NEWS
    os.utime(tmp_path / "ended-0.log", (old, old))
    with Following(tmp_path) as shown:
        monkeypatch.setattr("sys.stdout", io.StringIO())  # as a run in this process does
        end = time.monotonic() + 20
        while "now-0" not in told.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
        shown.say("ended-0: exact 1.0")
    lines = told.getvalue().splitlines()
    assert f"now-0: {PROGRESS}" in lines and "ended-0: exact 1.0" in lines
    assert not any(line.startswith("ended-0: update") for line in lines)


def test_a_terminal_has_them_in_place(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    told = Terminal()
    monkeypatch.setattr("sys.stdout", told)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(following, "SECONDS_BETWEEN_LOOKS", 0.05)
    (tmp_path / "now-0.log").write_text(PROGRESS + "\n")
    with Following(tmp_path) as shown:
        end = time.monotonic() + 20
        while "now-0" not in told.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
        shown.say("a line that stays")
    assert "810/2600" in told.getvalue() and "a line that stays" in told.getvalue()
    assert "\x1b[2K" in told.getvalue()  # its place is cleared


def test_a_reader_that_leaves_does_not_end_the_comparison(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from thinkers.comparison.following import Following\n"
        f"with Following(Path({str(tmp_path)!r})) as shown:\n"
        "    for i in range(50):\n        shown.say(f'line {i}')\n        time.sleep(0.01)\n"
        "Path('done').touch()\n"
    )
    root = str(Path(thinkers.__file__).parents[1])
    line = f'{sys.executable} -c "$0" | head -1'
    environment = os.environ | {"PYTHONPATH": root}
    told = subprocess.run(
        ["bash", "-c", line, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert told.stdout == "line 0\n" and told.stderr == "" and (tmp_path / "done").exists()
