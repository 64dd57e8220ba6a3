"""Tasks of exact integer arithmetic: add, subtract, multiply, arithmetic."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from thinkers.checks import added, check_int
from thinkers.errors import UsageError, usage_error
from thinkers.prng import Draws
from thinkers.tasks import bigint
from thinkers.tasks.calculator_task import CalculatorTask
from thinkers.tasks.intermediate_results import (
    MOST_OPERATORS,
    Place,
    Result,
    multiply_by_digits,
    places_of_chain,
    places_of_products,
    work_out_chain,
)
from thinkers.tasks.number_task import Questions, TokenBlocks
from thinkers.tasks.number_tokens import MINUS, PLUS, SYMBOL_TOKENS, TIMES
from thinkers.tasks.operand_task import LONGEST, OperandTask
from thinkers.tasks.padded_task import PaddedTask
from thinkers.tasks.tools import LONGEST_OPERAND
from thinkers.tasks.worked_task import WorkedTask

SHARES = 1 << 16
"""Resolution of `product_share` and `long_carries`."""


class Add(PaddedTask, OperandTask):
    """Add two numbers: `12+34=46`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PaddedTask.Config, OperandTask.Config):
        long_carries: float = added(0.0)
        """Share of the questions, held-out ones too, whose operands have equal lengths and whose
        carries go far: in half of them about 80 % of the pairs of digits add up to base - 1, in the
        others as many repeat the pair of the place below."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.long_carries <= 1:
                raise UsageError(f"long_carries must be in 0 .. 1, got {self.long_carries}")

    config: Config
    text_symbols = "+="
    commutative = True

    def draw(self, draws: Draws, size: int) -> Questions:
        questions, share = super().draw(draws, size), self.config.long_carries
        if share:
            carries = draws.below(SHARES, 1) < round(share * SHARES)
            pairs = self._long_carries(draws, questions)
            questions.digits = np.where(carries[:, :, None], pairs, questions.digits)
        return questions

    def _long_carries(self, draws: Draws, questions: Questions) -> Int64[np.ndarray, "n 2 w"]:
        """Return pairs of digits with long carries, of as many places as the first operand has."""
        base, first = questions.in_base[:, None], questions.digits[:, 0]
        places, exists = np.arange(first.shape[1]), first >= 0
        is_chained = draws.below(5, len(places)) < 4
        second, leading = draws.below(base[:, 0], len(places)), 1 + draws.below(base[:, 0] - 1, 2)
        repeats = draws.below(2, 1) == 1
        passing = np.where(is_chained, base - 1 - first, second)
        # The place that a repeated pair is taken from: the last one that repeats none.
        source = np.maximum.accumulate(np.where(is_chained, 0, places), axis=1)
        repeated = [np.take_along_axis(digits, source, 1) for digits in (first, second)]
        pairs = np.stack(
            [np.where(repeats, repeated[0], first), np.where(repeats, repeated[1], passing)], 1
        )
        is_leading = exists & ~np.pad(exists[:, 1:], ((0, 0), (0, 1))) & (places > 0)
        wrong = is_leading[:, None] & (pairs == 0)
        pairs = np.where(wrong, leading[:, :, None], pairs)
        return np.where(exists[:, None], pairs, -1)

    def answer_digits(self, digits: int) -> int:
        return digits + 1

    def compute(self, operands, operators, limbs):
        return bigint.carry(operands[0] + operands[1])

    def bounds(self, least, most):
        return 2 * least, 2 * most


class Subtract(OperandTask):
    """Subtract two numbers: `12-34=-22`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(OperandTask.Config):
        pass

    text_symbols = "-="
    operator = MINUS

    def compute(self, operands, operators, limbs):
        return bigint.carry(operands[0] - operands[1])

    def bounds(self, least, most):
        return least - most, most - least


class Multiply(WorkedTask, PaddedTask, OperandTask):
    """Multiply two numbers: `12*34=408`, or with the products of digits `12*34=48,36,408`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(WorkedTask.Config, PaddedTask.Config, OperandTask.Config):
        max_digits: int = 2
        second_digits: int | None = added(None)
        """The most digits of the second factor; None means as many as of the first."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.second_digits is not None:
                check_int("second_digits", self.second_digits, 1, LONGEST)
                if self.width is not None:
                    raise UsageError(
                        "second_digits must be None with width, which pads both factors alike, "
                        f"got {self.second_digits}"
                    )
            if self.coupled and (self.scratch or self.registers):
                raise UsageError(
                    "coupled must be False with scratch or registers, whose digits have places in "
                    f"several results, got {self.coupled}"
                )

    config: Config

    text_symbols = "*="
    operator = TIMES
    commutative = True

    def draw(self, draws: Draws, size: int) -> Questions:
        questions, most = super().draw(draws, size), self.config.second_digits
        if most is not None:
            second = self.draw_operand(draws, questions.in_base, size, most)
            questions.digits[:, 1] = second
        return questions

    def second_size(self, size: int) -> int:
        """Return the most digits of the second factor where the first has up to `size`."""
        most = self.config.second_digits
        return size if most is None else min(size, most)

    def prompt_width(self, size: int) -> int:
        return super().prompt_width(size) - size + self.second_size(size)

    def _bounds(self, size: int, base: int) -> tuple[int, int]:
        low, high = super()._bounds(size, base)
        if self.config.second_digits is None:
            return low, high
        return 0, (base**size - 1) * (base ** self.second_size(size) - 1)

    def num_questions(self, size: int, base: int) -> int:
        if self.config.second_digits is None:
            return super().num_questions(size, base)
        most = self.second_size(size)
        short = self.num_operand_values(most, base)
        # Pairs without order: two short factors are counted twice, once for each order.
        twice = short * (short - 1) // 2 if self.config.min_digits <= most else 0
        return self.num_operand_values(size, base) * short - twice

    def compute(self, operands, operators, limbs):
        return bigint.multiply(*operands, limbs)

    def answer_digits(self, digits: int) -> int:
        return 2 * digits

    def places(self, size: int) -> list[Place]:
        return places_of_products("p", size, size, 1, self.config.max_in_base)

    def results(self, questions: Questions) -> list[Result]:
        base, digits = self.config.max_in_base, questions.digits
        limbs = bigint.num_limbs(base ** digits.shape[2])
        number = bigint.from_digits(digits[:, 0], questions.in_base, limbs)
        needed = np.ones(len(digits), bool)
        return multiply_by_digits(number, digits[:, 1], needed, self.largest_places, base)

    def bounds(self, least, most):
        return least**2, most**2


class Arithmetic(CalculatorTask):
    """Evaluate a chain of + - *, products first: `12-3*45=-123`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(CalculatorTask.Config):
        max_digits: int = 2
        min_operators: int = 1
        """Every number of operators is equally likely, and so is each operator."""
        max_operators: int = 2
        operators: str = "+-*"
        product_share: float | None = added(None)
        """Probability that an operator of a training row is *; None: as the others. The operators
        of held-out rows are always equally likely."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_int("min_operators", self.min_operators, 1, 100)
            check_int("max_operators", self.max_operators, self.min_operators, 100)
            given = set(self.operators)
            if not given or not given <= set("+-*") or len(given) < len(self.operators):
                raise UsageError(f"operators must be some of +-*, got {self.operators!r}")
            share = self.product_share
            if share is not None and not (0 < share < 1 and "*" in given and len(given) > 1):
                raise UsageError(
                    "product_share must be above 0 and below 1, and operators must be * and "
                    f"others, got {share} and {self.operators!r}"
                )
            if self.calculator and "*" not in given:
                raise UsageError(
                    "operators must have * with calculator, which computes products, got "
                    f"{self.operators!r}"
                )
            if self.calculator and self.max_digits * (self.max_operators + 1) > LONGEST_OPERAND:
                raise UsageError(
                    "max_digits of all operands together must be at most "
                    f"{LONGEST_OPERAND} with calculator, got {self.max_digits} of "
                    f"{self.max_operators + 1} operands"
                )
            worked = self.scratch or self.registers
            if worked and self.max_operators > MOST_OPERATORS:
                raise usage_error(
                    f"max_operators {self.max_operators} with "
                    f"{'scratch' if self.scratch else 'registers'}",
                    f"at most {MOST_OPERATORS}",
                    "leave intermediate results out of longer chains",
                )

    config: Config
    text_symbols = "+-*="
    is_chain = True

    @property
    def num_operands(self) -> int:  # type: ignore[override]
        return self.config.max_operators + 1

    @property
    def operators(self) -> str:
        return self.config.operators

    def draw(self, draws: Draws, size: int) -> Questions:
        questions = super().draw(draws, size)
        config = self.config
        choices = config.max_operators - config.min_operators + 1
        beyond = np.arange(config.max_operators) >= config.min_operators + draws.below(choices, 1)
        tokens = np.array([SYMBOL_TOKENS[operator] for operator in config.operators])
        operators = tokens[draws.below(len(tokens), config.max_operators)]
        questions.choices = np.where(beyond, -1, operators)
        questions.digits[:, 1:][beyond] = -1
        return questions

    def draw_training(self, draws: Draws, size: int) -> Questions:
        questions, share = self.draw(draws, size), self.config.product_share
        if share is None:
            return questions
        others = [SYMBOL_TOKENS[x] for x in self.config.operators if x != "*"]
        count = self.config.max_operators
        is_product = draws.below(SHARES, count) < round(share * SHARES)
        other = np.array(others)[draws.below(len(others), count)]
        operators = np.where(is_product, TIMES, other)
        questions.choices = np.where(questions.choices < 0, -1, operators)
        return questions

    def prompt_tokens(self, questions: Questions) -> TokenBlocks:
        prompt = [self.with_blanks(questions.digits[:, 0])]
        for i in range(self.config.max_operators):
            operator = questions.choices[:, i : i + 1]
            operand = self.with_blanks(questions.digits[:, i + 1])
            prompt += [operator, np.where(operator < 0, -1, operand)]
        return prompt

    def compute(self, operands, operators, limbs):
        # One pass from the left: `term` is the product so far, `negative` the sign before it. An
        # operator of + or - finishes the term; -1, of a row with fewer operators, does nothing.
        term, *others = operands
        negative = np.zeros(len(operators), bool)
        total = np.zeros_like(term)
        for operator, operand in zip(operators.T, others, strict=True):
            product = bigint.multiply(term, operand, limbs)
            finished = (operator == PLUS) | (operator == MINUS)
            total += np.where(finished, np.where(negative, -term, term), 0)
            negative = np.where(finished, operator == MINUS, negative)
            term = np.where(finished, operand, np.where(operator == TIMES, product, term))
        return bigint.carry(total + np.where(negative, -term, term))

    def places(self, size: int) -> list[Place]:
        config = self.config
        return places_of_chain(size, config.max_operators, config.operators, config.max_in_base)

    def results(self, questions: Questions) -> list[Result]:
        places, base = self.largest_places, self.config.max_in_base
        digits, size = questions.digits, self.config.sizes[-1]
        return work_out_chain(digits, questions.choices, places, size, base)

    def bounds(self, least, most):
        return self.bounds_of_chain(least, most, self.config.max_operators)

    def bounds_of_chain(self, least: int, most: int, num_operators: int) -> tuple[int, int]:
        # The least result is the least operand minus the largest that can follow: one product of
        # all others, or their sum. The largest is the product of all operands, or their sum.
        count, operators = num_operators, self.config.operators
        product = most**count if "*" in operators else most
        low = least - max(product, count * most)
        high = max(
            most ** (count + 1) if "*" in operators else most,
            (count + 1) * most if "+" in operators else most,
        )
        return (low if "-" in operators else 0), high

    def num_questions(self, size: int, base: int) -> int:
        count, choices = self.num_operand_values(size, base), len(self.config.operators)
        lengths = range(self.config.min_operators, self.config.max_operators + 1)
        return sum(choices**length * count ** (length + 1) for length in lengths)
