"""Verification of a store: every row and its checksum, all counts, and the database's own check.

`PRAGMA integrity_check` is run, since `quick_check` does not compare all that it could.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from thinkers.errors import DamagedError, FormatError
from thinkers.files import exists
from thinkers.memory.database import (
    DATABASE,
    GENERATION_FILE,
    check_generation,
    connect,
    database_errors,
    read_meta,
    read_topics,
    recorded_generation,
    require_store,
)
from thinkers.memory.keys import Keys
from thinkers.memory.lists import Lists
from thinkers.memory.rows import BLOCK_COLUMNS, KEY_COLUMNS, Meta, Topic
from thinkers.memory.store import Fault
from thinkers.memory.views import read_block

Rows = tuple[int, tuple[Any, ...] | None, tuple[Any, ...] | None]
MOST = 100
"""Faults that are listed; a damaged page alone has many."""


def find_faults(folder: Path, keys: Keys) -> list[Fault]:
    """Return the faults of a store, at most MOST; none means that it is as it was written."""
    faults: list[Fault] = []
    try:
        _look(folder, keys, faults)
    except (DamagedError, FormatError) as error:
        faults.append(Fault(DATABASE, first_line(error)))
    return faults[:MOST]


def _look(folder: Path, keys: Keys, faults: list[Fault]) -> None:
    database = require_store(folder)
    connection = connect(database, write=False)
    try:
        with database_errors(database):
            recorded = None
            try:
                recorded = recorded_generation(folder)
            except (DamagedError, FormatError) as error:
                faults.append(Fault(GENERATION_FILE, first_line(error)))
            connection.execute("BEGIN")
            meta = read_meta(connection, database)
            if recorded is not None:
                check_generation(folder, recorded, meta)
            for (line,) in connection.execute(f"PRAGMA integrity_check({MOST})"):
                if line != b"ok":
                    faults.append(Fault(DATABASE, line.decode("utf-8", "replace")))
            topics = read_topics(connection, meta, database)
            check_rows(_both_tables(connection), meta, topics, database, faults)
            sequence = dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))
            if sequence.get(b"block", 0) != meta.last:
                faults.append(Fault(DATABASE, f"the last id is {sequence.get(b'block', 0)!r}"))
            for level in range(1, meta.levels + 1):
                _check_index(keys.file(meta, level), meta, faults)
    finally:
        connection.close()


def _both_tables(connection: Any) -> Iterator[Rows]:
    """Yield each id with its rows in both tables, ascending; None where one is missing."""
    keys = connection.execute(f"SELECT {KEY_COLUMNS} FROM key ORDER BY id")
    blocks = connection.cursor().execute(f"SELECT {BLOCK_COLUMNS} FROM block ORDER BY id")
    key = keys.fetchone()
    for row in blocks:
        while key is not None and key[0] < row[0]:
            yield key[0], None, key
            key = keys.fetchone()
        if key is None or key[0] != row[0]:
            yield row[0], row, None
            continue
        yield row[0], row, key
        key = keys.fetchone()
    while key is not None:
        yield key[0], None, key
        key = keys.fetchone()


def check_rows(
    rows: Iterable[Rows],
    meta: Meta,
    topics: dict[str, Topic],
    database: Path,
    faults: list[Fault],
) -> None:
    """Compare the rows of blocks and keys with their checksums, each other, and all counts.

    Args:
        rows: The id of each block, and its rows of BLOCK_COLUMNS and KEY_COLUMNS; None for one
            that is missing.
    """
    names = {topic.id: topic.name for topic in topics.values()}
    counts: Counter[tuple[str, int]] = Counter()
    levels: dict[int, tuple[str, int]] = {}
    ungrouped: dict[tuple[str, int], list[int]] = {}
    for id, row, key in rows:
        if len(faults) > MOST:
            return
        if row is None or key is None:
            lost = "latents" if row is None else "keys"
            faults.append(Fault(f"block {id}", f"its {lost} are missing"))
            continue
        try:
            found = read_block(row, key, meta, names, database)
        except DamagedError as error:
            faults.append(Fault(f"block {id}", first_line(error)))
        else:
            place = found["topic"], found["level"]
            counts[place] += 1
            levels[found["id"]] = place
            if found["level"] < meta.levels:
                ungrouped.setdefault(place, []).append(found["id"])
            _check_children(found, levels, ungrouped, faults)
    for name, topic in topics.items():
        for level in range(1, meta.levels + 1):
            if counts[name, level] != topic.counts[level - 1]:
                what = f"{counts[name, level]} blocks of level {level}"
                faults.append(Fault(f"topic {name!r}", f"{what}, {topic.counts[level - 1]} were"))
            waiting = ungrouped.get((name, level), [])
            if level < meta.levels and waiting != topic.ungrouped[level - 1]:
                faults.append(Fault(f"topic {name!r}", f"groups of level {level} do not fit"))


def _check_children(
    block: dict[str, Any],
    levels: dict[int, tuple[str, int]],
    ungrouped: dict[tuple[str, int], list[int]],
    faults: list[Fault],
) -> None:
    below = block["topic"], block["level"] - 1
    for child in block["children"]:
        if levels.get(child) != below:
            faults.append(Fault(f"block {block['id']}", f"its child {child} is not one"))
        elif child in ungrouped[below]:
            ungrouped[below].remove(child)


def _check_index(file: Path, meta: Meta, faults: list[Fault]) -> None:
    if not exists(file):
        return
    try:
        lists = Lists.load(file)
    except (DamagedError, FormatError) as error:
        faults.append(Fault(file.name, first_line(error)))
        return
    if lists.generation > meta.generation:
        faults.append(Fault(file.name, "it is newer than the memory"))


def first_line(error: Exception) -> str:
    """Return the first line of an error without its label."""
    return str(error).splitlines()[0].removeprefix("found: ")
