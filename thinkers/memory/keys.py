"""The keys of a level in memory, and their search: exact for few, by lists for many.

Up to EXACT keys of a level are all in `rows`. Beyond, an index of lists in a file holds those of
the blocks up to an id, and `rows` the tail. As long as nothing is deleted, ids are only added: what
was loaded for one generation is extended for the next. An index is disposable: one that is missing,
damaged or older than a deletion is made anew from the keys.
"""

import sqlite3
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int64

from thinkers.errors import DamagedError, FormatError
from thinkers.memory.database import select_rows
from thinkers.memory.lists import EXACT, Lists, Selection
from thinkers.memory.rows import KEY_COLUMNS, Meta, check_key, damaged, unpack_keys
from thinkers.memory.scores import merge
from thinkers.terminal import show

TAIL = 0.1
"""Largest number of keys outside of an index, as a share of those in it."""
ROWS = 10_000
"""Rows of the database that are Python objects at once."""


@dataclass(frozen=True, eq=False)
class KeyRows:
    """Keys of blocks in the order of their ids; a block has one or more."""

    ids: Int64[np.ndarray, " n"]
    topics: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]
    keys: Float16[np.ndarray, "m d"]

    def __len__(self) -> int:
        return len(self.ids)

    def joined(self, other: "KeyRows") -> "KeyRows":
        """Return these rows and then others."""
        return KeyRows(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def upto(self, last: int) -> "KeyRows":
        """Return the rows with ids of at most `last`."""
        n = int(np.searchsorted(self.ids, last, "right"))
        return KeyRows(self.ids[:n], self.topics[:n], self.sizes[:n], self.keys[: self.num_keys(n)])

    def num_keys(self, n: int) -> int:
        """Return the number of keys of the first n blocks."""
        return int(self.sizes[:n].sum())

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.ids, self.topics, self.sizes, self.keys))

    def lists(self, generation: int, num_lists: int | None = None) -> Lists:
        """Return the index of these rows."""
        ids = np.repeat(self.ids, self.sizes)
        return Lists.build(self.keys, ids, 0, generation, num_lists)


def load_keys(
    rows: Iterator[tuple[Any, ...]] | sqlite3.Cursor, meta: Meta, database: Path
) -> KeyRows:
    """Check rows of KEY_COLUMNS, sorted by id, and return what they hold."""
    # In blocks: a million rows as objects of Python take several times the memory of their keys.
    parts, some, last = [_key_rows([], meta, database)], list[tuple[int, int, int, bytes]](), 0
    for row in rows:
        check_key(row, database)
        id, topic, level, content, _ = row
        if not (last < id <= meta.last and 1 <= level <= meta.levels):
            raise damaged(database, f"block {id} at a place where no version writes it")
        last, size = id, meta.size(level)
        if len(content) != 2 * size * meta.index_dim:
            raise damaged(database, f"block {id} has {len(content)} bytes of keys")
        some.append((id, topic, size, content))
        if len(some) == ROWS:
            parts.append(_key_rows(some, meta, database))
            some = []
    parts.append(_key_rows(some, meta, database))
    return KeyRows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _key_rows(rows: Sequence[tuple[int, int, int, bytes]], meta: Meta, database: Path) -> KeyRows:
    """Return rows of id, topic, number of keys, and the keys."""
    ids, topics, sizes = np.array([row[:3] for row in rows], np.int64).reshape(-1, 3).T
    keys = unpack_keys(b"".join(row[3] for row in rows), int(sizes.sum()), meta)
    if not np.isfinite(keys).all():
        raise damaged(database, "keys that are not finite")
    return KeyRows(ids, topics, sizes, keys)


@dataclass(frozen=True, eq=False)
class Level:
    """The keys of a level at a generation.

    Args:
        deleted: Generation of the last deletion: until the next one, ids are only added.
        last: The last id that was given.
        lists: Lists of `inside` blocks, up to the id `covered`; None if all are in `rows`.
    """

    deleted: int
    last: int
    rows: KeyRows
    lists: Lists | None = None
    covered: int = 0
    inside: int = 0


@dataclass(eq=False)
class Searcher:
    """Search of a snapshot of a level.

    Args:
        rows: Keys outside of `lists`, with those of lower levels whose group is not whole.
    """

    generation: int
    rows: KeyRows
    lists: Lists | None
    _selections: dict[tuple[int, ...], tuple[Selection, Selection | None]] = field(
        default_factory=dict
    )

    @cached_property
    def near(self) -> Lists:
        """The rows as one list, which is searched exactly."""
        return self.rows.lists(self.generation, num_lists=1)

    def search(
        self,
        queries: Float32[np.ndarray, "b d"],
        k: int,
        topics: Collection[int] | None,
        load: Callable[[], KeyRows],
    ) -> tuple[Int64[np.ndarray, "b k"], Float32[np.ndarray, "b k"]]:
        """Return ids and scores as `Lists.search`.

        Args:
            topics: Ids of topics; None for all.
            load: Return the rows of the level, for the topics of the blocks in `lists`.
        """
        near, far = (None, None) if topics is None else self._select(topics, load)
        found = self.near.search(queries, k, allowed=near)
        if self.lists is None:
            return found
        return merge(found, self.lists.search(queries, k, allowed=far), k)

    def _select(
        self, topics: Collection[int], load: Callable[[], KeyRows]
    ) -> tuple[Selection, Selection | None]:
        key = tuple(sorted(topics))
        if key not in self._selections:
            near = self.near.select(self.rows.ids[np.isin(self.rows.topics, key)])
            far = None
            if self.lists is not None:
                rows = load()
                far = self.lists.select(rows.ids[np.isin(rows.topics, key)])
            self._selections[key] = near, far
        return self._selections[key]


Save = Callable[[Lists, Path, Meta], None]
"""Write an index to a file: lists, the file, and the settings of its snapshot."""


class Keys:
    """The keys of a store, shared by its views; each asks for them with its own snapshot."""

    def __init__(self, folder: Path, database: Path):
        self.folder, self.database = folder, database
        self._levels: dict[int, Level] = {}
        self._searchers: dict[int, Searcher] = {}
        self._lock = Lock()

    def searcher(
        self,
        connection: sqlite3.Connection,
        meta: Meta,
        level: int,
        ungrouped: Sequence[int],
        save: Save,
    ) -> Searcher:
        """Return the search of a level at the snapshot of `meta`.

        Args:
            ungrouped: Blocks of lower levels that are searched, too.
            save: Write a new index to its file, if this process may.
        """
        with self._lock:
            known = self._searchers.get(level)
            if known is not None and known.generation == meta.generation:
                return known
            found = self._level(connection, meta, level, save)
            rows = found.rows.upto(meta.last)
            if ungrouped:
                rows = rows.joined(self.by_id(connection, meta, ungrouped))
            made = Searcher(meta.generation, rows, found.lists)
            if known is None or known.generation < meta.generation:
                self._searchers[level] = made
            return made

    def by_id(self, connection: sqlite3.Connection, meta: Meta, ids: Sequence[int]) -> KeyRows:
        """Load the keys of these blocks, all of which must be there."""
        found = load_keys(select_rows(connection, "key", KEY_COLUMNS, ids), meta, self.database)
        if len(found) != len(set(ids)):
            raise damaged(self.database, f"{len(set(ids)) - len(found)} blocks have no keys")
        return found

    def load(
        self, connection: sqlite3.Connection, meta: Meta, level: int, after: int = 0
    ) -> KeyRows:
        """Load the keys of a level whose ids are above `after`."""
        rows = connection.execute(
            f"SELECT {KEY_COLUMNS} FROM key WHERE level = ? AND id > ? ORDER BY id", (level, after)
        )
        return load_keys(rows, meta, self.database)

    def ids(
        self, connection: sqlite3.Connection, meta: Meta, level: int
    ) -> Int64[np.ndarray, " n"]:
        """Return the ids of a level, ascending."""
        with self._lock:
            known = self._levels.get(level)
            if known is not None and known.lists is None and known.deleted == meta.deleted:
                if known.last >= meta.last:
                    return known.rows.upto(meta.last).ids
        return self.all(connection, meta, level).ids

    def all(self, connection: sqlite3.Connection, meta: Meta, level: int) -> KeyRows:
        """Load all keys of a level; raise DamagedError if some are missing."""
        rows = self.load(connection, meta, level)
        self._check_count(len(rows), meta, level)
        return rows

    def _check_count(self, count: int, meta: Meta, level: int) -> None:
        expected = meta.counts[level - 1]
        if count != expected:
            raise damaged(
                self.database, f"keys of {count} blocks of level {level}, where {expected} were"
            )

    def _level(self, connection: sqlite3.Connection, meta: Meta, level: int, save: Save) -> Level:
        """Return the keys of a level up to the last id of a snapshot, or later."""
        known = self._levels.get(level)
        if known is not None and (known.deleted > meta.deleted or known.covered > meta.last):
            # A view that is older than a deletion or an index: its keys are of no use to others.
            return Level(meta.deleted, meta.last, self.all(connection, meta, level))
        if known is None or known.deleted < meta.deleted:
            known = self._first(connection, meta, level, save)
        elif known.last < meta.last:
            more = self.load(connection, meta, level, known.last)
            known = replace(known, last=meta.last, rows=known.rows.joined(more))
        if known.last == meta.last:
            known = self._refreshed(connection, meta, level, known, save)
        self._levels[level] = known
        return known

    def _refreshed(
        self, connection: sqlite3.Connection, meta: Meta, level: int, known: Level, save: Save
    ) -> Level:
        """Check that no key is missing, and cluster anew if the tail has grown."""
        self._check_count(known.inside + len(known.rows), meta, level)
        outside = len(known.rows.keys)
        inside = 0 if known.lists is None else len(known.lists)
        if outside + inside <= EXACT or outside <= TAIL * inside:
            return known
        return self.build(connection, meta, level, save)

    def build(self, connection: sqlite3.Connection, meta: Meta, level: int, save: Save) -> Level:
        """Return a level with an index of all its keys, which is saved if it may be."""
        rows = self.all(connection, meta, level)
        if len(rows.keys) <= EXACT:
            return Level(meta.deleted, meta.last, rows)
        lists = rows.lists(meta.generation)
        save(lists, self.file(meta, level), meta)
        return _with_lists(meta, lists, rows.upto(-1))

    def _first(self, connection: sqlite3.Connection, meta: Meta, level: int, save: Save) -> Level:
        """Load a level: the index from its file and the tail, or all keys."""
        size = meta.size(level)
        if meta.counts[level - 1] * size <= EXACT:
            return Level(meta.deleted, meta.last, self.all(connection, meta, level))
        lists = self._read(meta, level)
        if lists is not None:
            tail = self.load(connection, meta, level, int(lists.ids.max()))
            found = _with_lists(meta, lists, tail)
            if found.inside + len(tail) == meta.counts[level - 1]:
                return found
            self._report_rebuild(meta, level, "it does not hold the blocks of this memory")
        return self.build(connection, meta, level, save)

    def _read(self, meta: Meta, level: int) -> Lists | None:
        """Read the index of a level; None if it is missing, or not of this snapshot."""
        try:
            lists = Lists.load(self.file(meta, level))
        except FileNotFoundError:
            self._report_rebuild(meta, level, "it is missing")
            return None
        except (DamagedError, FormatError) as error:
            self._report_rebuild(meta, level, str(error))
            return None
        # An index that is newer than the snapshot may lack what was deleted in between.
        is_of_snapshot = meta.deleted <= lists.generation <= meta.generation
        if not is_of_snapshot or lists.dim != meta.index_dim or not len(lists):
            self._report_rebuild(meta, level, "it is of another generation")
            return None
        return lists

    def _report_rebuild(self, meta: Meta, level: int, why: str) -> None:
        file = self.file(meta, level)
        show(f"{file}: the index is made anew from the keys: {why}", stream=sys.stderr)

    def file(self, meta: Meta, level: int) -> Path:
        """Return the file of the index of a level; its name has that of the store."""
        return self.folder / f"index-{level}-{meta.store}.lists"


def _with_lists(meta: Meta, lists: Lists, tail: KeyRows) -> Level:
    covered, inside = int(lists.ids.max()), lists.num_ids
    return Level(meta.deleted, meta.last, tail, lists, covered, inside)
