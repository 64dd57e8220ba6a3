"""Metrics of a run as lines of JSON, and its progress as a bar or as plain lines."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from thinkers.errors import Interrupted, describe
from thinkers.files import disk_errors, write_file
from thinkers.runs.trackers import Status, Tracker
from thinkers.terminal import show, visible

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_BARS = 0.2


class MetricsWriter:
    """Writer of metrics.jsonl and display of progress; neither without a folder.

    Lines are kept in memory until `flush`: a resumed run keeps the lines up to its checkpoint and
    computes the others again. A tracker that fails does not end the training: it gets the lines it
    missed with the next flush, or when the run is resumed.

    Args:
        update: Updates made so far; later lines of an existing file are dropped.
        num_updates: Updates at the end, for the progress.
    """

    def __init__(
        self, folder: Path | None, update: int, num_updates: int, tracker: Tracker | None = None
    ):
        self._tracker = tracker
        self._unsent: list[dict[str, Any]] = []
        self._file = None if folder is None else folder / "metrics.jsonl"
        self._lines: list[str] = []
        self._num_updates = num_updates
        self._start = (update, time.monotonic())
        self._next = self._start[1] + SECONDS_BETWEEN_BARS
        self._bar: Progress | None = None
        if self._file is not None:
            _truncate(self._file, update)
            if tracker is not None and self._file.exists():
                self._unsent = [json.loads(x) for x in self._file.read_bytes().splitlines()]
            console = Console()
            if console.is_terminal:
                self._bar = _bar(console)
                self._task = self._bar.add_task("", total=num_updates, completed=update, text="")

    def __enter__(self) -> "MetricsWriter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self.flush()
        if self._tracker is not None:
            killed = isinstance(error, KeyboardInterrupt | Interrupted)
            status: Status = "KILLED" if killed else "FAILED" if error else "FINISHED"
            self._send(lambda tracker: tracker.finish(status))

    def log(self, update: int, **values: Any) -> None:
        """Add a line to metrics.jsonl, of values after `update` updates."""
        if self._file is not None:
            self._lines.append(json.dumps({"update": update, **_finite(values)}) + "\n")

    def show(self, update: int, loss: float, numbers: Callable[[], Mapping[str, float]]) -> None:
        """Show the progress, unless it was shown a moment ago.

        Args:
            numbers: Called for the numbers to show after the loss, by name.
        """
        now = time.monotonic()
        if self._file is None or now < self._next:
            return
        rate = (update - self._start[0]) / (now - self._start[1])
        own = "".join(f"  {name.replace('_', ' ')} {x:.3f}" for name, x in numbers().items())
        text = f"loss {loss:.4f}{own}  {rate:.1f} updates/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=update, text=text)
            self._next = now + SECONDS_BETWEEN_BARS
        else:
            left = (self._num_updates - update) / rate
            total = self._num_updates
            remaining = f"{left // 60:.0f}:{left % 60:02.0f} remaining"
            show(f"update {update}/{total}  {text}  {remaining}")
            self._next = now + SECONDS_BETWEEN_LINES

    def print(self, text: str) -> None:
        """Print a line on the terminal, above the bar."""
        if self._bar is not None:
            self._bar.console.print(visible(text), highlight=False, markup=False, soft_wrap=True)
        elif self._file is not None:
            show(text)

    def flush(self) -> None:
        """Write all lines to the disk, then pass them to the tracker."""
        if self._file is not None and self._lines:
            content = "".join(self._lines).encode()
            with disk_errors(self._file, len(content)), self._file.open("ab") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            if self._tracker is not None:
                self._unsent += [json.loads(line) for line in self._lines]
            self._lines.clear()
        if self._unsent and self._send(lambda tracker: tracker.send(self._unsent)):
            self._unsent.clear()

    def _send(self, work: Callable[[Tracker], None]) -> bool:
        """Call the tracker; return True if it succeeded, otherwise print its error."""
        assert self._tracker is not None
        try:
            work(self._tracker)
        except Exception as error:  # any error of a library or network: it must not end training
            what = f"{type(error).__name__}: {describe(error)}"
            self.print(f"tracking failed: {what}; metrics.jsonl has it all")
            return False
        return True


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _truncate(file: Path, update: int) -> None:
    """Drop the lines after `update`, the final scores, and lines that are not valid metrics."""
    if not file.exists():
        return
    kept = []
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            measured = json.loads(line)
            is_past = measured["update"] <= update and "test" not in measured
        except (ValueError, TypeError, LookupError):
            continue
        if is_past and line.endswith(b"\n"):
            kept.append(line)
    write_file(file, b"".join(kept))


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON lacks, by "nan" and "inf"."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
