"""Files of JSON lines that several processes add to, and that a kill at any moment leaves whole."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinkers import checkpoints
from thinkers.errors import DamagedError


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    """Add a line, on the disk when this returns; what a kill left unfinished goes."""
    content = (json.dumps(line, allow_nan=False) + "\n").encode()
    with checkpoints.disk_errors(file, len(content)), file.open("ab+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        old = stream.read()
        stream.truncate(old.rfind(b"\n") + 1)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The finished lines; none if the file is not there."""
    if not file.exists():
        return []
    whole = file.read_bytes().rpartition(b"\n")[0]
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise DamagedError(f"{file} must hold lines of JSON: {error}") from None
