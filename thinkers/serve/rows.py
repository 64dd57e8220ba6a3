"""Rows of a batch: one choice of a request each, and what happens to it."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Text that was written of a choice: whole characters, of which no stop text begins."""

    index: int
    text: str


@dataclass(frozen=True)
class Ended:
    """The end of a choice.

    Args:
        reason: "stop", or "length" if it was cut off.
        tokens: The number of tokens that were written.
        mean_steps: The thinking steps that these took, on average.
    """

    index: int
    reason: str
    tokens: int
    mean_steps: float


@dataclass(frozen=True)
class Failed:
    """The end of a choice by an error: of the model, or of a server that stops."""

    error: Exception


Event = Piece | Ended | Failed
Listener = Callable[[Event], None]
"""Called in the thread of the model, for each event of a row."""


class Row:
    """One row of a batch: what is asked, and whether it still is.

    Args:
        indices: The choices of the request that it is; they are equal.
        prompt_tokens: Tokens of its prompt, the start token left out.
        is_streamed: Send text as soon as it is written; otherwise, all of it at the end.
    """

    def __init__(
        self, indices: Sequence[int], prompt_tokens: int, listener: Listener, is_streamed: bool
    ):
        self.indices, self.prompt_tokens = indices, prompt_tokens
        self.ended = False
        self.cancelled = False
        """Set by another thread once nobody waits for the row: it leaves its batch."""
        self.alone = False
        """Set after a batch has failed: the rows of it are run again, each by itself."""
        self._listener, self._is_streamed = listener, is_streamed
        self._unsent: list[str] = []

    @property
    def is_gone(self) -> bool:
        """Return True if the row has left, or leaves, its batch."""
        return self.ended or self.cancelled

    def send(self, text: str) -> None:
        """Send text that was written, now or at the end."""
        if text:
            self._unsent.append(text)
            if self._is_streamed:
                self._send_unsent()

    def _send_unsent(self) -> None:
        text, self._unsent = "".join(self._unsent), []
        for index in self.indices if text else ():
            self._listener(Piece(index, text))

    def end(self, reason: str, tokens: int, mean_steps: float) -> None:
        """End the row."""
        self._send_unsent()
        self.ended = True
        for index in self.indices:
            self._listener(Ended(index, reason, tokens, mean_steps))

    def fail(self, error: Exception) -> None:
        """End the row by an error."""
        self.ended = True
        self._listener(Failed(error))


class StoppedText:
    """Text that ends before the first of some texts, given out as soon as it is certain.

    A character may be several tokens, and a stop text several characters: both are held back until
    they are complete.

    Args:
        token_bytes: The bytes of each token.
    """

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[str]):
        self.token_bytes, self.stops = token_bytes, stops
        self.is_stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, token: int) -> str:
        """Append a token; return the text that is now certain."""
        return self._cut(self._decoder.decode(self.token_bytes[token]))

    def end(self) -> str:
        """Return the text that was held back."""
        rest = self._cut(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return rest + held

    def _cut(self, text: str) -> str:
        if self.is_stopped:
            return ""
        text, self._held = self._held + text, ""
        before = before_stops(text, self.stops)
        if before != text:
            self.is_stopped = True
            return before
        begun = max((_overlap(text, stop) for stop in self.stops), default=0)
        text, self._held = text[: len(text) - begun], text[len(text) - begun :]
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest beginning of `stop` that `text` ends in."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def before_stops(text: str, stops: Sequence[str]) -> str:
    """Return a whole text up to the first of these texts."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))]
