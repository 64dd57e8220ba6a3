"""Run folders: the lock of their owner, and config.json, the record of all settings."""

import datetime
import fcntl
import os
import platform
import secrets
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch

from thinkers.config.experiment import Config, missing_settings
from thinkers.config.training import PRECISIONS
from thinkers.errors import DamagedError, LockedError, UsageError
from thinkers.files import (
    NO_LINKS,
    disk_errors,
    exists,
    is_at,
    is_folder,
    is_link,
    list_folder,
    make_folders,
    open_lock,
    own_folder,
    read_file,
    unlink,
    write_file,
)
from thinkers.json_files import LARGEST_JSON, read_with_digest, with_digest
from thinkers.models.base import Model
from thinkers.strict_json import Schema, check_schema, parse_json
from thinkers.tasks.vocabulary_file import VOCABULARY_FILE
from thinkers.version import __version__

FORMAT = 2
RECORD = "config.json"
LOCK = ".lock"
MOST_TRIES = 100
"""How often a folder is made again if another run that failed removes it."""
MODEL = "model"
STATUS = "status.json"
PARTS = (
    *(RECORD, LOCK, MODEL, VOCABULARY_FILE, "checkpoints", "metrics.jsonl", "result.json"),
    *("grades.npz", "tensorboard", STATUS, "runs"),
)
"""The parts of the folder of a run or a comparison, none of which may be a link."""
SCHEMA: Schema = {
    "format": int,
    "run": str,
    "recipe": str,
    "overrides": list,
    "seed": int,
    "config": dict,
    "versions": dict,
    "threads": int,
}
LATER: Schema = {
    **{"precision": str, "device": str, "ranks": int, "plans": list, "tracking": str},
    **{"initial_weights": str, "guide_weights": str, "score_on": str},
}
"""What training adds to the record."""
MOST_THREADS = 1024
BEGUN = {LOCK, f".{RECORD}.tmp", VOCABULARY_FILE, f".{VOCABULARY_FILE}.tmp", STATUS}
"""Files that a run may leave if it is killed before it has written its record."""


def default_folder(config: Config) -> Path:
    """Return runs/<recipe>-<seed>, the slash of the recipe's name replaced by a dash."""
    return Path("runs") / f"{(config.recipe or 'run').replace('/', '-')}-{config.training.seed}"


def beside(folder: Path, ending: str) -> Path:
    """Return the folder's path with -ending at the end; . and .. are called by their names."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-{ending}")


@contextmanager
def owned(folder: Path, new: bool) -> Iterator[None]:
    """Lock a folder for this process while the context is entered.

    Args:
        new: The folder must be empty or absent; otherwise it must hold a run.

    Raises:
        LockedError: Another process owns the folder.
        UsageError: The folder is not new, or not that of a run.
        DamagedError: A file or a folder of the run is a link.
    """
    # Checked before the lock file is created, so that a folder that is not a run stays unchanged,
    # and again under the lock, since another process may have started a run in between.
    if new and is_folder(folder) and not exists(folder / LOCK):
        _refuse_contents(folder)
    if not new and not is_folder(folder):
        raise UsageError(f"{folder} must be the folder of a run, but there is none")
    if not new and not exists(folder / LOCK):
        _require_record(folder)
    if not new:
        _refuse_links(folder)
    made = [path for path in (folder, *folder.absolute().parents) if not exists(path)]
    with _locked(folder) as lock:
        if new:
            _refuse_contents(folder)
            _remove_begun(folder)
        else:
            _require_record(folder)
        try:
            _sign(folder / LOCK, lock)
            yield
        except BaseException:
            if new and not exists(folder / RECORD):
                _remove_unused(folder, made)
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder if it is absent, and lock it for this process while the context is entered.

    Raises:
        LockedError: Another process owns the folder.
    """
    with _locked(folder) as lock:
        _sign(folder / LOCK, lock)
        yield


def _sign(path: Path, lock: TextIO) -> None:
    """Write into a lock file whose it is."""
    now = datetime.datetime.now().isoformat(timespec="seconds")
    owner = f"process {os.getpid()} on {socket.gethostname()}, started {now}".encode()
    with disk_errors(path, len(owner)):
        # Without the buffer of the stream, which would be written once more as it is closed.
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), owner)


@contextmanager
def _locked(folder: Path) -> Iterator[TextIO]:
    """Make a folder and lock it; the lock file is yielded."""
    for tries_left in range(MOST_TRIES)[::-1]:
        try:
            make_folders(folder)
            lock = open_lock(folder / LOCK)
        except (FileExistsError, FileNotFoundError):
            if exists(folder) and not is_folder(folder):
                raise UsageError(f"{folder} must be a folder, but is a file") from None
            if not tries_left:
                raise  # nothing can be made there, as in /proc
            continue  # a run that failed has removed the folder in between
        with lock:
            try:
                # The kernel releases the lock when the process ends, even by SIGKILL: no stale
                # locks.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = lock.read(1000)
                raise LockedError(f"{folder} is owned by {owner or 'another run'}") from None
            # Its last owner may have removed the file after it was opened here. A lock on it would
            # bind nobody: the next process makes another file of this name.
            if is_at(folder / LOCK, lock):
                yield lock
                return
    raise LockedError(f"{folder} is made and removed by other runs all the time")


def _require_record(folder: Path) -> None:
    if not exists(folder / RECORD):
        found = f"holds no {RECORD}" if is_folder(folder) else "there is none"
        raise UsageError(f"{folder} must be the folder of a run, but {found}")


def _refuse_contents(folder: Path) -> None:
    """Raise a UsageError if a folder holds more than the remains of a run that never began."""
    try:
        found = {path.name for path in list_folder(folder)}
    except FileNotFoundError:  # a run that failed has just removed the folder
        return
    if RECORD in found:
        raise UsageError(
            f"{folder} must be a new folder, but holds a run; "
            f"continue it with --resume {folder}, or choose another with --out"
        )
    if found - (BEGUN if LOCK in found else set()):
        raise UsageError(f"{folder} must be a new folder, but exists; choose another with --out")


def _remove_begun(folder: Path) -> None:
    """Remove files that a run wrote before its record, except the lock, which is held."""
    for name in BEGUN - {LOCK}:
        unlink(folder / name)


def _refuse_links(folder: Path) -> None:
    """Raise a DamagedError if a part of a run is a link, by which writing would leave the run."""
    for name in PARTS:
        if is_link(folder / name):
            raise DamagedError(f"{folder / name} is a link; {NO_LINKS}")


def _remove_unused(folder: Path, made: Sequence[Path]) -> None:
    """Remove the lock and the empty folders of a run that failed before it had a record.

    They stay if the folder says which rank failed.
    """
    if exists(folder / STATUS):
        return
    _remove_begun(folder)
    (folder / LOCK).unlink()
    # From here on the folder is anybody's, who may have begun a run in it: then it is not empty.
    with suppress(OSError):
        for path in made:
            path.rmdir()


def new_record(config: Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of config.json of a new run; training adds device and precision."""
    return {
        "format": FORMAT,
        "run": secrets.token_hex(8),
        "recipe": config.recipe,
        "overrides": list(overrides),
        "seed": config.training.seed,
        "config": config.to_dict(),
        "git_commit": git_commit(),
        **surroundings(),
    }


def surroundings() -> dict[str, Any]:
    """Return versions and number of threads, on which the last bits of a result depend."""
    return {
        "versions": {
            "thinkers": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }


def write_model(folder: Path, model: Model) -> None:
    """Replace the files of a run's model folder by those of `model`.

    One by one, for no system call exchanges two folders everywhere. A crash between the two leaves
    a valid model: each file is replaced at once, and within a run only the weights change.
    """
    own_folder(folder / MODEL, make=True)
    model.save(folder / MODEL)


def is_run(folder: Path) -> bool:
    """Return True if `folder` holds the record of a run.

    Raises:
        DamagedError: It holds a config.json that is not JSON.
    """
    file = folder / RECORD
    try:
        record = parse_json(read_file(file, LARGEST_JSON), str(file))
    except FileNotFoundError:
        return False
    return isinstance(record, dict) and "run" in record and "config" in record


def read_record(folder: Path) -> dict[str, Any]:
    """Read config.json of the run in `folder`.

    Raises:
        UsageError: The folder is not that of a run.
        FormatError: config.json is of another version.
        DamagedError: config.json has changed since it was written.
    """
    file = folder / RECORD
    _require_record(folder)
    if not is_run(folder):
        if _has_digest(file):
            read_with_digest(file, {})  # raises DamagedError where it was a record
        raise UsageError(f"{folder} must be the folder of a run, but {file} is not its record")
    record = read_with_digest(file, SCHEMA, FORMAT)
    check_schema(record, {key: x for key, x in LATER.items() if key in record}, str(file))
    if record.get("precision", PRECISIONS[0]) not in PRECISIONS:
        raise DamagedError(
            f"{file}: precision must be in {PRECISIONS}, got {record['precision']!r}"
        )
    if not 1 <= record["threads"] <= MOST_THREADS:
        raise DamagedError(
            f"{file}: threads must be in 1 .. {MOST_THREADS}, got {record['threads']}"
        )
    for plan in record.get("plans", []):
        check_schema(plan, {"from": int, "num_updates": int}, f"{file}: plans")
    if missing := missing_settings(record["config"]):
        raise DamagedError(f"{file} lacks {missing[0]} in its config")
    return record


def _has_digest(file: Path) -> bool:
    """Return True if a JSON file was written by this library, be it damaged since."""
    record = parse_json(read_file(file, LARGEST_JSON), str(file))
    return isinstance(record, dict) and "sha256" in record and "format" in record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace config.json, atomically."""
    write_file(folder / RECORD, with_digest(record))


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Describe each value of `after` that differs from `before`."""
    keys = [key for key in after if before.get(key) != after[key]]
    return [f"{key} was {before.get(key)} and is {after[key]}" for key in keys]


def git_commit() -> str | None:
    """Return the commit of this package's checkout, with "-dirty" if edited; None outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
