"""The task automaton: k updates of a cellular automaton, which need k steps one after another."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import usage_error
from thinkers.prng import Draws
from thinkers.tasks.base import IGNORED, Prompt
from thinkers.tasks.state_task import LONGEST, Layout, StateTask, checked


class Automaton(StateTask):
    """Update the cells of an elementary cellular automaton k times: `3:01101001`.

    In causal form, so that a position depends on earlier ones alone: cell i after an update is bit
    4 c_(i-2) + 2 c_(i-1) + c_i of `rule`, where c are the cells before it and cells to the left of
    the row are 0. A row is START, a token for the number of updates, and the cells; the target at
    each cell is its value after the updates, due at step k. `exact` is the share of rows whose
    cells are all right. More steps are more updates here: "due" is the number of steps to judge by.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        rule: int = 110
        """Number of the rule, by Wolfram's code."""
        width: int = 20
        """Cells of a row."""
        min_updates: int = 1
        """Fewest updates of a row; every number up to max_updates is equally likely."""
        max_updates: int = 8
        num_counts: int = 8
        """Count tokens; more updates than this have the last, and are asked for by num_steps."""

        def __post_init__(self) -> None:
            check_int("rule", self.rule, 0, 255)
            check_int("width", self.width, 1, LONGEST)
            check_int("min_updates", self.min_updates, 1, LONGEST)
            check_int("max_updates", self.max_updates, self.min_updates, LONGEST)
            check_int("num_counts", self.num_counts, 1, LONGEST)

    config: Config
    num_leading = 2
    judged_at = "due"
    prompt_example = "3:01101001"

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        self.sizes = range(self.config.min_updates, self.config.max_updates + 1)
        self.start_token = self.wait_token = 2 + self.config.num_counts
        self.vocab_size = self.start_token + 1
        self.max_length = 3 + self.config.width
        self.max_due = self.config.max_updates
        self._check_splits()

    def check(self, model: Any) -> None:
        most, limit = self.max_due or 0, model.config.max_steps
        if model.config.takes_steps and limit < most:
            raise usage_error(
                f"model.max_steps {limit}, but rows of up to {most} updates",
                "a step for each update",
                f"set --model.max_steps {most}, or a smaller --task.max_updates",
            )

    def draw(
        self, draws: Draws, sizes: Int64[np.ndarray, " n"], split: str
    ) -> Int64[np.ndarray, "n w"]:
        return draws.below(2, self.config.width)

    def layout(self, inputs: Int64[np.ndarray, "n w"], sizes: Int64[np.ndarray, " n"]) -> Layout:
        cells, sizes = inputs, sizes[:, None]
        for update in range(int(sizes.max())):
            left = np.pad(cells, ((0, 0), (2, 0)))
            updated = self.config.rule >> (4 * left[:, :-2] + 2 * left[:, 1:-1] + cells) & 1
            cells = np.where(update < sizes, updated, cells)
        first, ignored = np.full_like(sizes, self.start_token), np.full_like(sizes, IGNORED)
        counts = 1 + np.minimum(sizes, self.config.num_counts)
        tokens = np.concatenate([first, counts, inputs], 1)
        due = np.concatenate([np.ones((len(sizes), 2), np.int64), sizes + 0 * cells], 1)
        return tokens, np.concatenate([ignored, ignored, cells], 1), due

    # text

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a number of updates and cells, `3:01101001`, or of cells alone.

        A number above `num_counts` has the last count token.

        Raises:
            UsageError: naming the first character that is not allowed.
        """
        count, colon, cells = text.strip().rpartition(":")
        tokens = [self.start_token]
        if colon:
            if not (count.isascii() and count.isdecimal() and int(count) > 0):
                raise usage_error(
                    f"{count[:20]!r} updates in {text[:60]!r}",
                    "an integer of at least 1 before the colon",
                    f"write a prompt such as {self.prompt_example}",
                )
            tokens.append(1 + min(int(count), self.config.num_counts))
        for place, cell in enumerate(cells, len(count) + len(colon)):
            if cell not in "01":
                raise usage_error(
                    f"character {place} of {text.strip()[:60]!r} is {cell!r}",
                    "cells 0 and 1",
                    f"write a prompt such as {self.prompt_example}",
                )
            tokens.append(int(cell))
        return tokens

    def read_prompt(self, text: str) -> Prompt:
        """Read a number of updates and cells, of any width; each update asks for a thinking step.

        Raises:
            UsageError: It has no number of updates, no cells, or `encode` refuses it.
        """
        read = super().read_prompt(text)
        if ":" not in text or len(read.tokens) < 3:
            raise usage_error(
                f"{text[:60]!r}",
                "a number of updates, a colon and cells",
                f"write a prompt such as {self.prompt_example}",
            )
        return replace(read, num_steps=int(text.partition(":")[0]))

    def with_answer(self, prompt: str, answer: Iterable[int]) -> str:
        """Return the prompt as it was typed, an arrow and the cells; what is no cell is `?`."""
        cells = (str(x) if x < 2 else "?" for x in checked(answer, self.vocab_size))
        return f"{prompt.strip()} -> {''.join(cells)}"

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens`, without the start token."""
        shown = [x for x in checked(tokens, self.vocab_size) if x != self.start_token]
        return "".join(str(x) if x < 2 else f"{x - 1}:" for x in shown)
