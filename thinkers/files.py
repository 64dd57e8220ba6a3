"""Files: checked paths of users, atomic replacement, and JSON.

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

from thinkers.errors import DamagedError, ResourceError, usage_error


def user_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return a user's path with `~` expanded; every path that a user gives goes through here.

    The path need not exist.

    Args:
        name: The argument or flag that it was given as, for errors.

    Raises:
        UsageError: It is empty, is not UTF-8, contains a NUL, or names an unknown user.
    """
    if not isinstance(path, str | os.PathLike):
        raise usage_error(f"{name} {path!r}", "a path, as text", f"change {name}")
    text = os.fspath(path)
    if not isinstance(text, str) or not text:
        raise usage_error(f"{name} {text!r}", "a path, as text", f"change {name}")
    # Python decodes bytes that are not UTF-8 as lone surrogates: such a name can be opened, but
    # neither printed nor kept in the JSON of a run.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise usage_error(
            f"{name} {ascii(text)}", "a path in UTF-8 without NUL", f"rename it, or change {name}"
        )
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        user = Path(text).parts[0]
        raise usage_error(
            f"{name} {text}: there is no user {user.removeprefix('~')}",
            "~ for your own folder, or ~NAME for that of a user",
            f"write ./{user} for a folder of that name",
        )
    path = Path(expanded)
    # Path drops the dot of ./~, and a second call must not expand the ~ that is left.
    return path.absolute() if path.parts and path.parts[0].startswith("~") else path


def output_file(path: str | os.PathLike[str], name: str = "out") -> Path:
    """Check the path of a file to be written, before the work that produces it; return the path.

    Raises:
        UsageError: As in `user_path`; or the path is a folder, or in a folder that does not exist.
    """
    target = user_path(path, name)
    if target.is_dir() or not target.parent.is_dir():
        raise usage_error(
            f"{name} {path}",
            "a file in a folder that exists",
            "make the folder, or choose another path",
        )
    return target


def write_file(path: Path, content: bytes) -> None:
    """Replace the content of a file atomically and durably: a crash leaves the old or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with disk_errors(path, len(content)):
            # The content is synced before the rename: some file systems order the two otherwise,
            # and a crash between them leaves an empty file by the final name.
            write_new(temporary, content)
            temporary.replace(path)
            sync_folder(path.parent)  # the rename itself is on the disk only after this
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet; its content is on the disk when this returns."""
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Sync a folder to the disk, so that created and renamed files survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path, needed: int) -> Iterator[None]:
    """Turn the errors of a full disk or quota into a ResourceError.

    Args:
        needed: The bytes to be written, for the message.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        # safetensors writes from Rust: its errors have no errno, only the number in their text.
        code = getattr(error, "errno", None)
        if code not in full and not any(f"os error {x}" in str(error) for x in full):
            raise
        free = shutil.disk_usage(next(p for p in path.absolute().parents if p.is_dir())).free
        raise ResourceError(
            f"cannot write {path}: {needed} bytes needed, {free} bytes free; make room and "
            f"continue with --resume, nothing saved before is lost"
        ) from error


def check_format(path: Path, found: Any, known: int) -> None:
    """Raise a DamagedError unless a file has the format that this version reads.

    Args:
        found: The "format" of the file, of any type.
    """
    if found == known and type(found) is int:
        return
    if type(found) is not int:
        raise DamagedError(f"{path} has format {found!r}; it must be an integer, here {known}")
    if found < known:
        raise DamagedError(
            f"{path} has format {found}, of an older version; this version reads {known}: "
            f"train again, or use the version of thinkers that wrote it"
        )
    raise DamagedError(
        f"{path} has format {found}, of a newer version; this version reads {known}: "
        f"upgrade thinkers"
    )


def to_json(value: Any) -> bytes:
    """Return the canonical JSON of a value: equal values give equal bytes, which are hashed."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
