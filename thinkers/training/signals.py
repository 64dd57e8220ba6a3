"""SIGINT and SIGTERM, turned into a flag that the training loop reads after each update."""

import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_WISH = 2.0
"""Seconds."""


class Stopped(BaseException):
    """A signal that came while nothing would be lost by leaving at once."""


class Signals:
    """While entered, the first signal is remembered in `number`; a second wish kills as usual.

    What follows within SAME_WISH is the first wish told again: a terminal and torchrun both tell it
    to the same process.
    """

    def __init__(self) -> None:
        self.number = 0
        self._came = 0.0
        self._breakable = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        try:
            self._before = {n: signal.signal(n, self._remember) for n in SIGNALS}
        except ValueError:
            pass  # not the main thread: whoever owns it decides about signals
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def came(self) -> list[bool]:
        """Whether each of SIGNALS came."""
        return [self.number == number for number in SIGNALS]

    @staticmethod
    def first_of(came: Sequence[float]) -> int:
        """The number of the first signal that any rank says came; 0 if none."""
        return next(
            (int(number) for number, votes in zip(SIGNALS, came, strict=True) if votes > 0), 0
        )

    def unless_stopped(self, work: Callable[[], T], allowed: bool = True) -> T | None:
        """What `work` returns, or None as soon as a signal comes; for work that can be done again.

        Args:
            allowed: If not, the work is finished whatever comes.
        """
        try:
            try:
                self._breakable = allowed
                return None if allowed and self.number else work()
            finally:
                self._breakable = False
        except Stopped:
            return None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._came = number, time.monotonic()
        elif time.monotonic() - self._came > SAME_WISH:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._breakable:
            raise Stopped
