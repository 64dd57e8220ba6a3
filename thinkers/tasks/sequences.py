"""Tasks that write a sequence down again, changed: each element is a digit of the input base.

An element of an answer is written in the output base, most significant digit first, with as many
digits as the largest element needs. So in equal bases an answer is as long as its sequence.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from thinkers.checks import check_int
from thinkers.prng import Draws
from thinkers.tasks.bigint import num_digits
from thinkers.tasks.number_task import Fields, NumberTask, Questions
from thinkers.tasks.number_tokens import COMMA

LONGEST = 1000


class SequenceTask(NumberTask):
    """A sequence is given; another of the same length is the answer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(NumberTask.Config):
        min_length: int = 1
        """Every length is equally likely, whatever the number of its sequences."""
        max_length: int = 10

        def __post_init__(self) -> None:
            super().__post_init__()
            check_int("min_length", self.min_length, 1, LONGEST)
            check_int("max_length", self.max_length, self.min_length, LONGEST)

        @property
        def sizes(self) -> range:
            return range(self.min_length, self.max_length + 1)

    config: Config
    are_numbers = False

    @abstractmethod
    def change(
        self,
        elements: Int64[np.ndarray, "n w"],
        lengths: Int64[np.ndarray, "n 1"],
        base: Int64[np.ndarray, "n 1"],
        amount: Int64[np.ndarray, "n 1"],
    ) -> Int64[np.ndarray, "n w"]:
        """The answers; elements are 0 beyond the lengths, and answers may be anything there."""

    def draw(self, draws: Draws, size: int) -> Questions:
        in_base, out_base = self.draw_bases(draws)
        shortest = self.config.min_length
        lengths = shortest + draws.below(size - shortest + 1, 1)
        elements = draws.below(self.num_elements(lengths[:, 0], in_base), size)
        elements[np.arange(size) >= lengths] = -1
        marks = self.draw_amount(draws, lengths[:, 0], in_base)
        return Questions(in_base, out_base, elements[:, None], marks, lengths[:, 0] > 0)

    def num_elements(
        self, length: Int64[np.ndarray, " n"], base: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """Below what the elements of a sequence are."""
        return base

    def draw_amount(
        self, draws: Draws, length: Int64[np.ndarray, " n"], base: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, "n m"]:
        """What is asked beside the sequence: nothing, or by how much."""
        return np.zeros((len(draws), 0), np.int64)

    def ask(self, questions: Questions) -> Fields:
        return [self.padded(questions.digits[:, 0])]

    def solve(self, questions: Questions) -> Fields:
        elements = questions.digits[:, 0]
        given = elements >= 0
        lengths, base = given.sum(1, keepdims=True), questions.in_base[:, None]
        answers = self.change(np.where(given, elements, 0), lengths, base, questions.marks)
        answers = np.where(given, answers, -1)
        if self.answer_width(1) == 1:
            return [answers]
        return [_spell(answers, questions.in_base, questions.out_base)]

    def prompt_width(self, size: int) -> int:
        return size

    def answer_width(self, size: int) -> int:
        return size * num_digits(self.config.max_in_base - 1, self.config.min_out_base)

    def num_questions(self, size: int, base: int) -> int:
        return sum(base**length for length in range(self.config.min_length, size + 1))


class AmountTask(SequenceTask):
    """After a comma the sequence is followed by one digit, below the base and the length."""

    marks = ",="

    def draw_amount(
        self, draws: Draws, length: Int64[np.ndarray, " n"], base: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, "n m"]:
        return draws.below(np.minimum(length, base), 1)

    def ask(self, questions: Questions) -> Fields:
        comma = np.full_like(questions.marks, COMMA)
        return [*super().ask(questions), comma, questions.marks]

    def prompt_width(self, size: int) -> int:
        return size + 2

    def num_questions(self, size: int, base: int) -> int:
        lengths = range(self.config.min_length, size + 1)
        return sum(base**length * min(length, base) for length in lengths)


class Copy(SequenceTask):
    """The same sequence: `314=314`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceTask.Config):
        pass

    def change(self, elements, lengths, base, amount):
        return elements


class Reverse(SequenceTask):
    """The sequence from its end: `314=413`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceTask.Config):
        pass

    def change(self, elements, lengths, base, amount):
        return _take(elements, lengths - 1 - np.arange(elements.shape[1]))


class Sort(SequenceTask):
    """The elements in ascending order: `314=134`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceTask.Config):
        pass

    def change(self, elements, lengths, base, amount):
        beyond = np.arange(elements.shape[1]) >= lengths
        return np.sort(np.where(beyond, base, elements), axis=1)


class Rotate(AmountTask):
    """The sequence moved to the left, what falls out returning at its end: `3141,2=4131`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AmountTask.Config):
        pass

    def change(self, elements, lengths, base, amount):
        return _take(elements, (np.arange(elements.shape[1]) + amount) % lengths)


class Shift(AmountTask):
    """The sequence moved to the left, zeros coming in at its end: `3141,2=4100`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AmountTask.Config):
        pass

    def change(self, elements, lengths, base, amount):
        places = np.arange(elements.shape[1]) + amount
        return np.where(places < lengths, _take(elements, places), 0)


class Jump(SequenceTask):
    """Each element names a place, counted from 0; the answer is what stands there: `2010=1020`.

    With more hops what stands there names the next place, and so on. Elements are below the length.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceTask.Config):
        min_length: int = 2
        num_hops: int = 1
        """How many pointers are followed from each element."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_int("num_hops", self.num_hops, 1, LONGEST)

    config: Config

    def num_elements(
        self, length: Int64[np.ndarray, " n"], base: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        return np.minimum(length, base)

    def change(self, elements, lengths, base, amount):
        reached = elements
        for _ in range(self.config.num_hops):
            reached = _take(elements, reached)
        return reached

    def num_questions(self, size: int, base: int) -> int:
        lengths = range(self.config.min_length, size + 1)
        return sum(min(length, base) ** length for length in lengths)


class RunningSum(SequenceTask):
    """The sum of each element and all before it, modulo the input base: `314=348`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SequenceTask.Config):
        pass

    def change(self, elements, lengths, base, amount):
        return np.cumsum(elements, axis=1) % base


def _take(
    elements: Int64[np.ndarray, "n w"], places: Int64[np.ndarray, "n w"]
) -> Int64[np.ndarray, "n w"]:
    return np.take_along_axis(elements, places.clip(0, elements.shape[1] - 1), axis=1)


def _spell(
    elements: Int64[np.ndarray, "n w"],
    in_base: Int64[np.ndarray, " n"],
    out_base: Int64[np.ndarray, " n"],
) -> Int64[np.ndarray, "n _"]:
    """Each element in the output base, as wide as in_base - 1 needs; -1 stays -1."""
    digits, left, largest = [], elements, in_base - 1
    while largest.any():
        written = (largest > 0)[:, None] & (elements >= 0)
        digits.append(np.where(written, left % out_base[:, None], -1))
        left, largest = left // out_base[:, None], largest // out_base
    return np.stack(digits[::-1], axis=2).reshape(len(elements), -1)
