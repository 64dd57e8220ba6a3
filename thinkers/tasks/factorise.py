"""Factorisation of integers that are small enough for tables of prime factors."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from thinkers.errors import UsageError
from thinkers.prng import Draws
from thinkers.tasks import bigint
from thinkers.tasks.number_prompts import PromptReader
from thinkers.tasks.number_task import Questions, TokenBlocks
from thinkers.tasks.number_tokens import POWER, TIMES
from thinkers.tasks.operand_task import OperandTask

LARGEST_FACTORISED = 1 << 20
"""Bound on the numbers to factorise, whose factors are kept in tables."""


class Factorise(OperandTask):
    """Factorise a number from 2 on: primes in ascending order, powers above 1: `360=2^3*3^2*5`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(OperandTask.Config):
        def __post_init__(self) -> None:
            super().__post_init__()
            if self.max_in_base**self.max_digits > LARGEST_FACTORISED:
                raise UsageError(
                    f"max_digits must keep numbers within {LARGEST_FACTORISED}, "
                    f"got {self.max_digits} in base {self.max_in_base}"
                )

    text_symbols = "*^="
    num_operands = 1

    def __init__(self, config: Config | None = None, seed: int = 0):
        given = self.Config() if config is None else config
        self._tables = _factor_tables(given.max_in_base**given.max_digits)
        super().__init__(config, seed)

    def draw(self, draws: Draws, size: int) -> Questions:
        questions = super().draw(draws, size)
        questions.valid = self._numbers(questions) > 1
        return questions

    def answer_tokens(self, questions: Questions) -> TokenBlocks:
        return self._factor_tokens(self._numbers(questions), questions.out_base)

    def compute(self, operands, operators, limbs):
        return operands[0]

    def bounds(self, least, most):
        return least, most

    def answer_width(self, size: int) -> int:
        # No formula gives the longest factorisation: that of every number is measured, one prime of
        # all numbers at a time. Digits are counted in the smallest base of answers.
        low, high = self._bounds(size, self.config.max_in_base)
        prime, power, rest = self._tables
        numbers = np.arange(max(2, low), high + 1)
        steps = self.config.min_out_base ** np.arange(1, LARGEST_FACTORISED.bit_length() + 1)
        count = 1 + np.searchsorted(steps[steps <= len(prime)], np.arange(len(prime)), "right")
        lengths = np.zeros_like(numbers)
        while (more := numbers > 1).any():
            powers = power[numbers]
            written = count[prime[numbers]] + (powers > 1) * (1 + count[powers])
            lengths += more * (written + (lengths > 0))
            numbers = rest[numbers]
        return int(lengths.max(initial=0))

    def read_question(self, reader: PromptReader) -> int:
        # The tables of factors end at the largest size, and so do prompts.
        sizes = self.config.sizes
        number = reader.number(most=sizes[-1])
        if number in ("0", "1"):
            raise UsageError(f"the number of {reader.text!r} must be at least 2, got {number}")
        return self._widths[max(len(number), sizes[0])][1] - 1

    def read_answer(self, reader: PromptReader) -> None:
        marks = "^*"
        while reader.digits_of_answer() and reader.next() and reader.next() in marks:
            marks = "*" if reader.take(marks) == "^" else "^*"

    def num_questions(self, size: int, base: int) -> int:
        count = self.num_operand_values(size, base)
        return max(0, count - 2 if self.config.min_digits == 1 else count)

    def _numbers(self, questions: Questions) -> Int64[np.ndarray, " n"]:
        return bigint.from_digits(questions.digits[:, 0], questions.in_base, limbs=1)[0]

    def _factor_tokens(
        self, numbers: Int64[np.ndarray, " n"], base: Int64[np.ndarray, " n"]
    ) -> TokenBlocks:
        prime, power, rest = self._tables
        width = bigint.num_digits(len(prime), self.config.min_out_base)
        digits = bigint.num_digits(20, self.config.min_out_base)
        parts: TokenBlocks = []
        while (numbers > 1).any():
            there = (numbers > 1)[:, None]
            powers = power[numbers][:, None]
            if parts:
                parts.append(np.where(there, TIMES, -1))
            parts += [
                np.where(there, bigint.to_digits(prime[numbers][None], base, width), -1),
                np.where(there & (powers > 1), POWER, -1),
                np.where(
                    there & (powers > 1), bigint.to_digits(power[numbers][None], base, digits), -1
                ),
            ]
            numbers = rest[numbers]
        return parts


def _factor_tables(bound: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each number below `bound` its least prime, its exponent, and the cofactor.

    A sieve of Eratosthenes that records the first prime to strike out a number.
    """
    numbers = np.arange(bound)
    prime = numbers.copy()
    for divisor in range(2, int(bound**0.5) + 1):
        if prime[divisor] == divisor:
            multiples = prime[divisor * divisor :: divisor]
            multiples[multiples == numbers[divisor * divisor :: divisor]] = divisor
    power, rest = np.ones_like(numbers), numbers // np.maximum(prime, 1)
    more = np.flatnonzero((rest % np.maximum(prime, 1) == 0) & (prime > 1))
    while len(more):
        power[more] += 1
        rest[more] //= prime[more]
        more = more[rest[more] % prime[more] == 0]
    return prime, power, rest
