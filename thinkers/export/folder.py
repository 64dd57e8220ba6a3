"""A folder that is exported as a whole: it holds all files of an export, or what it held before."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from thinkers.errors import PATH_ERRORS, ThinkersError, usage_error
from thinkers.files import (
    disk_errors,
    exists,
    is_folder,
    is_link,
    list_folder,
    make_folders,
    make_temporary,
    remove_folder,
    rename_synced,
    sync_folder,
    write_new,
)
from thinkers.user_paths import user_path


def check_folder(out: str | Path, names: frozenset[str], is_export: Callable[[Path], bool]) -> Path:
    """Check the path of an export, before the work that produces it; return the path.

    Args:
        names: Files that an export may have.
        is_export: Returns True for the folder of an earlier export, which may be replaced.

    Raises:
        UsageError: It is a link or a file, is in a file, or holds anything but an export.
    """
    folder = user_path(out, "--out")
    if not folder.name or folder.name == "..":
        folder = folder.resolve()
    if not exists(folder):
        above = next(x for x in folder.absolute().parents if exists(x))
        if not is_folder(above):
            raise usage_error(
                f"--out {out}, but {above} is no folder", "a new folder", "choose another path"
            )
        return folder
    if is_link(folder) or not is_folder(folder):
        raise usage_error(f"--out {out}, which is no folder", "a new folder", "choose another name")
    found = {path.name for path in list_folder(folder)}
    if not found or (found <= names and is_export(folder)):
        return folder
    other = min(found - names, default=min(found))
    raise usage_error(
        f"--out {out}, which holds {other}",
        "a new or an empty folder, or an earlier export, which is replaced",
        "choose another name",
    )


def write_folder(folder: Path, files: Mapping[str, bytes], names: frozenset[str]) -> None:
    """Write files to a folder that `check_folder` has checked, all of them or none.

    Raises:
        ResourceError: The disk is full or protected; an earlier export stays as it was.
    """
    new, old = (folder.with_name(f".{folder.name}.{ending}") for ending in ("tmp", "old"))
    with disk_errors(folder, sum(map(len, files.values()))):
        try:
            make_folders(folder.parent)
            make_temporary(new, names.__contains__)
        except OSError as error:
            if error.errno not in PATH_ERRORS:
                raise
            raise usage_error(
                f"--out {folder}, where no folder can be made: {error.strerror}",
                "a new folder, in a place where folders can be made",
                "choose another path",
            ) from error
        try:
            for name, content in files.items():
                write_new(new / name, content)
            sync_folder(new)
            _remove((old,), names)  # of an export that was killed between the two renames
            if exists(folder) and list_folder(folder):
                # No system call exchanges two folders everywhere. A crash in between leaves the
                # earlier export under the name `old`.
                os.rename(folder, old)
            rename_synced(new, folder)
        except BaseException:
            with suppress(OSError, ThinkersError):  # the first error is the one to report
                if exists(old) and not exists(folder):
                    rename_synced(old, folder)
                _remove((new, old), names)
            raise
        _remove((old,), names)


def _remove(folders: Iterable[Path], names: frozenset[str]) -> None:
    """Remove these folders of an export, those that there are."""
    for folder in folders:
        if exists(folder):
            remove_folder(folder, names.__contains__)
