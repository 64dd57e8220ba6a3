"""Questions of which half need no thinking, and half a step for each swap of cups, unmarked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import usage_error
from thinkers.models.batch import Batch
from thinkers.models.halt import Halt
from thinkers.models.tools import Tool
from thinkers.prng import Draws
from thinkers.tasks.answers import AnswerTask
from thinkers.tasks.base import IGNORED, Prompt, Response
from thinkers.tasks.curriculum import CurriculumTask, check_curriculum
from thinkers.tasks.state_task import LONGEST, Layout, StateTask, checked
from thinkers.tasks.tools import refuse_tools


class Mixed(StateTask, CurriculumTask):
    """Read out a place, or follow a ball under swapped cups: `2 4 5 1` is 5, `2 12 13` is 3.

    A question begins with a digit. Digits after it are a list, from which the digit at that place
    is asked, which needs no thinking: it is due at step 1. Swaps after it move a ball that begins
    under that cup, as in `cups`, and the answer after n swaps is due at step n. Half of all rows
    are of each kind. The curriculum is over the number of swaps, from 1 to `max_swaps`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        num_cups: int = 5
        max_swaps: int = 8
        """Most swaps of a row; every number from 1 on is equally likely."""
        min_digits: int = 3
        """Fewest digits of a list; every number up to max_digits is equally likely."""
        max_digits: int = 8
        curriculum: bool = False
        """Train on rows of 1 swap first, and allow 1 more each time they are mastered."""
        threshold: float = 0.95
        """Running share of right rows at which the curriculum moves on."""
        window: int = 640
        """Number of rows that the running share looks back on."""

        def __post_init__(self) -> None:
            check_int("num_cups", self.num_cups, 3, 9)
            check_int("max_swaps", self.max_swaps, 1, LONGEST)
            check_int("min_digits", self.min_digits, 2, LONGEST)
            check_int("max_digits", self.max_digits, self.min_digits, LONGEST)
            check_curriculum(self)

    config: Config
    whole_rows = False
    prompt_example = "2 12 13"

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        config, cups = self.config, self.config.num_cups
        self.levels = self.sizes = range(1, config.max_swaps + 1)
        self.difficulty = self.levels[0 if config.curriculum else -1]
        self.swaps = list(combinations(range(cups), 2))
        self.start_token = cups + len(self.swaps)
        self.vocab_size = self.start_token + 1
        self.max_due = config.max_swaps
        self.max_length = 3 + max(config.max_swaps, config.max_digits)
        self._names = [str(cup + 1) for cup in range(cups)]
        self._names += [f"{a + 1}{b + 1}" for a, b in self.swaps]
        self._moved = np.tile(np.arange(cups), (self.start_token, 1))
        for number, (a, b) in enumerate(self.swaps, cups):
            self._moved[number, [a, b]] = b, a
        self._check_splits()

    @property
    def _stage(self) -> int:
        return self.difficulty

    @property
    def _training_sizes(self) -> range:
        return range(1, self.difficulty + 1)

    def draw(
        self, draws: Draws, sizes: Int64[np.ndarray, " n"], split: str
    ) -> Int64[np.ndarray, "n w"]:
        config, cups = self.config, self.config.num_cups
        width = max(config.max_swaps, config.max_digits)
        is_list = draws.below(2, 1) == 1
        lengths = draws.below(config.max_digits - config.min_digits + 1, 1)
        number = config.min_digits + lengths
        chosen = draws.below(2**32 - 1, 1)
        first = chosen * np.where(is_list, np.minimum(number, cups), cups) >> 32
        swaps, digits = cups + draws.below(len(self.swaps), width), draws.below(cups, width)
        rest = np.where(is_list, digits, swaps)
        real = np.arange(width) < np.where(is_list, number, sizes[:, None])
        return np.concatenate([first, np.where(real, rest, -1)], 1)

    def layout(self, inputs: Int64[np.ndarray, "n w"], sizes: Int64[np.ndarray, " n"]) -> Layout:
        n, rows = len(inputs), np.arange(len(inputs))
        real, is_list = inputs >= 0, self.is_list(inputs)
        last = real.sum(1)
        answer = np.where(is_list, inputs[rows, 1 + inputs[:, 0]], self._balls(inputs)[:, -1])
        tokens = np.concatenate([np.full((n, 1), self.start_token), inputs], 1)
        targets = np.full(tokens.shape, IGNORED)
        targets[rows, last] = answer
        step = np.where(is_list[:, None], 1, np.maximum(1, np.arange(tokens.shape[1]) - 1))
        return tokens, targets, np.where(tokens >= 0, step, 0)

    def _balls(self, inputs: Int64[np.ndarray, "n w"]) -> Int64[np.ndarray, "n k"]:
        """Return where the ball is after each swap, and where it stays after the last."""
        ball, found = inputs[:, 0], []
        is_swap = inputs >= self.config.num_cups
        for column in range(1, 1 + self.config.max_swaps):
            moved = self._moved[inputs[:, column], ball]
            ball = np.where(is_swap[:, column], moved, ball)
            found.append(ball)
        return np.stack(found, 1)

    def early_answers(self, tokens: Int64[np.ndarray, "n t"]) -> Int[Tensor, "n t k"]:
        """Return where the ball is after each swap, the answer of the steps before the last."""
        inputs = tokens[:, 1:]
        found = np.full((*tokens.shape, self.config.max_swaps), IGNORED)
        rows = ~self.is_list(inputs)
        found[np.arange(len(tokens))[rows], (tokens >= 0).sum(1)[rows] - 1] = self._balls(inputs)[
            rows
        ]
        return torch.from_numpy(found)

    def is_list(self, inputs: Int64[np.ndarray, "n w"]) -> Any:
        """Return True for rows that ask for a digit of a list, from their inputs without START."""
        return inputs[:, 1] < self.config.num_cups

    def kinds(self, batch: Batch) -> Int64[np.ndarray, " n"]:
        """Return the kind of each row: 0 asks for a digit of a list, n follows n swaps."""
        assert batch.lengths is not None
        inputs = batch.tokens.numpy()[:, 1:]
        return np.where(self.is_list(inputs), 0, batch.lengths.numpy() - 2)

    # text

    def encode(self, text: str) -> list[int]:
        """Return the tokens of digits and swaps such as `2 12 13`.

        Raises:
            UsageError: naming the first word that is neither.
        """
        tokens, names = [self.start_token], self._names
        for place, word in enumerate(text.split()):
            name = "".join(sorted(word))  # 21 is the swap 12
            if name not in names:
                raise usage_error(
                    f"word {place} of {text[:60]!r} is {word[:20]!r}",
                    f"a digit or two different ones of 1 .. {self.config.num_cups}",
                    "write a list such as 2 4 5 1, or swaps such as 2 12 13",
                )
            tokens.append(names.index(name))
        return tokens

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens`, without the start token."""
        found = checked(tokens, self.vocab_size)
        return " ".join(self._names[token] for token in found if token < self.start_token)

    def read_prompt(self, text: str) -> Prompt:
        """Read a question: a digit, and digits or swaps after it.

        Raises:
            UsageError: It is of neither form, or `encode` refuses the text.
        """
        tokens, cups = self.encode(text), self.config.num_cups
        first, rest = tokens[1:2], tokens[2:]
        swaps = sum(token >= cups for token in rest)
        is_question = bool(rest) and first[0] < cups and swaps in (0, len(rest))
        if not is_question or (not swaps and first[0] >= len(rest)):
            raise usage_error(
                f"the question {text[:60]!r}" if rest or first else "an empty prompt",
                "a place and a list that has it, or a cup and swaps",
                "write a list such as 2 4 5 1, or swaps such as 2 12 13",
            )
        return Prompt(tokens, 0, self.max_answer_length())

    def responses(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        room: int,
        num_steps: int | None = None,
        halt: Halt = None,
        tools: Sequence[Tool] = (),
        memory: Any = None,
    ) -> list[Response]:
        """Answer with the one token after each question."""
        refuse_tools(self, tools)
        return AnswerTask.responses(self, model, prompts, room, num_steps, halt, memory=memory)
