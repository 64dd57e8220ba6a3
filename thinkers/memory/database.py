"""The SQLite database of a store: its tables, connections, and one meaning for each of its errors.

Every connection writes ahead (WAL): a reader sees the database as it was when it began, while one
writer adds to it. Two gaps of SQLite are closed here and in `rows`. It has no checksums. And a log
of which a byte has changed ends before it, so that what was committed is gone without an error:
GENERATION_FILE holds the generation of the last commit, outside of the database.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from thinkers.errors import DamagedError, LockedError, ResourceError, three_lines, usage_error
from thinkers.files import exists, is_folder, open_file, read_file, replacing
from thinkers.json_files import LARGEST_JSON, parse_with_digest, with_digest
from thinkers.memory.rows import FORMAT, Meta, Topic, damaged

DATABASE, GENERATION_FILE = "memory.db", "generation.json"
TABLES = {
    "meta": "CREATE TABLE meta(id INTEGER PRIMARY KEY, value BLOB NOT NULL)",
    "topic": "CREATE TABLE topic(id INTEGER PRIMARY KEY AUTOINCREMENT, value BLOB NOT NULL)",
    "key": "CREATE TABLE key(id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, level INTEGER NOT "
    "NULL, keys BLOB NOT NULL, crc INTEGER NOT NULL)",
    "block": "CREATE TABLE block(id INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, "
    "level INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, first_line INTEGER NOT "
    "NULL, last_line INTEGER NOT NULL, children BLOB NOT NULL, source BLOB NOT NULL, latents BLOB "
    "NOT NULL, text BLOB, tokens BLOB, crc INTEGER NOT NULL)",
}
"""Keys have a table of their own, so that loading them reads nothing else. There is no index on a
topic: a bit that flips in one is noticed by no checksum, and leaves blocks behind as a topic is
cleared."""
OF_SQLITE = {"sqlite_sequence": "CREATE TABLE sqlite_sequence(name,seq)"}
"""Tables that SQLite makes by itself, here for AUTOINCREMENT."""
PRAGMAS = (
    *("synchronous=FULL", "secure_delete=ON", "trusted_schema=OFF", "cell_size_check=ON"),
    *("mmap_size=0", f"journal_size_limit={1 << 26}"),
)
"""Settings of every connection: commits reach the disk, deleted bytes are overwritten with zeros,
and nothing that a damaged or a foreign database says is run or trusted."""
PARAMETERS = 500
"""The most ids of one query; old versions of SQLite allow 999."""
WAIT = 30.0
"""Seconds to wait for another connection, such as one that repairs the log of a killed process."""


def require_store(folder: Path) -> Path:
    """Return the database of a store.

    Raises:
        UsageError: The folder is not a store.
        DamagedError: A file of it is a link, or does not belong to a store.
    """
    database = folder / DATABASE
    if not exists(database):
        found = f"no {DATABASE} in it" if is_folder(folder) else "there is no such folder"
        raise usage_error(
            f"{folder}, which is not a memory: {found}",
            "the folder of a memory",
            "name another one, or make one by LongTermMemory.create or thinkers memory add",
        )
    # SQLite follows links, and would undo what a rollback journal says; a store has none.
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        with suppress(FileNotFoundError):  # the last connection removes its log as it closes
            open_file(folder / name).close()
    if exists(folder / f"{DATABASE}-journal"):
        raise damaged(folder / f"{DATABASE}-journal", "a file that no store has")
    return database


def connect(database: Path, write: bool) -> sqlite3.Connection:
    """Open the database of a store, which must exist; one reads or writes it.

    Readers may finish what a writer that was killed left in the log, hence the mode.
    """
    with database_errors(database):
        uri = f"file:{quote(str(database.absolute()))}?mode=rw"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=WAIT
        )
        try:
            connection.text_factory = bytes
            for pragma in (*PRAGMAS, *(() if write else ("query_only=ON",))):
                connection.execute(f"PRAGMA {pragma}")
            if connection.execute("PRAGMA journal_mode").fetchone() != (b"wal",):
                raise damaged(database, "it is not in the mode that a store is in")
            _check_tables(connection, database)
        except BaseException:
            connection.close()
            raise
    return connection


def _check_tables(connection: sqlite3.Connection, database: Path) -> None:
    """Raise DamagedError unless these are the tables of a store: no view or trigger besides."""
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
    tables = TABLES | OF_SQLITE
    expected = {(b"table", n.encode(), n.encode(), s.encode()) for n, s in tables.items()}
    if set(rows) != expected:
        raise damaged(database, "its tables are not those of a memory")


def create_database(file: Path, meta: Meta) -> None:
    """Create the database of an empty store, in one file, by a name that no store has."""
    with database_errors(file):
        connection = sqlite3.connect(file, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")
            for sql in TABLES.values():
                connection.execute(sql)
            connection.execute("INSERT INTO meta VALUES(1, ?)", (meta.to_bytes(),))
            connection.execute("COMMIT")
            # `close` would do it, and say nothing if that fails: the tables would be in a log that
            # is left behind as the file gets its name.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()


@contextmanager
def database_errors(database: Path) -> Iterator[None]:
    """Turn errors of SQLite into those of this library, each with its exit code."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
        if code in (sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE):
            raise  # a wrong call of SQLite: a fault of this library, not of the disk
        raise _as_own(database, str(error), code) from None


def _as_own(database: Path, text: str, code: int) -> Exception:
    if code == sqlite3.SQLITE_FULL:
        return ResourceError(
            three_lines(
                f"no room on the disk of {database}",
                "room for all that is written at once; the memory is as it was before",
                "free disk space, and try again",
            )
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LockedError(
            three_lines(
                f"{database} is in use by another process",
                f"a memory that others leave for a moment within {WAIT:.0f} seconds",
                "try again, or end the other process",
            )
        )
    if code in _SYSTEM:
        return ResourceError(
            three_lines(
                f"{database} cannot be used: {text}",
                "a disk, memory and rights that suffice; the memory is as it was before",
                "change the rights, free disk space, or choose another disk",
            )
        )
    return damaged(database, text)


_SYSTEM = (
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS),
)


def select_rows(
    connection: sqlite3.Connection, table: str, columns: str, ids: Iterable[int]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of these ids, ascending; none for an id that is not there."""
    asked = sorted(set(ids))
    for start in range(0, len(asked), PARAMETERS):
        some = asked[start : start + PARAMETERS]
        marks = ",".join("?" * len(some))
        yield from connection.execute(
            f"SELECT {columns} FROM {table} WHERE id IN ({marks}) ORDER BY id", some
        )


# Rows of settings and topics ----------------------------------------------------------------------


def read_meta(connection: sqlite3.Connection, database: Path) -> Meta:
    """Read the settings of a store; within a transaction, this begins its snapshot."""
    rows = connection.execute("SELECT id, value FROM meta").fetchall()
    if [id for id, _ in rows] != [1]:
        raise damaged(database, f"{len(rows)} rows of settings, where a store has one")
    return Meta.from_bytes(rows[0][1], database)


def read_topics(connection: sqlite3.Connection, meta: Meta, database: Path) -> dict[str, Topic]:
    """Return the topics by name, in the order in which they began."""
    rows = connection.execute("SELECT id, value FROM topic ORDER BY id")
    found = [Topic.from_bytes(id, value, meta, database) for id, value in rows]
    by_name = {topic.name: topic for topic in found}
    counts = [sum(topic.counts[level] for topic in found) for level in range(meta.levels)]
    if len(by_name) < len(found) or counts != list(meta.counts):
        raise damaged(database, "topics that do not hold the number of blocks in the settings")
    return by_name


# Generations --------------------------------------------------------------------------------------


def recorded_generation(folder: Path) -> tuple[str, int]:
    """Return the name of the store, and the generation of the last commit that was acknowledged.

    Raises:
        DamagedError: The file is missing, or not as it was written.
    """
    file = folder / GENERATION_FILE
    try:
        found = _parse_generation(read_file(file, LARGEST_JSON), file)
    except FileNotFoundError:
        raise damaged(file, "no such file") from None
    except DamagedError as error:
        raise damaged(file, str(error)) from None
    return found["store"], found["generation"]


@lru_cache(maxsize=64)
def _parse_generation(content: bytes, file: Path) -> dict[str, Any]:
    return parse_with_digest(content, file, {"store": str, "generation": int}, FORMAT)


@contextmanager
def recording(folder: Path, meta: Meta) -> Iterator[None]:
    """Record the generation of `meta` once the block inside, which commits it, has ended."""
    value = {"format": FORMAT, "store": meta.store, "generation": meta.generation}
    is_committed = False
    try:
        with replacing(folder / GENERATION_FILE, with_digest(value)):
            yield
            is_committed = True
    except OSError as error:
        if not is_committed:
            raise
        raise ResourceError(
            three_lines(
                f"{error}",
                "a disk that works; all that was asked for was written",
                "mend the disk; do not repeat the command",
            )
        ) from None


def check_generation(folder: Path, recorded: tuple[str, int], meta: Meta) -> None:
    """Raise DamagedError if commits that were acknowledged are gone.

    Args:
        recorded: Read before the snapshot of `meta` began, which is at least as new then.
    """
    store, generation = recorded
    if store != meta.store:
        raise damaged(folder / GENERATION_FILE, "the generation of another memory")
    if meta.generation < generation:
        raise damaged(
            folder / DATABASE,
            f"{generation - meta.generation} of {generation} writes are gone: the end of its log",
        )


# Connections of readers ---------------------------------------------------------------------------


class Readers:
    """Connections of a process that read a store, kept open from one view to the next.

    The last connection that closes removes the log, and the next one makes it anew.
    """

    def __init__(self, database: Path):
        self.database = database
        self._idle: list[sqlite3.Connection] = []
        self._process = os.getpid()

    def take(self) -> sqlite3.Connection:
        """Return a connection for one view."""
        if self._process != os.getpid():
            # A forked process must not use the connections of its parent, nor close them.
            INHERITED.extend(self._idle)
            self._idle, self._process = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return connect(require_store(self.database.parent), write=False)

    def give(self, connection: sqlite3.Connection) -> None:
        """Take a connection back, of which no transaction is open."""
        self._idle.append(connection)

    def close(self) -> None:
        while self._idle and self._process == os.getpid():
            self._idle.pop().close()


INHERITED: list[Any] = []
"""Connections that a parent process opened, kept so that they are not closed as garbage."""
