"""The lock of the one process that writes to a memory."""

import datetime
import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from thinkers.errors import LockedError, three_lines
from thinkers.files import open_lock

LOCK = ".lock"


def lock_folder(folder: Path) -> TextIO:
    """Lock a folder until the file that is returned is closed, or the process ends.

    Raises:
        LockedError: Another writer has it; the message names its process.
    """
    lock = open_lock(folder / LOCK)
    try:
        # The kernel releases it when the process ends, even by SIGKILL: no stale locks.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = lock.read(1000)
        lock.close()
        raise LockedError(
            three_lines(
                f"{folder} is written to by {owner or 'another process'}",
                "one writer at a time; others may read meanwhile",
                "wait until it has closed the memory, or end it",
            )
        ) from None
    now = datetime.datetime.now().isoformat(timespec="seconds")
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}, started {now}")
    lock.flush()
    return lock


def unlock(lock: TextIO) -> None:
    """Let another process lock the folder, also while forked processes hold the file open."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    lock.close()
