"""The default store: blocks in a SQLite database, with their keys in memory to be searched.

A folder holds `memory.db` (the truth), `generation.json` (the generation of the last write), and
for a level of more than 100,000 keys the file of its index, which is disposable. The log of SQLite
is beside the database while that is open, or after a process was killed; it belongs to it.
"""

import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from sqlite3 import Connection
from threading import RLock
from typing import Any, TextIO

from jaxtyping import Float, Int
from torch import Tensor

from thinkers.errors import ResourceError, three_lines
from thinkers.files import list_folder, unlink
from thinkers.memory.blocks import Blocks
from thinkers.memory.creation import make_store, remove_leftovers
from thinkers.memory.database import (
    INHERITED,
    Readers,
    check_generation,
    connect,
    database_errors,
    read_meta,
    read_topics,
    recorded_generation,
    recording,
    require_store,
)
from thinkers.memory.keys import Keys
from thinkers.memory.lists import EXACT, Lists
from thinkers.memory.lock import lock_folder, unlock
from thinkers.memory.rows import Meta, damaged
from thinkers.memory.store import Fault, Found
from thinkers.memory.topics import find_topic
from thinkers.memory.verification import find_faults, first_line
from thinkers.memory.views import SqliteView, checkpoint
from thinkers.memory.writing import insert_blocks


class Writer:
    """The lock of the one writer, and its connection, both of one process."""

    def __init__(self, lock: TextIO, connection: Connection):
        self.lock, self.connection = lock, connection
        self.process = os.getpid()

    def close(self) -> None:
        """Let another process write; a forked process cannot do so for its parent."""
        if self.process == os.getpid():
            self.connection.close()
            unlock(self.lock)


class SqliteStore:
    """Blocks in a SQLite database; see `store.Store` for what the methods return.

    Reading needs no lock. The first method that writes takes it for this process, until `close`.

    Args:
        folder: The folder of a store.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.database = require_store(folder)
        self._keys = Keys(folder, self.database)
        self._mutex = RLock()
        self._readers = Readers(self.database)
        self._writer: Writer | None = None
        # Also if the store is dropped without `close`.
        weakref.finalize(self, self._readers.close)
        self._end_writing: Any = None
        connection = self._readers.take()
        try:
            with database_errors(self.database):
                self.meta = read_meta(connection, self.database)
        finally:
            self._readers.give(connection)

    @classmethod
    def create(cls, folder: Path, **settings: Any) -> "SqliteStore":
        """Make an empty store in a new folder, and become its writer.

        Args:
            settings: Fields of `Meta` that the model and its task determine, and `dtype`.

        Raises:
            UsageError: The folder is not empty.
            LockedError: Another process is making a store there.
        """
        lock = make_store(folder, settings)
        try:
            store = cls(folder)
            store._hold(lock)
        except BaseException:
            lock.close()
            raise
        return store

    # Reading --------------------------------------------------------------------------------------

    def view(self) -> SqliteView:
        """Begin a snapshot, which ends with its context or `close`."""
        save = self._save_index
        return SqliteView(self.folder, self._readers, self._keys, self.meta.fingerprint, save)

    def search(
        self,
        queries: Float[Tensor, "b d"],
        k: int,
        level: int = 1,
        topics: Sequence[str] | None = None,
    ) -> Found:
        with self.view() as view:
            return view.search(queries, k, level, topics)

    def fetch(self, ids: Sequence[int] | Int[Tensor, " n"]) -> Blocks:
        with self.view() as view:
            return view.fetch(ids)

    def topics(self) -> dict[str, int]:
        with self.view() as view:
            return view.topics()

    def verify(self) -> list[Fault]:
        return find_faults(self.folder, self._keys)

    # Writing --------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Become the writer until `close`; nothing happens if this store is it already.

        Raises:
            LockedError: Another process is; the message names it.
        """
        with self._mutex:
            if not self._writes():
                require_store(self.folder)  # which may be gone since
                lock = lock_folder(self.folder)
                try:
                    self._hold(lock)
                except BaseException:
                    lock.close()
                    raise

    def _writes(self) -> bool:
        """Return True if this process is the writer; one that it was forked from may be."""
        if self._writer is not None and self._writer.process != os.getpid():
            INHERITED.append(self._writer)
            self._writer = None
        return self._writer is not None

    def _hold(self, lock: TextIO) -> None:
        remove_leftovers(self.folder)
        self._writer = Writer(lock, connect(self.database, write=True))
        self._end_writing = weakref.finalize(self, self._writer.close)

    @property
    def _connection(self) -> Connection:
        assert self._writer is not None
        return self._writer.connection

    @contextmanager
    def _transaction(self) -> Iterator[list[Meta]]:
        """Commit what the block inside writes, or nothing.

        A list with the settings is yielded, in which the block puts the new ones.
        """
        with self._mutex, database_errors(self.database):
            self.lock()
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                held = [read_meta(connection, self.database)]
                check_generation(self.folder, recorded_generation(self.folder), held[0])
                yield held
                meta = replace(held[0], generation=held[0].generation + 1)
                connection.execute("UPDATE meta SET value = ?", (meta.to_bytes(),))
                with recording(self.folder, meta):
                    connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self.meta = meta

    def append(self, blocks: Blocks, **settings: Any) -> list[int]:
        """Write blocks, whose ids follow the last one that was given; return their ids.

        They are on the disk when this returns. If it raises, none of them is.

        Args:
            settings: Fields of `Meta` that change with them.

        Raises:
            DamagedError: Latents or keys are not finite, or the store is damaged.
            ResourceError: The disk is full.
            LockedError: Another process writes to the store.
        """
        with self._transaction() as held:
            topics = read_topics(self._connection, held[0], self.database)
            meta = replace(held[0], **settings)
            held[0] = insert_blocks(self._connection, meta, topics, blocks, self.database)
        return blocks.ids.tolist()

    def delete(self, topic: str | None) -> int:
        """Delete the blocks of a topic, or all; return the number of sections that they were.

        The blocks of a group are of one topic: what was compressed from a section is of its topic,
        at every level, and is deleted with it. No byte of it is left once readers that began before
        have closed.

        Raises:
            UsageError: There is no such topic; the message names the nearest.
        """
        with self._mutex:
            with self._transaction() as held:
                meta = held[0]
                self._remove_indexes()
                if topic is None:
                    self._delete_all()
                    sections, counts = meta.counts[0], [0] * meta.levels
                else:
                    sections, counts = self._delete_topic(meta, topic)
                held[0] = meta.after_deletion(counts)
            self._wipe()
        return sections

    def _delete_all(self) -> None:
        for table in ("block", "key", "topic"):
            self._connection.execute(f"DELETE FROM {table}")

    def _delete_topic(self, meta: Meta, name: str) -> tuple[int, list[int]]:
        topics = read_topics(self._connection, meta, self.database)
        topic = find_topic(topics, name, self.folder)
        for table in ("block", "key"):
            # Without an index on topics: see `database.TABLES`.
            done = self._connection.execute(f"DELETE FROM {table} WHERE topic = ?", (topic.id,))
            if done.rowcount != sum(topic.counts):
                raise damaged(
                    self.database,
                    f"{done.rowcount} blocks of topic {name!r}, where {sum(topic.counts)} were",
                )
        self._connection.execute("DELETE FROM topic WHERE id = ?", (topic.id,))
        return topic.counts[0], [n - k for n, k in zip(meta.counts, topic.counts, strict=True)]

    def replace(self, parts: Iterable[Blocks], **settings: Any) -> list[int]:
        """Replace all blocks by others and change settings, all or nothing; return the new ids.

        Args:
            parts: The blocks, whose ids follow the last one that was given.
            settings: Fields of `Meta` that change.
        """
        ids: list[int] = []
        with self._mutex:
            with self._transaction() as held:
                self._remove_indexes()
                self._delete_all()
                meta = replace(held[0], **settings)
                meta = meta.after_deletion([0] * meta.levels)
                topics: dict[str, Any] = {}
                for blocks in parts:
                    meta = insert_blocks(self._connection, meta, topics, blocks, self.database)
                    ids += blocks.ids.tolist()
                held[0] = meta
            self._wipe()
        return ids

    def compact(self) -> None:
        """Give the space of deleted blocks back, and finish what readers kept a deletion from.

        Raises:
            LockedError: Another process writes to the store.
        """
        with self._mutex:
            self.lock()
            self._wipe()

    def _wipe(self) -> None:
        """Rewrite the database without free pages and empty its log, unless readers need it."""
        try:
            with database_errors(self.database):
                self._connection.execute("VACUUM")
                if checkpoint(self._connection):
                    self._set_wiped()
        except ResourceError as error:
            raise ResourceError(
                three_lines(
                    f"{self.database} cannot be rewritten: {first_line(error)}",
                    "room for a copy of it; what was deleted is deleted, its space is in use",
                    "free disk space, then run compact again",
                )
            ) from None

    def _set_wiped(self) -> None:
        meta = read_meta(self._connection, self.database)
        if not meta.is_wiped:
            self.meta = replace(meta, is_wiped=True)
            value = (self.meta.to_bytes(),)
            self._connection.execute("UPDATE meta SET value = ?", value)

    # Indexes --------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Make the index anew from the keys, and accept the writes that are there as the last.

        Raises:
            DamagedError: Keys are missing, or not as they were written.
            LockedError: Another process writes to the store.
        """
        with self._mutex, database_errors(self.database):
            self.lock()
            self._remove_indexes()
            self._keys = Keys(self.folder, self.database)
            meta = read_meta(self._connection, self.database)
            self.meta = meta
            with recording(self.folder, meta):
                for level in range(1, meta.levels + 1):
                    self._keys.build(self._connection, meta, level, self._save_index)

    def _remove_indexes(self) -> None:
        """Remove the files of indexes, which hold keys, before the keys are deleted."""
        for file in list_folder(self.folder):
            if file.name.startswith(("index-", ".index-")):
                unlink(file)

    def _save_index(self, lists: Lists, file: Path, meta: Meta) -> None:
        """Save an index if this is the writer, and nothing was deleted since its snapshot."""
        with self._mutex:
            if not self._writes():
                return
            if read_meta(self._connection, self.database).deleted == meta.deleted:
                lists.save(file)

    def close(self) -> None:
        """End writing: save an index that has fallen behind, and let another process write."""
        try:
            if self._writes():
                self._refresh_indexes()
        finally:
            with self._mutex:
                if self._writes():
                    self._end_writing()
                    self._writer = None
                self._readers.close()

    def _refresh_indexes(self) -> None:
        with self.view() as view:
            for level in range(1, view.meta.levels + 1):
                if view.meta.counts[level - 1] * view.meta.size(level) > EXACT:
                    view.prepare(level)
