"""Question answering on short stories: bAbI files, or generated stories of the same form."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from thinkers.checks import added, check_int
from thinkers.data.sources import Source, absolute_path, data_error, recorded_source
from thinkers.errors import UsageError
from thinkers.models.batch import Batch
from thinkers.prng import Draws, mix, row_keys
from thinkers.strict_json import Schema
from thinkers.tasks import babi_sections, babi_words, babi_worlds
from thinkers.tasks.babi_examples import Example, examples_at, question_batch
from thinkers.tasks.babi_format import Story, files_of, generated_stories, read_splits
from thinkers.tasks.babi_long import check_long, long_stories
from thinkers.tasks.babi_vocabulary import MARKS, PART, longest_statement, words_in
from thinkers.tasks.base import SPLITS, check_batch, check_split
from thinkers.tasks.curriculum import CurriculumTask, check_curriculum
from thinkers.tasks.vocabulary_file import load_vocabulary, save_vocabulary

SCORING_ROWS = 250
LINE = 8
"""The most tokens of a statement or question of a generated story."""
END, PAD, FIRST = 0, 1, 2
"""Tokens: the end of an answer, padding, then from FIRST on the marks and all words, sorted. After
the last word comes the start token."""
STATE: Schema = {
    "words": list,
    "max_length": int,
    "max_answer_length": int,
    "files": dict,
    "stories": str,
}
"""Fields of vocabulary.json, and their types."""


class Babi(CurriculumTask):
    """Answer a question about the statements before it: `Anna ran to the attic. Where is Anna?`

    The form is that of the bAbI tasks (Weston et al. 2015, https://arxiv.org/abs/1502.05698). The
    published files of all 20 kinds can be read; of these, test is the published test set, and valid
    every tenth training story. Without a path stories are generated (`babi_worlds`); two of them in
    different splits never begin alike. `exact` is the share of questions whose answer is right,
    with all its words and the end token if it is written, as one token if it is chosen.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        path: str = ""
        """A folder of files qa1_.._train.txt and qa1_.._test.txt, or one file, two tenths of whose
        stories are held out; empty for generated stories. It is stored as an absolute path, so that
        a run finds its stories from every folder."""
        kinds: tuple[int, ...] = (1,)
        """Kinds of stories, of a folder or generated; one file is taken as one kind."""
        answers: Literal["written", "chosen"] = "written"
        """Written word by word, or chosen: one token, predicted at the question's last position,
        stands for the whole answer, which a non-causal model can do too."""
        num_stories: int = 2000
        """Generated stories of each kind to train on."""
        questions: int = 1
        """Most questions of a training row, all graded: one, and others that are asked at the same
        place of its story; where answers are chosen, their number is drawn. With `sections`, they
        are asked by as many rows in turn. Generated training stories then ask that number where
        held-out stories ask one; files have what they have."""
        num_held_out: int = 200
        """Generated stories of each kind for valid, and as many for test."""
        curriculum: bool = False
        """Train on one kind after the other, in the order of `kinds`, and of each on the questions
        with the fewest statements first; each stage adds the next number of statements."""
        whole_kinds: bool = False
        """Let one stage of the curriculum add all questions of a kind, except of the first kind."""
        threshold: float = 0.9
        """Running accuracy at which the curriculum moves on."""
        window: int = 2000
        """Number of examples that the running accuracy looks back on."""
        statements: int | None = added(None)
        """Statements of generated stories, of kinds 1 and 2; None for those of their kinds."""
        sections: int | None = added(None)
        """Statements of a section: a model with a memory reads stories by sections, and rows hold
        the questions alone. None: rows begin with the statements."""

        def __post_init__(self) -> None:
            object.__setattr__(self, "path", absolute_path(self.path, "--task.path"))
            if self.answers not in ("written", "chosen"):
                raise UsageError(f"answers must be written or chosen, got {self.answers!r}")
            for name in ("num_stories", "num_held_out", "questions"):
                check_int(name, getattr(self, name), 1)
            if self.sections is not None:
                check_int("sections", self.sections, 1)
            check_curriculum(self)
            for kind in self.kinds:
                check_int("kinds", kind, 1, 20)
            if not self.kinds or len(set(self.kinds)) < len(self.kinds):
                raise UsageError(f"kinds must be one or more, all different, got {self.kinds}")
            unknown = [kind for kind in self.kinds if kind not in babi_worlds.KINDS]
            if unknown and not self.path:
                known = ", ".join(str(kind) for kind in babi_worlds.KINDS)
                raise UsageError(f"kinds must be among {known} without a path, got {unknown[0]}")
            check_long(self.statements, self.path, self.kinds)

    config: Config
    start_token: int
    end_token, pad_token = END, PAD
    causal_fix = "set answers=chosen, or causal=True"

    def __init__(
        self,
        config: Any = None,
        seed: int = 0,
        run: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ):
        """Read all files of a path; stories are generated when they are first needed.

        Args:
            run: The state in vocabulary.json of a run: its words are used, and files are read only
                when examples are needed.
            folder: The folder of that run.
        """
        super().__init__(config, seed)
        self._examples: dict[str, list[Example]] = {}
        self._run, self._folder = run, folder
        self._allowed: frozenset[str] = frozenset()
        # Files may have questions of any form; generated ones end in a question mark.
        self.prompt_end = "" if self.config.path else "?"  # type: ignore[misc]
        most = self.config.statements or babi_worlds.MAX_LINES - 1  # one line is a question
        words = {word.lower() for word in babi_words.words()}
        if self.config.path and run is None:
            stories = [x for split in SPLITS for kind in self.stories(split) for x in kind]
            words = words_in(stories, whole_answers=self.config.answers == "chosen")
            most = max(sum(line.answer is None for line in story) for story in stories)
        if self.config.sections:
            words |= babi_sections.numbers_to(most, self.config.sections)
        self.words = tuple(sorted(words)) if run is None else tuple(run["words"])
        self.tokens_of = {x: token for token, x in enumerate((*MARKS, *self.words), FIRST)}
        self.start_token = FIRST + len(self.tokens_of)
        self.vocab_size = self.start_token + 1
        self._answer_length = 1 if self.config.answers == "chosen" else 2
        self._line = LINE  # the most tokens of a statement
        self.max_length = 1 + LINE * (most + 1) + 2
        if self.config.sections:
            self.max_length = 1 + LINE + 2
        if run is not None:
            self.max_length, self._answer_length = run["max_length"], run["max_answer_length"]
            self._line = run.get("longest_statement", LINE)
        elif self.config.path:
            examples = [x for split in SPLITS for x in self.examples(split)]
            self._answer_length = max(len(x.answer) for x in examples)
            # No row, and no prompt with the longest answer, is longer.
            rows = max(x.longest(self.config.questions) for x in examples)
            self.max_length = max(rows, max(len(x.prompt) for x in examples) + self._answer_length)
            self._line = longest_statement(stories)
        if self.config.sections:
            self.section_length = 1 + self.config.sections * self._line
        self.difficulty = 0

    def max_answer_length(self) -> int:
        return self._answer_length

    def stories(self, split: str) -> Sequence[Sequence[Story]]:
        """Return the stories of a split, by kind."""
        check_split(split)
        config = self.config
        if config.path:
            source = self._source()
            return read_splits(Path(source.path), config.kinds)[split]
        count, asked = config.num_held_out, 1
        if split == "train":
            count, asked = config.num_stories, config.questions
        if config.statements is not None:
            sizes = count, config.statements, asked
            return [long_stories(kind, split, *sizes) for kind in config.kinds]
        return [generated_stories(kind, split, count, asked) for kind in config.kinds]

    def _source(self) -> Source:
        """Return the files of stories."""

        def find(path: str) -> Source:
            return Source(path, tuple(files_of(Path(path), self.config.kinds)))

        if self._run is None or self._folder is None or "path" in self._allowed:
            return find(self.config.path)
        return recorded_source(self.config.path, self._run["files"], self._folder, find=find)

    def allow_sources(self, settings: Collection[str]) -> None:
        self._allowed = frozenset(settings)

    def examples(self, split: str) -> list[Example]:
        """Return the questions of a split, in a random order that is the same for every seed."""
        if split not in self._examples:
            stories = [(x, kind) for kind, some in enumerate(self.stories(split)) for x in some]
            found = [
                example
                for number, (story, kind) in enumerate(stories)
                for example in self._examples_of(story, kind, number)
            ]
            # Shuffled, so that the first examples of a split, on which models are scored, are of
            # all kinds; with a constant seed, so that they are the same for every run.
            keys = row_keys(0, SPLITS.index(split), np.arange(1), len(found))[0]
            self._examples[split] = [found[i] for i in np.argsort(keys, kind="stable")]
        return self._examples[split]

    def _examples_of(self, story: Story, kind: int, number: int) -> Iterator[Example]:
        statements: list[list[int]] = []
        for is_question, lines in groupby(story, lambda line: line.answer is not None):
            if not is_question:
                statements += [self._tokenize(line.text) for line in lines]
                continue
            asked = [(self._tokenize(x.text), self._answer(x.answer or "")) for x in lines]
            facts, sections = babi_sections.context(
                statements, self.config.sections, self.tokens_of
            )
            bucket = kind, len(statements)
            yield from examples_at([self.start_token, *facts], asked, bucket, number, sections)

    def _answer(self, answer: str) -> list[int]:
        if self.config.answers == "chosen":
            return [self._token_of(answer.lower())]
        return [*self._tokenize(answer), END]

    @cached_property
    def levels(self) -> range:  # type: ignore[override]
        """Numbers of the stages.

        Cached and not set in `__init__`, since counting them generates the stories.
        """
        return range(len(self._stage_sizes) if self.config.curriculum else 1)

    def groups(self, split: str = "test", num_examples: int = 2000) -> Int64[np.ndarray, " n"]:
        """Return the number of each example's story: questions of one story share statements."""
        return np.array([x.story for x in self.examples(split)[:num_examples]])

    @cached_property
    def _stage_sizes(self) -> list[int]:
        """Number of buckets at each stage: one more than before, or all of the next kind."""
        # A stage ends after each bucket of a kind that is added bucket by bucket, and after the
        # last bucket of a kind that is added at once.
        kinds = [kind for kind, _ in self._buckets]
        singly = {kinds[0]} if self.config.whole_kinds else set(kinds)
        return [i for i, (x, y) in enumerate(pairwise([*kinds, None]), 1) if x in singly or x != y]

    @cached_property
    def _buckets(self) -> dict[tuple[int, int], list[Example]]:
        """Training examples by bucket, in the order in which the curriculum adds them."""
        found: dict[tuple[int, int], list[Example]] = {}
        for example in sorted(self.examples("train"), key=lambda x: x.bucket):
            found.setdefault(example.bucket, []).append(example)
        return found

    def _draw_bucket(self, draws: Draws) -> list[Example]:
        """Return the examples of a random bucket.

        One time in four it is of an earlier kind, so that earlier kinds are not forgotten; else of
        the last kind that the stage includes, and every other time then one that the stage added.
        Among several, those with more examples are likelier.
        """
        buckets = list(self._buckets)[: self._stage_sizes[self.difficulty]]
        *before, kind = sorted({kind for kind, _ in buckets})
        turn, which = draws.below(4, 1)[0, 0], draws.below(max(1, len(before)), 1)[0, 0]
        if before and turn == 0:
            kind = before[which]
        elif draws.below(2, 1)[0, 0]:
            buckets = buckets[sum(self._stage_sizes[: self.difficulty][-1:]) :]
        own = [self._buckets[bucket] for bucket in buckets if bucket[0] == kind]
        ends = np.cumsum([len(x) for x in own])
        return own[int(np.searchsorted(ends, draws.below(ends[-1], 1)[0, 0], side="right"))]

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Return questions drawn with replacement from the split, padded to the longest.

        A row is a function of (seed, split, update, row), and in training of the curriculum's
        stage. All rows of a training batch are then of one bucket, and about equally long. Training
        rows have up to `questions` questions each, as many as fit in `max_length`.
        """
        stream = check_batch(update, batch_size, split)
        examples = self.examples(split)
        keys = row_keys(self.seed, stream, np.array([update]), batch_size)[0]
        if self.config.curriculum and split == "train":
            # The first row's key decides for all rows, so that the batch size does not matter.
            examples = self._draw_bucket(Draws(mix(keys[:1])))
        draws = Draws(keys)
        some = [examples[i] for i in draws.below(len(examples), 1)[:, 0].tolist()]
        most = self.config.questions if split == "train" else 1
        if self.config.sections:
            some, most = babi_sections.asked_in_turn(some, most), 1
        counts = np.full(batch_size, most)
        if self.config.answers == "chosen":
            # Non-causal models see all questions of a row, and are scored on rows of one.
            counts = 1 + draws.below(most, 1)[:, 0]
        return self._batch(some, counts, keys.view(np.int64), is_training=split == "train")

    def _batch(
        self,
        examples: Sequence[Example],
        counts: Iterable[int],
        keys: Int64[np.ndarray, " b"],
        is_training: bool = False,
    ) -> Batch:
        is_written = self.config.answers == "written"
        rows = [x.first(n, self.max_length) for x, n in zip(examples, counts, strict=True)]
        found = question_batch(rows, keys, PAD, is_written)
        if self.config.sections:
            found = babi_sections.with_documents(found, examples, is_training)
        return found

    def evaluation_batches(self, split: str, num_examples: int) -> Iterator[Batch]:
        examples = self.examples(split)[:num_examples]
        most = babi_sections.rows_at_once(examples, SCORING_ROWS)
        for start in range(0, len(examples), most):
            some = examples[start : start + most]
            yield self._batch(some, [1] * len(some), np.arange(start, start + len(some)))

    # text

    def _tokenize(self, text: str) -> list[int]:
        return [self._token_of(part) for part in PART.findall(text.lower())]

    def _token_of(self, word: str) -> int:
        if word not in self.tokens_of:  # in files that were not there when the run began
            found = f"the word {word[:50]!r}"
            raise data_error(self.config.path, found, "words of the run", "use other files")
        return self.tokens_of[word]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text such as `Anna ran to the attic. Where is Anna?`.

        Raises:
            UsageError: naming the first word that is not in the vocabulary, and the nearest.
        """
        tokens = [self.start_token]
        for found in PART.finditer(text.lower()):
            if found[0] not in self.tokens_of:
                word = found[0][:50]  # enough of it for matching and messages
                near = get_close_matches(word, self.tokens_of, n=1, cutoff=0.0)
                raise UsageError(
                    f"character {found.start()} of the text must begin a word of the stories "
                    f"such as {near[0]!r}, got {word!r}"
                )
            tokens.append(self.tokens_of[found[0]])
        return tokens

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens` in lower case, up to the end token.

        Start tokens and padding have no text.
        """
        words = ("", "", *MARKS, *self.words, "")
        text = ""
        for position, token in enumerate(int(token) for token in tokens):
            check_int(f"token {position}", token, 0, self.vocab_size - 1)
            if token == END:
                break
            no_space = not text or not words[token] or words[token] in MARKS or text[-1] == ","
            text += words[token] if no_space else f" {words[token]}"
        return text

    def with_answer(self, prompt: str, answer: Iterable[int]) -> str:
        """Return the prompt as it was typed, and the answer after it."""
        given = self.encode(prompt)
        return prompt.rstrip() + self.decode([*given, *answer])[len(self.decode(given)) :]

    # runs

    def save_to_run(self, folder: Path) -> None:
        """Write vocabulary.json: the words, the sizes, and the digest of the training stories.

        Raises:
            DataError: The run began with other stories.
        """
        examples = [(x.prompt, x.answer, *x.sections) for x in self.examples("train")]
        state = {
            "words": list(self.words),
            "max_length": self.max_length,
            "max_answer_length": self._answer_length,
            "files": self._source().record() if self.config.path else {},
            "stories": hashlib.sha256(repr(examples).encode()).hexdigest(),
        }
        changed = data_error(
            self.config.path or "generated stories",
            "other stories than when the run began",
            "those that the run was trained on",
            "put them back, or train a new run",
        )
        if self.config.sections:
            state["longest_statement"] = self._line
        save_vocabulary(folder, state, changed)

    @classmethod
    def from_run(cls, config: Any, seed: int, folder: Path) -> "Babi":
        return cls(config, seed, load_vocabulary(folder, STATE), folder)
