"""A store in Qdrant, for memories beyond one machine; the extra `qdrant` installs its client.

Qdrant has no transactions and no locks, so that one point of the collection, the state, decides:
blocks with ids above its last one, or of a topic that it does not name, are not there. A write
uploads blocks, and then replaces the state on the condition that it is the one that was read; what
an interrupted write left is removed by the next writer. A view is the state that it began with; a
deletion ends it with an error.

Every request waits until it is applied. The server's scores only choose candidates, which are
scored anew by `score_keys`.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

from jaxtyping import Float
from torch import Tensor

from thinkers.errors import DamagedError, FormatError, usage_error
from thinkers.memory import qdrant_points as points
from thinkers.memory.blocks import Blocks
from thinkers.memory.qdrant_view import QdrantView, scroll
from thinkers.memory.qdrant_writers import is_gone, locked, no_memory, qdrant_errors, writer_name
from thinkers.memory.rows import Meta
from thinkers.memory.store import Fault, Found
from thinkers.memory.topics import find_topic
from thinkers.memory.verification import MOST, check_rows, first_line
from thinkers.memory.writing import as_rows, count_blocks, empty_topic

HNSW_EF = 512
"""More than the server's default, by which more blocks are missed."""
UPLOAD = 4 << 20
"""Bytes of latents and texts in one request; a server takes 32 MB by default, as JSON."""


class QdrantStore:
    """Blocks in a collection of Qdrant; see `store.Store` for what the methods return.

    The first method that writes makes this the one writer, until `close`.

    Args:
        client: A `qdrant_client.QdrantClient`; it stays the caller's to close.
        exact: Search without the server's index, which is approximate.
        hnsw_ef: Blocks that a search of the server's index looks at.

    Raises:
        UsageError: The collection is not there, or not a memory.
    """

    def __init__(
        self, client: Any, collection: str, *, exact: bool = False, hnsw_ef: int = HNSW_EF
    ):
        self.client, self.collection = client, collection
        self.exact, self.hnsw_ef = exact, hnsw_ef
        self.place = Path(f"qdrant:{collection}")
        self._mutex = RLock()
        self._name = ""
        with self.errors():
            if not client.collection_exists(collection):
                raise no_memory(self.place, "there is no such collection")
        self.meta = self.read_state().meta

    @classmethod
    def create(
        cls,
        client: Any,
        collection: str,
        *,
        shards: int = 1,
        replicas: int = 1,
        exact: bool = False,
        hnsw_ef: int = HNSW_EF,
        **settings: Any,
    ) -> "QdrantStore":
        """Make an empty store in a new collection, and become its writer.

        A write is acknowledged once all `replicas` have it, so that any of them may answer.

        Args:
            settings: Fields of `Meta` that the model and its task determine, and `dtype`.

        Raises:
            UsageError: There is a collection of this name.
        """
        m, place = points.models(), Path(f"qdrant:{collection}")
        meta = Meta.empty(**settings)
        keys = m.VectorParams(
            size=meta.index_dim,
            distance=m.Distance.DOT,
            multivector_config=m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM),
        )
        state = points.State(meta, {}, 1, "")
        with qdrant_errors(place):
            if client.collection_exists(collection):
                raise usage_error(
                    f"{place}, which exists", "a new collection", "choose another name"
                )
            client.create_collection(
                collection,
                vectors_config={points.KEYS: keys},
                shard_number=shards,
                replication_factor=replicas,
                write_consistency_factor=replicas,
                on_disk_payload=True,
            )
            for field in points.FILTERED:
                client.create_payload_index(
                    collection, field, field_schema=m.PayloadSchemaType.INTEGER, wait=True
                )
            point = m.PointStruct(id=points.STATE_ID, vector={}, payload=state.to_payload())
            client.upsert(collection, [point], wait=True, ordering=m.WriteOrdering.STRONG)
        store = cls(client, collection, exact=exact, hnsw_ef=hnsw_ef)
        store.lock()
        return store

    # Reading --------------------------------------------------------------------------------------

    def read_state(self) -> points.State:
        """Read the state of the store.

        Raises:
            DamagedError: It is not as it was written.
            ResourceError: The server cannot be reached.
        """
        with self.errors():
            found = self.client.retrieve(self.collection, [points.STATE_ID], with_payload=True)
        if not found:
            raise no_memory(self.place, "it has no state of one")
        return points.State.from_payload(found[0].payload or {}, self.place)

    def view(self) -> QdrantView:
        """Begin a snapshot, which a deletion by another process ends."""
        return QdrantView(self, self.meta.fingerprint)

    def search(
        self,
        queries: Float[Tensor, "b d"],
        k: int,
        level: int = 1,
        topics: Sequence[str] | None = None,
    ) -> Found:
        with self.view() as view:
            return view.search(queries, k, level, topics)

    def fetch(self, ids: Sequence[int]) -> Blocks:
        with self.view() as view:
            return view.fetch(ids)

    def topics(self) -> dict[str, int]:
        with self.view() as view:
            return view.topics()

    def verify(self) -> list[Fault]:
        faults: list[Fault] = []
        try:
            state = self.read_state()
            condition = points.none_of(points.is_id([points.STATE_ID]))
            if not state.meta.is_wiped:  # blocks of a topic that is being deleted are not there
                condition = points.is_of_topics(state)
            found = (
                points.rows(point, self.place)
                for point in scroll(self, condition, content=True)
                if point.id <= state.meta.last
            )
            check_rows(found, state.meta, state.topics, self.place, faults)
        except (DamagedError, FormatError) as error:
            faults.append(Fault(str(self.place), first_line(error)))
        return faults[:MOST]

    def search_params(self) -> Any:
        """Return how the server searches."""
        return points.models().SearchParams(exact=self.exact, hnsw_ef=self.hnsw_ef)

    def errors(self) -> AbstractContextManager[None]:
        """Errors of Qdrant's client as those of this library."""
        return qdrant_errors(self.place)

    # Writing --------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Become the one writer until `close`, and remove what an interrupted write left.

        The name of a writer that was killed on this machine is replaced.

        Raises:
            LockedError: Another process writes; the message names it.
        """
        with self._mutex:
            if self._name:
                return
            name = writer_name()
            found = self.read_state()
            if found.writer and not is_gone(found.writer):
                raise locked(self.place, found.writer)
            self._exchange(found, replace(found, writer=name))
            now = self.read_state()
            if now.writer != name:
                raise locked(self.place, now.writer)
            self._name = name
            self._purge(now)

    def break_lock(self) -> None:
        """Let others write in place of a process that was killed on another machine."""
        found = self.read_state()
        self._exchange(found, replace(found, writer=""))

    def append(self, blocks: Blocks, **settings: Any) -> list[int]:
        """Write blocks, whose ids follow the last one that was given; return their ids.

        Raises:
            DamagedError: Latents or keys are not finite, or the store is damaged.
            ResourceError: The server cannot be reached, or refuses them.
            LockedError: Another process writes to the store.
        """
        with self._mutex:
            state = self._held_state()
            added = self._upload(replace(state, meta=replace(state.meta, **settings)), blocks)
            self._commit(state, added)
        return blocks.ids.tolist()

    def delete(self, topic: str | None) -> int:
        """Delete the blocks of a topic, or all; return the number of sections that they were.

        They are gone for every later view. Qdrant keeps their bytes until it next rewrites the
        segments that held them.

        Raises:
            UsageError: There is no such topic; the message names the nearest.
        """
        with self._mutex:
            state = self._held_state()
            meta, topics = state.meta, dict(state.topics)
            gone = (
                list(topics.values()) if topic is None else [find_topic(topics, topic, self.place)]
            )
            for one in gone:
                del topics[one.name]
            lost = [sum(one.counts[level] for one in gone) for level in range(meta.levels)]
            counts = [n - k for n, k in zip(meta.counts, lost, strict=True)]
            self._commit(state, replace(state, meta=meta.after_deletion(counts), topics=topics))
            self._purge(self.read_state())
        return lost[0]

    def replace(self, parts: Iterable[Blocks], **settings: Any) -> list[int]:
        """Replace all blocks by others and change settings, all or nothing; return the new ids."""
        ids: list[int] = []
        with self._mutex:
            state = self._held_state()
            meta = replace(state.meta, **settings)
            new = replace(state, meta=meta.after_deletion([0] * meta.levels), topics={})
            for blocks in parts:
                new = self._upload(new, blocks)
                ids += blocks.ids.tolist()
            self._commit(state, new)
            self._purge(self.read_state())
        return ids

    def compact(self) -> None:
        """Remove what an interrupted deletion left."""
        with self._mutex:
            self._purge(self._held_state())

    def rebuild(self) -> None:
        """Refuse: the server makes its index by itself.

        Raises:
            UsageError: Always.
        """
        raise usage_error(
            f"{self.place}, whose index Qdrant makes by itself",
            "a memory with an index of its own: in a folder",
            "change the index of the collection by Qdrant's client",
        )

    def close(self) -> None:
        """Let another process write."""
        with self._mutex:
            if self._name:
                found = self.read_state()
                if found.writer == self._name:
                    self._exchange(found, replace(found, writer=""))
                self._name = ""

    def _held_state(self) -> points.State:
        """Return the state, of which this is the writer."""
        self.lock()
        state = self.read_state()
        if state.writer != self._name:
            self._name = ""
            raise locked(self.place, state.writer)
        return state

    def _upload(self, state: points.State, blocks: Blocks) -> points.State:
        """Upload blocks that the state does not hold; return the one that does."""
        topics = {
            name: replace(x, counts=[*x.counts], ungrouped=[[*y] for y in x.ungrouped])
            for name, x in state.topics.items()
        }
        first = state.next_topic - len(topics)

        def new_topic(name: str) -> Any:
            return empty_topic(first + len(topics), name, state.meta)

        meta, _ = count_blocks(state.meta, topics, blocks, new_topic)
        keys, rows = as_rows(meta, {name: x.id for name, x in topics.items()}, blocks)
        batch, size = [], 0
        for key, row in zip(keys, rows, strict=True):
            batch.append(points.block_point(key, row, meta))
            size += 8 * len(key[3]) + sum(len(part or b"") for part in row[7:12])
            if size >= UPLOAD:
                self._upsert(batch)
                batch, size = [], 0
        self._upsert(batch)
        return replace(state, meta=meta, topics=topics, next_topic=first + len(topics))

    def _upsert(self, batch: list[Any]) -> None:
        if batch:
            with self.errors():
                self.client.upsert(self.collection, batch, wait=True)

    def _commit(self, old: points.State, new: points.State) -> None:
        """Replace the state by one of the next generation, if it is still the one that was read."""
        generation = old.meta.generation + 1
        new = replace(new, meta=replace(new.meta, generation=generation))
        self._exchange(old, new)
        found = self.read_state()
        if found != new:
            self._name = ""
            raise locked(self.place, found.writer)
        self.meta = new.meta

    def _exchange(self, old: points.State, new: points.State) -> None:
        """Replace the state if its generation and writer are those of `old`."""
        m = points.models()
        condition = points.all_of(
            points.is_id([points.STATE_ID]),
            points.equals("generation", old.meta.generation),
            points.equals("writer", old.writer),
        )
        with self.errors():
            self.client.set_payload(
                self.collection,
                payload=new.to_payload(),
                points=condition,
                wait=True,
                ordering=m.WriteOrdering.STRONG,
            )

    def _purge(self, state: points.State) -> None:
        """Delete the points of blocks that the state does not hold."""
        known = points.all_of(points.at_most("id", state.meta.last), points.is_of_topics(state))
        others = points.none_of(points.is_id([points.STATE_ID]), known)
        with self.errors():
            self.client.delete(self.collection, points_selector=others, wait=True)
        if not state.meta.is_wiped:
            wiped = replace(state, meta=replace(state.meta, is_wiped=True))
            self._exchange(state, wiped)
            self.meta = wiped.meta
