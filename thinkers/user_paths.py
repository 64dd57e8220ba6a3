"""Paths that users give: expanded and checked in one place."""

import os
from pathlib import Path

from thinkers.errors import usage_error
from thinkers.files import exists, is_folder, is_link, is_plain_file

RUN_FILES = frozenset(
    ("config.json", "metrics.jsonl", "status.json", "vocabulary.json", "result.json", "grades.npz")
    + ("manifest.json", "state.json", ".lock", "memory.db", "generation.json")
    + ("model.safetensors", "weights.safetensors", "optimizer.safetensors")
)
"""Names of files of runs, models, checkpoints, comparisons and memories, which no output may
replace."""


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
        UsageError: As in `user_path`; or the path is a folder, or in a folder that does not exist;
            or writing would replace a link, a device, a pipe, or a file of a run.
    """
    target = user_path(path, name)
    if is_folder(target) or not is_folder(target.parent):
        raise usage_error(
            f"{name} {path}",
            "a file in a folder that exists",
            "make the folder, or choose another path",
        )
    is_of_run = exists(target) and target.name in RUN_FILES
    is_plain = is_plain_file(target) and not is_link(target)
    if is_of_run or (exists(target) and not is_plain):
        raise usage_error(
            f"{name} {path}, " + ("a file of a run" if is_of_run else "which is no regular file"),
            "a new file, or a regular file to replace that is not of a run",
            "choose another path",
        )
    return target
