"""OperandTask: one integer computed from operands between operators.

Operands have from `min_digits` to `max_digits` digits in the input base. For each operand every
number of digits is equally likely, so that short operands are as frequent as long ones. Splits and
`exact` are those of `NumberTask`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from thinkers.checks import check_int
from thinkers.prng import Draws
from thinkers.tasks import bigint
from thinkers.tasks.number_prompts import PromptReader
from thinkers.tasks.number_task import NumberTask, Questions, TokenBlocks
from thinkers.tasks.number_tokens import DIGITS, NEGATIVE, PLUS, UPPER

LONGEST = 1000


class OperandTask(NumberTask):
    """Compute one integer from operands between operators; a sign precedes a negative answer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(NumberTask.Config):
        min_digits: int = 1
        """Fewest digits of an operand, without leading zeros; 0 has one digit."""
        max_digits: int = 3

        def __post_init__(self) -> None:
            super().__post_init__()
            check_int("min_digits", self.min_digits, 1, LONGEST)
            check_int("max_digits", self.max_digits, self.min_digits, LONGEST)

        @property
        def sizes(self) -> range:
            return range(self.min_digits, self.max_digits + 1)

    config: Config
    operator = PLUS
    num_operands = 2
    is_chain: ClassVar[bool] = False
    """True if a prompt may have more than one operator."""

    @abstractmethod
    def compute(self, operands: list[np.ndarray], operators: np.ndarray, limbs: int) -> np.ndarray:
        """Return the results, as limbs (see `bigint`), of operands that are at least 0."""

    @abstractmethod
    def bounds(self, least: int, most: int) -> tuple[int, int]:
        """Return bounds of the result of operands from `least` to `most`."""

    def draw(self, draws: Draws, size: int) -> Questions:
        in_base, out_base = self.draw_bases(draws)
        operands = [self.draw_operand(draws, in_base, size) for _ in range(self.num_operands)]
        digits = np.stack(operands, axis=1)
        choices = np.zeros((len(draws), 0), np.int64)
        return Questions(in_base, out_base, digits, choices, in_base > 0)

    def draw_operand(
        self, draws: Draws, base: Int64[np.ndarray, " n"], size: int, most: int | None = None
    ) -> Int64[np.ndarray, "n w"]:
        """Return the digits of numbers of up to `size` digits, -1 beyond their own.

        Args:
            most: The most digits of this operand, if it may have fewer than others.
        """
        # Short numbers take as many draws as long ones: every row must use the same counters of its
        # stream, for any earlier draws.
        longest = size if most is None else min(size, most)
        shortest = min(self.config.min_digits, longest)
        lengths = shortest + draws.below(longest - shortest + 1, 1)
        digits = draws.below(base, size)
        leading = 1 + draws.below(base - 1, 1)
        places = np.arange(size)
        digits = np.where((places == lengths - 1) & (places > 0), leading, digits)
        digits[places >= lengths] = -1
        return digits

    def prompt_tokens(self, questions: Questions) -> TokenBlocks:
        count = questions.digits.shape[1]
        operator = np.full((len(questions.in_base), 1), self.operator)
        prompt = [self.with_blanks(questions.digits[:, 0])]
        for i in range(1, count):
            prompt += [operator, self.with_blanks(questions.digits[:, i])]
        return prompt

    def answer_tokens(self, questions: Questions) -> TokenBlocks:
        size = questions.digits.shape[2]
        low, high = self._bounds(size, self.config.max_in_base)
        limbs = bigint.num_limbs(max(-low, high))
        base = questions.in_base
        count = questions.digits.shape[1]
        operands = [bigint.from_digits(questions.digits[:, i], base, limbs) for i in range(count)]
        result = self.compute(operands, questions.choices, limbs)
        width = bigint.num_digits(max(-low, high), self.config.min_out_base)
        if low >= 0:
            return [bigint.to_digits(result, questions.out_base, width)]
        size_of, negative = bigint.magnitude(result)
        sign = np.where(negative > 0, NEGATIVE, -1)[:, None]
        return [sign, bigint.to_digits(size_of, questions.out_base, width)]

    @property
    def operators(self) -> str:
        """The operators that a prompt may have."""
        return self.text_symbols.replace("=", "")

    def with_end(self, text: str) -> str:
        digits = DIGITS[: self.config.max_in_base]
        whole = text.rstrip().translate(UPPER)[-1:]
        return f"{text}=" if whole and whole in digits and "=" not in text else text

    def read_question(self, reader: PromptReader) -> int:
        operands = [reader.number(following=self.operators)]
        following = self.operators + "=" if self.is_chain else "="
        while len(operands) < 2 or reader.next() != "=":
            reader.take(self.operators)
            operands.append(reader.number(following=following))
        base, digits = reader.in_base, [len(operand) for operand in operands]
        least = base ** (min(digits) - 1) if min(digits) > 1 else 0
        bounds = self.bounds_of_chain(least, base ** max(digits) - 1, len(operands) - 1)
        return _width(*bounds, reader.out_base)

    def read_answer(self, reader: PromptReader) -> None:
        if "-" in self.operators and reader.next() == "-":
            reader.take("-")
        reader.digits_of_answer()

    def bounds_of_chain(self, least: int, most: int, num_operators: int) -> tuple[int, int]:
        """Return the `bounds` of a prompt with this number of operators."""
        return self.bounds(least, most)

    def prompt_width(self, size: int) -> int:
        return self.num_operands * (size + 1) - 1

    def answer_width(self, size: int) -> int:
        low, high = self._bounds(size, self.config.max_in_base)
        return _width(low, high, self.config.min_out_base)

    def _bounds(self, size: int, base: int) -> tuple[int, int]:
        shortest = self.config.min_digits
        smallest_base = self.config.min_in_base
        least = smallest_base ** (shortest - 1) if shortest > 1 else 0
        return self.bounds(least, base**size - 1)

    def num_operand_values(self, size: int, base: int) -> int:
        """Return the number of operands of up to `size` digits."""
        shortest = min(self.config.min_digits, size)
        return base**size - (base ** (shortest - 1) if shortest > 1 else 0)

    def num_questions(self, size: int, base: int) -> int:
        count = self.num_operand_values(size, base)
        return count * (count + 1) // 2 if self.commutative else count**2


def _width(low: int, high: int, base: int) -> int:
    """Return the most characters of a number from `low` to `high`, its sign included."""
    negative = 1 + bigint.num_digits(-low, base) if low < 0 else 0
    return max(bigint.num_digits(high, base), negative)
