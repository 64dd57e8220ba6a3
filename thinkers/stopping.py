"""SIGINT and SIGTERM, turned into a flag that the training loop reads after each update."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A signal that came while nothing would be lost by leaving at once."""


class Signals:
    """While entered, the first signal is remembered in `number`; a second one kills as usual."""

    def __init__(self) -> None:
        self.number = 0
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

    @contextmanager
    def leaving_at_once(self, allowed: bool = True) -> Iterator[None]:
        """End this block as soon as a signal comes; for work that can be done again."""
        try:
            self._breakable = allowed
            if not (allowed and self.number):
                yield
        except Stopped:
            pass
        finally:
            self._breakable = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)
        if self._breakable:
            raise Stopped
