"""PaddedTask: operands padded with zeros, and digits coupled by their place.

    width "own"     12+345=   is read as 012+345=, its answer written as 0357
    width "answer"  12+345=   is read as _012+_345=
    coupled         START 5 4 3 + 2 1 0 = 7 5 3 0     tokens, least significant digit first
                      0   1 2 3 0 1 2 3 0 1 2 3 4     their positions

With both, digits that are added up have one position, at any length. A sum needs digits and
the carry of its neighbours alone, so that attention within a window is enough: the structure of
column addition is given, and digits and carries are learned.

Attention averages, so that a token among equal tokens computes the same wherever it is. At the end
of 999+999= all that a window shows are nines, as in the middle, where the next digit is 9 and not
1. With width "answer" operands have a blank there, which no other place has.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from thinkers.checks import added, check_int
from thinkers.errors import UsageError
from thinkers.models.batch import Batch, real_positions
from thinkers.tasks.number_prompts import PromptReader
from thinkers.tasks.number_task import NumberTask, Questions, TokenBlocks
from thinkers.tasks.number_tokens import BLANK, DIGITS, EQUALS

_LEADING_ZEROS = re.compile(f"(?<![{DIGITS}])0+(?=[{DIGITS}])")


class PaddedTask(NumberTask):
    """Number task whose operands may be padded, and whose digits may be coupled: see the module.

    A concrete task defines `answer_digits`, and extends another NumberTask besides, whose prompts
    and answers are padded here by `super()`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(NumberTask.Config):
        width: int | Literal["own", "answer"] | None = added(None)
        """Pad operands with zeros to this number of digits, or (own) to that of the longer one, and
        answers to the most digits that they can then have; (answer) the same, and operands further
        with blanks to the width of the answer. None pads neither."""
        coupled: bool = added(False)
        """Give digits of one place one position, in operands and answer: `Batch.positions`."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.width is None:
                return
            if isinstance(self.width, str):
                if self.width not in ("own", "answer"):
                    raise UsageError(
                        f"width must be a number of digits, own, answer or None, got {self.width!r}"
                    )
            else:
                check_int("width", self.width, self.sizes[-1])
            bases = {*self.in_bases, *self.out_bases}
            if self.blanks or len(bases) > 1:
                raise UsageError(
                    "width must be None with blanks or where bases differ, "
                    f"got {self.width!r} with blanks {self.blanks} and bases {sorted(bases)}"
                )

    config: Config

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        if self.config.coupled:
            self.positions = digit_places

    def answer_digits(self, digits: int) -> int:
        """Return the most digits of an answer to operands whose longest has `digits`."""
        raise NotImplementedError

    def padded_widths(self, digits: int) -> tuple[int, int, int]:
        """Return the widths for operands whose longest has `digits`.

        Returns:
            Digits of operands with zeros; digits and blanks of operands; digits of the answer.
        """
        width = self.config.width
        filled = max(digits, width) if isinstance(width, int) else digits
        answer = self.answer_digits(filled)
        return filled, answer if width == "answer" else filled, answer

    # batches

    def _generate(self, update: int, count: int, batch_size: int, split: str, size: int) -> Batch:
        batch = super()._generate(update, count, batch_size, split, size)
        if self.positions is None:
            return batch
        places = self.positions(batch.tokens).where(real_positions(batch.tokens, batch.lengths), 0)
        return replace(batch, positions=places)

    def prompt_tokens(self, questions: Questions) -> TokenBlocks:
        if self.config.width is None:
            return super().prompt_tokens(questions)  # type: ignore[safe-super]
        filled, whole, _ = self._widths_of_rows(questions)
        digits = questions.digits
        missing = ((0, 0), (0, 0), (0, max(0, whole.max() - digits.shape[2])))
        digits = np.pad(digits, missing, constant_values=-1)
        places = np.arange(digits.shape[2])
        absent = digits < 0
        digits = np.where(absent & (places < whole[:, None, None]), BLANK, digits)
        digits = np.where(absent & (places < filled[:, None, None]), 0, digits)
        padded = replace(questions, digits=digits)
        return super().prompt_tokens(padded)  # type: ignore[safe-super]

    def answer_tokens(self, questions: Questions) -> TokenBlocks:
        blocks = super().answer_tokens(questions)  # type: ignore[safe-super]
        if self.config.width is None:
            return blocks
        *before, digits = blocks
        _, _, counts = self._widths_of_rows(questions)
        missing = max(0, counts.max() - digits.shape[1])
        digits = np.pad(digits, ((0, 0), (0, missing)), constant_values=-1)
        above = (digits < 0) & (np.arange(digits.shape[1]) < counts[:, None])
        return [*before, np.where(above, 0, digits)]

    def _widths_of_rows(self, questions: Questions) -> Int64[np.ndarray, "3 n"]:
        longest = (questions.digits >= 0).sum(2).max(1)
        return np.array([self.padded_widths(n) for n in longest.tolist()]).T

    def prompt_width(self, size: int) -> int:
        whole = size if self.config.width is None else self.padded_widths(size)[1]
        return super().prompt_width(whole)  # type: ignore[safe-super]

    def answer_width(self, size: int) -> int:
        if self.config.width is None:
            return super().answer_width(size)  # type: ignore[safe-super]
        return self.padded_widths(size)[2]

    # text

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text as `NumberTask.encode`; its operands are padded."""
        tokens = super().encode(text)
        if self.config.width is None:
            return tokens
        end = tokens.index(EQUALS) if EQUALS in tokens else len(tokens)
        parts = [list(part) for _, part in groupby(tokens[:end], _is_digit)]
        numbers = [_without_padding(part) for part in parts if _is_digit(part[0])]
        filled, whole, _ = self.padded_widths(max(map(len, numbers), default=0))
        found: list[int] = []
        for part in parts:
            if _is_digit(part[0]):
                part = _without_padding(part)
                part += [0] * (filled - len(part)) + [BLANK] * (whole - filled)
            found += part
        return found + tokens[end:]

    def read_question(self, reader: PromptReader) -> int:
        first = reader.at
        width = super().read_question(reader)  # type: ignore[safe-super]
        if self.config.width is None:
            return width
        runs = re.findall(f"[{DIGITS}]+", reader.written(first))
        return self.padded_widths(max(map(len, runs)))[2]

    def with_answer(self, prompt: str, answer: Iterable[int]) -> str:
        text = super().with_answer(prompt, answer)
        return text if self.config.width is None else _LEADING_ZEROS.sub("", text)


def _is_digit(token: int) -> bool:
    return token < len(DIGITS) or token == BLANK


def _without_padding(number: list[int]) -> list[int]:
    """Return the digits of a number, least significant first, without zeros and blanks above."""
    count = max((place for place, x in enumerate(number, 1) if x not in (0, BLANK)), default=1)
    return number[:count]


def digit_places(tokens: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Return the place of each digit within its number, from 1 on; 0 for other tokens.

    After the first `=` every token counts on, so that positions do not fall while answers are
    generated, whatever they are. The place of a token depends on those up to it alone.
    """
    columns = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    is_equals = (tokens == EQUALS).long()
    is_answer = is_equals.cumsum(1) > is_equals
    is_digit = (tokens < len(DIGITS)) | (tokens == BLANK)
    marks = columns.where(~is_digit & ~is_answer, 0).cummax(1).values
    return columns - marks
