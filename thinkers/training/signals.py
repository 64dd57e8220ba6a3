"""SIGINT and SIGTERM as stop requests, which the training loop reads after each update.

The loop then saves a checkpoint and raises `Interrupted`, with exit code 128 + signal. A signal
more than REPEAT_SECONDS after the first one kills the process at once.
"""

import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_SECONDS = 2.0
"""Signals within this time of the first one are ignored as its repetitions."""


class Stopped(BaseException):
    """A signal during work that can be abandoned without loss."""


class Signals:
    """While entered, turn the first signal into a stop request, kept in `number`.

    Signals within REPEAT_SECONDS of it are ignored: Ctrl-C at a terminal reaches a process twice,
    once from the terminal and once from torchrun. A later signal kills the process as usual.
    """

    def __init__(self) -> None:
        self.number = 0
        self._received_at = 0.0
        self._can_abandon = False
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        try:
            for number in SIGNALS:
                # A handler that is not Python's is None here, and could not be put back.
                if signal.getsignal(number) is not None:
                    self._handlers[number] = signal.signal(number, self._handle)
        except ValueError:
            pass  # only the main thread may set handlers; elsewhere they stay with its owner
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def received(self) -> list[bool]:
        """Return for each of SIGNALS True if it is the one received, else False."""
        return [self.number == number for number in SIGNALS]

    @staticmethod
    def first_received(votes: Sequence[float]) -> int:
        """Return the number of the first signal with a vote above 0; 0 if there is none.

        Args:
            votes: The sums of `received` over all ranks.
        """
        return next(
            (int(number) for number, vote in zip(SIGNALS, votes, strict=True) if vote > 0), 0
        )

    def unless_stopped(self, work: Callable[[], T], allowed: bool = True) -> T | None:
        """Return the result of `work`, or None as soon as a signal is received.

        Args:
            work: Work that can be abandoned at any point and done again.
            allowed: If False, finish the work in spite of signals.
        """
        try:
            try:
                self._can_abandon = allowed
                return None if allowed and self.number else work()
            finally:
                self._can_abandon = False
        except Stopped:
            # Outside the inner try: the handler may raise while `finally` is being executed.
            return None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._received_at = number, time.monotonic()
        elif time.monotonic() - self._received_at > REPEAT_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._can_abandon:
            raise Stopped
