"""What the runs of a comparison are doing, as they tell it in their logs, while they are at it."""

import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

SECONDS_BETWEEN_LINES = 20.0
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_OF_NEWS = 20.0
"""A run writes every ten seconds; a log as old as this is of one that has ended."""
TAIL = 2000
"""Bytes at the end of a log in which its last progress stands."""


class Following:
    """Shows the last progress of each log in `folder` that is being written: lines, or, on a
    terminal, one line for each run that is rewritten in place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._console = Quiet(file=sys.stdout)  # whose place a log takes while runs are here
        self._ended = threading.Event()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Following":
        if self._console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _follow(self) -> None:
        pause = SECONDS_BETWEEN_LOOKS if self._console.is_terminal else SECONDS_BETWEEN_LINES
        while not self._ended.wait(pause):
            since = time.time() - SECONDS_OF_NEWS
            logs = [x for x in sorted(self._folder.glob("*.log")) if x.stat().st_mtime > since]
            news = [f"{log.stem}: {text}" for log in logs if (text := last_progress(log))]
            if self._console.is_terminal:
                self._live.update(Text("\n".join(news)), refresh=True)
            else:
                for line in news:
                    self.say(line)


class Quiet(Console):
    """Says nothing more when its reader has left, where rich's own ends the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore


def last_progress(log: Path) -> str:
    """The last whole line of a log that tells of an update; "" if there is none."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - TAIL))
        lines = stream.read().decode(errors="replace").rpartition("\n")[0].splitlines()
    return next((line for line in reversed(lines) if line.startswith("update ")), "")
