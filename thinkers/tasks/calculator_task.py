"""CalculatorTask: chains whose products are computed by a calculator that the model calls.

    direct        3-20*5=-97          3-20+5=-12
    calculator    3-20*5=[20*5]100,-97    3-20+5=-17,-12

The model writes a call for each product, in brackets, with the digits in the order of its other
numbers; the calculator writes what follows the bracket, which is not graded. Then the model adds
the terms, one after another.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thinkers.checks import added
from thinkers.errors import UsageError
from thinkers.models.batch import IGNORED, Batch
from thinkers.models.tools import Tool
from thinkers.tasks import bigint, number_tokens
from thinkers.tasks.number_prompts import PromptReader
from thinkers.tasks.number_task import Questions, TokenBlocks
from thinkers.tasks.number_tokens import (
    BLANK,
    CLOSE,
    COMMA,
    DIGITS,
    END,
    MINUS,
    NEGATIVE,
    OPEN,
    PLUS,
    TIMES,
)
from thinkers.tasks.operand_task import OperandTask
from thinkers.tasks.tools import LONGEST_OPERAND, Calculator, last_part
from thinkers.tasks.worked_task import WorkedTask


class CalculatorTask(WorkedTask, OperandTask):
    """Chain of operators whose products a calculator computes: see the module.

    A concrete task has chains of operators among which is `*`. `exact` looks at the answer alone,
    the part after the last comma.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(WorkedTask.Config, OperandTask.Config):
        calculator: bool = added(False)
        """Write a call of the tool `calculator` for each product, then the sum of the terms so far
        after each, and so the answer: 3-20*5=[20*5]100,-97. Scores are then those with this tool.
        With `blanks` the numbers of calls and their results are padded too."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.calculator and (self.scratch or self.registers):
                raise UsageError(
                    "calculator must be False with scratch or registers, which give the results "
                    f"in another form, got {self.calculator}"
                )
            bases = {*self.in_bases, *self.out_bases}
            if self.calculator and len(bases) > 1:
                raise UsageError(
                    "calculator needs questions and answers in one base, got bases "
                    f"{min(bases)} .. {max(bases)}; set all four bases alike"
                )

    config: Config

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        if self.config.calculator:
            self.tools = self.scored_with = ("calculator",)
            self.vocab_size = number_tokens.VOCAB_SIZE + 2
            self.answer_symbols = ",[]"

    @property
    def num_output_tokens(self) -> int:
        return self.vocab_size if self.config.calculator else super().num_output_tokens

    def make_tool(self, name: str, keys: Int[Tensor, " b"] | None) -> Tool:
        """Return the calculator, which is the same for all rows."""
        base = self.config.max_in_base
        symbols = dict(enumerate(DIGITS[:base])) | {
            token: text for text, token in number_tokens.SYMBOL_TOKENS.items()
        }
        return Calculator(
            opening=OPEN,
            closing=CLOSE,
            ending=END,
            symbols=symbols | {NEGATIVE: "-"},
            negative=NEGATIVE,
            base=base,
            reverse=True,
            blank=BLANK if self.config.blanks else None,
            longest_operand=LONGEST_OPERAND,
        )

    # batches

    def answer_tokens(self, questions: Questions) -> TokenBlocks:
        own = super().answer_tokens(questions)
        if not self.config.calculator:
            return own
        return [*self._calls(questions), *self._sums(questions), *own]

    def _calls(self, questions: Questions) -> TokenBlocks:
        """Return the calls and their results, each product's in turn."""
        base, digits, operators = questions.in_base, questions.digits, questions.choices
        count = operators.shape[1]
        limbs = bigint.num_limbs(self.config.max_in_base ** (digits.shape[2] * (count + 1)))
        # The product so far of each row: its number, and its tokens as they were last written.
        term = bigint.from_digits(digits[:, 0], base, limbs)
        shown = self.with_blanks(digits[:, 0])
        blocks: TokenBlocks = []
        for i in range(count):
            there = (operators[:, i] == TIMES)[:, None]
            factor = self.with_blanks(digits[:, i + 1])
            number = bigint.from_digits(digits[:, i + 1], base, limbs)
            product = bigint.multiply(term, number, limbs)
            width = shown.shape[1] + factor.shape[1]
            result = bigint.to_digits(product, base, width)
            if self.config.blanks:
                own = ((shown >= 0).sum(1) + (factor >= 0).sum(1))[:, None]
                is_blank = (result < 0) & (np.arange(width) < own)
                result = np.where(is_blank, BLANK, result)
            parts: list[Any] = [OPEN, shown, TIMES, factor, CLOSE, result, COMMA]
            blocks += [np.where(there, part, -1) for part in parts]
            more = ((0, 0), (0, width - factor.shape[1]))
            shown = np.where(there, result, np.pad(factor, more, constant_values=-1))
            term = np.where(there[:, 0], product, number)
        return blocks

    def _sums(self, questions: Questions) -> TokenBlocks:
        """Return the sums of the first terms, from two on and without that of all, the answer."""
        base, digits, operators = questions.in_base, questions.digits, questions.choices
        low, high = self._bounds(digits.shape[2], self.config.max_in_base)
        limbs = bigint.num_limbs(max(-low, high))
        width = bigint.num_digits(max(-low, high), self.config.max_in_base)
        term = bigint.from_digits(digits[:, 0], base, limbs)
        negative, num_terms = np.zeros(len(digits), bool), np.zeros(len(digits), np.int64)
        total, blocks = np.zeros_like(term), []
        for i, operator in enumerate(operators.T):
            number = bigint.from_digits(digits[:, i + 1], base, limbs)
            product = bigint.multiply(term, number, limbs)
            ends = (operator == PLUS) | (operator == MINUS)
            total = bigint.carry(total + np.where(ends, np.where(negative, -term, term), 0))
            num_terms += ends
            size, is_negative = bigint.magnitude(total)
            there = (ends & (num_terms > 1))[:, None]
            sign = np.where(is_negative > 0, NEGATIVE, -1)[:, None]
            parts: list[Any] = [sign, bigint.to_digits(size, base, width), COMMA]
            blocks += [np.where(there, part, -1) for part in parts]
            negative = np.where(ends, operator == MINUS, negative)
            term = np.where(ends, number, np.where(operator == TIMES, product, term))
        return blocks

    def graded(self, batch: Batch, questions: Questions) -> Batch:
        """Return the batch without the targets that the calculator writes."""
        batch = super().graded(batch, questions)
        if not self.config.calculator:
            return batch
        # The target at a position is the token after it: a result begins with the target at `]`,
        # and the comma after it is the model's.
        begun = (batch.tokens == CLOSE).cumsum(1)
        ended = (batch.targets == COMMA).cumsum(1)
        return replace(batch, targets=batch.targets.masked_fill(begun > ended, IGNORED))

    def answer_width(self, size: int) -> int:
        own = super().answer_width(size)
        return own + self._calls_width([size] * self.num_operands)

    def _calls_width(self, sizes: list[int]) -> int:
        """Return the most tokens before the answer to operands of these numbers of digits.

        That is where all operators are `*`: a sum takes fewer tokens than the call of a product.
        """
        if not self.config.calculator:
            return 0
        least = self.config.sizes[-1] if self.config.blanks else 0
        term, *others = (max(size, least) for size in sizes)
        width = 0
        for other in others:
            term += other
            width += 2 * term + 4
        return width

    # evaluation and text

    def is_exact(
        self, predicted: Int[Tensor, "n a"], truth: Int[Tensor, "n a"]
    ) -> Bool[Tensor, " n"]:
        if not self.config.calculator:
            return super().is_exact(predicted, truth)
        ours, right = (
            [last_part(row, COMMA, END) for row in rows.tolist()] for rows in (predicted, truth)
        )
        return torch.tensor([x == y for x, y in zip(ours, right, strict=True)])

    def with_answer(self, prompt: str, answer: Iterable[int]) -> str:
        text = super().with_answer(prompt, answer)
        return text.replace("_", "") if self.config.calculator else text

    def read_question(self, reader: PromptReader) -> int:
        first = reader.at
        width = super().read_question(reader)
        written = reader.written(first).translate(number_tokens.UPPER)
        operands = "".join(x if x in DIGITS else " " for x in written).split()
        return width + self._calls_width([len(x) for x in operands])

    def read_answer(self, reader: PromptReader) -> None:
        if not self.config.calculator:
            return super().read_answer(reader)
        allowed = DIGITS[: reader.out_base] + "+-*[]," + "_" * self.config.blanks
        while reader.next() and reader.next() in allowed:
            reader.take(allowed)
