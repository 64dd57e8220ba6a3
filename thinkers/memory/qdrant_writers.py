"""Errors of Qdrant's client, and the name by which the one writer of a collection is known."""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinkers.errors import LockedError, ResourceError, UsageError, three_lines, usage_error
from thinkers.optional import require


def writer_name() -> str:
    """Return a new name of this process as a writer."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"


@contextmanager
def qdrant_errors(place: Path) -> Iterator[None]:
    """Turn errors of Qdrant's client into those of this library."""
    exceptions = require("qdrant_client.http.exceptions", "qdrant", "a store in Qdrant")
    try:
        yield
    except (exceptions.ApiException, ConnectionError, TimeoutError) as error:
        raise ResourceError(
            three_lines(
                f"{place}: {str(error).strip()}",
                "a server that answers; a write that failed is there as a whole or not at all",
                "look at the server, and try again",
            )
        ) from None


def no_memory(place: Path, found: str) -> UsageError:
    """Build the error of a collection that is not a store."""
    return usage_error(
        f"{place}, which is not a memory: {found}",
        "a collection that QdrantStore.create made",
        "name another one, or make one",
    )


def locked(place: Path, writer: str) -> LockedError:
    """Build the error of a store that another process writes to."""
    host, pid, *_ = (writer or "another:process").split(":")
    return LockedError(
        three_lines(
            f"{place}, which process {pid} on {host} writes to",
            "a memory with no other writer",
            "wait for it; if it was killed on another machine, call QdrantStore.break_lock",
        )
    )


def is_gone(writer: str) -> bool:
    """Return True if a writer was a process of this machine that no longer runs."""
    host, pid, *_ = writer.split(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
