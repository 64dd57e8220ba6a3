"""Files: atomic replacement, plain files alone, and one meaning for each errno.

Everything that the library keeps on disk is written here, by functions of `os`, so that a fault can
be injected in one place and a full disk is reported in one way. The folder of a run or a model may
be a download: no link in it is followed, and only plain files are opened.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, TextIO

from safetensors import SafetensorError

from thinkers.errors import (
    DamagedError,
    ResourceError,
    ThinkersError,
    UsageError,
    remedy,
    system_errno,
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, or of a quota that is used up."""
NO_LINKS = (
    "no link in the folder of a run or a model is followed: put what it points to in its place"
)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Replace the content of a file atomically and durably: a crash leaves the old or the new.

    A link of this name is replaced, not followed.
    """
    with replacing(path, content):
        pass


@contextmanager
def replacing(path: Path, content: bytes | memoryview) -> Iterator[None]:
    """Replace the content of a file as `write_file` does, once the block inside has ended.

    The content is on the disk before the block begins, so that a full disk is found before it; if
    the block raises, the file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path, len(content)):
        unlink(temporary)
        try:
            # The content is synced before the rename: some file systems order the two otherwise,
            # and a crash between them leaves an empty file by the final name.
            write_new(temporary, content)
            yield
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                unlink(temporary)
            raise
        sync_folder(path.parent)  # the rename itself is on the disk only after this


def write_new(path: Path, content: bytes | memoryview) -> None:
    """Write a file that must not exist yet; its content is on the disk when this returns."""
    _write(path, os.O_EXCL, content)


def write_once(path: Path, content: bytes, writer: str) -> bool:
    """Write a file atomically unless one has this name; return True if it was written.

    Args:
        writer: A name that no other process that may write this file has.
    """
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    unlink(temporary)
    write_new(temporary, content)
    try:
        os.link(temporary, path)  # unlike a rename, it fails if the name is taken
        return True
    except FileExistsError:
        return False
    finally:
        unlink(temporary)


def append(path: Path, content: bytes) -> None:
    """Append to a file, which is created if missing; it is on the disk when this returns."""
    with disk_errors(path, len(content)):
        _write(path, os.O_APPEND, content)


def _write(path: Path, flags: int, content: bytes | memoryview) -> None:
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with _disk_access(path, DamagedError):
        descriptor = os.open(path, flags, 0o666)
    try:
        _require_regular(path, descriptor, DamagedError)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_synced(path: Path, new: Path) -> Path:
    """Rename within a folder; return the new path, which is on the disk when this returns."""
    with disk_errors(path):
        os.rename(path, new)
        sync_folder(new.parent)
    return new


def unlink(path: Path) -> None:
    """Remove a file, or the link of this name, if there is one."""
    with disk_errors(path), suppress(FileNotFoundError):
        os.unlink(path)


def open_lock(path: Path) -> TextIO:
    """Open a lock file for reading and writing; it is created if missing.

    Raises:
        DamagedError: It is a link, not a plain file, or another name of a file elsewhere, whose
            content would be replaced.
    """
    return os.fdopen(_open_own(path, os.O_RDWR), "r+")


def open_log(path: Path) -> TextIO:
    """Open a log for appending; it is created if missing, and errors are those of `open_lock`."""
    return os.fdopen(_open_own(path, os.O_WRONLY | os.O_APPEND), "a")


def _open_own(path: Path, flags: int) -> int:
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with disk_errors(path), _disk_access(path, DamagedError):
        descriptor = os.open(path, flags, 0o666)
    try:
        _require_regular(path, descriptor, DamagedError)
        if os.fstat(descriptor).st_nlink > 1:
            raise DamagedError(f"{path} has a second name elsewhere (a hard link); remove it")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_at(path: Path, stream: IO[Any]) -> bool:
    """Return True if the open file is the one that is now at `path`."""
    try:
        with disk_errors(path):
            return os.path.samestat(os.lstat(path), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def sync_folder(path: Path) -> None:
    """Sync a folder to the disk, so that created and renamed files survive a crash."""
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def list_folder(path: Path) -> list[Path]:
    """Return what is in a folder, sorted by name; a link to one is followed.

    Raises:
        FileNotFoundError: Nothing is there.
        ResourceError: It may not be read, the disk fails, or too many files are open.
    """
    with disk_errors(path):
        return sorted(path.iterdir())


def exists(path: Path) -> bool:
    """Return True if anything has this name, be it a link to nothing.

    The functions of `os.path` and `pathlib` say "no" also if they may not look, so that a run
    without rights would seem not to be there.

    Raises:
        ResourceError: It cannot be looked up.
    """
    return _mode(path, follow=False) != 0


def is_folder(path: Path) -> bool:
    """Return True if a folder, or a link to one, has this name; errors are those of `exists`."""
    return stat.S_ISDIR(_mode(path, follow=True))


def is_link(path: Path) -> bool:
    """Return True if a link has this name; errors are those of `exists`."""
    return stat.S_ISLNK(_mode(path, follow=False))


def is_plain_file(path: Path) -> bool:
    """Return True if a file, or a link to one, has this name; errors are those of `exists`."""
    return stat.S_ISREG(_mode(path, follow=True))


def _mode(path: Path, follow: bool) -> int:
    """Return the mode of what has this name; 0 if nothing has it."""
    try:
        return os.stat(path, follow_symlinks=follow).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        if system_errno(error) is None:
            raise
        raise _system_error(path, error) from None


def make_folders(path: Path) -> None:
    """Make a folder and those above it, unless they exist; they are then on the disk.

    Raises:
        ResourceError: It cannot be made there.
    """
    missing = [x for x in (path, *path.parents) if not exists(x)]
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_folder(made.parent)


def own_folder(path: Path, make: bool = False) -> bool:
    """Return True if `path` is a folder, False if nothing is there.

    Args:
        make: Make it if nothing is there; its parent must exist.

    Raises:
        DamagedError: It is a link or a file. What is written into a run must stay in it.
    """
    mode = _mode(path, follow=False)
    if not mode:
        if make:
            with disk_errors(path):
                os.mkdir(path)
                sync_folder(path.parent)
        return make
    if not stat.S_ISDIR(mode):
        raise DamagedError(f"{path} must be a folder, and is {_kind(mode)}; {NO_LINKS}")
    return True


def make_temporary(path: Path, is_ours: Callable[[str], bool]) -> None:
    """Make an empty folder; one left by a process that was killed is removed first.

    Raises:
        UsageError: Something else has this name.
    """
    with disk_errors(path):
        try:
            os.mkdir(path)
        except FileExistsError:
            if not remove_folder(path, is_ours):
                what = f"{path} exists and is not a leftover of a save; remove it"
                raise UsageError(what) from None
            os.mkdir(path)


def remove_folder(path: Path, is_ours: Callable[[str], bool]) -> bool:
    """Remove a folder if it holds only plain files with names of ours; return True if removed."""
    with disk_errors(path):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return False
        with os.scandir(path) as entries:
            found = list(entries)
        if not all(x.is_file(follow_symlinks=False) and is_ours(x.name) for x in found):
            return False
        for entry in found:
            os.unlink(entry.path)
        os.rmdir(path)
    return True


# Reading


def open_file(
    path: Path, error: type[ThinkersError] = DamagedError, follow: bool = False
) -> BufferedReader:
    """Open a plain file for reading; anything else is refused and never waited for.

    Args:
        error: Class of the error if it is not a plain file.
        follow: Follow a link: for files that the user named, not for those of a run or a model.

    Raises:
        FileNotFoundError: Nothing is there.
        ResourceError: It may not be read, the disk fails, or too many files are open.
    """
    # O_NONBLOCK: to open a FIFO would otherwise wait for a writer, for ever.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    with _disk_access(path, error):
        descriptor = os.open(path, flags)
    try:
        _require_regular(path, descriptor, error)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_file(
    path: Path,
    largest: int,
    error: type[ThinkersError] = DamagedError,
    follow: bool = False,
) -> bytes:
    """Return the content of a plain file of at most `largest` bytes; errors are of `open_file`."""
    with open_file(path, error, follow) as stream, _disk_access(path, error):
        # By its size at once, as of a sparse file; and by what is read, as it may grow meanwhile.
        is_large = os.fstat(stream.fileno()).st_size > largest
        content = b"" if is_large else stream.read(largest + 1)
    if is_large or len(content) > largest:
        raise error(f"{path} must have at most {largest} bytes, got more")
    return content


def _require_regular(path: Path, descriptor: int, error: type[ThinkersError]) -> None:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        raise error(f"{path} must be a plain file, and is {_kind(mode)}")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe"}
    other = "a file" if stat.S_ISREG(mode) else "a device or a socket"
    return kinds.get(stat.S_IFMT(mode), other)


@contextmanager
def _disk_access(path: Path, error: type[ThinkersError]) -> Iterator[None]:
    """Turn an OSError about `path` into an error of ours."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, "No such file", str(path)) from None
    except OSError as found:
        if found.errno == errno.ELOOP:
            raise error(f"{path} must be a plain file, and is a link; {NO_LINKS}") from None
        if found.errno in (errno.ENXIO, errno.ENODEV, errno.EISDIR):
            raise error(f"{path} must be a plain file, and is something else") from None
        if system_errno(found) is None or found.errno in FULL:
            raise
        raise _system_error(path, found) from None


def _system_error(path: Path, found: BaseException) -> ResourceError:
    number = system_errno(found)
    why = os.strerror(number) if number is not None else str(found)
    return ResourceError(f"{path} cannot be used: {why}; {remedy(number)}")


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn errors of a full, failing or protected disk into a ResourceError that names the file.

    Args:
        needed: The bytes to be written, for the message; None if they are not known.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = system_errno(error)
        if number is None:
            raise
        if number not in FULL:
            name = getattr(error, "filename", None)
            raise _system_error(path if name is None else Path(name), error) from None
        wanted = "" if needed is None else f"{needed} bytes needed, "
        raise ResourceError(
            f"cannot write {path}: {wanted}{_lack(path, number)} and repeat the command, or "
            f"continue a run with --resume; nothing saved before is lost"
        ) from error


def _lack(path: Path, number: int) -> str:
    """Return what is missing where a write failed by an errno of FULL, and what to do."""
    if number == errno.EFBIG:
        return "more than the limit of a file's size; raise it by ulimit -f"
    if number == errno.EDQUOT:
        return "more than the quota of the disk; delete files, or have it raised,"
    free = shutil.disk_usage(next(p for p in path.absolute().parents if p.is_dir())).free
    return f"{free} bytes free; make room"
