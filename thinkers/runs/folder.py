"""Run folders: the lock of their owner, and config.json, the record of all settings."""

import datetime
import fcntl
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from thinkers.config.experiment import Config
from thinkers.errors import DamagedError, LockedError, UsageError
from thinkers.files import check_format, disk_errors, sync_folder, to_json, write_file
from thinkers.models.base import Model
from thinkers.tasks.vocabulary_file import VOCABULARY_FILE
from thinkers.version import __version__

FORMAT = 2
RECORD = "config.json"
LOCK = ".lock"
BEGUN = {LOCK, f".{RECORD}.tmp", VOCABULARY_FILE, f".{VOCABULARY_FILE}.tmp"}
"""Files that a run may leave if it is killed before it has written its record."""


def default_folder(config: Config) -> Path:
    """Return runs/<recipe>-<seed>, the slash of the recipe's name replaced by a dash."""
    return Path("runs") / f"{(config.recipe or 'run').replace('/', '-')}-{config.training.seed}"


@contextmanager
def owned(folder: Path, new: bool) -> Iterator[None]:
    """Lock a folder for this process while the context is entered.

    Args:
        new: The folder must be empty or absent; otherwise it must hold a run.

    Raises:
        LockedError: Another process owns the folder.
        UsageError: The folder is not new, or not that of a run.
    """
    # Checked before the lock file is created, so that a folder that is not a run stays unchanged,
    # and again under the lock, since another process may have started a run in between.
    if new and folder.is_dir() and not (folder / LOCK).exists():
        _refuse_contents(folder)
    if not new and not folder.is_dir():
        raise UsageError(f"{folder} must be the folder of a run, but there is none")
    if not new and not (folder / LOCK).exists():
        _require_record(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"{folder} must be a folder, but is a file") from None
    with (folder / LOCK).open("a+") as lock:
        try:
            # The kernel releases the lock when the process ends, even by SIGKILL: no stale locks.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise LockedError(f"{folder} is owned by {lock.read() or 'another run'}") from None
        if new:
            _refuse_contents(folder)
            _remove_begun(folder)
        else:
            _require_record(folder)
        now = datetime.datetime.now().isoformat(timespec="seconds")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}, started {now}")
        lock.flush()
        try:
            yield
        except BaseException:
            if new and not (folder / RECORD).exists():
                _remove_unused(folder, made)
            raise


def _require_record(folder: Path) -> None:
    if not (folder / RECORD).exists():
        found = f"holds no {RECORD}" if folder.is_dir() else "there is none"
        raise UsageError(f"{folder} must be the folder of a run, but {found}")


def _refuse_contents(folder: Path) -> None:
    """Raise a UsageError if a folder holds more than the remains of a run that never began."""
    found = {path.name for path in folder.iterdir()}
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
        (folder / name).unlink(missing_ok=True)


def _remove_unused(folder: Path, made: Sequence[Path]) -> None:
    """Remove the lock and the empty folders of a run that failed before it had a record."""
    _remove_begun(folder)
    (folder / LOCK).unlink()
    for path in made:
        if any(path.iterdir()):
            break
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
    """Replace the files of a run's model folder by those of `model`."""
    temporary, final = folder / ".model.tmp", folder / "model"
    needed = sum(x.nbytes for x in model.state_dict().values())
    try:
        with disk_errors(final, needed):
            model.save(temporary)
            final.mkdir(exist_ok=True)
            # File by file, for no system call exchanges two folders everywhere. A crash between two
            # of them leaves a valid model: within a run only the weights change.
            for file in sorted(temporary.iterdir()):
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
                file.replace(final / file.name)
            sync_folder(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_run(folder: Path) -> bool:
    """Return True if `folder` holds the record of a run.

    Raises:
        DamagedError: It holds a config.json that is not JSON.
    """
    file = folder / RECORD
    try:
        record = json.loads(file.read_bytes())
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise DamagedError(f"{file} is not JSON: {error}") from None
    return isinstance(record, dict) and "run" in record and "config" in record


def read_record(folder: Path) -> dict[str, Any]:
    """Read config.json of the run in `folder`.

    Raises:
        UsageError: The folder is not that of a run.
        DamagedError: config.json is not JSON, or has the format of another version.
    """
    file = folder / RECORD
    _require_record(folder)
    if not is_run(folder):
        raise UsageError(f"{folder} must be the folder of a run, but {file} is not its record")
    record = json.loads(file.read_bytes())
    check_format(file, record.get("format"), FORMAT)
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace config.json, atomically."""
    write_file(folder / RECORD, to_json(record))


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
