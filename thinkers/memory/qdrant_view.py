"""Snapshots of a store in Qdrant: the state that a view began with, until something is deleted."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import LockedError, three_lines
from thinkers.memory import qdrant_points as points
from thinkers.memory.blocks import Blocks
from thinkers.memory.rows import Topic, check_key, damaged, unpack_keys
from thinkers.memory.scores import check_queries, score_error, score_keys
from thinkers.memory.store import Found
from thinkers.memory.topics import TopicView, check_names
from thinkers.memory.views import (
    as_blocks,
    check_blocks,
    check_fingerprint,
    closed_view,
    missing_block,
    query_vectors,
    read_block,
)

SPARE = 16
"""Candidates beyond k that are asked for at first."""
MORE = 4
"""Times as many candidates are asked for where those of equal score may go on."""
PAGE, BATCH = 1000, 64
"""Points of one page, and queries of one request."""


class QdrantView(TopicView):
    """A snapshot of a store; see `store.View`.

    Every method compares the state that the server has afterwards with that of the view.

    Raises:
        LockedError: Blocks were deleted since the view began.
    """

    def __init__(self, store: Any, fingerprint: str):
        self._own_store = store
        self._is_closed = False
        self.state: points.State = store.read_state()
        self.meta = self.state.meta
        check_fingerprint(store.place, self.meta.fingerprint, fingerprint)

    @property
    def _store(self) -> Any:
        """The store, as long as the snapshot lasts."""
        if self._is_closed:
            raise closed_view(self._own_store.place)
        return self._own_store

    @property
    def _place(self) -> Path:
        place: Path = self._store.place
        return place

    @property
    def _topics(self) -> dict[str, Topic]:
        return self.state.topics

    def search(
        self,
        queries: Float[Tensor, "b d"],
        k: int,
        level: int = 1,
        topics: Sequence[str] | None = None,
    ) -> Found:
        """Return the k best blocks of each query, with the scores of `score_keys`.

        The server chooses candidates, by its index unless the store is `exact`; errors are those of
        `SqliteView.search`.
        """
        k = check_int("k", k, 1)
        level = check_int("level", level, 1, self.meta.levels, "levels of the memory")
        vectors = check_queries(query_vectors(queries), self.meta.index_dim)
        condition = self._condition(level, topics)
        ids = np.full((len(vectors), k), -1)
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        for start in range(0, len(vectors), BATCH):
            some = vectors[start : start + BATCH]
            for row, found in enumerate(self._candidates(some, k, condition), start):
                best = sorted(found.items(), key=lambda x: (-x[1], x[0]))[:k]
                ids[row, : len(best)] = [id for id, _ in best]
                scores[row, : len(best)] = [score for _, score in best]
        self._check_unchanged()
        return Found(
            torch.from_numpy(ids).to(queries.device), torch.from_numpy(scores).to(queries.device)
        )

    def _candidates(
        self, queries: Float32[np.ndarray, "b d"], k: int, condition: Any
    ) -> Iterator[dict[int, float]]:
        """Yield the candidates of each query, more than k where scores are equal, by id."""
        limit = min(k, self.meta.last) + SPARE
        for query, hits in zip(queries, self._ask(queries, limit, condition), strict=True):
            asked = limit
            found = self._scored(query, hits)
            while len(hits) == asked:
                last = sorted(found.values())[-k] if len(found) >= k else -np.inf
                if hits[-1].score < last - score_error(query):
                    break
                # Some of equal score, and of a lower id, may not be among these.
                asked *= MORE
                (hits,) = self._ask(query[None], asked, condition)
                found = self._scored(query, hits)
            yield found

    def _ask(
        self, queries: Float32[np.ndarray, "b d"], limit: int, condition: Any
    ) -> list[list[Any]]:
        m, store = points.models(), self._store
        requests = [
            m.QueryRequest(
                query=[query],
                using=points.KEYS,
                limit=limit,
                filter=condition,
                params=store.search_params(),
                with_vector=[points.KEYS],
                with_payload=["topic", "level", "key_crc"],
            )
            for query in queries.tolist()
        ]
        with store.errors():
            found = store.client.query_batch_points(store.collection, requests)
        return [x.points for x in found]

    def _scored(self, query: Float32[np.ndarray, " d"], hits: Iterable[Any]) -> dict[int, float]:
        found = {}
        for hit in hits:
            row = points.key_row(hit, self._store.place)
            check_key(row, self._store.place)
            keys = unpack_keys(row[3], self._size(row), self.meta)
            found[hit.id] = float(score_keys(keys, query).max())
        return found

    def _size(self, row: tuple[Any, ...]) -> int:
        """Return the number of keys of a row, which its level decides."""
        id, _, level, content, _ = row
        size = self.meta.size(level) if 1 <= level <= self.meta.levels else -1
        if len(content) != 2 * size * self.meta.index_dim:
            raise damaged(self._store.place, f"block {id} has {len(content)} bytes of keys")
        return size

    def _condition(self, level: int, topics: Sequence[str] | None) -> Any:
        """Return the filter of the blocks of a level."""
        of_level = [points.equals("level", level)]
        if below := self._below(level):
            of_level.append(points.is_id(below))
        if topics is None and self.meta.is_wiped:
            return points.all_of(self._written(), points.any_of(*of_level))
        chosen = [*self.state.topics] if topics is None else check_names(topics)
        numbers = [self.topic(name).id for name in chosen]
        return points.all_of(
            self._written(), points.any_of(*of_level), points.is_any("topic", numbers)
        )

    def _written(self) -> Any:
        return points.at_most("id", self.meta.last)

    def ids(self, level: int = 1, topics: Sequence[str] | None = None) -> Int[Tensor, " n"]:
        """Return the ids of a level, ascending, with those below it whose group is not whole."""
        level = check_int("level", level, 1, self.meta.levels, "levels of the memory")
        found = [x.id for x in scroll(self._store, self._condition(level, topics), content=False)]
        self._check_unchanged()
        return torch.tensor(sorted(found), dtype=torch.int64)

    def fetch(self, ids: Sequence[int] | Int[Tensor, " n"]) -> Blocks:
        """Return these blocks, in this order; errors are those of `SqliteView.fetch`."""
        asked = check_blocks(ids)
        store, names = self._store, {x.id: x.name for x in self.state.topics.values()}
        held = {}
        wanted = sorted({id for id in asked if id <= self.meta.last})
        for start in range(0, len(wanted), PAGE):
            with store.errors():
                found = store.client.retrieve(
                    store.collection,
                    wanted[start : start + PAGE],
                    with_payload=True,
                    with_vectors=[points.KEYS],
                )
            for point in found:
                row, key = points.block_row(point, store.place), points.key_row(point, store.place)
                if row[1] in names:
                    held[point.id] = read_block(row, key, self.meta, names, store.place)
        self._check_unchanged()
        for id in asked:
            if id not in held:
                raise missing_block(id, store.place, self.meta)
        return as_blocks([held[id] for id in asked], self.meta)

    def _check_unchanged(self) -> None:
        """Raise LockedError if blocks of this snapshot were deleted."""
        if self._store.read_state().meta.deleted != self.meta.deleted:
            raise LockedError(
                three_lines(
                    f"{self._store.place}, from which blocks were deleted while they were read",
                    "no deletion during a question: a server keeps no snapshot of what is deleted",
                    "ask again",
                )
            )

    def __enter__(self) -> "QdrantView":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the snapshot; it may be closed twice."""
        self._is_closed = True


def scroll(store: Any, condition: Any, content: bool) -> Iterator[Any]:
    """Yield points in the order of their ids.

    Args:
        content: With payload and keys.
    """
    offset = None
    while True:
        with store.errors():
            found, offset = store.client.scroll(
                store.collection,
                scroll_filter=condition,
                limit=PAGE,
                offset=offset,
                with_payload=content,
                with_vectors=[points.KEYS] if content else False,
            )
        yield from found
        if offset is None:
            return
