"""Checkpoints: one folder per save, written atomically and verified before it is read.

A checkpoint holds safetensors and JSON alone, no pickle, and manifest.json with the size and
SHA-256 of every other file. It is written under a temporary name, synced and renamed: a folder with
a number for its name is complete. A damaged one is renamed, never deleted.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from thinkers.errors import DamagedError
from thinkers.files import check_format, disk_errors, sync_folder, to_json, write_new

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.json"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint after `update` updates.

    Args:
        tensors: {file: {name: tensor}}: "weights", "optimizer", and "ema" if there is an average.
        state: All other values, in the types of JSON.
    """

    update: int
    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]


def save(
    folder: Path, checkpoint: Checkpoint, run_id: str = "", score: float | None = None
) -> Path:
    """Save a checkpoint in a new folder in `folder`, durable when this returns; return its path.

    Args:
        run_id: Identifier of its run; `verify` rejects it for another run.
        score: Validation score, by which `prune` keeps the best; one that is not finite never is.

    Raises:
        ResourceError: The disk is full; earlier checkpoints are untouched.
    """
    final = folder / f"{checkpoint.update:08d}"
    temporary = folder / f".{final.name}.tmp"
    files = {f"{name}.safetensors": _pack(x) for name, x in checkpoint.tensors.items()}
    files[STATE] = to_json(checkpoint.state)
    files[MANIFEST] = _manifest(files, checkpoint.update, run_id, score)
    try:
        with disk_errors(final, sum(map(len, files.values()))):
            temporary.mkdir(parents=True)
            for name, content in files.items():
                write_new(temporary / name, content)
            # In this order: the names in the folder must be on the disk before the folder gets its
            # final name, and that name before a caller prunes older checkpoints.
            sync_folder(temporary)
            temporary.rename(final)
            sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def verify(path: Path, run_id: str | None = None) -> dict[str, Any]:
    """Verify every byte of a checkpoint, and return its manifest.

    Raises:
        DamagedError: A file is missing, added or changed, or belongs to another update or run.
    """
    manifest = _read_manifest(path)
    if manifest["update"] != int(path.name):
        raise DamagedError(f"{path} holds update {manifest['update']}, not that of its name")
    if run_id is not None and manifest["run"] != run_id:
        raise DamagedError(f"{path} belongs to run {manifest['run']!r}, expected {run_id!r}")
    wanted: dict[str, Any] = manifest["files"]
    found = {entry.name for entry in path.iterdir()} - {MANIFEST}
    for name in sorted(wanted.keys() ^ found):
        raise DamagedError(f"{path / name} is {'missing' if name in wanted else 'not its own'}")
    for name, expected in wanted.items():
        file = path / name
        # A link would be verified and then read as two files, which may differ.
        if file.is_symlink() or not file.is_file():
            raise DamagedError(f"{file} must be a plain file")
        if file.stat().st_size != expected["size"]:
            size = file.stat().st_size
            raise DamagedError(f"{file} has {size} bytes, expected {expected['size']}")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                raise DamagedError(f"{file} has changed since it was written: SHA-256 differs")
    return manifest


def read(path: Path, run_id: str | None = None) -> Checkpoint:
    """Verify every byte of a checkpoint, then read it."""
    manifest = verify(path, run_id)
    state = json.loads((path / STATE).read_bytes())
    stems = (name.removesuffix(".safetensors") for name in manifest["files"] if name != STATE)
    tensors = {x: safetensors.torch.load_file(path / f"{x}.safetensors") for x in stems}
    return Checkpoint(manifest["update"], tensors, state)


def saved(folder: Path) -> list[Path]:
    """List the checkpoints in `folder`, oldest first, by their names alone."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        (p for p in entries if re.fullmatch(r"\d{8,}", p.name)), key=lambda p: int(p.name)
    )


def newest(
    folder: Path, run_id: str | None = None, report: Callable[[str], None] = print
) -> Path | None:
    """Return the newest intact checkpoint, or None if there never was one.

    Newer ones that are damaged are renamed and reported; leftovers of saves that were interrupted
    are deleted.

    Raises:
        DamagedError: There are checkpoints, and none is intact.
    """
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover)
    for path in reversed(saved(folder)):
        try:
            verify(path, run_id)
            return path
        except DamagedError as error:
            report(f"{error}; renamed to {_rename_damaged(path).name}")
    if damaged := sorted(folder.glob("*.damaged*")):
        raise DamagedError(
            f"no intact checkpoint is left in {folder}, only {len(damaged)} damaged: "
            f"train again, in another folder"
        )
    return None


def prune(folder: Path, keep_last: int) -> None:
    """Delete all checkpoints but the newest `keep_last` and the one of the best finite score."""
    paths = saved(folder)
    scores = {}
    for path in paths:
        try:
            score = _read_manifest(path)["score"]
        except DamagedError:
            continue
        if score is not None and math.isfinite(score):
            scores[path] = score
    best = max(scores, key=lambda p: (scores[p], int(p.name)), default=None)
    for path in paths[:-keep_last]:
        if path != best:
            # Renamed first: a crash while it is deleted must not leave a damaged checkpoint.
            shutil.rmtree(path.rename(folder / f".{path.name}.tmp"))


def _pack(tensors: Tensors) -> bytes:
    return safetensors.torch.save({name: x.detach().contiguous() for name, x in tensors.items()})


def _manifest(files: Mapping[str, bytes], update: int, run_id: str, score: float | None) -> bytes:
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "update": update,
        "run": run_id,
        "score": score if score is None or math.isfinite(score) else None,
        "files": {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }
    return to_json(manifest | {"sha256": hashlib.sha256(to_json(manifest)).hexdigest()})


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest, and verify it by its own digest and its canonical form."""
    file = path / MANIFEST
    try:
        content = file.read_bytes()
        manifest = json.loads(content)
        digest = manifest.pop("sha256")
        intact = digest == hashlib.sha256(to_json(manifest)).hexdigest()
        # The digest is of values: white space, for example, could have changed. So bytes are
        # compared too.
        intact = intact and content == to_json(manifest | {"sha256": digest})
    except FileNotFoundError:
        raise DamagedError(f"{file} is missing") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise DamagedError(f"{file} has changed since it was written")
    check_format(file, manifest.get("format"), FORMAT)
    return manifest


def _rename_damaged(path: Path) -> Path:
    names = (f"{path.name}.damaged{number or ''}" for number in range(10**6))
    free = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    return path.rename(free)
