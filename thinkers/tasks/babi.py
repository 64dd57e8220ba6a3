"""Questions about short stories, from files in the format of bAbI or from worlds of our own."""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.checkpoints import write_file
from thinkers.errors import DamagedError, DataError, UsageError
from thinkers.models.base import Batch
from thinkers.tasks import worlds
from thinkers.tasks.base import IGNORED, SPLITS, whole
from thinkers.tasks.curriculum import CurriculumTask, check_curriculum
from thinkers.tasks.draws import Draws, row_keys
from thinkers.tasks.text_files import unreadable

SCORED_AT_ONCE = 250
LONGEST = 8 * worlds.MOST_LINES + 2
"""The most tokens of a question of our own, with its story, its answer and the end."""
KEPT = "vocabulary.json"
MARKS = (".", "?", ",")
END, PAD, FIRST = 0, 1, 2
"""Tokens: the end of an answer, padding, and from FIRST on the marks and all words in order."""
_PART = re.compile(r"[^\s.?,]+|[.?,]")


class Line(NamedTuple):
    """A statement, or a question with its answer and the numbers of the lines that support it."""

    text: str
    answer: str | None = None
    support: tuple[int, ...] = ()


Story = list[Line]
"""Line 1 first."""


class Example(NamedTuple):
    """A question with the statements before it, and its answer, end token included, as tokens."""

    prompt: list[int]
    answer: list[int]
    num_statements: int


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
        """Train on the questions with the fewest statements before them first, and on one more
        each time they are mastered."""
        threshold: float = 0.9
        """The running accuracy at which the curriculum moves on."""
        window: int = 2000
        """The number of examples that the running accuracy looks back on."""

        def __post_init__(self) -> None:
            if self.answers not in ("written", "chosen"):
                raise UsageError(f"answers must be written or chosen, got {self.answers!r}")
            for name in ("num_stories", "num_held_out"):
                whole(name, getattr(self, name), 1)
            check_curriculum(self)
            for kind in self.kinds:
                whole("kinds", kind, 1, 20)
            if not self.kinds or len(set(self.kinds)) < len(self.kinds):
                raise UsageError(f"kinds must be different ones, got {self.kinds}")
            unknown = [kind for kind in self.kinds if kind not in worlds.KINDS]
            if unknown and not self.path:
                known = ", ".join(str(kind) for kind in worlds.KINDS)
                raise UsageError(f"kinds must be among {known} without a path, got {unknown[0]}")

    config: Config
    end_token, pad_token = END, PAD

    def __init__(self, config: Any = None, seed: int = 0, run: Mapping[str, Any] | None = None):
        """
        Args:
            run: What `keep` wrote: files are then read when they are needed, with its words.
        """
        super().__init__(config, seed)
        self._examples: dict[str, list[Example]] = {}
        self._run = run
        self.words: tuple[str, ...] = tuple(sorted({word.lower() for word in worlds.words()}))
        if run is not None:
            self.words = tuple(run["words"])
        elif self.config.path:
            stories = [story for split in SPLITS for story in self.stories(split)]
            self.words = words_of(stories, joined=self.config.answers == "chosen")
        self.tokens_of = {x: token for token, x in enumerate((*MARKS, *self.words), FIRST)}
        self.vocab_size = FIRST + len(self.tokens_of)
        self.max_length = LONGEST
        self._answer_length = 1 if self.config.answers == "chosen" else 2
        if run is not None:
            self.max_length, self._answer_length = run["max_length"], run["answer_length"]
        elif self.config.path:
            examples = [x for split in SPLITS for x in self.examples(split)]
            self._answer_length = max(len(x.answer) for x in examples)
            self.max_length = max(len(x.prompt) for x in examples) + self._answer_length
        self.begin(self._sizes() if self.config.curriculum and run is None else range(1))

    def answer_length(self) -> int:
        return self._answer_length

    def stories(self, split: str) -> Sequence[Story]:
        """The stories of a split."""
        if split not in SPLITS:
            raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        config = self.config
        if config.path:
            return read_splits(Path(config.path), config.kinds)[split]
        count = config.num_stories if split == "train" else config.num_held_out
        return [story for kind in config.kinds for story in told(kind, split, count)]

    def examples(self, split: str) -> list[Example]:
        """The questions of a split, mixed."""
        if split not in self._examples:
            found = [x for story in self.stories(split) for x in self._examples_of(story)]
            keys = row_keys(0, SPLITS.index(split), np.arange(1), len(found))[0]
            self._examples[split] = [found[i] for i in np.argsort(keys, kind="stable")]
        return self._examples[split]

    def _examples_of(self, story: Story) -> Iterator[Example]:
        facts: list[int] = []
        count = 0
        for line in story:
            tokens = self._tokens(line.text)
            if line.answer is None:
                facts += tokens
                count += 1
            elif self.config.answers == "chosen":
                yield Example(facts + tokens, [self.tokens_of[line.answer.lower()]], count)
            else:
                yield Example(facts + tokens, [*self._tokens(line.answer), END], count)

    def _sizes(self) -> range:
        """From the fewest to the most statements before a question of training."""
        found = [x.num_statements for x in self.examples("train")]
        return range(min(found), max(found) + 1)

    @cached_property
    def _graded(self) -> list[Example]:
        """The examples of training, those with the fewest statements first."""
        return sorted(self.examples("train"), key=lambda x: x.num_statements)

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Questions drawn for one update.

        A row depends on (seed, split, update, row) alone, and in training on the curriculum's
        difficulty: the most statements before a question.
        """
        whole("update", update, 0, 2**63 - 1)
        whole("batch_size", batch_size, 1)
        examples = self.examples(split)
        count = len(examples)
        if self.config.curriculum and split == "train":
            examples = self._graded
            count = bisect_right(examples, self.difficulty, key=lambda x: x.num_statements)
        keys = row_keys(self.seed, SPLITS.index(split), np.array([update]), batch_size)[0]
        chosen = Draws(keys).below(count, 1)[:, 0].tolist()
        return rows([examples[i] for i in chosen], keys.view(np.int64))

    def held_out(self, split: str, num_examples: int) -> Iterator[Batch]:
        examples = self.examples(split)[:num_examples]
        for start in range(0, len(examples), SCORED_AT_ONCE):
            some = examples[start : start + SCORED_AT_ONCE]
            yield rows(some, np.arange(start, start + len(some)))

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
            whole(f"token {position}", token, 0, self.vocab_size - 1)
            if token == END:
                break
            glued = not text or words[token] in MARKS or text[-1] == ","
            text += words[token] if glued or token == PAD else f" {words[token]}"
        return text

    # runs

    def keep(self, folder: Path) -> None:
        """Write vocabulary.json: with it a run can answer where its files are no more.

        Raises:
            DataError: The run was begun with other stories.
        """
        state = {
            "words": list(self.words),
            "max_length": self.max_length,
            "answer_length": self._answer_length,
            "stories": hashlib.sha256(repr(self.examples("train")).encode()).hexdigest(),
        }
        if not (folder / KEPT).exists():
            write_file(folder / KEPT, (json.dumps(state, indent=1) + "\n").encode())
        elif _kept(folder / KEPT) != state:
            raise unreadable(
                self.config.path or "our own stories",
                "other stories than when the run began",
                "those that the run was trained on",
                "put them back, or train anew",
            )

    @classmethod
    def of_run(cls, config: Any, seed: int, folder: Path) -> "Babi":
        return cls(config, seed, _kept(folder / KEPT))


def _kept(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
        if not {"words", "max_length", "answer_length"} <= found.keys():
            raise ValueError("no words")
    except FileNotFoundError:
        raise DataError(f"{file} is missing, so nobody knows what the tokens stand for") from None
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{file} has changed since it was written: {error}") from None
    return found


def rows(examples: Sequence[Example], keys: np.ndarray) -> Batch:
    """These examples, padded to the longest."""
    width = max(len(x.prompt) + len(x.answer) for x in examples) - 1
    tokens = np.full((len(examples), width), PAD)
    targets = np.full((len(examples), width), IGNORED)
    prompts = np.array([len(x.prompt) for x in examples])
    lengths = prompts + [len(x.answer) - 1 for x in examples]
    for row, (x, n, end) in enumerate(zip(examples, prompts, lengths, strict=True)):
        tokens[row, :n] = x.prompt
        tokens[row, n:end] = x.answer[:-1]
        targets[row, n - 1 : end] = x.answer
    return Batch(*(torch.from_numpy(x) for x in (tokens, targets, prompts, lengths, keys)))


def words_of(stories: Iterable[Story], joined: bool) -> tuple[str, ...]:
    """All words of these stories in lower case and in order; `joined`, whole answers as well."""
    found: set[str] = set()
    for story in stories:
        for line in story:
            found.update(_PART.findall(line.text.lower()))
            answer = (line.answer or "").lower()
            found.update([answer] if joined and answer else _PART.findall(answer))
    return tuple(sorted(found - set(MARKS)))


@lru_cache(maxsize=8)
def told(kind: int, split: str, count: int) -> tuple[Story, ...]:
    """So many of our own stories, read as a file of them would be."""
    text = "".join(worlds.tell(kind, split, number) for number in range(count))
    return tuple(parse(text.encode(), f"stories of kind {kind}"))


def read_splits(path: Path, kinds: Sequence[int]) -> dict[str, list[Story]]:
    """The stories of a folder or file, by split.

    Of a folder's training files every tenth story is for valid; of a single file the ninth and
    tenth of each ten are for valid and test.
    """
    found: dict[str, list[Story]] = {split: [] for split in SPLITS}
    if path.is_dir():
        for kind in kinds:
            train, test = (_only(path, kind, part) for part in ("train", "test"))
            for number, story in enumerate(read(train)):
                found["valid" if number % 10 == 9 else "train"].append(story)
            found["test"] += read(test)
    else:
        for number, story in enumerate(read(path)):
            found[{8: "valid", 9: "test"}.get(number % 10, "train")].append(story)
    for split, stories in found.items():
        if not any(line.answer is not None for story in stories for line in story):
            raise unreadable(
                str(path), f"no question for {split}", "at least ten stories", "take a larger file"
            )
    return found


def _only(folder: Path, kind: int, part: str) -> Path:
    pattern = f"qa{kind}_*{part}.txt"
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        found = f"{len(files)} files {pattern}"
        raise unreadable(str(folder), found, "one", "set --task.path or --task.kinds")
    return files[0]


def read(file: Path) -> list[Story]:
    """The stories of a file in the format of bAbI.

    Raises:
        DataError: naming the file, and the line that cannot be.
    """
    try:
        return parse(file.read_bytes(), str(file))
    except OSError as error:
        why = error.strerror or "it cannot be read"
        raise unreadable(str(file), why, "a file of stories", "set --task.path") from None


def parse(data: bytes, source: str) -> list[Story]:
    """The stories of a text in the format of bAbI: see `read`."""
    stories: list[Story] = []
    for place, raw in enumerate(data.splitlines(), 1):
        where = f"{source}, line {place}"
        try:
            text = raw.decode("utf-8-sig" if place == 1 else "utf-8")
        except UnicodeDecodeError as error:
            found = f"byte {error.start} is {raw[error.start]:#04x}"
            raise unreadable(where, found, "UTF-8", "convert the file") from None
        if not text.strip():
            continue
        number, line = _line(text, where)
        if number == 1:
            stories.append([])
        elif not stories or number != len(stories[-1]) + 1:
            wanted = f"1 or {len(stories[-1]) + 1}" if stories else "1"
            raise unreadable(where, f"number {number}", wanted, "number the lines of a story")
        story = stories[-1]
        if line.answer is not None:
            for fact in line.support:
                if not 1 <= fact <= len(story) or story[fact - 1].answer is not None:
                    wanted = "numbers of statements before it in its story"
                    raise unreadable(where, f"supporting fact {fact}", wanted, "correct it")
        story.append(line)
    if not stories:
        raise unreadable(source, "no story", "numbered lines", "take another file")
    return stories


def _line(text: str, where: str) -> tuple[int, Line]:
    number, _, rest = text.strip().partition(" ")
    if not (number.isascii() and number.isdigit()) or not rest.strip():
        raise unreadable(where, repr(text[:40]), "a number, a space and a sentence", "correct it")
    sentence, *others = (part.strip() for part in rest.split("\t"))
    if not others:
        return int(number), Line(sentence)
    facts = others[1].split() if len(others) == 2 else []
    answer = others[0]
    numbers = all(fact.isascii() and fact.isdigit() for fact in facts)
    if len(others) != 2 or not sentence or not all(answer.split(",")) or not numbers:
        wanted = "a question, its answer and the numbers of supporting lines, between tabs"
        raise unreadable(where, repr(text[:60]), wanted, "correct it")
    return int(number), Line(sentence, answer, tuple(int(fact) for fact in facts))
