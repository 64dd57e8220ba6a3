"""Tasks on sequences: copy, reverse, sort, rotate, shift, jump, running_sum.

Each element is one digit of the input base. An element of the answer is written in the output base,
most significant digit first, with as many digits as the largest element needs; in equal bases an
answer is as long as its sequence. Splits and `exact` are those of `NumberTask`.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from thinkers.checks import check_int
from thinkers.prng import Draws
from thinkers.tasks.bigint import num_digits
from thinkers.tasks.number_prompts import PromptReader
from thinkers.tasks.number_task import NumberTask, Questions, TokenBlocks
from thinkers.tasks.number_tokens import COMMA, DIGITS

LONGEST = 1000


class SequenceTask(NumberTask):
    """Map a sequence to another of the same length."""

    @dataclass(frozen=True, kw_only=True)
    class Config(NumberTask.Config):
        min_length: int = 1
        """Every length is equally likely, although there are more of the longer sequences."""
        max_length: int = 10

        def __post_init__(self) -> None:
            super().__post_init__()
            check_int("min_length", self.min_length, 1, LONGEST)
            check_int("max_length", self.max_length, self.min_length, LONGEST)

        @property
        def sizes(self) -> range:
            return range(self.min_length, self.max_length + 1)

    config: Config
    least_significant_first = False

    @abstractmethod
    def transform(
        self,
        elements: Int64[np.ndarray, "n w"],
        lengths: Int64[np.ndarray, "n 1"],
        base: Int64[np.ndarray, "n 1"],
        amount: Int64[np.ndarray, "n 1"],
    ) -> Int64[np.ndarray, "n w"]:
        """Return the answers of these sequences.

        Elements beyond the lengths are 0; answers beyond them are ignored.
        """

    def draw(self, draws: Draws, size: int) -> Questions:
        in_base, out_base = self.draw_bases(draws)
        shortest = self.config.min_length
        lengths = shortest + draws.below(size - shortest + 1, 1)
        elements = draws.below(self.element_bound(lengths[:, 0], in_base), size)
        elements[np.arange(size) >= lengths] = -1
        choices = self.draw_amount(draws, lengths[:, 0], in_base)
        return Questions(in_base, out_base, elements[:, None], choices, lengths[:, 0] > 0)

    def element_bound(
        self, length: Int64[np.ndarray, " n"], base: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """Return the bound below which the elements of each sequence are drawn."""
        return base

    def draw_amount(
        self, draws: Draws, length: Int64[np.ndarray, " n"], base: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, "n m"]:
        """Return the amount that follows each sequence, here none (m = 0)."""
        return np.zeros((len(draws), 0), np.int64)

    def prompt_tokens(self, questions: Questions) -> TokenBlocks:
        return [self.with_blanks(questions.digits[:, 0])]

    def answer_tokens(self, questions: Questions) -> TokenBlocks:
        elements = questions.digits[:, 0]
        given = elements >= 0
        lengths, base = given.sum(1, keepdims=True), questions.in_base[:, None]
        answers = self.transform(np.where(given, elements, 0), lengths, base, questions.choices)
        answers = np.where(given, answers, -1)
        if self.answer_width(1) == 1:
            return [answers]
        return [_to_digits(answers, questions.in_base, questions.out_base)]

    def read_question(self, reader: PromptReader) -> int:
        return len(reader.sequence()) * num_digits(reader.in_base - 1, reader.out_base)

    def read_answer(self, reader: PromptReader) -> None:
        reader.digits_of_answer()

    def prompt_width(self, size: int) -> int:
        return size

    def answer_width(self, size: int) -> int:
        return size * num_digits(self.config.max_in_base - 1, self.config.min_out_base)

    def num_questions(self, size: int, base: int) -> int:
        return sum(base**length for length in range(self.config.min_length, size + 1))


class AmountTask(SequenceTask):
    """Sequence task with an amount: after a comma comes one digit, below base and length."""

    text_symbols = ",="

    def draw_amount(
        self, draws: Draws, length: Int64[np.ndarray, " n"], base: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, "n m"]:
        return draws.below(np.minimum(length, base), 1)

    def prompt_tokens(self, questions: Questions) -> TokenBlocks:
        comma = np.full_like(questions.choices, COMMA)
        return [*super().prompt_tokens(questions), comma, questions.choices]

    def read_question(self, reader: PromptReader) -> int:
        elements = reader.sequence(following=",")
        reader.take(",")
        reader.take(DIGITS[: min(len(elements), reader.in_base)])
        return len(elements) * num_digits(reader.in_base - 1, reader.out_base)

    def prompt_width(self, size: int) -> int:
        return size + 2

    def num_questions(self, size: int, base: int) -> int:
        lengths = range(self.config.min_length, size + 1)
        return sum(base**length * min(length, base) for length in lengths)


class Copy(SequenceTask):
    """Copy the sequence: `314=314`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceTask.Config):
        pass

    def transform(self, elements, lengths, base, amount):
        return elements


class Reverse(SequenceTask):
    """Reverse the sequence: `314=413`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceTask.Config):
        pass

    def transform(self, elements, lengths, base, amount):
        return _gather(elements, lengths - 1 - np.arange(elements.shape[1]))


class Sort(SequenceTask):
    """Sort the elements in ascending order: `314=134`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceTask.Config):
        pass

    def transform(self, elements, lengths, base, amount):
        beyond = np.arange(elements.shape[1]) >= lengths
        # The base is above all elements, so that columns after a sequence are sorted behind it.
        return np.sort(np.where(beyond, base, elements), axis=1)


class Rotate(AmountTask):
    """Rotate the sequence to the left by an amount: `3141,2=4131`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AmountTask.Config):
        pass

    def transform(self, elements, lengths, base, amount):
        return _gather(elements, (np.arange(elements.shape[1]) + amount) % lengths)


class Shift(AmountTask):
    """Shift the sequence to the left by an amount, zeros entering at its end: `3141,2=4100`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AmountTask.Config):
        pass

    def transform(self, elements, lengths, base, amount):
        places = np.arange(elements.shape[1]) + amount
        return np.where(places < lengths, _gather(elements, places), 0)


class Jump(SequenceTask):
    """Follow pointers: each element is an index, replaced by the element there: `2010=1202`.

    With `num_hops` above 1 the element found is the next index, and so on. All elements are below
    the length.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceTask.Config):
        min_length: int = 2
        num_hops: int = 1
        """Number of pointers followed from each element, the element itself included."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_int("num_hops", self.num_hops, 1, LONGEST)

    config: Config

    def element_bound(
        self, length: Int64[np.ndarray, " n"], base: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        return np.minimum(length, base)

    def read_question(self, reader: PromptReader) -> int:
        first = reader.at
        width = super().read_question(reader)
        elements = reader.written(first)
        allowed = DIGITS[: min(len(elements), reader.in_base)]
        for place, element in enumerate(elements, first):
            if element not in allowed:
                raise reader.refusal(allowed, at=place)
        return width

    def transform(self, elements, lengths, base, amount):
        reached = elements
        for _ in range(self.config.num_hops):
            reached = _gather(elements, reached)
        return reached

    def num_questions(self, size: int, base: int) -> int:
        lengths = range(self.config.min_length, size + 1)
        return sum(min(length, base) ** length for length in lengths)


class RunningSum(SequenceTask):
    """Replace each element by the sum of it and all before, modulo the input base: `314=348`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceTask.Config):
        pass

    def transform(self, elements, lengths, base, amount):
        return np.cumsum(elements, axis=1) % base


def _gather(
    elements: Int64[np.ndarray, "n w"], places: Int64[np.ndarray, "n w"]
) -> Int64[np.ndarray, "n w"]:
    return np.take_along_axis(elements, places.clip(0, elements.shape[1] - 1), axis=1)


def _to_digits(
    elements: Int64[np.ndarray, "n w"],
    in_base: Int64[np.ndarray, " n"],
    out_base: Int64[np.ndarray, " n"],
) -> Int64[np.ndarray, "n _"]:
    """Return the digits of each element in the output base, as many as in_base - 1 needs.

    The element -1, none, has digits -1.
    """
    # One digit of all elements at a time, least significant first, until no row's largest element
    # has any left; rows with fewer digits get -1 for the others.
    digits, left, largest = [], elements, in_base - 1
    while largest.any():
        written = (largest > 0)[:, None] & (elements >= 0)
        digits.append(np.where(written, left % out_base[:, None], -1))
        left, largest = left // out_base[:, None], largest // out_base
    return np.stack(digits[::-1], axis=2).reshape(len(elements), -1)
