"""Parser of the prompts of number tasks; errors name the position of the wrong character.

    prompt = [base ">" base ":"] question "=" [beginning of the answer]

The tasks read their own questions and answers. Spaces are allowed everywhere except inside a
number.
"""

from typing import Any

from thinkers.errors import UsageError
from thinkers.tasks.number_tokens import DIGITS, UPPER, read_bases, without_spaces, wrong_character


class PromptReader:
    """Parser of a prompt from left to right, beginning after its bases.

    Args:
        config: The Config of a number task.
        missing: The end of the prompt if it was not typed; errors show what was typed.
    """

    def __init__(self, text: str, config: Any, missing: str = ""):
        self.text = text
        written, self._places = without_spaces(text)
        self.at, self.in_base, self.out_base = 0, config.max_in_base, config.max_out_base
        if config.bases_written:
            self.at, self.in_base, self.out_base = read_bases(
                written, config.in_bases, config.out_bases
            )
        self._written = written.translate(UPPER) + missing
        self._blanks = config.blanks

    def next(self) -> str:
        """Return the next character without taking it; empty at the end."""
        return self._written[self.at : self.at + 1]

    def take(self, allowed: str) -> str:
        """Take the next character, which must be one of `allowed`."""
        found = self.next()
        if not found or found not in allowed:
            raise self.refusal(allowed)
        self.at += 1
        return found

    def number(self, most: int | None = None, following: str = "=") -> str:
        """Take a number of the input base without leading zeros, and return its digits.

        Args:
            most: The most digits that it may have; None for any number.
            following: The characters that may follow it.
        """
        self._take_blanks()
        found = self.take(DIGITS[: self.in_base])
        digits = DIGITS[: self.in_base] if found != "0" else ""
        while self.next() and self.next() in digits and (most is None or len(found) < most):
            found += self.take(digits)
        if self.next() not in following or not self.next():
            raise self.refusal((digits if most is None or len(found) < most else "") + following)
        return found

    def sequence(self, following: str = "=") -> str:
        """Take a sequence of one digit or more of the input base, and return it."""
        digits = DIGITS[: self.in_base]
        found = self.take(digits)
        while self.next() and self.next() in digits:
            found += self.take(digits)
        self._take_blanks()
        if self.next() not in following or not self.next():
            raise self.refusal(digits + following)
        return found

    def digits_of_answer(self) -> int:
        """Take digits of the output base, possibly none; return their number."""
        first = self.at
        while self.next() and self.next() in DIGITS[: self.out_base]:
            self.take(DIGITS)
        return self.at - first

    def end(self) -> None:
        """Raise UsageError if text is left."""
        if self.next():
            raise self.refusal(DIGITS[: self.out_base])

    def written(self, first: int, blanks: bool = False) -> str:
        """Return the characters taken from index `first` on, without blanks unless asked for."""
        taken = self._written[first : self.at]
        return taken if blanks else taken.replace("_", "")

    def refusal(self, allowed: str, at: int | None = None) -> UsageError:
        """Build the error about the character at `at`, by default the next one."""
        at = self.at if at is None else at
        position = self._places[at] if at < len(self._places) else len(self.text)
        return wrong_character(self.text, position, allowed)

    def _take_blanks(self) -> None:
        while self._blanks and self.next() == "_":
            self.at += 1
