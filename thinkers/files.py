"""Writing of files: atomic replacement, and JSON.

Everything that the library keeps on disk is written here, so that a fault can be injected in one
place and a full disk is reported in one way.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from thinkers.errors import ResourceError


def write_file(path: Path, content: bytes) -> None:
    """Replace a file at once and for good: it has its old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with disk_errors(path, len(content)):
            write_new(temporary, content)
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path, needed: int) -> Iterator[None]:
    """Turn a full disk, or a quota, into a ResourceError that says how much was wanted."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        code = getattr(error, "errno", None)
        if code not in full and not any(f"os error {x}" in str(error) for x in full):
            raise
        free = shutil.disk_usage(next(p for p in path.absolute().parents if p.is_dir())).free
        raise ResourceError(
            f"cannot write {path}: {needed} bytes needed, {free} bytes free; make room and go on "
            f"with --resume, nothing saved before is lost"
        ) from error


def to_json(value: Any) -> bytes:
    """One canonical form: equal values are equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
