"""The family of number tasks: what is drawn, held out, written, padded and judged.

A task adds how its questions are drawn, asked and answered. An example is held out by a hash of
what it asks, not of when it is drawn: 80 % of all questions are for training, 10 % each for the
splits valid and test, whatever the seed, the sizes drawn and the padding.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, UInt64
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import UsageError
from thinkers.models.base import Batch
from thinkers.prng import Draws, constants, mix, row_keys
from thinkers.tasks import number_tokens
from thinkers.tasks.answers import SCORING_ROWS
from thinkers.tasks.base import IGNORED, SPLITS, check_batch, check_split, splits_of_hashes
from thinkers.tasks.curriculum import CurriculumTask, check_curriculum
from thinkers.tasks.number_tokens import BASE, BLANK, END, EQUALS, PAD

Fields = list[Int64[np.ndarray, "n _"]]
"""Tokens of n rows, side by side; -1 is no token and is closed up."""

BLOCK_TOKENS, BLOCK_UPDATES = 1 << 17, 64
SMALL = 10_000
"""Spaces below this are tried for examples of every split."""
_SALT = 8
"""Any would do; with this one even the smallest spaces, such as 1*1 to 9*9, can be split."""


@dataclass
class Questions:
    """What is asked in n rows; -1 is no digit.

    Args:
        digits: For each number or sequence its digits: of numbers the least significant first.
        marks: What else is chosen: operators, amounts.
    """

    in_base: Int64[np.ndarray, " n"]
    out_base: Int64[np.ndarray, " n"]
    digits: Int64[np.ndarray, "n i w"]
    marks: Int64[np.ndarray, "n m"]
    valid: Bool[np.ndarray, " n"]

    def put(self, rows: Int64[np.ndarray, " r"], other: "Questions", which: np.ndarray) -> None:
        """Replace `rows` by the rows `which` of `other`."""
        for name, mine in vars(self).items():
            mine[rows] = getattr(other, name)[which]


class NumberTask(CurriculumTask):
    """Questions about numbers in bases from 2 to 16, answered exactly."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        min_in_base: int = 10
        """The base of each question is drawn from min_in_base .. max_in_base."""
        max_in_base: int = 10
        min_out_base: int = 10
        """The base of each answer is drawn too; both are written if there is a choice."""
        max_out_base: int = 10
        blanks: bool = False
        """Pad the numbers of a prompt with blanks to the width of the widest."""
        curriculum: bool = False
        """Train on the smallest size first, and on one more each time it is mastered."""
        threshold: float = 0.9
        """The running accuracy at which the curriculum moves on."""
        window: int = 2000
        """The number of examples that the running accuracy looks back on."""

        def __post_init__(self) -> None:
            check_int("min_in_base", self.min_in_base, 2, 16)
            check_int("max_in_base", self.max_in_base, self.min_in_base, 16)
            check_int("min_out_base", self.min_out_base, 2, 16)
            check_int("max_out_base", self.max_out_base, self.min_out_base, 16)
            check_curriculum(self)

        @property
        def sizes(self) -> range:
            """From the smallest to the largest number of digits or elements."""
            raise NotImplementedError

        @property
        def in_bases(self) -> range:
            return range(self.min_in_base, self.max_in_base + 1)

        @property
        def out_bases(self) -> range:
            return range(self.min_out_base, self.max_out_base + 1)

        @property
        def bases_written(self) -> bool:
            return len(self.in_bases) * len(self.out_bases) > 1

    config: Config
    prompt_end = "="
    marks: ClassVar[str] = "="
    """What a text of this task may hold beside digits and blanks."""
    are_numbers: ClassVar[bool] = True
    """Whether digits stand for numbers, or for the elements of a sequence."""
    unordered: ClassVar[bool] = False
    """Whether a question with its numbers exchanged is the same, and held out with it."""

    vocab_size = number_tokens.VOCAB_SIZE
    end_token, pad_token = END, PAD

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        sizes = self.config.sizes
        self.levels = sizes
        self.difficulty = sizes[0] if self.config.curriculum else sizes[-1]
        self._widths = {size: self._measure(size) for size in sizes}
        self.max_length = sum(self._widths[sizes[-1]])
        self._memo: tuple[Any, Batch | None] = (None, None)
        self._check_splits()

    @abstractmethod
    def draw(self, draws: Draws, size: int) -> Questions:
        """Questions up to `size`, drawn so that every size is equally likely."""

    @abstractmethod
    def ask(self, questions: Questions) -> Fields:
        """The prompts, without bases and `=`."""

    @abstractmethod
    def solve(self, questions: Questions) -> Fields:
        """The answers, without the end token."""

    @abstractmethod
    def prompt_width(self, size: int) -> int:
        """How many tokens the longest of `ask` is."""

    @abstractmethod
    def answer_width(self, size: int) -> int:
        """How many tokens the longest of `solve` is."""

    @abstractmethod
    def num_questions(self, size: int, base: int) -> int:
        """How many different questions up to `size` there are in one base."""

    def num_examples(self, size: int) -> int:
        """How many different examples up to `size` there are."""
        bases = self.config.in_bases
        return sum(self.num_questions(size, base) for base in bases) * len(self.config.out_bases)

    # batches

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """The examples of one update, all padded to the longest that their size allows.

        A row depends on (seed, split, update, row) alone, and in training on the curriculum's
        difficulty; valid and test are always of every size. Training updates are made many at a
        time and remembered.
        """
        check_batch(update, batch_size, split)
        if split != "train":
            return self._generate(update, 1, batch_size, split, self.config.sizes[-1])
        size = self.difficulty
        fitting = BLOCK_TOKENS // (batch_size * sum(self._widths[size]))
        count = min(max(fitting, 1), BLOCK_UPDATES)
        block, key = None, (update // count, batch_size, size)
        if self._memo[0] == key:
            block = self._memo[1]
        if block is None:
            block = self._generate(update // count * count, count, batch_size, split, size)
            self._memo = (key, block)
        first = update % count * batch_size
        rows = block.rows(slice(first, first + batch_size))
        return Batch(*(part.clone() for part in _parts(rows)))

    def _generate(self, update: int, count: int, batch_size: int, split: str, size: int) -> Batch:
        updates = np.arange(update, update + count)
        keys = row_keys(self.seed, SPLITS.index(split), updates, batch_size).ravel()
        questions = self._questions(keys, split, size)
        prompt, answer = self._prompt(questions), self.solve(questions)
        end = np.full((len(keys), 1), END)
        row, lengths = _close_up([*prompt, *answer, end], sum(self._widths[size]))
        prompt_lengths = sum((field >= 0).sum(1) for field in prompt)
        columns = np.arange(row.shape[1])
        graded = (columns >= prompt_lengths[:, None]) & (columns < lengths[:, None])
        targets = np.where(graded, row, IGNORED)[:, 1:]
        tokens = np.where(row == END, PAD, row)[:, :-1]
        arrays = (tokens, targets, prompt_lengths, lengths - 1, keys.view(np.int64))
        return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def _questions(self, keys: UInt64[np.ndarray, " n"], split: str, size: int) -> Questions:
        pending = np.arange(len(keys))
        questions = None
        for attempt in range(100_000):
            drawn = self.draw(Draws(mix(keys[pending] + np.uint64(attempt + 1))), size)
            good = drawn.valid & (self.split_of(drawn) == SPLITS.index(split))
            if questions is None:
                questions = drawn
            else:
                questions.put(pending[good], drawn, good)
            pending = pending[~good]
            if not len(pending):
                return questions
        raise RuntimeError(f"no {split} example of size {size} in 100,000 draws")

    def split_of(self, questions: Questions) -> Int64[np.ndarray, " n"]:
        """The index into SPLITS that each question belongs to."""
        _, count, width = questions.digits.shape
        digits = (questions.digits + 1).astype(np.uint64)
        weights = constants(width, salt=_SALT)
        content = mix(sum(digits[:, :, i] * weights[i] for i in range(width)))
        if not self.unordered:
            content = content * constants(count, salt=_SALT + 1)
        others = np.column_stack([questions.in_base, questions.out_base, questions.marks])
        weights = constants(others.shape[1], salt=_SALT + 2)
        content = mix(content.sum(1) + ((others + 1).astype(np.uint64) * weights).sum(1))
        return splits_of_hashes(content)

    def _prompt(self, questions: Questions) -> Fields:
        prompt = self.ask(questions)
        if self.config.bases_written:
            bases = np.column_stack([questions.in_base, questions.out_base])
            prompt = [BASE + bases, *prompt]
        return [*prompt, np.full((len(questions.in_base), 1), EQUALS)]

    def padded(self, digits: Int64[np.ndarray, "n w"]) -> Int64[np.ndarray, "n _"]:
        """Digits as they are asked: with `blanks` as wide as the largest size."""
        if not self.config.blanks:
            return digits
        digits = np.where(digits < 0, BLANK, digits)
        more = self.config.sizes[-1] - digits.shape[1]
        return np.pad(digits, ((0, 0), (0, more)), constant_values=BLANK)

    def draw_bases(self, draws: Draws) -> Int64[np.ndarray, "2 n"]:
        """The base of the question and of the answer."""
        config = self.config
        in_base = config.min_in_base + draws.below(len(config.in_bases), 1)[:, 0]
        return np.stack(
            [in_base, config.min_out_base + draws.below(len(config.out_bases), 1)[:, 0]]
        )

    def _measure(self, size: int) -> tuple[int, int]:
        shown = self.config.sizes[-1] if self.config.blanks else size
        prompt = self.prompt_width(shown) + 1 + 2 * self.config.bases_written
        return prompt, self.answer_width(size) + 1

    def _check_splits(self) -> None:
        sizes = self.config.sizes
        for size, splits in ((self.difficulty, ("train",)), (sizes[-1], SPLITS)):
            count = self.num_examples(size)
            found: set[int] = set()
            for stream in range(8 if count < SMALL else 0):
                keys = row_keys(0, stream, np.arange(1), SMALL // 2)[0]
                drawn = self.draw(Draws(keys), size)
                found |= set(self.split_of(drawn)[drawn.valid].tolist())
            empty = [split for split in splits if SPLITS.index(split) not in found]
            if count < SMALL and empty:
                raise UsageError(
                    f"{type(self).__name__} has {count} different examples up to size {size}, too "
                    f"few to hold any out: none is left for {empty[0]}; allow larger sizes"
                )

    # judging

    def evaluation_batches(self, split: str, num_examples: int) -> Iterator[Batch]:
        check_split(split)
        largest = self.config.sizes[-1]
        for i, start in enumerate(range(0, num_examples, SCORING_ROWS)):
            count = min(SCORING_ROWS, num_examples - start)
            yield self._generate(i, 1, count, split, largest)

    def max_answer_length(self) -> int:
        return self.answer_width(self.config.sizes[-1]) + 1

    def encode(self, text: str) -> list[int]:
        """The tokens of a text such as `12+34=` or `12+34=46`, without the end token.

        Where the task has blanks, they need not be typed.
        """
        if self.config.blanks:
            text = number_tokens.widen(text, self.config.sizes[-1], reverse=self.are_numbers)
        return number_tokens.encode(
            text,
            marks=self.marks,
            in_bases=self.config.in_bases,
            out_bases=self.config.out_bases,
            reverse=self.are_numbers,
        )

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """The text of `tokens`, up to the end token."""
        return number_tokens.decode(tokens, reverse=self.are_numbers)


def _close_up(parts: Fields, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `parts` without their gaps, padded to `width`, and their lengths."""
    wide = np.concatenate(parts, axis=1)
    kept = wide >= 0
    places = np.cumsum(kept, axis=1, dtype=np.int64)
    places += np.arange(0, len(wide) * width, width)[:, None] - 1
    rows = np.full((len(wide), width), PAD)
    rows.ravel()[places[kept]] = wide[kept]
    return rows, kept.sum(1)


def _parts(batch: Batch) -> list[Tensor]:
    parts = (batch.tokens, batch.targets, batch.prompt_lengths, batch.lengths, batch.keys)
    return [part for part in parts if part is not None]
