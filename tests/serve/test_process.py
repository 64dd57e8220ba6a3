"""`thinkers serve` as a process: what it says, how it ends, and what it refuses."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from training_cases import make

import thinkers
from thinkers.cli import serve_command
from thinkers.cli.main import main

pytestmark = pytest.mark.extras
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from thinkers.serve import process  # noqa: E402, after the packages that it needs
from thinkers.serve.service import Limits  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on text."""
    home = tmp_path_factory.mktemp("runs")
    (home / "text.txt").write_text("the cat sat on the mat. " * 40)
    task = thinkers.TASKS["text"].Config(path=str(home / "text.txt"), context=16)
    quick = dict(num_updates=1, checkpoint_every=1)
    return thinkers.train(make("decoder", task, quick), home / "cats").folder


class Served:
    """A server process."""

    def __init__(self, run, *flags):
        command = [sys.executable, "-m", "thinkers", "serve", str(run), "--port", "0", *flags]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # A new session: the signals are for this process alone.
        self.process = subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, **pipes
        )
        self.line = self.process.stdout.readline()
        self.url = re.search(r"http://\S+", self.line)[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def test_a_signal_lets_a_request_end_and_the_exit_code_says_so(run):
    with Served(run) as served:
        assert served.line.startswith("serving cats at http://127.0.0.1:")
        fields = {"model": "cats", "prompt": "the", "max_tokens": 1000, "seed": 1, "stream": True}
        with httpx.stream("POST", f"{served.url}/completions", json=fields, timeout=60) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            served.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert json.loads(first.removeprefix("data: "))["model"] == "cats"
        assert rest[-1] == "data: [DONE]" and '"finish_reason": "length"' in rest[-2]
        out, error = served.process.communicate(timeout=30)
    assert served.process.returncode == 143
    assert error == "stopped by SIGTERM: no request is left\n" and not out


def test_an_interrupt_ends_an_idle_server(run):
    with Served(run, "--host", "0.0.0.0", "--stop_seconds", "0") as served:
        assert "without authentication" in served.process.stdout.readline()
        port = served.url.partition("0.0.0.0:")[2].partition("/")[0]
        headers = {"host": "any.example"}
        assert httpx.get(f"http://127.0.0.1:{port}/health", headers=headers).status_code == 200
        served.process.send_signal(signal.SIGINT)
        _, error = served.process.communicate(timeout=30)
    assert served.process.returncode == 130 and error.count("\n") == 1


def refused(capsys, *words):
    """The exit code and the lines of a command that is refused."""
    code = main(["serve", *map(str, words)])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["found", "expected", "fix"]
    return code, lines


def test_a_port_in_use_is_named(run, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, lines = refused(capsys, run, "--port", port)
    assert code == 2 and f"port {port}" in lines[0] and f"--port {port + 1}" in lines[2]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (("--port", "70000"), "0 .. 65535"),
        (("--port", "x"), "--port x"),
        (("--host", "no such host"), "--host no such host"),
        (("--max_batch", "0"), "--max_batch 0"),
        (("--max_concurrent", "-1"), "--max_concurrent -1"),
        (("--max_tokens", "many"), "--max_tokens many"),
        (("--stop_seconds", "1.5"), "--stop_seconds 1.5"),
    ],
)
def test_flags_are_checked_before_the_run_is_read(flags, shown, capsys):
    code, lines = refused(capsys, "no/such/run", *flags)
    assert code == 2 and any(shown in line for line in lines)


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "none"), "--port", "0"]) == 2
    assert capsys.readouterr().err


def test_without_the_extra_its_pip_line_is_shown(run, capsys, monkeypatch):
    for name in ("thinkers.serve.process", "thinkers.serve.server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("thinkers.serve.process", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, lines = refused(capsys, run)
    assert code == 2 and lines[2] == 'fix: pip install "thinkers[serve]"'


def test_which_addresses_are_of_this_machine_alone():
    for host, local in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with process.bind(host, 0) as opened:
            assert process.is_local(opened) == local and ":0/" not in process.url_of(opened)


def test_the_help_shows_the_limits_of_the_service():
    assert Limits(**serve_command.NUMBERS) == Limits()
