"""WorkedTask: number tasks whose intermediate results are written, or held by the thinking steps.

    direct                 12*34=408
    scratch                12*34=48,36,408
    registers              12*34= R R R R R R G  408

Registers are tokens of the prompt, always the same and each with an embedding of its own; G is one
more, at which the first digit of the answer is predicted. The target at a register is a digit of an
intermediate result. Nothing but the answer is ever written.
"""

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thinkers.checks import added, check_choices
from thinkers.errors import UsageError, usage_error
from thinkers.models.batch import Batch
from thinkers.tasks import number_tokens
from thinkers.tasks.intermediate_results import Place, Result
from thinkers.tasks.number_prompts import PromptReader
from thinkers.tasks.number_task import NumberTask, Questions, TokenBlocks
from thinkers.tasks.number_tokens import BLANK, COMMA, DIGITS, END, EQUALS
from thinkers.tasks.tools import last_part

FIRST_REGISTER = number_tokens.VOCAB_SIZE
"""Registers are the ids from here on; models choose among those below."""


class WorkedTask(NumberTask):
    """Number task with intermediate results: see the module.

    A concrete task defines `places` and `results`, and extends another NumberTask besides, whose
    prompts and answers are extended here by `super()`. `exact` looks at the answer alone, which
    with `scratch` is the part after the last comma; `per_token` at all tokens that are written.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(NumberTask.Config):
        scratch: bool = added(False)
        """Write the intermediate results before the answer, a chain of thought: 12*34=48,36,408.
        With `blanks` they are padded too."""
        registers: Literal["graded", "free"] | None = added(None)
        """Tokens after `=`, one for each digit of an intermediate result, whose targets are these
        digits (graded), or which have none (free, the control). Only the answer is written."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_choices(self)
            if self.scratch and self.registers:
                raise UsageError(
                    f"registers must be None where scratch is True, got {self.registers!r}: "
                    "intermediate results are written or held, not both"
                )
            form = "scratch" if self.scratch else "registers" if self.registers else ""
            bases = {*self.in_bases, *self.out_bases}
            if form and len(bases) > 1:
                raise UsageError(
                    f"{form} needs questions and answers in one base, got bases "
                    f"{min(bases)} .. {max(bases)}; set all four bases alike"
                )

    config: Config

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        self.vocab_size = FIRST_REGISTER + len(self.register_names)
        if self.config.registers:
            self.max_due = self.answer_due
        if self.config.scratch:
            self.answer_symbols = ","

    @abstractmethod
    def places(self, size: int) -> list[Place]:
        """Return the intermediate results of questions up to `size`, in order."""

    @abstractmethod
    def results(self, questions: Questions) -> list[Result]:
        """Return the intermediate results, those of the largest `places`."""

    @cached_property
    def largest_places(self) -> list[Place]:
        """The intermediate results of the largest questions."""
        return self.places(self.config.sizes[-1])

    @cached_property
    def register_names(self) -> list[str]:
        """The names of the registers: one for each digit of a result, and the last one."""
        if not self.config.registers:
            return []
        digits = [f"{place.name}.{name}" for place in self.largest_places for name in place.digits]
        return [*digits, "go"]

    @property
    def registers(self) -> range:
        """The tokens of the registers."""
        return range(FIRST_REGISTER, FIRST_REGISTER + len(self.register_names))

    @property
    def answer_due(self) -> int:
        """The thinking step from which an answer can be known with registers.

        Two steps after the last intermediate result: one for a sum of products, one for its
        carries.
        """
        return 2 + max(place.due for place in self.largest_places)

    @property
    def num_output_tokens(self) -> int:
        return FIRST_REGISTER

    # batches

    def _prompt(self, questions: Questions) -> TokenBlocks:
        filler = np.tile(np.array(self.registers, np.int64), (len(questions.in_base), 1))
        return [*super()._prompt(questions), filler]

    def prompt_width(self, size: int) -> int:
        return super().prompt_width(size) + len(self.register_names)  # type: ignore[safe-super]

    def answer_tokens(self, questions: Questions) -> TokenBlocks:
        blocks: TokenBlocks = []
        if self.config.scratch:
            for result in self.results(questions):
                # With blanks every result has its columns, so that each is at the same place of
                # all rows: with numbers of their own lengths models found the sums in fewer seeds.
                written = result.written
                written = np.where(written < 0, BLANK, written) if self.config.blanks else written
                comma = np.where((written >= 0).any(1), COMMA, -1)[:, None]
                blocks += [written, comma]
        return [*blocks, *super().answer_tokens(questions)]  # type: ignore[safe-super]

    def answer_width(self, size: int) -> int:
        own = super().answer_width(size)  # type: ignore[safe-super]
        return own + self.scratch_width(size)

    def scratch_width(self, size: int) -> int:
        """Return the most tokens before the answer of questions up to `size`."""
        if not self.config.scratch:
            return 0
        return sum(len(place.digits) + 1 for place in self.places(size))

    def graded(self, batch: Batch, questions: Questions) -> Batch:
        if not self.config.registers:
            return batch
        prompts, lengths = batch.prompt_lengths, batch.lengths
        assert prompts is not None and lengths is not None
        dues = [place.due for place in self.largest_places for _ in place.digits]
        count = len(dues)
        places = prompts[:, None] - 1 - count + torch.arange(count)
        targets = batch.targets
        if self.config.registers == "graded":
            values = np.concatenate([result.padded for result in self.results(questions)], 1)
            targets = targets.scatter(1, places, torch.from_numpy(values))
        columns = torch.arange(targets.shape[1])
        answered = columns >= prompts[:, None] - 1
        due = torch.where(answered, self.answer_due, 1)
        due = due.scatter(1, places, torch.tensor(dues).expand(len(due), -1))
        due = due.where(columns < lengths[:, None], 0)
        return replace(batch, targets=targets, due=due)

    # evaluation and text

    def is_exact(
        self, predicted: Int[Tensor, "n a"], truth: Int[Tensor, "n a"]
    ) -> Bool[Tensor, " n"]:
        if not self.config.scratch:
            return super().is_exact(predicted, truth)
        pairs = zip(predicted.tolist(), truth.tolist(), strict=True)
        return torch.tensor([_answer(ours) == _answer(right) for ours, right in pairs])

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text as `NumberTask.encode`; registers follow the `=`."""
        tokens = super().encode(text)
        if self.config.registers and EQUALS in tokens:
            end = tokens.index(EQUALS) + 1
            tokens[end:end] = self.registers
        return tokens

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens`, up to the end token; registers have none."""
        return super().decode(x for x in map(int, tokens) if x not in self.registers)

    def token_name(self, token: int) -> str:
        if token in self.registers:
            return self.register_names[token - FIRST_REGISTER]
        return super().token_name(token)

    def with_answer(self, prompt: str, answer: Iterable[int]) -> str:
        text = super().with_answer(prompt, answer)
        # Results that the question does not have are blanks alone.
        return re.sub(",+", ",", text.replace("_", "")) if self.config.scratch else text

    def read_question(self, reader: PromptReader) -> int:
        first = reader.at
        width = super().read_question(reader)  # type: ignore[safe-super]
        operands = _runs_of_digits(reader.written(first))
        size, largest = max(map(len, operands)), self.config.sizes[-1]
        if self.config.registers and size > largest:
            raise usage_error(
                f"a number of {size} digits in {reader.text[:60]!r}",
                f"at most {largest} digits: registers hold the results of such numbers",
                "ask for smaller ones, or train with a larger max_digits",
            )
        return width + self.scratch_width(size)

    def read_answer(self, reader: PromptReader) -> None:
        if not self.config.scratch:
            return super().read_answer(reader)  # type: ignore[safe-super]
        blank = "_" * self.config.blanks
        allowed = DIGITS[: reader.out_base] + self.text_symbols.replace("=", "-,") + blank
        first = reader.at
        while reader.next() and reader.next() in allowed:
            reader.take(allowed)
        *parts, _ = reader.written(first, blanks=True).split(",")
        for place, part in zip(self.largest_places, parts, strict=False):
            if blank and len(part) != len(place.digits):
                raise usage_error(
                    f"an intermediate result of {len(part)} characters, {part!r}",
                    f"{len(place.digits)}, as the task writes it with blanks",
                    "leave it to the model, or write its blanks",
                )


def _answer(row: Sequence[int]) -> list[int]:
    return last_part(row, COMMA, END)


def _runs_of_digits(text: str) -> list[str]:
    return "".join(x if x in DIGITS else " " for x in text).split()
