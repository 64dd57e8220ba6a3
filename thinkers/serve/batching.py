"""A thread that owns the model, and runs waiting rows in batches.

All rows wait in one line. A batch is the first of them and those behind it that can share a batch
with it, in their order, at most `most_rows`. Rows leave a batch when they end, or when nobody waits
for them any more. While others wait, a batch is broken off

- after `turn` tokens: its rows go to the end of the line, so that a text delays others by at most
  `turn` tokens at a time, however long it is;
- earlier, once as many rows could join as are left in it: these and those then run together, and
  no more rows are read again than are read for the first time.

Rows of a batch that was broken off are read again, prompt and what was written, when they are next.
What is written does not depend on that, since a cache gives the logits of the whole row. Rows never
join a running batch: the caches of models are made for rows that begin together.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, Protocol

from thinkers.errors import ResourceError, describe
from thinkers.serve.rows import Row
from thinkers.terminal import show

MOST_ROWS, TURN = 32, 64


class Stopping(ResourceError):
    """The server stops before a row has ended, or takes no more."""


class ModelError(Exception):
    """An error of the model for this row."""


class Engine(Protocol):
    """A maker of batches, for rows of one kind: texts, or questions."""

    def key(self, row: Any) -> Hashable:
        """Return a value that is equal for rows which may share a batch."""

    def run(self, rows: Any) -> Generator[None, None, None]:
        """Run a batch, a token of each row at a time, while its rows are not gone.

        Whatever it holds is freed when it is closed; rows that are not gone can be run again.
        """


class Scheduler:
    """The line of waiting rows, and the thread that runs them: see the module.

    Args:
        most_rows: Rows of a batch.
        turn: Tokens after which a batch is broken off if others wait.
        log: Called with the line and the traceback of each error of the model.
    """

    def __init__(
        self,
        engine: Engine,
        most_rows: int = MOST_ROWS,
        turn: int = TURN,
        log: Callable[[str, str], None] | None = None,
    ):
        self.engine, self.most_rows, self.turn = engine, most_rows, turn
        self._log = log or (lambda line, trace: show(line))
        self._waiting: deque[Row] = deque()
        self._running: Sequence[Row] = ()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._deadline = float("inf")
        # A thread that is stuck in the model must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        """Put rows at the end of the line.

        Raises:
            Stopping: The server stops.
        """
        with self._changed:
            if self._is_stopping:
                raise Stopping("the server is stopping")
            self._waiting.extend(rows)
            self._changed.notify()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Let rows leave: those that wait now, those of a batch before its next token."""
        with self._changed:
            for row in rows:
                row.cancelled = True
            self._waiting = deque(row for row in self._waiting if not row.cancelled)

    def counts(self) -> tuple[int, int]:
        """Return the numbers of rows that run and that wait."""
        with self._changed:
            running = sum(not row.is_gone for row in self._running)
            return running, len(self._waiting)

    def stop(self, seconds: float) -> None:
        """Take no more rows; those that have not ended after `seconds` end by `Stopping`."""
        with self._changed:
            self._is_stopping = True
            self._deadline = min(self._deadline, time.monotonic() + seconds)
            self._changed.notify()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end after `stop`; return True if it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Return True while rows are taken and run."""
        return self._thread.is_alive() and not self._is_stopping

    # In the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._run_next():
                pass
        finally:
            # After an error of this file, too, nobody must wait for ever.
            with self._changed:
                self._is_stopping = True
            self._end_all(self._running)

    def _run_next(self) -> bool:
        """Wait for rows, and run a batch of them; return False once the server has stopped."""
        rows = self._next()
        if rows:
            left = self._run(rows)
            with self._changed:
                self._running = ()
                self._waiting.extend(row for row in left if not row.is_gone)
        return bool(rows)

    def _next(self) -> list[Row]:
        with self._changed:
            while not self._waiting:
                if self._is_stopping:
                    return []
                self._changed.wait()
            first = self._waiting[0]
            alike = [row for row in self._waiting if self._may_share(row, first)]
            rows = [first] if first.alone else alike[: self.most_rows]
            taken = set(map(id, rows))
            self._waiting = deque(row for row in self._waiting if id(row) not in taken)
            self._running = rows
            return rows

    def _may_share(self, row: Row, other: Row) -> bool:
        return not row.alone and self.engine.key(row) == self.engine.key(other)

    def _run(self, rows: list[Row]) -> Sequence[Row]:
        """Run a batch until its rows have left, or it is broken off; return those that have not."""
        batch = self.engine.run(rows)
        try:
            for written, _ in enumerate(batch, 1):
                if time.monotonic() >= self._deadline:
                    self._end_all(rows)
                elif self._must_break([row for row in rows if not row.is_gone], written):
                    break
        except BaseException as error:  # a model may raise SystemExit, which would end the thread
            self._failed([row for row in rows if not row.is_gone], error)
            return ()
        finally:
            batch.close()
        return rows

    def _must_break(self, rows: Sequence[Row], written: int) -> bool:
        """Return True if a batch is broken off: see the module.

        Args:
            rows: Its rows that are left.
            written: The tokens of each that it wrote.
        """
        with self._changed:
            if not rows or not self._waiting:
                return False
            if written >= self.turn:
                return True
            room = self.most_rows - len(rows)
            if rows[0].alone or room < len(rows):
                return False
            joining = sum(self._may_share(row, rows[0]) for row in self._waiting)
            return min(room, joining) >= len(rows)

    def _end_all(self, rows: Sequence[Row]) -> None:
        with self._changed:
            ending, self._waiting = [*rows, *self._waiting], deque()
        for row in ending:
            if not row.is_gone:
                row.fail(Stopping("the server stopped before the answer was complete"))

    def _failed(self, rows: Sequence[Row], error: BaseException) -> None:
        """Let the rows of a batch that failed run again, each by itself; a row by itself fails."""
        shown = f"error of the model: {type(error).__name__} {describe(error)}"
        trace = "".join(traceback.format_exception(error))
        if len(rows) == 1:
            self._log(shown, trace)
            rows[0].fail(ModelError(type(error).__name__))
            return
        self._log(f"{shown}; its {len(rows)} rows are run again one by one", trace)
        with self._changed:
            for row in rows:
                row.alone = True
            self._waiting.extendleft(reversed(rows))
