"""Lookup: hops over a table outside the prompt, which only calls of a tool read.

    c3=[c]f[f]a[a]q,q      three hops from c, each of them a call of the tool `store`

The values after brackets are the tool's and are not graded. Each row has a table of its own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, UInt64
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import UsageError, usage_error
from thinkers.models.batch import IGNORED, Batch
from thinkers.models.tools import Tool
from thinkers.prng import Draws, row_keys
from thinkers.tasks.answers import AnswerTask, answer_batch
from thinkers.tasks.base import Prompt, check_batch
from thinkers.tasks.tools import last_part

LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FIRST_HOPS = len(LETTERS) - 1
"""Token of the digit of a number of hops, less that number: digits begin at 1."""


@dataclass(frozen=True)
class Store:
    """Look up a key in the table of the row: `[c]` is followed by the value of c.

    Args:
        tables: The value of each key, for each row; a single table is that of all rows.
    """

    opening: int
    closing: int
    ending: int
    tables: Int64[np.ndarray, "n k"]
    name: str = field(default="store", init=False)
    longest_call: int = field(default=1, init=False)
    longest_result: int = field(default=1, init=False)

    @property
    def num_rows(self) -> int | None:
        return len(self.tables) if len(self.tables) > 1 else None

    def result(self, call: Sequence[int], row: int) -> list[int]:
        """Return the value of a key; no token if it is none of the table."""
        if row >= len(self.tables) > 1:
            raise usage_error(
                f"row {row} for the tool {self.name} with {len(self.tables)} tables",
                "one table for all rows, or one for each",
                "pass the keys of all rows of the batch",
            )
        table = self.tables[row if len(self.tables) > 1 else 0]
        is_key = len(call) == 1 and 0 <= call[0] < len(table)
        return [int(table[call[0]])] if is_key else []


class Questions(NamedTuple):
    """Rows of a batch: where they begin, how far they go, and their tables."""

    start: Int64[np.ndarray, " n"]
    hops: Int64[np.ndarray, " n"]
    tables: Int64[np.ndarray, "n k"]


class Lookup(AnswerTask):
    """Follow a number of hops over a table that only the tool `store` reads: `c2=[c]f[f]a,a`.

    The table is a random function over the keys, drawn for each row from its key (`Batch.keys`),
    as are the first key and the number of hops; so batches and the tool agree, and no table of a
    held-out row is one of training. What is in no prompt cannot be known without a call, and a
    right answer needs as many calls as hops. `exact` looks at the answer after the last comma.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        num_keys: int = 26
        """Keys are the first letters of the alphabet."""
        min_hops: int = 1
        max_hops: int = 4
        """Every number of hops is equally likely."""

        def __post_init__(self) -> None:
            check_int("num_keys", self.num_keys, 2, len(LETTERS))
            check_int("min_hops", self.min_hops, 1, 9)
            check_int("max_hops", self.max_hops, self.min_hops, 9)

    config: Config
    symbols = LETTERS + "123456789=[],"
    prompt_end = "="
    tools = scored_with = ("store",)

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        self.equals, self.opening, self.closing, self.comma = map(self.symbols.index, "=[],")
        self.max_length = len("_c1=") + self.max_answer_length()

    def max_answer_length(self) -> int:
        return len("[c]f") * self.config.max_hops + len(",f_")

    def make_tool(self, name: str, keys: Int[Tensor, " b"] | None) -> Tool:
        """Return the store of the tables of these rows; None means the table of key 0."""
        found = np.zeros(1, np.int64) if keys is None else keys.cpu().numpy()
        return self._store(self.questions(found.view(np.uint64)).tables)

    def store(self, table: dict[str, str]) -> Tool:
        """Return the tool `store` with a table of your own, for all rows: {"c": "f", ..}.

        Raises:
            UsageError: A key has no value, or there is another one.
        """
        keys = LETTERS[: self.config.num_keys]
        found = None
        if not isinstance(table, Mapping):
            found = f"a table of type {type(table).__name__}"
        elif {*table} != {*keys}:
            found = f"a table of the keys {''.join(sorted(map(str, table)))[:60]!r}"
        elif wrong := [key for key in keys if table[key] not in [*keys]]:
            found = f"a table of the keys {keys!r}, with the value {table[wrong[0]]!r}"
        if found is not None:
            raise usage_error(
                found,
                f"a value of {keys[0]} .. {keys[-1]} for each of {keys[0]} .. {keys[-1]}",
                "pass {key: value} with all of them",
            )
        return self._store(np.array([[keys.index(table[key]) for key in keys]]))

    def _store(self, tables: Int64[np.ndarray, "n k"]) -> Store:
        return Store(self.opening, self.closing, self.end_token, tables)

    # batches

    def questions(self, keys: UInt64[np.ndarray, " n"]) -> Questions:
        """Return the questions and tables of rows, functions of their keys."""
        draws, config = Draws(keys), self.config
        start = draws.below(config.num_keys, 1)[:, 0]
        hops = config.min_hops + draws.below(config.max_hops - config.min_hops + 1, 1)[:, 0]
        return Questions(start, hops, draws.below(config.num_keys, config.num_keys))

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Return rows that are a function of (seed, split, update, row), padded to the longest."""
        stream = check_batch(update, batch_size, split)
        keys = row_keys(self.seed, stream, np.array([update]), batch_size)[0]
        start, hops, tables = self.questions(keys)
        examples = []
        for at, count, table in zip(start.tolist(), hops.tolist(), tables.tolist(), strict=True):
            prompt = [self.start_token, at, _FIRST_HOPS + count, self.equals]
            answer = []
            for _ in range(count):
                answer += [self.opening, at, self.closing, table[at]]
                at = table[at]
            examples.append((prompt, [*answer, self.comma, at, self.end_token]))
        batch = answer_batch(examples, keys.view(np.int64), self.pad_token)
        given = batch.tokens == self.closing
        return replace(batch, targets=batch.targets.masked_fill(given, IGNORED))

    def groups(self, split: str = "test", num_examples: int = 2000) -> Int64[np.ndarray, " n"]:
        """Return a group for each row: those of equal prompts have different tables."""
        return np.arange(check_int("num_examples", num_examples, 1))

    # evaluation and text

    def is_exact(
        self, predicted: Int[Tensor, "n a"], truth: Int[Tensor, "n a"]
    ) -> Bool[Tensor, " n"]:
        ours, right = (
            [last_part(row, self.comma, self.end_token) for row in rows.tolist()]
            for rows in (predicted, truth)
        )
        return torch.tensor([x == y for x, y in zip(ours, right, strict=True)])

    def read_prompt(self, text: str) -> Prompt:
        """Read a question such as `c3`, or with the beginning of its answer `c3=[c]`."""
        whole = text.strip()
        if not whole:
            return super().read_prompt(whole)  # which refuses it
        whole += "=" * ("=" not in whole)
        config = self.config
        keys = LETTERS[: config.num_keys]
        if not re.fullmatch(rf"[{keys}][1-9]=[{keys}\[\],]*", whole):
            raise usage_error(
                f"{text[:60]!r}",
                f"a key of {keys[0]} .. {keys[-1]} and a number of hops, such as c3",
                "write such a question",
            )
        if int(whole[1]) > config.max_hops:
            raise UsageError(
                f"hops must be at most {config.max_hops} (max_hops), got {whole[1]} in {text!r}"
            )
        return super().read_prompt(whole)

    def with_answer(self, prompt: str, answer: Iterable[int]) -> str:
        whole = prompt.strip()
        return super().with_answer(whole + "=" * ("=" not in whole), answer)
