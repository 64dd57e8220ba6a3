"""Questions about short stories, from files in the format of bAbI or from worlds of our own."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from thinkers.checks import check_int
from thinkers.data.sources import data_error
from thinkers.errors import DamagedError, DataError, UsageError
from thinkers.files import write_file
from thinkers.models.base import Batch
from thinkers.prng import Draws, mix, row_keys
from thinkers.tasks import babi_worlds
from thinkers.tasks.answers import answer_batch
from thinkers.tasks.babi_format import Story, read_splits, told
from thinkers.tasks.base import SPLITS, check_batch, check_split
from thinkers.tasks.curriculum import CurriculumTask, check_curriculum

SCORING_ROWS = 250
LONGEST = 8 * babi_worlds.MOST_LINES + 2
"""The most tokens of a question of our own, with its story, its answer and the end."""
KEPT = "vocabulary.json"
MARKS = (".", "?", ",")
END, PAD, FIRST = 0, 1, 2
"""Tokens: the end of an answer, padding, and from FIRST on the marks and all words in order."""
_PART = re.compile(r"[^\s.?,]+|[.?,]")


class Example(NamedTuple):
    """A question with the statements before it, and its answer, end token included, as tokens."""

    prompt: list[int]
    answer: list[int]
    lesson: tuple[int, int]
    """The place of its kind among `kinds`, and the number of statements before it."""
    story: int
    """The number of its story in its split."""


class Babi(CurriculumTask):
    """Answers questions about a story: who is where, why, how many, is it so.

    The form is that of the bAbI tasks (Weston et al. 2015, https://arxiv.org/abs/1502.05698), of
    which published files can be read, all 20 kinds. Without a path the stories are those of
    `worlds`, whose splits share no beginning of a story.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        path: str = ""
        """A folder of files qa1_.._train.txt and qa1_.._test.txt, or one file, of which every
        tenth story is held out twice; empty for our own stories."""
        kinds: tuple[int, ...] = (1,)
        """Which kinds of stories, of a folder or our own; one file is read whole."""
        answers: Literal["written", "chosen"] = "written"
        """Written word by word, or chosen by one token right behind the question: the way of
        models that read both ways."""
        num_stories: int = 2000
        """Our own stories to train on, of each kind."""
        num_held_out: int = 200
        """Our own stories of each kind for the split valid, and as many for test."""
        curriculum: bool = False
        """Train on one kind after the other, and of each on the questions with the fewest
        statements before them first; what comes next is added when this is mastered."""
        whole_kinds: bool = False
        """Whether a curriculum adds each kind but the first whole."""
        threshold: float = 0.9
        """The running accuracy at which the curriculum moves on."""
        window: int = 2000
        """The number of examples that the running accuracy looks back on."""

        def __post_init__(self) -> None:
            if self.answers not in ("written", "chosen"):
                raise UsageError(f"answers must be written or chosen, got {self.answers!r}")
            for name in ("num_stories", "num_held_out"):
                check_int(name, getattr(self, name), 1)
            check_curriculum(self)
            for kind in self.kinds:
                check_int("kinds", kind, 1, 20)
            if not self.kinds or len(set(self.kinds)) < len(self.kinds):
                raise UsageError(f"kinds must be different ones, got {self.kinds}")
            unknown = [kind for kind in self.kinds if kind not in babi_worlds.KINDS]
            if unknown and not self.path:
                known = ", ".join(str(kind) for kind in babi_worlds.KINDS)
                raise UsageError(f"kinds must be among {known} without a path, got {unknown[0]}")

    config: Config
    end_token, pad_token = END, PAD
    causal_fix = "set answers=chosen, or causal=True"

    def __init__(self, config: Any = None, seed: int = 0, run: Mapping[str, Any] | None = None):
        """
        Args:
            run: What `save_to_run` wrote: files are then read when they are needed, with its words.
        """
        super().__init__(config, seed)
        self._examples: dict[str, list[Example]] = {}
        self._run = run
        self.words: tuple[str, ...] = tuple(sorted({word.lower() for word in babi_worlds.words()}))
        if run is not None:
            self.words = tuple(run["words"])
        elif self.config.path:
            stories = [x for split in SPLITS for kind in self.stories(split) for x in kind]
            self.words = words_of(stories, joined=self.config.answers == "chosen")
        self.tokens_of = {x: token for token, x in enumerate((*MARKS, *self.words), FIRST)}
        self.vocab_size = FIRST + len(self.tokens_of)
        self.max_length = LONGEST
        self._answer_length = 1 if self.config.answers == "chosen" else 2
        if run is not None:
            self.max_length, self._answer_length = run["max_length"], run["max_answer_length"]
        elif self.config.path:
            examples = [x for split in SPLITS for x in self.examples(split)]
            self._answer_length = max(len(x.answer) for x in examples)
            self.max_length = max(len(x.prompt) for x in examples) + self._answer_length
        self.difficulty = 0

    def max_answer_length(self) -> int:
        return self._answer_length

    def stories(self, split: str) -> Sequence[Sequence[Story]]:
        """The stories of a split, by kind."""
        check_split(split)
        config = self.config
        if config.path:
            return read_splits(Path(config.path), config.kinds)[split]
        count = config.num_stories if split == "train" else config.num_held_out
        return [told(kind, split, count) for kind in config.kinds]

    def examples(self, split: str) -> list[Example]:
        """The questions of a split, mixed."""
        if split not in self._examples:
            stories = [(x, kind) for kind, some in enumerate(self.stories(split)) for x in some]
            found = [
                example
                for number, (story, kind) in enumerate(stories)
                for example in self._examples_of(story, kind, number)
            ]
            keys = row_keys(0, SPLITS.index(split), np.arange(1), len(found))[0]
            self._examples[split] = [found[i] for i in np.argsort(keys, kind="stable")]
        return self._examples[split]

    def _examples_of(self, story: Story, kind: int, number: int) -> Iterator[Example]:
        facts: list[int] = []
        count = 0
        for line in story:
            tokens = self._tokens(line.text)
            if line.answer is None:
                facts += tokens
                count += 1
            elif self.config.answers == "chosen":
                answer = [self.tokens_of[line.answer.lower()]]
                yield Example(facts + tokens, answer, (kind, count), number)
            else:
                answer = [*self._tokens(line.answer), END]
                yield Example(facts + tokens, answer, (kind, count), number)

    @cached_property
    def levels(self) -> range:  # type: ignore[override]
        """The numbers of the stages; stories are told when the first is asked for."""
        return range(len(self._stages) if self.config.curriculum else 1)

    def groups(self, split: str = "test", num_examples: int = 2000) -> Int64[np.ndarray, " n"]:
        """The story of each: those of one story share its statements."""
        return np.array([x.story for x in self.examples(split)[:num_examples]])

    @cached_property
    def _stages(self) -> list[int]:
        """How many lessons are given at each stage: one more, or all of another kind."""
        kinds = [kind for kind, _ in self._lessons]
        singly = {kinds[0]} if self.config.whole_kinds else set(kinds)
        return [i for i, (x, y) in enumerate(pairwise([*kinds, None]), 1) if x in singly or x != y]

    @cached_property
    def _lessons(self) -> dict[tuple[int, int], list[Example]]:
        """The examples of training by lesson, in the order in which they are learned."""
        found: dict[tuple[int, int], list[Example]] = {}
        for example in sorted(self.examples("train"), key=lambda x: x.lesson):
            found.setdefault(example.lesson, []).append(example)
        return found

    def _lesson(self, draws: Draws) -> list[Example]:
        """The examples of one lesson, as likely as it has examples.

        One time in four it is of a kind learned before, else of the one that is being learned.
        """
        lessons = list(self._lessons)[: self._stages[self.difficulty]]
        *before, kind = sorted({kind for kind, _ in lessons})
        turn, which = draws.below(4, 1)[0, 0], draws.below(max(1, len(before)), 1)[0, 0]
        if before and turn == 0:
            kind = before[which]
        own = [self._lessons[lesson] for lesson in lessons if lesson[0] == kind]
        ends = np.cumsum([len(x) for x in own])
        return own[int(np.searchsorted(ends, draws.below(ends[-1], 1)[0, 0], side="right"))]

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Questions drawn for one update.

        A row depends on (seed, split, update, row) alone, and in training on the curriculum's
        difficulty, the number of the stage; all rows are then of one lesson, about equally
        long.
        """
        stream = check_batch(update, batch_size, split)
        examples = self.examples(split)
        keys = row_keys(self.seed, stream, np.array([update]), batch_size)[0]
        if self.config.curriculum and split == "train":
            examples = self._lesson(Draws(mix(keys[:1])))
        chosen = Draws(keys).below(len(examples), 1)[:, 0].tolist()
        return _batch([examples[i] for i in chosen], keys.view(np.int64))

    def evaluation_batches(self, split: str, num_examples: int) -> Iterator[Batch]:
        examples = self.examples(split)[:num_examples]
        for start in range(0, len(examples), SCORING_ROWS):
            some = examples[start : start + SCORING_ROWS]
            yield _batch(some, np.arange(start, start + len(some)))

    # text

    def _tokens(self, text: str) -> list[int]:
        return [self.tokens_of[part] for part in _PART.findall(text.lower())]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text such as `Anna ran to the attic. Where is Anna?`, in any case."""
        tokens = []
        for found in _PART.finditer(text.lower()):
            if found[0] not in self.tokens_of:
                near = get_close_matches(found[0], self.tokens_of, n=1, cutoff=0.0)
                raise UsageError(
                    f"character {found.start()} of the text must begin a word of the stories "
                    f"such as {near[0]!r}, got {found[0]!r}"
                )
            tokens.append(self.tokens_of[found[0]])
        return tokens

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """The text of `tokens`, up to the end token; padding is not shown."""
        words = ("", "", *MARKS, *self.words)
        text = ""
        for position, token in enumerate(int(token) for token in tokens):
            check_int(f"token {position}", token, 0, self.vocab_size - 1)
            if token == END:
                break
            glued = not text or words[token] in MARKS or text[-1] == ","
            text += words[token] if glued or token == PAD else f" {words[token]}"
        return text

    # runs

    def save_to_run(self, folder: Path) -> None:
        """Write vocabulary.json: with it a run can answer where its files are no more.

        Raises:
            DataError: The run was begun with other stories.
        """
        asked = [(x.prompt, x.answer) for x in self.examples("train")]
        state = {
            "words": list(self.words),
            "max_length": self.max_length,
            "max_answer_length": self._answer_length,
            "stories": hashlib.sha256(repr(asked).encode()).hexdigest(),
        }
        if not (folder / KEPT).exists():
            write_file(folder / KEPT, (json.dumps(state, indent=1) + "\n").encode())
        elif _kept(folder / KEPT) != state:
            raise data_error(
                self.config.path or "our own stories",
                "other stories than when the run began",
                "those that the run was trained on",
                "put them back, or train anew",
            )

    @classmethod
    def from_run(cls, config: Any, seed: int, folder: Path) -> "Babi":
        return cls(config, seed, _kept(folder / KEPT))


def _kept(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
        if not {"words", "max_length", "max_answer_length"} <= found.keys():
            raise ValueError("no words")
    except FileNotFoundError:
        raise DataError(f"{file} is missing, so nobody knows what the tokens stand for") from None
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{file} has changed since it was written: {error}") from None
    return found


def _batch(examples: Sequence[Example], keys: Int64[np.ndarray, " b"]) -> Batch:
    return answer_batch([(x.prompt, x.answer) for x in examples], keys, PAD)


def words_of(stories: Iterable[Story], joined: bool) -> tuple[str, ...]:
    """All words of these stories in lower case and in order; `joined`, whole answers as well."""
    found: set[str] = set()
    for story in stories:
        for line in story:
            found.update(_PART.findall(line.text.lower()))
            answer = (line.answer or "").lower()
            found.update([answer] if joined and answer else _PART.findall(answer))
    return tuple(sorted(found - set(MARKS)))
