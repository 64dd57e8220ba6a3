"""Inverted lists: search of unit index keys, exact for few and by k-means lists for many.

    L  lists, each of the keys closest to one centroid
    p  probes, the lists searched for a query: those of the closest centroids
    m  the most keys of one id: a block has one key for each latent, and its score is their maximum

Up to EXACT keys are one list, and the search is exact. A first pass scores keys in float32, in any
order and for many queries at once; all keys within its rounding error of the best are then scored
by `scores.score_keys`, whose bits depend on the key and the query alone. So ties are ties, and the
result of a row does not depend on the other rows.

An index is disposable: `build` makes it from the keys of a store.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float32, Int64, Shaped

from thinkers.checks import check_int
from thinkers.errors import UsageError
from thinkers.memory import kmeans
from thinkers.memory.list_files import Parts, read_parts, write_parts
from thinkers.memory.scores import BLOCK, check_queries, describe_array, score_error, score_keys
from thinkers.process_state import one_thread

EXACT = 100_000
"""Keys that are searched exactly: of an index, or of a selection from it."""
ROWS, SCORES = 64, 2**24
"""The most queries, and the most scores, of one pass."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The keys of an index that a search may find.

    Args:
        places: (n,) their places in the index, ascending; None for all.
        starts: (L + 1,) list i holds starts[i] .. starts[i + 1] - 1 of them.
    """

    places: Int64[np.ndarray, " n"] | None
    starts: Int64[np.ndarray, " l+1"]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def at(self, start: int, end: int) -> Int64[np.ndarray, " s"] | slice:
        """Return the places of keys start .. end - 1 of the selection, as a slice if adjacent."""
        if self.places is None:
            return slice(start, end)
        found = self.places[start:end]
        first, last = int(found[0]), int(found[-1])
        return slice(first, last + 1) if last - first == end - start - 1 else found

    def places_of(
        self, visited: Bool[np.ndarray, " l"], numbers: Int64[np.ndarray, " w"]
    ) -> Int64[np.ndarray, " w"]:
        """Return the places of keys that are numbered through the lists visited."""
        lists = np.flatnonzero(visited)
        ends = np.diff(self.starts)[lists].cumsum()
        at = np.searchsorted(ends, numbers, side="right")
        found = numbers + (self.starts[lists + 1] - ends)[at]
        return found if self.places is None else self.places[found]


class Lists:
    """An inverted index of unit keys; several keys may share an id, whose score is their maximum.

    Args:
        parts: Centroids, keys sorted by list, ids and sizes, as `build` and `load` make them.
    """

    def __init__(self, parts: Parts):
        self._parts = parts
        self.generation = parts.generation
        self.probes = parts.probes
        self.recall = parts.recall
        self.keys_per_id = parts.keys_per_id
        self._centroids = parts.centroids.astype(np.float64)
        self._all = Selection(None, parts.starts)
        self.num_ids, self._by_id = len(parts.ids), None
        if self.keys_per_id > 1:
            self._by_id = np.argsort(parts.ids, kind="stable")
            self.num_ids = 1 + int((np.diff(parts.ids[self._by_id]) > 0).sum())

    @classmethod
    def build(
        cls,
        keys: Shaped[np.ndarray, "n d"],
        ids: Int64[np.ndarray, " n"],
        seed: int = 0,
        generation: int = 0,
        num_lists: int | None = None,
    ) -> "Lists":
        """Sort keys into lists by k-means; one list up to EXACT keys, else about 2 sqrt(n).

        Args:
            keys: (n, d) float16 or float32, of unit length; kept in float16.
            ids: (n,) int64, at least 0, in any order; an id may be repeated.
            generation: Generation of the store that the keys are from; kept, and saved.

        Raises:
            DamagedError: A key has not unit length, or is not finite.
            UsageError: Shapes or types do not fit, or an id is negative.
        """
        _check_keys(keys, ids)
        n, d = keys.shape
        if num_lists is None:
            num_lists = 1 if n <= EXACT else round(2 * n**0.5)
        num_lists = check_int("num_lists", num_lists, 1, max(n, 1))
        with one_thread():  # the rounding of matrix products may depend on the number of threads
            centroids = kmeans.train(keys, num_lists, seed)
            members = kmeans.assign(keys, centroids)
            parts = Parts.empty(num_lists, n, d)
            order = np.argsort(members, kind="stable")
            parts.centroids[:] = centroids
            parts.starts[1:] = np.bincount(members, minlength=num_lists).cumsum()
            for start in range(0, n, BLOCK):
                some = order[start : start + BLOCK]
                parts.ids[start : start + BLOCK] = ids[some]
                parts.keys[start : start + BLOCK] = keys[some]
            parts.keys_per_id = _most_repeated(parts.ids)
            parts.generation = generation
            parts.probes, parts.recall = kmeans.choose_probes(
                parts.keys, parts.starts, centroids, parts.keys_per_id, seed
            )
        return cls(parts)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._parts.ids)

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        """The id of each key, in the order of the lists."""
        return self._parts.ids

    @property
    def num_lists(self) -> int:
        return len(self._centroids)

    @property
    def dim(self) -> int:
        """Width of a key."""
        return self._centroids.shape[1]

    def save(self, path: Path) -> None:
        """Write the index to a file, atomically."""
        write_parts(path, self._parts)

    @classmethod
    def load(cls, path: Path) -> "Lists":
        """Read an index from a file.

        Raises:
            DamagedError: A byte of it is not as it was written, or it is no index.
            FormatError: It is of another version of this library.
            FileNotFoundError: Nothing is there.
        """
        return cls(read_parts(path))

    def select(self, allowed: Int64[np.ndarray, " a"] | Sequence[int] | None) -> Selection:
        """Return the keys with these ids; ids that the index does not hold are ignored.

        A search takes ids, too; a selection serves many searches.
        """
        if allowed is None:
            return self._all
        places = np.flatnonzero(np.isin(self._parts.ids, np.asarray(allowed, np.int64)))
        return Selection(places, np.searchsorted(places, self._parts.starts))

    def search(
        self,
        queries: Float32[np.ndarray, "b d"],
        k: int,
        probes: int | None = None,
        allowed: Int64[np.ndarray, " a"] | Selection | None = None,
    ) -> tuple[Int64[np.ndarray, "b k"], Float32[np.ndarray, "b k"]]:
        """Return the ids with the best scores, best first, and these scores; ties by lower id.

        Past the number of ids, ids are -1 and scores -inf. The score of an id is exact, the maximum
        over all of its keys; only ids without a key in the lists searched are missed. More than
        `probes` lists are searched if these hold too few keys for k ids.

        Args:
            probes: Lists searched for a query; None: `self.probes`, or all of them if the keys
                that may be found are at most EXACT, so that the search is exact.
            allowed: The ids that may be found, or a selection of them; None: all.

        Raises:
            UsageError: Types, shapes or numbers do not fit.
            NonFiniteError: A query is not finite.
        """
        k = check_int("k", k, 1)
        if probes is not None:
            probes = check_int("probes", probes, 1)
        queries = check_queries(queries, self.dim)
        some = allowed if isinstance(allowed, Selection) else self.select(allowed)
        ids = np.full((len(queries), k), -1)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        if len(some) == 0:
            return ids, scores
        wanted = min(k * self.keys_per_id, len(some))
        least = None if probes is None and len(some) <= EXACT else probes or self.probes
        visits = np.array([self._visited(query, wanted, least, some) for query in queries])
        for rows in _passes(visits, some):
            rough = self._rough_scores(queries[rows], visits[rows], some)
            for row, scored in zip(rows, rough, strict=True):
                numbers = self._candidates(queries[row], scored, wanted)
                best = self._best(queries[row], some.places_of(visits[row], numbers), wanted)
                count = min(k, len(best[0]))
                ids[row, :count], scores[row, :count] = best[0][:count], best[1][:count]
        return ids, scores

    def _visited(
        self, query: Float32[np.ndarray, " d"], wanted: int, probes: int | None, some: Selection
    ) -> Bool[np.ndarray, " l"]:
        """Return the lists to search: the closest `probes` that hold keys, None for all of them."""
        sizes = np.diff(some.starts)
        if probes is None:
            return sizes > 0
        held = np.flatnonzero(sizes)
        scores = score_keys(self._centroids, query)
        closest = held[np.argsort(-scores[held], kind="stable")]
        enough = int(np.searchsorted(sizes[closest].cumsum(), wanted)) + 1
        visited = np.zeros(len(sizes), bool)
        visited[closest[: max(probes, enough)]] = True
        return visited

    def _rough_scores(
        self, queries: Float32[np.ndarray, "b d"], visits: Bool[np.ndarray, "b l"], some: Selection
    ) -> list[Float32[np.ndarray, " c"]]:
        """Return float32 scores of the keys that each row visits, in the order of the keys.

        Their last bits depend on the other rows: a list is scored at once for all that visit it.
        """
        counts = visits @ np.diff(some.starts)
        found = [np.empty(count, np.float32) for count in counts]
        filled = [0] * len(found)
        vectors, buffer = torch.from_numpy(queries), torch.empty(BLOCK, self.dim)
        for rows, part in self._blocks(visits, some):
            # torch converts float16 three times faster than numpy does
            block = buffer[: len(part)].copy_(torch.from_numpy(part))
            asking = vectors if len(rows) == len(vectors) else vectors[rows]
            for row, line in zip(rows, (asking @ block.T).numpy(), strict=True):
                found[row][filled[row] : filled[row] + len(line)] = line
                filled[row] += len(line)
        return found

    def _blocks(
        self, visits: Bool[np.ndarray, "b l"], some: Selection
    ) -> Iterator[tuple[list[int], Float16[np.ndarray, "s d"]]]:
        """Yield up to BLOCK keys at once that the same rows visit, and these rows."""
        # One query visits many short lists: each by itself would cost more than its products.
        waiting: list[np.ndarray] = []
        size, before = 0, list[int]()
        for start, end, rows in _runs(visits, some.starts):
            for at in range(start, end, BLOCK):
                part = self._parts.keys[some.at(at, min(at + BLOCK, end))]
                if waiting and (rows != before or size + len(part) > BLOCK):
                    yield before, _joined(waiting)
                    waiting, size = [], 0
                waiting.append(part)
                size, before = size + len(part), rows
        if waiting:
            yield before, _joined(waiting)

    def _candidates(
        self, query: Float32[np.ndarray, " d"], rough: Float32[np.ndarray, " c"], wanted: int
    ) -> Int64[np.ndarray, " w"]:
        """Return where rough scores are among the `wanted` best, or could be but for rounding."""
        last = np.partition(rough, len(rough) - wanted)[len(rough) - wanted]
        return np.flatnonzero(rough >= last - np.float64(score_error(query)))

    def _best(
        self, query: Float32[np.ndarray, " d"], places: Int64[np.ndarray, " w"], wanted: int
    ) -> tuple[Int64[np.ndarray, " i"], Float32[np.ndarray, " i"]]:
        """Return the ids of the `wanted` best keys, each once, and their scores, best first."""
        ids, scores = self._parts.ids[places], score_keys(self._parts.keys[places], query)
        order = np.lexsort((ids, -scores))[:wanted]
        if self._by_id is None:
            return ids[order], scores[order]
        ids = np.unique(ids[order])
        # All keys of these ids count, those in lists that were not searched, too.
        bounds = [
            np.searchsorted(self._parts.ids, ids, side, sorter=self._by_id)
            for side in ("left", "right")
        ]
        counts = bounds[1] - bounds[0]
        firsts = counts.cumsum() - counts
        shifts = np.repeat(bounds[0] - firsts, counts)
        places = self._by_id[np.arange(len(shifts)) + shifts]
        scores = np.maximum.reduceat(score_keys(self._parts.keys[places], query), firsts)
        order = np.lexsort((ids, -scores))
        return ids[order], scores[order]


def _joined(parts: list[np.ndarray]) -> Shaped[np.ndarray, "n d"]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _passes(visits: Bool[np.ndarray, "b l"], some: Selection) -> Iterator[Int64[np.ndarray, " r"]]:
    """Yield the rows of each pass, so that its scores fit in memory."""
    scores = visits @ np.diff(some.starts)
    rows = max(1, min(ROWS, SCORES // int(scores.max(initial=1))))
    for start in range(0, len(visits), rows):
        yield np.arange(start, min(start + rows, len(visits)))


def _runs(
    visits: Bool[np.ndarray, "b l"], starts: Int64[np.ndarray, " l+1"]
) -> Iterator[tuple[int, int, list[int]]]:
    """Yield adjacent lists that the same rows visit: their first key, the end, and these rows."""
    edges = np.flatnonzero((visits[:, 1:] != visits[:, :-1]).any(0)) + 1
    bounds = np.concatenate([[0], edges, [visits.shape[1]]])
    firsts, ends = bounds[:-1], bounds[1:]
    held = visits[:, firsts].any(0) & (starts[firsts] < starts[ends])
    for first, end in zip(firsts[held].tolist(), ends[held].tolist(), strict=True):
        rows = [0] if len(visits) == 1 else np.flatnonzero(visits[:, first]).tolist()
        yield int(starts[first]), int(starts[end]), rows


def _most_repeated(ids: Int64[np.ndarray, " n"]) -> int:
    return int(np.unique(ids, return_counts=True)[1].max(initial=1))


def _check_keys(keys: Any, ids: Any) -> None:
    if not isinstance(keys, np.ndarray) or keys.dtype not in (np.float16, np.float32):
        raise UsageError(f"keys must be a float16 or float32 array, got {describe_array(keys)}")
    if keys.ndim != 2 or keys.shape[1] == 0:
        raise UsageError(f"keys must have the shape (n, d), got {keys.shape}")
    if not isinstance(ids, np.ndarray) or ids.dtype != np.int64 or ids.shape != keys.shape[:1]:
        raise UsageError(
            f"ids must be int64, one for each of {len(keys)} keys, got {describe_array(ids)}"
        )
    if len(ids) and ids.min() < 0:
        raise UsageError(f"ids must be at least 0, got {ids.min()}")
