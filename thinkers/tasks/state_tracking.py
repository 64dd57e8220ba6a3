"""Tasks in which an answer after n changes needs n steps, one after another: cups and links.

Each carries a state through a row: every value depends on an earlier one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt64
from torch import Tensor

from thinkers.checks import NOT_CAUSAL, check_int
from thinkers.errors import UsageError, usage_error
from thinkers.models.batch import Batch
from thinkers.models.generation import Cached, check_call, choosable
from thinkers.models.halt import Halt, check_halt
from thinkers.models.tools import Tool
from thinkers.prng import Draws, constants, mix
from thinkers.tasks.answers import AnswerTask
from thinkers.tasks.base import IGNORED, Prompt, Response
from thinkers.tasks.curriculum import CurriculumTask, check_curriculum
from thinkers.tasks.state_task import BLOCK_ROWS, LONGEST, Layout, StateTask, checked
from thinkers.tasks.tools import refuse_tools


class Cups(StateTask):
    """Follow a ball under cups that are swapped in pairs: `12 23 14`, answer `3`.

    The ball begins under cup 1; each token exchanges two cups, `12` the first and the second. The
    target after each swap is the cup of the ball. With five cups the swaps generate S_5, whose word
    problem is complete for NC1 (Barrington 1989, https://doi.org/10.1016/0022-0000(89)90037-8): no
    fixed number of layers solves it for all lengths, unless TC0 = NC1 (Merrill and Sabharwal 2023,
    https://doi.org/10.1162/tacl_a_00562). The state after i swaps is due at step i. `exact` is the
    share of rows whose last answer is right.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        num_cups: int = 5
        min_length: int = 2
        """Fewest swaps of a row; every number up to max_length is equally likely."""
        max_length: int = 16
        targets: Literal["every", "last"] = "every"
        """Grade the answer after every swap, or after the last one alone."""
        written: bool = False
        """Write the state after each swap into the row, a chain of thought: s1 c1 s2 c2 .."""

        def __post_init__(self) -> None:
            check_int("num_cups", self.num_cups, 2, 9)
            check_int("min_length", self.min_length, 1, LONGEST)
            check_int("max_length", self.max_length, self.min_length, LONGEST)
            if self.targets not in ("every", "last"):
                raise UsageError(f"targets must be every or last, got {self.targets!r}")
            if self.written and self.targets == "last":
                raise UsageError("targets must be every if states are written, got 'last'")

    config: Config
    whole_rows = False
    prompt_example = "12 23 14"

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        cups = self.num_answers = self.config.num_cups
        self.sizes = range(self.config.min_length, self.config.max_length + 1)
        self.swaps = list(combinations(range(cups), 2))
        self.start_token = cups + len(self.swaps)
        self.vocab_size = self.start_token + 1
        if self.config.written:
            self.max_length = 1 + 2 * self.config.max_length
        else:
            self.max_length = 2 + self.config.max_length
            self.max_due, self.wait_token = self.config.max_length, self.start_token
        self._names = [str(cup + 1) for cup in range(cups)]
        self._names += [f"{a + 1}{b + 1}" for a, b in self.swaps]
        self._moved = np.tile(np.arange(cups), (len(self.swaps), 1))
        for number, (a, b) in enumerate(self.swaps):
            self._moved[number, [a, b]] = b, a
        self._check_splits()

    def check(self, model: Any) -> None:
        if self.config.written and not model.causal:
            raise UsageError(f"{NOT_CAUSAL.format(what='writing states')}; {self.causal_fix}")

    def draw(
        self, draws: Draws, sizes: Int64[np.ndarray, " n"], split: str
    ) -> Int64[np.ndarray, "n w"]:
        width = self.sizes[-1]
        swaps = draws.below(len(self.swaps), width)
        return np.where(np.arange(width) < sizes[:, None], swaps, -1)

    def layout(self, inputs: Int64[np.ndarray, "n w"], sizes: Int64[np.ndarray, " n"]) -> Layout:
        n, width = inputs.shape
        real = inputs >= 0
        states, ball = np.full((n, width), IGNORED), np.zeros(n, np.int64)
        for i in range(width):
            ball = np.where(real[:, i], self._moved[inputs[:, i], ball], ball)
            states[:, i] = np.where(real[:, i], ball, IGNORED)
        swaps = np.where(real, inputs + self.config.num_cups, -1)
        first, ignored = np.full((n, 1), self.start_token), np.full((n, width), IGNORED)
        if self.config.written:
            pairs = np.stack([swaps, np.where(real, states, -1)], 2).reshape(n, -1)
            # The last state is a target but never an input.
            pairs[np.arange(n), 2 * sizes - 1] = -1
            targets = np.stack([states, ignored], 2).reshape(n, -1)[:, :-1]
            tokens = np.concatenate([first, pairs[:, :-1]], 1)
            return tokens, np.concatenate([ignored[:, :1], targets], 1), np.ones_like(tokens)
        if self.config.targets == "last":
            states = np.where(np.arange(width) == sizes[:, None] - 1, states, IGNORED)
        due = np.where(real, np.arange(1, width + 1), 0)
        columns = (first, swaps), (ignored[:, :1], states), (np.ones_like(first), due)
        tokens, targets, due = (np.concatenate(x, 1) for x in columns)
        return tokens, targets, due

    def prompt_lengths(self, lengths: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        return (
            torch.full_like(lengths, 2) if self.config.written else super().prompt_lengths(lengths)
        )

    def read_by(self, batch: Batch, predicted: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
        tokens = batch.tokens
        if self.config.written:
            tokens = tokens.clone()
            tokens[:, 2::2] = predicted[:, 1:-1:2].clamp(min=0)
        return tokens

    def predict(
        self,
        model: Any,
        batch: Batch,
        num_steps: int | None,
        halt: Halt = None,
        memory: Any = None,
    ) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"] | None]:
        """Return answers and steps at each position; a model that writes states reads its own."""
        if not self.config.written:
            return super().predict(model, batch, num_steps, halt, memory)
        halt = check_halt(model, halt)
        swaps, predicted = batch.tokens[:, 1::2], torch.zeros_like(batch.tokens)
        taken = torch.zeros_like(predicted)
        lengths, room = torch.full_like(swaps[:, 0], 2), 2 * swaps.shape[1] - 1
        rows, lengths, steps = check_call(model, batch.tokens[:, :2], room, num_steps, lengths)
        writer = Cached(model, rows, lengths, steps, True, room, halt=halt, memory=memory)
        for i in range(swaps.shape[1]):
            if i:
                writer.write(predicted[:, 2 * i - 1])
                writer.logits()  # of the next swap, which is given instead
                writer.write(swaps[:, i])
            predicted[:, 2 * i + 1] = choosable(writer.logits()).argmax(-1)
            taken[:, 2 * i + 1] = writer.taken()
        return predicted, None if halt is None else taken

    def prefix_shares(
        self,
        num_updates: int,
        batch_size: int,
        split: str = "test",
        num_examples: int = 2000,
    ) -> dict[int, float]:
        """Return {number of swaps: share of held-out rows with which longer training rows begin}.

        Whole rows are held out, so that a short one may be the beginning of a training row, whose
        first answers are graded in training. Rows of `max_length` cannot be.

        Args:
            num_updates: Updates of the training, with `batch_size` rows each.
        """
        hashes, lengths = self._prefix_hashes(list(self.evaluation_batches(split, num_examples)))
        seen = np.zeros(len(hashes), bool)
        step = max(1, BLOCK_ROWS // batch_size)
        for first in range(0, num_updates, step):
            count = min(step, num_updates - first)
            drawn = self._generate(first, count, batch_size, "train")
            trained, longest = self._prefix_hashes([drawn])
            for size in self.sizes:
                known = trained[longest > size, size - 1]
                seen |= (lengths == size) & np.isin(hashes[:, size - 1], known)
        return {size: float(seen[lengths == size].mean()) for size in sorted({*lengths.tolist()})}

    def _prefix_hashes(
        self, batches: Sequence[Batch]
    ) -> tuple[UInt64[np.ndarray, "n w"], Int64[np.ndarray, " n"]]:
        """Return the hash of the first 1, 2 .. swaps of each row, and their number."""
        columns = slice(1, None, 1 + self.config.written)
        swaps = np.concatenate([x.tokens.numpy()[:, columns] for x in batches])
        lengths = np.concatenate([x.lengths for x in batches]) // (1 + self.config.written)
        lengths -= not self.config.written  # START, which a written row has instead of a last state
        content = (swaps + 1).astype(np.uint64) * constants(swaps.shape[1], salt=1)
        return mix(np.cumsum(content, 1, dtype=np.uint64)), lengths

    # text

    def encode(self, text: str) -> list[int]:
        """Return the tokens of swaps such as `12 35`; a single digit is an answer.

        Raises:
            UsageError: naming the first word that is neither.
        """
        tokens = [self.start_token]
        for place, word in enumerate(text.split()):
            word = "".join(sorted(word))  # 21 is the swap 12
            if word not in self._names:
                raise usage_error(
                    f"word {place} of {text[:60]!r} is {text.split()[place][:20]!r}",
                    f"two different cups of 1 .. {self.config.num_cups}, such as 12",
                    "write the swaps with spaces between them",
                )
            tokens.append(self._names.index(word))
        return tokens

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens`, without the start token."""
        found = checked(tokens, self.vocab_size)
        return " ".join(self._names[token] for token in found if token < self.start_token)

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
        """Answer with the cup after the last swap, after writing all states if they are written."""
        refuse_tools(self, tools)
        if not self.config.written:
            return AnswerTask.responses(self, model, prompts, room, num_steps, halt, memory=memory)
        rows = []
        for prompt in prompts:
            pairs = ((swap, 0) for swap in prompt.tokens[1:])
            rows.append(replace(prompt, tokens=[self.start_token, *chain(*pairs)][:-1]))
        found = []
        for written in super().responses(model, rows, room, num_steps, halt, memory=memory):
            states, swaps = written.answer[::2], written.row[1::2]
            row = [self.start_token, *chain(*zip(swaps, states, strict=True))]
            steps = None if written.steps is None else written.steps[-1:]
            found.append(Response(states[-1:], row, 2, steps))
        return found


class Links(StateTask, CurriculumTask):
    """Follow links back to the start, adding what each token adds: `1+3 2+0 1+4`, answers `3 0 4`.

    Token (i, c), written i+c, links to the token i places before it, or to the start: its value is
    the value there plus c, modulo `num_values`; the start has the value 0. The target at each
    token is its value, due at step d, its number of links back to the start. `exact` is the share
    of rows whose values are all right. The start token, read as `?`, is the answer that is not due
    yet. The curriculum is over the largest due step, from 2 to `max_depth`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        num_values: int = 5
        max_back: int = 3
        """Links go 1 .. max_back tokens back."""
        max_depth: int = 12
        """Most links from a token back to the start; a row ends where every link would be more."""
        min_length: int = 4
        """Fewest tokens of a row after the start; every number up to max_length is equally
        likely."""
        max_length: int = 24
        curriculum: bool = False
        """Train on rows of depth up to 2 first, and allow 1 more each time they are mastered."""
        threshold: float = 0.9
        """Running share of right rows at which the curriculum moves on."""
        window: int = 320
        """Number of rows that the running share looks back on."""

        def __post_init__(self) -> None:
            check_int("num_values", self.num_values, 2, 10)
            check_int("max_back", self.max_back, 1, 9)
            check_int("max_depth", self.max_depth, 1, LONGEST)
            check_int("min_length", self.min_length, 1, LONGEST)
            check_int("max_length", self.max_length, self.min_length, LONGEST)
            check_curriculum(self)

    config: Config
    prompt_example = "1+3 2+0 3+4"

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        config = self.config
        self.num_answers = config.num_values
        self.sizes = range(config.min_length, config.max_length + 1)
        self.levels = range(min(2, config.max_depth), config.max_depth + 1)
        self.difficulty = self.levels[0 if config.curriculum else -1]
        self.start_token = self.wait_token = config.num_values * (1 + config.max_back)
        self.vocab_size = self.start_token + 1
        values = range(config.num_values)
        self._names = [
            *map(str, values),
            *(f"{i + 1}+{c}" for i in range(config.max_back) for c in values),
        ]
        self._names.append("?")
        self.max_length = 2 + config.max_length
        self.max_due = min(config.max_depth, config.max_length)
        self._check_splits()

    @property
    def _stage(self) -> int:
        return self.difficulty

    def draw(
        self, draws: Draws, sizes: Int64[np.ndarray, " n"], split: str
    ) -> Int64[np.ndarray, "n w"]:
        config, width = self.config, self.sizes[-1]
        limit = self.difficulty if split == "train" else config.max_depth
        chosen, added = draws.below(2**32 - 1, width), draws.below(config.num_values, width)
        links, depth = np.full((len(draws), width), -1), np.zeros((len(draws), width + 1), np.int64)
        alive = np.ones(len(draws), bool)
        for t in range(1, width + 1):
            # Depth of the token that each link leads to; links beyond the start lead to it.
            before = depth[:, np.maximum(0, t - np.arange(1, config.max_back + 1))]
            allowed = (before < limit).cumsum(1)
            alive &= (allowed[:, -1] > 0) & (t <= sizes)
            place = (allowed <= (chosen[:, t - 1] * allowed[:, -1] >> 32)[:, None]).sum(1)
            place = np.minimum(place, config.max_back - 1)  # of rows that have ended
            depth[:, t] = 1 + np.take_along_axis(before, place[:, None], 1)[:, 0]
            links[:, t - 1] = np.where(alive, place * config.num_values + added[:, t - 1], -1)
        return links

    def layout(self, inputs: Int64[np.ndarray, "n w"], sizes: Int64[np.ndarray, " n"]) -> Layout:
        (n, width), config = inputs.shape, self.config
        real, rows = inputs >= 0, np.arange(n)
        values, due = np.zeros((2, n, width + 1), np.int64)
        for t in range(1, width + 1):
            back, added = np.divmod(inputs[:, t - 1], config.num_values)
            origin = np.clip(t - 1 - back, 0, t - 1)
            values[:, t] = (values[rows, origin] + added) % config.num_values
            due[:, t] = due[rows, origin] + 1
        values[:, 1:][~real], due[:, 1:][~real] = IGNORED, 0
        values[:, 0], due[:, 0] = IGNORED, 1
        tokens = np.where(real, inputs + config.num_values, -1)
        return np.concatenate([np.full((n, 1), self.start_token), tokens], 1), values, due

    # text

    def encode(self, text: str) -> list[int]:
        """Return the tokens of links such as `1+3 2+0`; a single digit is an answer.

        Raises:
            UsageError: naming the first word that is neither.
        """
        tokens, count = [self.start_token], self.config.num_values
        for place, word in enumerate(text.split()):
            if word not in self._names[:-1]:
                raise usage_error(
                    f"word {place} of {text[:60]!r} is {word[:20]!r}",
                    f"1 .. {self.config.max_back} tokens back, + and 0 .. {count - 1}",
                    "write links such as 1+3 2+0",
                )
            tokens.append(self._names.index(word))
        return tokens

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens`; the start token is `?`, except before links."""
        found = checked(tokens, self.vocab_size)
        is_row = len(found) > 1 and self.config.num_values <= found[1] < self.start_token
        return " ".join(self._names[x] for x in found[is_row and found[0] == self.start_token :])
