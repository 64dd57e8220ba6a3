"""Snapshots of a SQLite store: everything that a view returns is of one generation."""

import sqlite3
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from thinkers.checks import check_int, describe
from thinkers.errors import UsageError, UsageTypeError, usage_error
from thinkers.files import disk_errors
from thinkers.memory.blocks import Blocks
from thinkers.memory.database import (
    WAIT,
    Readers,
    check_generation,
    database_errors,
    read_meta,
    read_topics,
    recorded_generation,
    select_rows,
)
from thinkers.memory.keys import Keys, Save, Searcher
from thinkers.memory.rows import (
    BLOCK_COLUMNS,
    KEY_COLUMNS,
    Meta,
    Topic,
    check_block,
    check_key,
    damaged,
    unpack_ids,
    unpack_keys,
    unpack_latents,
)
from thinkers.memory.store import Found
from thinkers.memory.topics import TopicView, blocks_below, check_names

LARGEST_ID = 2**63 - 1
"""The largest integer of SQLite."""


class SqliteView(TopicView):
    """A snapshot of a store, read by a connection of its own; see `store.View`."""

    def __init__(self, folder: Path, readers: Readers, keys: Keys, fingerprint: str, save: Save):
        self.folder, self._keys, self._readers, self._save = folder, keys, readers, save
        self._database, self._is_closed = readers.database, False
        self._connection = readers.take()
        try:
            with database_errors(self._database):
                # Before the snapshot, which is not older then.
                recorded = recorded_generation(folder)
                self._connection.execute("BEGIN")
                self.meta = read_meta(self._connection, self._database)
                check_generation(folder, recorded, self.meta)
            check_fingerprint(folder, self.meta.fingerprint, fingerprint)
        except BaseException:
            self._connection.close()
            raise

    @property
    def _open(self) -> sqlite3.Connection:
        """The connection, as long as the snapshot lasts."""
        if self._is_closed:
            raise closed_view(self.folder)
        return self._connection

    @property
    def _place(self) -> Path:
        return self.folder

    @cached_property
    def _topics(self) -> dict[str, Topic]:
        with database_errors(self._database):
            return read_topics(self._open, self.meta, self._database)

    def search(
        self,
        queries: Float[Tensor, "b d"],
        k: int,
        level: int = 1,
        topics: Sequence[str] | None = None,
    ) -> Found:
        """Return the k best blocks of each query: the best of the products with a block's keys.

        Products are of float32 queries and the keys as they are stored. A row does not depend on
        the other rows of a call, bit for bit; of equal scores the lower id is first. Beyond the
        blocks that there are, ids are -1 and scores -inf.

        Raises:
            UsageError: k is below 1, or there is no such level or topic.
            NonFiniteError: A query is not finite.
            DamagedError: Keys are not as they were written.
        """
        k = check_int("k", k, 1)
        level = check_int("level", level, 1, self.meta.levels, "levels of the memory")
        vectors = query_vectors(queries)
        wanted = None if topics is None else [self.topic(name).id for name in check_names(topics)]
        with database_errors(self._database):
            ids, scores = self.prepare(level).search(
                vectors, k, wanted, lambda: self._keys.all(self._open, self.meta, level)
            )
        return Found(
            torch.from_numpy(ids).to(queries.device), torch.from_numpy(scores).to(queries.device)
        )

    def prepare(self, level: int) -> Searcher:
        """Load the keys of a level, as the first search of it does."""
        with database_errors(self._database):
            below = self._below(level)
            return self._keys.searcher(self._open, self.meta, level, below, self._save)

    def ids(self, level: int = 1, topics: Sequence[str] | None = None) -> Int[Tensor, " n"]:
        """Return the ids of a level, ascending, with those below it whose group is not whole.

        Raises:
            UsageError: There is no such level or topic.
        """
        level = check_int("level", level, 1, self.meta.levels, "levels of the memory")
        if topics is None:
            with database_errors(self._database):
                own = self._keys.ids(self._open, self.meta, level)
                below = self._below(level)
        else:
            wanted = [self.topic(name) for name in check_names(topics)]
            with database_errors(self._database):
                rows = self._keys.all(self._open, self.meta, level)
            own = rows.ids[np.isin(rows.topics, [topic.id for topic in wanted])]
            below = blocks_below(wanted, level)
        return torch.from_numpy(np.sort(np.concatenate([own, np.array(below, np.int64)])))

    def fetch(self, ids: Sequence[int] | Int[Tensor, " n"]) -> Blocks:
        """Return these blocks, in this order.

        Raises:
            UsageError: There is no such block.
            DamagedError: A block is not as it was written; the message names it.
        """
        asked = check_blocks(ids)
        with database_errors(self._database):
            keys = {row[0]: row for row in select_rows(self._open, "key", KEY_COLUMNS, asked)}
            rows = {row[0]: row for row in select_rows(self._open, "block", BLOCK_COLUMNS, asked)}
        for id in asked:
            self._check_present(id, id in keys, id in rows)
        names = {topic.id: topic.name for topic in self._topics.values()}
        decoded = {
            id: read_block(rows[id], keys[id], self.meta, names, self._database) for id in rows
        }
        return as_blocks([decoded[id] for id in asked], self.meta)

    def _check_present(self, id: int, has_keys: bool, has_latents: bool) -> None:
        if has_keys and has_latents:
            return
        if has_keys or has_latents:
            lost = "latents" if has_keys else "keys"
            raise damaged(self._database, f"the {lost} of block {id} are missing")
        raise missing_block(id, self.folder, self.meta)

    def __enter__(self) -> "SqliteView":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the snapshot; it may be closed twice."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            with database_errors(self._database):
                self._connection.execute("ROLLBACK")
                finish_wiping(self._connection, self._database)
        except BaseException:
            self._connection.close()
            raise
        self._readers.give(self._connection)


def finish_wiping(connection: sqlite3.Connection, database: Path) -> None:
    """Empty the log if deleted bytes are left in it, which this reader or others still read."""
    log = database.with_name(f"{database.name}-wal")
    try:
        with disk_errors(log):
            is_empty = log.stat().st_size == 0
    except FileNotFoundError:
        is_empty = True
    if not is_empty and not read_meta(connection, database).is_wiped:
        checkpoint(connection)


def checkpoint(connection: sqlite3.Connection) -> bool:
    """Move the log into the database and empty it; return False if readers still need it."""
    connection.execute("PRAGMA busy_timeout=0")  # it would wait for readers
    is_busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    connection.execute(f"PRAGMA busy_timeout={int(1000 * WAIT)}")
    return not is_busy


def read_block(
    row: Sequence[Any],
    key: Sequence[Any],
    meta: Meta,
    topics: dict[int, str],
    database: Path,
) -> dict[str, Any]:
    """Return the fields of a block from its row of BLOCK_COLUMNS and that of KEY_COLUMNS.

    Raises:
        DamagedError: A checksum differs, or the row is none that is written.
    """
    check_block(row, database)
    check_key(key, database)
    id, topic, level, start, stop, first, last, children, source, latents, text, tokens, _ = row
    try:
        if tuple(key[:3]) != (id, topic, level) or not 1 <= level <= meta.levels:
            raise ValueError
        size = meta.size(level)
        found = {
            "id": id,
            "size": size,
            "level": level,
            "topic": topics[topic],
            "source": source.decode(),
            "span": (start, stop),
            "line": (first, last),
            "text": None if text is None else text.decode(),
            "tokens": None if tokens is None else torch.from_numpy(unpack_ids(tokens)),
            "children": tuple(unpack_ids(children).tolist()),
            "latents": unpack_latents(latents, size, meta),
            "keys": unpack_keys(key[3], size, meta).astype(np.float32),
        }
    except (ValueError, KeyError):  # wrong counts, text that is not UTF-8, an unknown topic
        raise damaged(database, f"block {id} holds what no version writes") from None
    if not (np.isfinite(found["latents"]).all() and np.isfinite(found["keys"]).all()):
        raise damaged(database, f"block {id} has latents or keys that are not finite")
    return found


def as_blocks(rows: Sequence[dict[str, Any]], meta: Meta) -> Blocks:
    most = max((row["size"] for row in rows), default=1)
    latents = torch.zeros(len(rows), most, meta.dim)
    keys = torch.zeros(len(rows), most, meta.index_dim)
    for place, row in enumerate(rows):
        latents[place, : row["size"]] = torch.from_numpy(row["latents"])
        keys[place, : row["size"]] = torch.from_numpy(row["keys"])

    def column(name: str) -> list[Any]:
        return [row[name] for row in rows]

    def numbers(name: str, *shape: int) -> Tensor:
        return torch.tensor(column(name), dtype=torch.int64).view(len(rows), *shape)

    return Blocks(
        latents=latents,
        keys=keys,
        sizes=numbers("size"),
        levels=numbers("level"),
        topics=column("topic"),
        sources=column("source"),
        spans=numbers("span", 2),
        lines=numbers("line", 2),
        texts=column("text"),
        tokens=column("tokens"),
        children=column("children"),
        ids=numbers("id"),
    )


def query_vectors(queries: Any) -> Float32[np.ndarray, "b d"]:
    """Return queries in float32; raise UsageTypeError if they are no tensor of numbers."""
    if not isinstance(queries, Tensor) or not queries.is_floating_point():
        raise UsageTypeError(f"queries must be a tensor of numbers, got {describe(queries)}")
    return queries.detach().to("cpu", torch.float32).numpy()


def check_blocks(ids: Any) -> list[int]:
    """Return ids of blocks; raise UsageError if they are no list of integers from 1."""
    given = ids.tolist() if isinstance(ids, Tensor) else ids
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise UsageError(f"ids must be a list of the ids of blocks, got {ids!r}")
    found = [check_int("id", id, 1) for id in given]
    if found and max(found) > LARGEST_ID:
        raise UsageError(f"id must be at most {LARGEST_ID}, got {max(found)}")
    return found


def closed_view(folder: Path) -> UsageError:
    """Build the error of a view that is used after its context."""
    return usage_error(
        f"a view of {folder} that was closed",
        "a view inside of its context",
        "begin another one by view()",
    )


def missing_block(id: int, folder: Path, meta: Meta) -> UsageError:
    """Build the error of an id that a store has not, or no longer."""
    return usage_error(
        f"block {id} of {folder}, which is not there",
        f"an id that write returned, up to {meta.last}, of a topic that was not cleared",
        "search again",
    )


def check_fingerprint(folder: Path, found: str, expected: str) -> None:
    """Raise UsageError if a store was written by another model."""
    if found != expected:
        raise usage_error(
            f"{folder}, written by the model {found[:16]}, and not by {expected[:16]}",
            "blocks of the same weights and settings, without which they are noise",
            "use the model that wrote it, or compress its texts anew by thinkers memory recompress",
        )
