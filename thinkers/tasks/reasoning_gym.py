"""ReasoningGym: questions of any generator of reasoning-gym, graded by its own verifier."""

import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import UsageError, near, usage_error
from thinkers.models.batch import Batch
from thinkers.optional import require
from thinkers.prng import Rng
from thinkers.tasks.answers import AnswerTask
from thinkers.tasks.base import Prompt

END, PAD = 256, 257
"""Tokens after those of the 256 bytes."""
SEPARATOR = "\n"
"""Between question and answer."""
SEED_BITS = 20
"""A seed of a run has 2**20 entries of its own. Entry i of a generator's seed s is entry i - 1 of
its seed s + 1: seeds that follow each other would have nearly all entries in common."""
SEEDS = 1 << 12
"""Seeds that differ: some generators take 32 bits."""
KEPT = 1 << 16
"""Entries whose texts are kept in memory; some generators make ten a second."""
OWN = ("seed", "size")
"""Settings of generators that the task sets."""
MISSES = 1000
"""Entries in a row that may be too long."""


class ReasoningGym(AnswerTask):
    """Answer a question of a generator of reasoning-gym, such as `4 + 3 =`.

    Generators and verifiers are those of https://github.com/open-thought/reasoning-gym (Stojanovski
    et al. 2025, https://arxiv.org/abs/2505.24760). A row is question, line feed and answer, in
    bytes. Entries that are too long are left out. Questions are held out by their hash. `exact` is
    the share of answers that end and that the verifier of the generator gives its full score:
    several answers may be right.
    """

    primary_metric = "exact"
    vocab_size = PAD + 1
    end_token, pad_token, start_token = END, PAD, None
    prompt_end = SEPARATOR

    @dataclass(frozen=True, kw_only=True)
    class Config:
        name: str = "chain_sum"
        """The generator, one of reasoning_gym.factory.DATASETS."""
        settings: str = "{}"
        """Settings of the generator as JSON, such as {"min_terms": 2}."""
        max_length: int = 128
        """The most bytes of a question and its answer, with one each between and after them."""
        max_answer: int = 16
        """The most bytes of an answer, and one."""
        num_entries: int = 1 << SEED_BITS
        """Entries to draw from; fewer for a generator that is slow, and then makes each once."""

        def __post_init__(self) -> None:
            check_int("max_length", self.max_length, 4)
            check_int("max_answer", self.max_answer, 2, self.max_length - 2, "max_length - 2")
            check_int("num_entries", self.num_entries, 1, 1 << SEED_BITS)
            generator_settings(self.settings)

    config: Config

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        self.max_length = self.config.max_length
        self._data = generator(self.config, seed)
        self._texts = lru_cache(KEPT)(self._new_texts)

    def max_answer_length(self) -> int:
        return self.config.max_answer

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        with kept_streams():
            return super().batch(update, batch_size, split)

    def example(self, rng: Rng) -> tuple[str, str]:
        return self._texts(self._draw(rng))

    def _draw(self, rng: Rng) -> int:
        """Return the number of a random entry that is not too long."""
        for _ in range(MISSES):
            number = rng.below(self.config.num_entries)
            question, answer = (len(text.encode()) for text in self._texts(number))
            if answer < self.config.max_answer and question + answer < self.config.max_length:
                return number
        raise usage_error(
            f"--task.max_length {self.config.max_length} and --task.max_answer "
            f"{self.config.max_answer}: {MISSES} entries of {self.config.name} are longer",
            f"sizes such as {question + answer + 1} and {answer + 1}, which one of them takes",
            "set them to more, or --task.settings to shorter questions",
        )

    def _new_texts(self, number: int) -> tuple[str, str]:
        """Return question, with its separator, and answer of an entry."""
        entry = self._data[number]
        if not isinstance(entry["answer"], str):
            raise usage_error(
                f"--task.name {self.config.name}, with an entry whose answer is {entry['answer']}",
                "a generator that gives an answer, to learn from",
                "choose another",
            )
        return entry["question"] + SEPARATOR, entry["answer"]

    def are_right(
        self, batch: Batch, predicted: Int[Tensor, "n a"], truth: Int[Tensor, "n a"]
    ) -> Bool[Tensor, " n"]:
        assert batch.prompt_lengths is not None and batch.keys is not None
        rows = zip(batch.tokens, batch.prompt_lengths.tolist(), strict=True)
        prompts = [self.decode(row[:length]) for row, length in rows]
        found = zip(prompts, batch.keys.tolist(), predicted.tolist(), strict=True)
        with kept_streams():
            right = [END in row and self._is_right(prompt, key, row) for prompt, key, row in found]
        return torch.tensor(right)

    def _is_right(self, prompt: str, key: int, answer: list[int]) -> bool:
        """Ask the verifier about an answer to the question that was drawn from this key."""
        drawn = (self._draw(rng) for rng in self.generators(key))
        number = next(n for n in drawn if self._texts(n)[0] == prompt)
        try:
            return self._data.score_answer(self.decode(answer), self._data[number]) >= 1
        except Exception:  # some verifiers raise various errors at answers of another form
            return False

    def encode(self, text: str) -> list[int]:
        """Return the bytes of `text`, in UTF-8."""
        # What was no UTF-8 on the command line becomes the same bytes again.
        try:
            return list(text.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError as error:
            raise UsageError(
                f"text must have a form in UTF-8, got {text[error.start]!r} at character "
                f"{error.start}"
            ) from None

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens` up to the end token, U+FFFD for bytes that are not UTF-8."""
        found = []
        for position, token in enumerate(int(token) for token in tokens):
            check_int(f"token {position}", token, 0, self.vocab_size - 1)
            if token == END:
                break
            found += [token] if token < END else []
        return bytes(found).decode("utf-8", "replace")

    def read_prompt(self, text: str) -> Prompt:
        """Read a question; the separator is added if it is not there."""
        return super().read_prompt(
            text if not text or text.endswith(SEPARATOR) else text + SEPARATOR
        )

    def with_answer(self, prompt: str, answer: Iterable[int]) -> str:
        return self.decode([*self.read_prompt(prompt).tokens, *answer])


@contextmanager
def kept_streams() -> Iterator[None]:
    """Give the global random streams back, from which some generators draw."""
    streams = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])


def generator_settings(text: str) -> dict[str, Any]:
    """Read the settings of a generator.

    Raises:
        UsageError: It is not an object of JSON, or has what this task sets.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f'settings must be JSON such as {{"min_terms": 2}}, got {text}')
    for name in OWN:
        if name in found:
            raise UsageError(f"settings must leave {name} to the task, got {text}")
    return found


def generator(config: Any, seed: int) -> Any:
    """Return the generator of these settings, and of the entries of this seed.

    Raises:
        UsageError: reasoning-gym is not installed, or has no such generator or settings.
    """
    gym = require("reasoning_gym", "reasoning_gym", "the task reasoning_gym")
    known = gym.factory.DATASETS
    if config.name not in known:
        raise usage_error(
            f"--task.name {config.name}",
            near(config.name, known) or f"one of the {len(known)} generators of reasoning-gym",
            "change it; sorted(reasoning_gym.factory.DATASETS) lists them in Python",
        )
    settings, kind = generator_settings(config.settings), known[config.name][1]
    names = [x.name for x in fields(kind) if x.name not in OWN]
    for name in settings:
        if name not in names:
            raise usage_error(
                f"--task.settings with {name}",
                near(name, names) or f"a setting of {config.name}",
                f"choose from {', '.join(names)}",
            )
    own = {"seed": seed % SEEDS << SEED_BITS, "size": config.num_entries}
    try:
        with kept_streams():
            return gym.create_dataset(config.name, **settings, **own)
    except (AssertionError, TypeError, ValueError) as error:
        kinds = (f"{x.name} {getattr(x.type, '__name__', x.type)}" for x in fields(kind))
        rule = ", ".join(kinds) if isinstance(error, TypeError) else str(error)
        raise usage_error(
            f"--task.settings {config.settings} with {config.num_entries} entries",
            f"settings that {config.name} takes: {rule}",
            "change them, or --task.num_entries",
        ) from None
