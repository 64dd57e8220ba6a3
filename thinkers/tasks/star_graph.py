"""Path finding in star graphs, an easy task that next-token training fails (Bachmann 2024)."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt64
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import UsageError
from thinkers.models.batch import Batch
from thinkers.prng import Draws, constants, mix, row_keys
from thinkers.tasks.answers import AnswerTask
from thinkers.tasks.base import IGNORED, SPLITS, Prompt, check_batch, splits_of_hashes

BLOCK_ROWS = 1 << 13
"""Training rows that are drawn at once."""
FEWEST = 1000
"""Number of different graphs below which a split might have none."""
_GRAPHS = 17
"""Seed of the training graphs' stream, the same for every seed of the task."""
_TEXT_FORM = re.compile(r"((\d+,\d+\|)*/\d+,\d+=)?(\d+(,\d+)*)?", re.ASCII)


class StarGraph(AnswerTask):
    """Find the path from the start to the goal of a star graph: `3,7|12,9|3,12|7,4|/3,9=3,12,9`.

    `degree` arms leave the start, and the goal is the end of one of them. The prompt lists the
    edges in random order, then start and goal; the answer is the path. Given the path so far, each
    next node is one look-up away, except the first, which must be found backwards from the goal. So
    with teacher forcing a model learns the look-ups and guesses the arm (Bachmann and Nagarajan
    2024, https://arxiv.org/abs/2403.06963).

    The training set is `num_graphs` graphs, each with a fixed order of edges. Graphs are held out
    by a hash of their edges, start and goal, which ignores the order of edges: 10 % of all graphs
    each for valid and test. `exact` is the share of paths right in every node.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        degree: int = 2
        """Arms of the star."""
        path_length: int = 5
        """Nodes of a path, start and goal included."""
        num_labels: int = 50
        """Number of labels from which those of the nodes are drawn."""
        num_graphs: int = 200_000
        """Number of different training graphs."""

        def __post_init__(self) -> None:
            check_int("degree", self.degree, 1)
            check_int("path_length", self.path_length, 2)
            check_int("num_labels", self.num_labels, 2, 10_000)
            check_int("num_graphs", self.num_graphs, 1, 2**32 - 1)
            if self.num_nodes > self.num_labels:
                raise UsageError(
                    f"num_labels must be at least {self.num_nodes}, the nodes of a star of degree "
                    f"{self.degree} with paths of {self.path_length}, got {self.num_labels}"
                )
            known = math.perm(self.num_labels, self.num_nodes) // math.factorial(self.degree - 1)
            if known < FEWEST or known * 8 // 10 < self.num_graphs:
                raise UsageError(
                    f"num_graphs must be at most 80 % of all graphs, and these at least {FEWEST}, "
                    f"got {self.num_graphs} of {known}"
                )

        @property
        def num_nodes(self) -> int:
            """Number of nodes of a star."""
            return 1 + self.degree * (self.path_length - 1)

    config: Config
    start_token: int
    prompt_end = "="

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        labels = self.config.num_labels
        self.bar, self.slash, self.equals = range(labels, labels + 3)
        self.end_token, self.pad_token, self.start_token = range(labels + 3, labels + 6)
        self.vocab_size = labels + 6
        self.num_edges = self.config.num_nodes - 1
        self.prompt_length = 1 + 3 * self.num_edges + 4
        self.max_length = self.prompt_length + self.max_answer_length()
        self._block: tuple[tuple[int, int], Batch] | None = None

    def max_answer_length(self) -> int:
        return self.config.path_length + 1

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Return the examples of one update; a row is a function of (seed, split, update, row)."""
        check_batch(update, batch_size, split)
        if split != "train":
            return self._generate(update, 1, batch_size, split)
        # The fixed cost of numpy calls is shared by a block of consecutive updates. A block is a
        # function of its key, so that this cache cannot change a batch.
        count = max(1, BLOCK_ROWS // batch_size)
        key = (update // count, batch_size)
        if self._block is None or self._block[0] != key:
            first_update = update // count * count
            self._block = key, self._generate(first_update, count, batch_size, split)
        first = update % count * batch_size
        rows = torch.arange(first, first + batch_size)  # an index copies, a slice would be a view
        return self._block[1].rows(rows)

    def graphs(self, numbers: Int64[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Return training graphs by number: edges (n, e, 2) in their fixed order, paths (n, p)."""
        return self._draw_graphs(row_keys(_GRAPHS, 0, numbers, 1)[:, 0], "train")

    def _generate(self, update: int, count: int, batch_size: int, split: str) -> Batch:
        updates = np.arange(update, update + count)
        keys = row_keys(self.seed, SPLITS.index(split), updates, batch_size).ravel()
        if split == "train":
            numbers = Draws(keys).below(self.config.num_graphs, 1)[:, 0]
            edges, paths = self.graphs(numbers)
        else:
            edges, paths = self._draw_graphs(keys, split)
        n = len(keys)
        row = np.empty((n, self.max_length), np.int64)
        row[:, 0] = self.start_token
        row[:, 1 : 1 + 3 * self.num_edges] = np.concatenate(
            [edges, np.full((n, self.num_edges, 1), self.bar)], 2
        ).reshape(n, -1)
        row[:, self.prompt_length - 4] = self.slash
        row[:, self.prompt_length - 3] = paths[:, 0]
        row[:, self.prompt_length - 2] = paths[:, -1]
        row[:, self.prompt_length - 1] = self.equals
        row[:, self.prompt_length : -1] = paths
        row[:, -1] = self.end_token
        targets = row[:, 1:].copy()
        targets[:, : self.prompt_length - 1] = IGNORED
        lengths = np.full(n, self.max_length - 1)
        prompts = np.full(n, self.prompt_length)
        arrays = (row[:, :-1], targets, prompts, lengths, keys.view(np.int64))
        return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def _draw_graphs(
        self, keys: UInt64[np.ndarray, " n"], split: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return for each key the first graph drawn from it that belongs to `split`."""
        config = self.config
        edges = np.empty((len(keys), self.num_edges, 2), np.int64)
        paths = np.empty((len(keys), config.path_length), np.int64)
        pending = np.arange(len(keys))
        attempt = 0
        while len(pending):
            attempt += 1
            draws = Draws(mix(keys[pending] + np.uint64(attempt)))
            names = distinct(draws, config.num_labels, config.num_nodes)
            arms = names[:, 1:].reshape(len(names), config.degree, -1)
            starts = np.repeat(names[:, :1, None], config.degree, 1)
            arms = np.concatenate([starts, arms], 2)
            found = np.stack([arms[:, :, :-1], arms[:, :, 1:]], -1).reshape(len(names), -1, 2)
            good = self.split_of(found, arms[:, 0]) == SPLITS.index(split)
            order = distinct(draws, self.num_edges, self.num_edges)[:, :, None]
            edges[pending[good]] = np.take_along_axis(found, order, 1)[good]
            paths[pending[good]] = arms[:, 0][good]
            pending = pending[~good]
        return edges, paths

    def split_of(
        self, edges: Int64[np.ndarray, "n e 2"], paths: Int64[np.ndarray, "n p"]
    ) -> Int64[np.ndarray, " n"]:
        """Return the index into SPLITS of each graph, independent of the order of its edges."""
        # The sum of the hashes of all pairs does not depend on their order. Start and goal are a
        # pair too, distinguished from edges by an offset above all labels.
        ends = np.stack([paths[:, 0], paths[:, -1]], -1)
        pairs = np.concatenate([edges, ends[:, None] + self.config.num_labels], 1)
        weights = constants(2, salt=_GRAPHS)
        content = mix(((pairs + 1).astype(np.uint64) * weights).sum(2)).sum(1)
        return splits_of_hashes(mix(content))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text such as `3,7|12,9|3,12|7,4|/3,9=`, with or without an answer.

        Raises:
            UsageError: naming the first character or label that is not allowed.
        """
        marks = {"|": self.bar, "/": self.slash, "=": self.equals}
        tokens = [self.start_token]
        for found in re.finditer("[0-9]+|.", text, re.DOTALL):
            part = found[0]
            if part in marks:
                tokens.append(marks[part])
            elif "0" <= part[0] <= "9":
                tokens.append(check_int(f"label {part} of {text!r}", int(part), 0, self.bar - 1))
            elif part != ",":
                raise UsageError(
                    f"character {found.start()} of {text!r} must be one of 0 .. 9 , | / =, "
                    f"got {part!r}"
                )
        if not _TEXT_FORM.fullmatch(text):
            raise UsageError(
                f"a graph must be written as edges, start and goal, such as 3,7|12,9|/3,9= with "
                f"or without an answer, got {text!r}"
            )
        return tokens

    def read_prompt(self, text: str) -> Prompt:
        """Read a star graph, or one with the first nodes of its path; arms may have any length.

        Raises:
            UsageError: It is not a star, or its arms do not lead to the goal.
        """
        read = super().read_prompt(text)
        tokens = self.without_start(read.tokens)
        end = tokens.index(self.slash)
        start, goal = tokens[end + 1 : end + 3]
        edges = list(zip(tokens[:end:3], tokens[1:end:3], strict=True))
        after = dict(edges)
        arms = [[start, node] for origin, node in edges if origin == start]
        for arm in arms:
            while arm[-1] in after and after[arm[-1]] not in arm:
                arm.append(after[arm[-1]])
        nodes = [node for arm in arms for node in arm[1:]]
        # Each edge leads to a node of its own, which exactly one arm reaches.
        if sorted(nodes) != sorted(node for _, node in edges) or len(set(nodes)) < len(nodes):
            raise UsageError(f"{text!r} must be a star: arms that leave {start} and never meet")
        if goal not in nodes:
            raise UsageError(f"the goal of {text!r} must be a node of an arm, got {goal}")
        return replace(read, longest=max(map(len, arms)) + 1)

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens`, up to the end token, without start tokens and padding."""
        marks = {self.bar: "|", self.slash: "/", self.equals: "="}
        text = ""
        for position, token in enumerate(int(token) for token in tokens):
            check_int(f"token {position}", token, 0, self.vocab_size - 1)
            if token == self.end_token:
                break
            if token in marks:
                text += marks[token]
            elif token < self.bar:
                text += f",{token}" if text[-1:].isdigit() else str(token)
        return text


def distinct(draws: Draws, high: int, width: int) -> Int64[np.ndarray, "n w"]:
    """Return for each row `width` different numbers of 0 .. high - 1 in random order."""
    # Sort by random 32-bit keys. Two may be equal; the number in the low 16 bits then decides, so
    # that the result does not depend on how numpy orders ties.
    found = draws.below(2**32 - 1, high) << 16 | np.arange(high)
    if width < high:
        found = np.partition(found, width - 1, 1)[:, :width]
    return np.sort(found, 1) & 0xFFFF
