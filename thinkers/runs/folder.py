"""The folder of a run: who owns it, and config.json, the record of everything that made it."""

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
from thinkers.version import __version__

FORMAT = 2
RECORD = "config.json"
LOCK = ".lock"
BEGUN = {LOCK, f".{RECORD}.tmp"}
"""What a run may leave that was killed before it had a record."""


def default_folder(config: Config) -> Path:
    """runs/<recipe>-<seed>, with the slash of the recipe's name as a dash."""
    return Path("runs") / f"{(config.recipe or 'run').replace('/', '-')}-{config.training.seed}"


@contextmanager
def owned(folder: Path, new: bool) -> Iterator[None]:
    """This process alone writes into `folder`; the lock ends with the process, however it ends.

    Raises:
        LockedError: Another process owns it.
        UsageError: It is to be new and holds something, or it is to be resumed and is no run.
    """
    if new and folder.is_dir() and not (folder / LOCK).exists():
        _refuse_contents(folder)
    if not new and not folder.is_dir():
        raise UsageError(f"{folder} must be the folder of a run, and there is none")
    if not new and not (folder / LOCK).exists():
        _require_record(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"{folder} must be a folder, and it is a file") from None
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise LockedError(f"{folder} is owned by {lock.read() or 'another run'}") from None
        if new:
            _refuse_contents(folder)
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
                _leave_nothing(folder, made)
            raise


def _require_record(folder: Path) -> None:
    if not (folder / RECORD).exists():
        found = f"holds no {RECORD}" if folder.is_dir() else "there is none"
        raise UsageError(f"{folder} must be the folder of a run, and {found}")


def _refuse_contents(folder: Path) -> None:
    """UsageError if a folder that is to be new holds more than a run that never began left."""
    found = {path.name for path in folder.iterdir()}
    if RECORD in found:
        raise UsageError(
            f"{folder} must be a new folder, and it holds a run; "
            f"go on with --resume {folder} or choose another with --out"
        )
    if found - BEGUN:
        raise UsageError(f"{folder} must be a new folder, and it exists; choose another with --out")


def _leave_nothing(folder: Path, made: Sequence[Path]) -> None:
    """Undo what was made for a run that never began: its lock, and folders that are empty."""
    (folder / LOCK).unlink()
    for path in made:
        if any(path.iterdir()):
            break
        path.rmdir()


def new_record(config: Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What config.json of a new run holds; training adds device and precision once it knows."""
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
    """What, beside the configuration, decides the last bits of a result."""
    return {
        "versions": {
            "thinkers": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }


def write_model(folder: Path, model: Model) -> None:
    """Replace the model folder of a run, file by file; only the weights ever change."""
    temporary, final = folder / ".model.tmp", folder / "model"
    needed = sum(x.nbytes for x in model.state_dict().values())
    try:
        with disk_errors(final, needed):
            model.save(temporary)
            final.mkdir(exist_ok=True)
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
        raise UsageError(f"{folder} must be the folder of a run, and {file} is not its record")
    record = json.loads(file.read_bytes())
    check_format(file, record.get("format"), FORMAT)
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace config.json."""
    write_file(folder / RECORD, to_json(record))


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """How `after` differs from `before`, a phrase for each."""
    keys = [key for key in after if before.get(key) != after[key]]
    return [f"{key} was {before.get(key)} and is {after[key]}" for key in keys]


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, "-dirty" if edited; None outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
