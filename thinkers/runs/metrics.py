"""Metrics of a run as lines of JSON, and its progress as a bar or as plain lines."""

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from thinkers.errors import DamagedError, Interrupted, describe
from thinkers.files import append, exists, open_file, write_file
from thinkers.runs.trackers import Status, Tracker
from thinkers.strict_json import parse_json
from thinkers.terminal import show, visible

if TYPE_CHECKING:
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_BARS = 0.2


class MetricsWriter:
    """Writer of metrics.jsonl and display of progress; neither without a folder.

    Lines are kept in memory until `flush`: a resumed run keeps the lines up to its checkpoint and
    computes the others again. A tracker that fails does not end the training: it gets the lines it
    missed with the next flush, or when the run is resumed.

    Args:
        update: Updates made so far.
        num_updates: Updates at the end, for the progress.
        kept: The `digest` of the lines that the checkpoint knows, which are kept; None for none.
            Later lines of an existing file are dropped.

    Raises:
        DamagedError: The lines to keep have changed since the checkpoint.
    """

    def __init__(
        self,
        folder: Path | None,
        update: int,
        num_updates: int,
        tracker: Tracker | None = None,
        kept: Mapping[str, Any] | None = None,
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
            content = b"" if kept is None else read_kept(self._file, kept)
            if exists(self._file):
                # A new file, so that appending reaches no other name of the old one.
                write_file(self._file, content)
            self._size, self._hash = len(content), hashlib.sha256(content)
            if tracker is not None:
                self._unsent = [parse_json(x, str(self._file)) for x in content.splitlines()]
            self._bar = _terminal_bar()
            if self._bar is not None:
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
            append(self._file, content)
            self._size += len(content)
            self._hash.update(content)
            if self._tracker is not None:
                self._unsent += [json.loads(line) for line in self._lines]
            self._lines.clear()
        if self._unsent and self._send(lambda tracker: tracker.send(self._unsent)):
            self._unsent.clear()

    def digest(self) -> dict[str, Any] | None:
        """Return the size and SHA-256 of the lines that are on the disk; None without a folder."""
        if self._file is None:
            return None
        return {"size": self._size, "sha256": self._hash.hexdigest()}

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


def _terminal_bar() -> "Progress | None":
    """Return a progress bar; None where the output is not a terminal."""
    # rich draws from Python's random stream when it is imported, which the caller may have seeded.
    stream = random.getstate()
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    random.setstate(stream)
    console = Console()
    if not console.is_terminal:
        return None
    return Progress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def read_kept(file: Path, kept: Mapping[str, Any]) -> bytes:
    """Read the beginning of metrics.jsonl that a checkpoint has the digest of.

    Raises:
        DamagedError: It is missing or has changed.
    """
    fix = f"restore it from a copy, or begin a new run with --training.init_from {file.parent}"
    try:
        with open_file(file) as stream:
            content = stream.read(kept["size"])
    except FileNotFoundError:
        content = b""
    if len(content) < kept["size"]:
        raise DamagedError(
            f"{file} must have at least {kept['size']} bytes, which were saved, "
            f"got {len(content)}; {fix}"
        )
    if hashlib.sha256(content).hexdigest() != kept["sha256"]:
        raise DamagedError(f"{file} has changed since it was saved: its SHA-256 differs; {fix}")
    return content


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON lacks, by "nan" and "inf"."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
