"""Making of an empty SQLite store: a folder holds a whole one, or none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from thinkers.errors import usage_error
from thinkers.files import (
    exists,
    is_folder,
    list_folder,
    make_folders,
    rename_synced,
    unlink,
    write_file,
)
from thinkers.json_files import with_digest
from thinkers.memory.database import DATABASE, GENERATION_FILE, create_database
from thinkers.memory.lock import LOCK, lock_folder
from thinkers.memory.rows import FORMAT, Meta

NEW = f".{DATABASE}.tmp"
LEFTOVERS = (f".{GENERATION_FILE}.tmp", NEW, *(f"{NEW}-{x}" for x in ("wal", "shm", "journal")))
"""Files that a process may leave if it is killed."""


def make_store(folder: Path, settings: Mapping[str, Any]) -> TextIO:
    """Make an empty store in a new folder; return its lock, which is held.

    Args:
        settings: Fields of `Meta` that the model and its task determine, and `dtype`.
    """
    _refuse_contents(folder)
    make_folders(folder)
    lock = lock_folder(folder)
    try:
        _refuse_contents(folder)  # another process may have made one in between
        meta = Meta.empty(**settings)
        remove_leftovers(folder)
        value = {"format": FORMAT, "store": meta.store, "generation": 0}
        write_file(folder / GENERATION_FILE, with_digest(value))
        create_database(folder / NEW, meta)
        # Only now does the folder hold a store, and a whole one.
        rename_synced(folder / NEW, folder / DATABASE)
    except BaseException:
        lock.close()
        raise
    return lock


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer left; the caller holds the lock."""
    for name in LEFTOVERS:
        unlink(folder / name)


def _refuse_contents(folder: Path) -> None:
    """Raise UsageError if a folder holds anything but a store that was never completed."""
    if not exists(folder):
        return
    if not is_folder(folder):
        raise usage_error(f"{folder}, a file", "a new folder", "choose another name")
    names = {path.name for path in list_folder(folder)}
    if DATABASE in names:
        raise usage_error(
            f"{folder}, which holds a memory",
            "a new folder",
            "open it by LongTermMemory.open, or choose another name",
        )
    if others := names - {LOCK, GENERATION_FILE, *LEFTOVERS}:
        raise usage_error(
            f"{folder}, which holds {min(others)}", "a new or an empty folder", "choose another"
        )
