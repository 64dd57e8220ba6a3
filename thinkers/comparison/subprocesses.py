"""Subprocesses, a few at a time, each with a log file, and progress lines read from the logs."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from thinkers.errors import Interrupted
from thinkers.files import open_file, open_log
from thinkers.terminal import show
from thinkers.training.signals import SIGNALS, Signals

SECONDS_BETWEEN_POLLS = 0.1
SECONDS_BETWEEN_LINES = 20.0
SECONDS_OF_NEWS = 20.0
"""Age at which a log counts as finished; a running one gets progress every ten seconds."""
TAIL = 2000
"""Bytes at the end of a log that are searched for its last progress."""


def run_all(
    commands: Sequence[tuple[Sequence[str], Path]],
    workers: int,
    on_end: Callable[[int, int], None],
) -> None:
    """Run commands as subprocesses, and call on_end(index, exit code) for each as it ends.

    The end of a subprocess's standard input, a pipe, is its stop request. The pipe closes when this
    process receives a stop request, and when it dies for any reason. Signals of the terminal reach
    this process alone, so that a stop request arrives once.

    Args:
        commands: (command, the log that its output is appended to).
        workers: Number of subprocesses at a time.
        on_end: Called in this thread; if it raises, the others are stopped.

    Raises:
        Interrupted: This process or a subprocess received a stop request; all have ended.
    """
    waiting = list(enumerate(commands))[::-1]
    running: dict[int, subprocess.Popen[bytes]] = {}
    with Signals() as signals:
        try:
            while waiting or running:
                while waiting and len(running) < workers and not signals.number:
                    index, (command, log) = waiting.pop()
                    running[index] = _start(command, log)
                time.sleep(SECONDS_BETWEEN_POLLS)
                if signals.number:
                    raise Interrupted("interrupted", signals.number)
                for index in [i for i, process in running.items() if process.poll() is not None]:
                    with running.pop(index) as process:  # which closes its pipe
                        code = process.wait()
                    if (number := -code if code < 0 else code - 128) in SIGNALS:
                        raise Interrupted("interrupted", number)
                    on_end(index, code)
        finally:
            for process in running.values():
                process.stdin.close()  # type: ignore[union-attr]
            for process in running.values():
                process.wait()


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    # The same modules are found there as here; in sys.path, "" is the working directory.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with open_log(log) as stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
            process_group=0,
        )


@contextmanager
def progress_of(folder: Path) -> Iterator[Callable[[str], None]]:
    """Print at intervals the latest progress in each log of `folder` that is being written.

    Yields a function that prints a line. A closed output (`thinkers compare .. | head`) does not
    end the comparison.
    """
    stream = sys.stdout  # sys.stdout is a log while a run is trained in this process
    ended = threading.Event()

    def report(text: str) -> None:
        try:
            show(text, stream=stream)
        except BrokenPipeError:
            # Without a descriptor that can be written, the interpreter would fail as it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def follow() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            since = time.time() - SECONDS_OF_NEWS
            logs = [x for x in sorted(folder.glob("*.log")) if x.lstat().st_mtime > since]
            for log in logs:
                if text := last_progress(log):
                    report(f"{log.stem}: {text}")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield report
    finally:
        ended.set()
        thread.join()


def last_progress(log: Path) -> str:
    """Return the last complete line of a log about an update; "" if there is none."""
    with open_file(log) as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL))
        lines = stream.read().decode(errors="replace").rpartition("\n")[0].splitlines()
    return next((line for line in reversed(lines) if line.startswith("update ")), "")
