"""NumberTask: base class of all tasks on numbers and digit sequences.

A concrete task defines `draw` (random questions), `prompt_tokens`, `answer_tokens`, their widths
and `num_questions`; this file splits, tokenizes, pads, batches and scores. All operations are
vectorised in numpy, since batches are made while a small model waits for them.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, UInt64
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import UsageError
from thinkers.models.batch import Batch
from thinkers.prng import Draws, constants, mix, row_keys
from thinkers.tasks import number_tokens
from thinkers.tasks.answers import SCORING_ROWS
from thinkers.tasks.base import (
    IGNORED,
    SPLITS,
    Prompt,
    check_batch,
    check_split,
    splits_of_hashes,
)
from thinkers.tasks.curriculum import CurriculumTask, check_curriculum
from thinkers.tasks.number_prompts import PromptReader
from thinkers.tasks.number_tokens import BASE, BLANK, END, EQUALS, PAD, START

TokenBlocks = list[Int64[np.ndarray, "n _"]]
"""Tokens of n rows in blocks of columns; -1 is no token and is removed when blocks are joined."""

BLOCK_TOKENS, BLOCK_UPDATES = 1 << 17, 64
"""The most tokens, and the most updates, that are drawn at once."""
EXHAUSTIVE_BELOW = 10_000
"""Number of examples below which building a task checks that every split has some."""
_SALT = 8
"""Salt of the hash that splits examples. Any salt serves for large tasks; with this one the
smallest, such as 1*1 to 9*9, have examples in every split too."""


@dataclass
class Questions:
    """Questions of n rows, each with i numbers or sequences of w digits; -1 is no digit.

    Args:
        digits: Digits of numbers, least significant first, or elements of sequences, in order.
        choices: Other parts of a question, as tokens: operators, amounts; -1 is none.
        valid: False for a draw that is not a question of the task and must be drawn again.
    """

    in_base: Int64[np.ndarray, " n"]
    out_base: Int64[np.ndarray, " n"]
    digits: Int64[np.ndarray, "n i w"]
    choices: Int64[np.ndarray, "n m"]
    valid: Bool[np.ndarray, " n"]

    def replace_rows(
        self, rows: Int64[np.ndarray, " r"], other: "Questions", which: np.ndarray
    ) -> None:
        """Replace `rows` by the rows `which` of `other`."""
        for name, column in vars(self).items():
            column[rows] = getattr(other, name)[which]


class NumberTask(CurriculumTask):
    """Question about numbers or digit sequences in bases from 2 to 16, such as `12+34=46`.

    Numbers are read and written least significant digit first, in text as usual. Questions are held
    out by a hash of their content: 80 % of all questions are for training, 10 % each for valid and
    test, for every seed, range of sizes and padding. Held-out examples are of every size,
    at every stage of the curriculum. `exact` is the share of answers right to the end token.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        min_in_base: int = 10
        """The base of each question is uniform in min_in_base .. max_in_base."""
        max_in_base: int = 10
        min_out_base: int = 10
        """The base of each answer likewise; both are written before the prompt if either varies."""
        max_out_base: int = 10
        blanks: bool = False
        """Pad the numbers of a prompt with blanks to the width of the widest."""
        curriculum: bool = False
        """Train on the smallest size first, and allow one size more each time it is mastered."""
        threshold: float = 0.9
        """Running accuracy at which the curriculum moves on."""
        window: int = 2000
        """Number of examples that the running accuracy looks back on."""

        def __post_init__(self) -> None:
            check_int("min_in_base", self.min_in_base, 2, 16)
            check_int("max_in_base", self.max_in_base, self.min_in_base, 16)
            check_int("min_out_base", self.min_out_base, 2, 16)
            check_int("max_out_base", self.max_out_base, self.min_out_base, 16)
            check_curriculum(self)

        @property
        def sizes(self) -> range:
            """Numbers of digits or elements, from the smallest to the largest."""
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
    text_symbols: ClassVar[str] = "="
    """Symbols of this task's text, besides digits and blanks."""
    answer_symbols: str = ""
    """Symbols that answers alone may have."""
    least_significant_first: ClassVar[bool] = True
    """True if digits are those of numbers, False if they are elements of a sequence."""
    commutative: ClassVar[bool] = False
    """True if exchanging the numbers of a question gives the same question for the split."""

    vocab_size = number_tokens.VOCAB_SIZE
    end_token, pad_token, start_token = END, PAD, START

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        sizes = self.config.sizes
        self.levels = sizes
        self.difficulty = sizes[0] if self.config.curriculum else sizes[-1]
        self._widths = {size: self._widths_of(size) for size in sizes}
        self.max_length = sum(self._widths[sizes[-1]])
        self._block: tuple[tuple[int, int, int], Batch] | None = None
        self._check_splits()

    @abstractmethod
    def draw(self, draws: Draws, size: int) -> Questions:
        """Return one random question per row of `draws`, all sizes up to `size` equally likely."""

    def draw_training(self, draws: Draws, size: int) -> Questions:
        """Return questions as `draw` does, in the shares that they have in training."""
        return self.draw(draws, size)

    @abstractmethod
    def prompt_tokens(self, questions: Questions) -> TokenBlocks:
        """Return the tokens of the prompts, without start token, bases and `=`."""

    @abstractmethod
    def answer_tokens(self, questions: Questions) -> TokenBlocks:
        """Return the tokens of the answers, without the end token."""

    @abstractmethod
    def prompt_width(self, size: int) -> int:
        """Return the most tokens that `prompt_tokens` gives for questions up to `size`."""

    @abstractmethod
    def answer_width(self, size: int) -> int:
        """Return the most tokens that `answer_tokens` gives for questions up to `size`."""

    @abstractmethod
    def num_questions(self, size: int, base: int) -> int:
        """Return the number of different questions up to `size` in one base."""

    def num_examples(self, size: int) -> int:
        """Return the number of different examples up to `size`, over all bases."""
        bases = self.config.in_bases
        return sum(self.num_questions(size, base) for base in bases) * len(self.config.out_bases)

    # batches

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Return the examples of one update, padded to the longest that their size allows.

        A row is a function of (seed, split, update, row), and in training of the curriculum's
        difficulty; valid and test are of every size. The fixed width keeps the shapes of a training
        run constant.
        """
        check_batch(update, batch_size, split)
        if split != "train":
            return self._generate(update, 1, batch_size, split, self.config.sizes[-1])
        # The fixed cost of numpy calls is shared by a block of consecutive updates. A block is a
        # function of its key, so that this cache cannot change a batch.
        size = self.difficulty
        fitting = BLOCK_TOKENS // (batch_size * sum(self._widths[size]))
        count = min(max(fitting, 1), BLOCK_UPDATES)
        key = (update // count, batch_size, size)
        if self._block is None or self._block[0] != key:
            first_update = update // count * count
            self._block = key, self._generate(first_update, count, batch_size, split, size)
        first = update % count * batch_size
        rows = torch.arange(first, first + batch_size)  # an index copies, a slice would be a view
        return self._block[1].rows(rows)

    def _generate(self, update: int, count: int, batch_size: int, split: str, size: int) -> Batch:
        updates = np.arange(update, update + count)
        keys = row_keys(self.seed, SPLITS.index(split), updates, batch_size).ravel()
        questions = self._questions(keys, split, size)
        prompt, answer = self._prompt(questions), self.answer_tokens(questions)
        end = np.full((len(keys), 1), END)
        row, lengths = _left_align([*prompt, *answer, end], sum(self._widths[size]))
        prompt_lengths = sum((field >= 0).sum(1) for field in prompt)
        columns = np.arange(row.shape[1])
        # The end token is a target but never an input: a model stops when it has predicted it.
        graded = (columns >= prompt_lengths[:, None]) & (columns < lengths[:, None])
        targets = np.where(graded, row, IGNORED)[:, 1:]
        tokens = np.where(row == END, PAD, row)[:, :-1]
        arrays = (tokens, targets, prompt_lengths, lengths - 1, keys.view(np.int64))
        batch = Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
        return self.graded(batch, questions)

    def graded(self, batch: Batch, questions: Questions) -> Batch:
        """Return the batch of these questions with what is graded besides answers: nothing."""
        return batch

    def _questions(self, keys: UInt64[np.ndarray, " n"], split: str, size: int) -> Questions:
        """Return for each key the first question drawn from it that belongs to `split`."""
        # Rejection sampling: each attempt has a key of its own, so that a row does not depend on
        # how often other rows were rejected.
        pending = np.arange(len(keys))
        questions = None
        draw = self.draw_training if split == "train" else self.draw
        for attempt in range(100_000):
            drawn = draw(Draws(mix(keys[pending] + np.uint64(attempt + 1))), size)
            good = drawn.valid & (self.split_of(drawn) == SPLITS.index(split))
            if questions is None:
                questions = drawn
            else:
                questions.replace_rows(pending[good], drawn, good)
            pending = pending[~good]
            if not len(pending):
                return questions
        raise RuntimeError(f"no {split} example of size {size} in 100,000 draws")

    def split_of(self, questions: Questions) -> Int64[np.ndarray, " n"]:
        """Return the index into SPLITS of each question, by a hash of its content.

        The hash does not depend on width, padding or row: absent digits (-1) contribute 0, and the
        multipliers of digits do not depend on the number of columns. For a commutative task the
        hashes of the numbers are summed without weights.
        """
        _, count, width = questions.digits.shape
        digits = (questions.digits + 1).astype(np.uint64)
        weights = constants(width, salt=_SALT)
        # uint64 products and sums wrap around modulo 2**64, as a hash needs.
        content = mix(sum(digits[:, :, i] * weights[i] for i in range(width)))
        if not self.commutative:
            content = content * constants(count, salt=_SALT + 1)
        others = np.column_stack([questions.in_base, questions.out_base, questions.choices])
        weights = constants(others.shape[1], salt=_SALT + 2)
        content = mix(content.sum(1) + ((others + 1).astype(np.uint64) * weights).sum(1))
        return splits_of_hashes(content)

    def _prompt(self, questions: Questions) -> TokenBlocks:
        prompt = self.prompt_tokens(questions)
        if self.config.bases_written:
            bases = np.column_stack([questions.in_base, questions.out_base])
            prompt = [BASE + bases, *prompt]
        first, last = (np.full((len(questions.in_base), 1), x) for x in (START, EQUALS))
        return [first, *prompt, last]

    def with_blanks(self, digits: Int64[np.ndarray, "n w"]) -> Int64[np.ndarray, "n _"]:
        """Return the digits of a prompt: with `blanks`, padded to the width of the largest size."""
        if not self.config.blanks:
            return digits
        digits = np.where(digits < 0, BLANK, digits)
        more = self.config.sizes[-1] - digits.shape[1]
        return np.pad(digits, ((0, 0), (0, more)), constant_values=BLANK)

    def draw_bases(self, draws: Draws) -> Int64[np.ndarray, "2 n"]:
        """Return the bases of the questions and of the answers."""
        config = self.config
        in_base = config.min_in_base + draws.below(len(config.in_bases), 1)[:, 0]
        return np.stack(
            [in_base, config.min_out_base + draws.below(len(config.out_bases), 1)[:, 0]]
        )

    def _widths_of(self, size: int) -> tuple[int, int]:
        shown = self.config.sizes[-1] if self.config.blanks else size
        bases, start_and_equals = 2 * self.config.bases_written, 2
        prompt = self.prompt_width(shown) + bases + start_and_equals
        return prompt, self.answer_width(size) + 1

    def _check_splits(self) -> None:
        """Raise UsageError if a split has no example: `_questions` would never find one."""
        sizes = self.config.sizes
        # Training begins at the curriculum's first size; held-out examples are of all sizes.
        for size, splits in ((self.difficulty, ("train",)), (sizes[-1], SPLITS)):
            count = self.num_examples(size)
            found: set[int] = set()
            for stream in range(8 if count < EXHAUSTIVE_BELOW else 0):
                if len(found) == len(SPLITS):
                    break
                keys = row_keys(0, stream, np.arange(1), EXHAUSTIVE_BELOW // 2)[0]
                drawn = self.draw(Draws(keys), size)
                found |= set(self.split_of(drawn)[drawn.valid].tolist())
            empty = [split for split in splits if SPLITS.index(split) not in found]
            if count < EXHAUSTIVE_BELOW and empty:
                raise UsageError(
                    f"{type(self).__name__} has {count} different examples up to size {size}, too "
                    f"few to hold any out: none is left for {empty[0]}; allow larger sizes"
                )

    # evaluation and text

    def evaluation_batches(self, split: str, num_examples: int) -> Iterator[Batch]:
        check_split(split)
        largest = self.config.sizes[-1]
        for i, start in enumerate(range(0, num_examples, SCORING_ROWS)):
            count = min(SCORING_ROWS, num_examples - start)
            yield self._generate(i, 1, count, split, largest)

    def max_answer_length(self) -> int:
        return self.answer_width(self.config.sizes[-1]) + 1

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text such as `12+34=` or `12+34=46`: a start, but no end token.

        Spaces between numbers and symbols are left out. With `blanks`, blanks need not be typed.

        Raises:
            UsageError: naming the first character that is not allowed at its position.
        """
        return number_tokens.encode(
            text,
            symbols=self.text_symbols + self.answer_symbols,
            in_bases=self.config.in_bases,
            out_bases=self.config.out_bases,
            reverse=self.least_significant_first,
            width=self.config.sizes[-1] if self.config.blanks else 0,
        )

    def read_prompt(self, text: str) -> Prompt:
        """Read a question such as `12 + 34 =`, or with the last digits of its answer `12+34=6`.

        Numbers may be longer than those of training.

        Raises:
            UsageError: naming the first character that is not allowed at its position.
        """
        whole = self.with_end(text)
        reader, width = PromptReader(text, self.config, missing=whole[len(text) :]), 0
        try:
            width = self.read_question(reader)
            reader.take("=")
            self.read_answer(reader)
            reader.end()
        except UsageError:
            if reader.next() or "=" in whole:
                raise
        # A prompt that only lacks its end is refused here, with a message of its own.
        return replace(super().read_prompt(whole), longest=width + 1)

    def with_end(self, text: str) -> str:
        """Return a prompt with its `=`, where it need not be typed."""
        return text

    @abstractmethod
    def read_question(self, reader: PromptReader) -> int:
        """Parse the text before `=`; return the most tokens of the answer, end excluded."""

    @abstractmethod
    def read_answer(self, reader: PromptReader) -> None:
        """Read the beginning of an answer, which may be empty."""

    def with_answer(self, prompt: str, answer: Iterable[int]) -> str:
        question, equals, answered = (
            super().with_answer(self.with_end(prompt), answer).partition("=")
        )
        return question.replace("_", "") + equals + answered  # blanks as they would be typed

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens`, up to the end token, without start tokens and padding."""
        reverse, limit = self.least_significant_first, self.num_output_tokens
        return number_tokens.decode(tokens, reverse=reverse, vocab_size=limit)


def _left_align(parts: TokenBlocks, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Join blocks of columns: return rows without the -1, padded to `width`, and their lengths."""
    wide = np.concatenate(parts, axis=1)
    kept = wide >= 0
    places = np.cumsum(kept, axis=1, dtype=np.int64)
    places += np.arange(0, len(wide) * width, width)[:, None] - 1
    rows = np.full((len(wide), width), PAD)
    rows.ravel()[places[kept]] = wide[kept]
    return rows, kept.sum(1)
