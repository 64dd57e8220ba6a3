"""What a run tells: metrics as lines of JSON, progress as a bar or as plain lines."""

import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from thinkers.checkpoints import disk_errors, write_file

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_BARS = 0.2


class Tracker:
    """Writes metrics.jsonl and shows progress; without a folder it does neither.

    Lines are kept in memory until `flush`: what is written before a checkpoint is what a resumed
    run starts from, the rest it computes again.
    """

    def __init__(self, folder: Path | None, update: int, num_updates: int):
        self._file = None if folder is None else folder / "metrics.jsonl"
        self._lines: list[str] = []
        self._num_updates = num_updates
        self._start = (update, time.monotonic())
        self._next = self._start[1] + SECONDS_BETWEEN_BARS
        self._bar: Progress | None = None
        if self._file is not None:
            _truncate(self._file, update)
            console = Console()
            if console.is_terminal:
                self._bar = _bar(console)
                self._task = self._bar.add_task("", total=num_updates, completed=update, told="")

    def __enter__(self) -> "Tracker":
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

    def log(self, update: int, **values: Any) -> None:
        """One line of metrics.jsonl: what was measured after so many updates."""
        if self._file is not None:
            self._lines.append(json.dumps({"update": update, **_finite(values)}) + "\n")

    def show(self, update: int, loss: float, accuracy: float) -> None:
        """Where the run is, if it is time to say so again."""
        now = time.monotonic()
        if self._file is None or now < self._next:
            return
        rate = (update - self._start[0]) / (now - self._start[1])
        told = f"loss {loss:.4f}  accuracy {accuracy:.3f}  {rate:.1f} updates/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=update, told=told)
            self._next = now + SECONDS_BETWEEN_BARS
        else:
            left = (self._num_updates - update) / rate
            total = self._num_updates
            remaining = f"{left // 60:.0f}:{left % 60:02.0f} remaining"
            print(f"update {update}/{total}  {told}  {remaining}", flush=True)
            self._next = now + SECONDS_BETWEEN_LINES

    def say(self, text: str) -> None:
        """One line on the terminal, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif self._file is not None:
            print(text, flush=True)

    def flush(self) -> None:
        """Put all lines on the disk."""
        if self._file is None or not self._lines:
            return
        content = "".join(self._lines).encode()
        with disk_errors(self._file, len(content)), self._file.open("ab") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        self._lines.clear()


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _truncate(file: Path, update: int) -> None:
    """Drop what was measured after `update`, the final scores, and lines that are not ours."""
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
    """JSON has no word for what is not finite: it is written as "nan" or "inf"."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
