"""Checkpoints: a new folder for each save, complete or absent, verified before it is used.

A checkpoint holds safetensors and JSON only, and manifest.json with the size and SHA-256 of every
other file, and of metrics.jsonl up to this update. It is written under a temporary name, synced,
and renamed: a folder that is named by a number is complete. One that is damaged is renamed, never
deleted; one of another run or of another version is not touched at all.
"""

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import safetensors.torch
from torch import Tensor

from thinkers.errors import DamagedError, ForeignError, FormatError
from thinkers.files import (
    disk_errors,
    exists,
    list_folder,
    make_temporary,
    open_file,
    own_folder,
    read_file,
    remove_folder,
    rename_synced,
    sync_folder,
    write_new,
)
from thinkers.json_files import LARGEST_JSON, read_with_digest, with_digest
from thinkers.models.weights_file import Header, read_header, read_tensors
from thinkers.strict_json import Schema, check_schema, parse_json, to_json

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.json"
WEIGHTS = "weights.safetensors"
SCHEMA: Schema = {
    "format": int,
    "update": int,
    "run": str,
    "score": (float, int, NoneType),
    "files": dict,
    "metrics": (dict, NoneType),
}
DIGEST: Schema = {"size": int, "sha256": str}
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
    folder: Path,
    checkpoint: Checkpoint,
    run_id: str = "",
    score: float | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Save a checkpoint in a new folder in `folder`, durable when this returns; return its path.

    Args:
        run_id: Identifier of its run; `verify` rejects it for another run.
        score: Validation score, by which `prune` keeps the best; one that is not finite never is.
        metrics: The size and SHA-256 of metrics.jsonl as it is now.

    Raises:
        ResourceError: The disk is full; earlier checkpoints are untouched.
        UsageError: Something else has the temporary name.
    """
    final = folder / f"{checkpoint.update:08d}"
    temporary = folder / f".{final.name}.tmp"
    files = {f"{name}.safetensors": _pack(x) for name, x in checkpoint.tensors.items()}
    files[STATE] = to_json(checkpoint.state)
    files[MANIFEST] = _manifest(files, checkpoint.update, run_id, score, metrics)
    own_folder(folder, make=True)
    try:
        with disk_errors(final, sum(map(len, files.values()))):
            make_temporary(temporary, _is_our_name)
            for name, content in files.items():
                write_new(temporary / name, content)
            # In this order: the names in the folder must be on the disk before the folder gets its
            # final name, and that name before a caller prunes older checkpoints.
            sync_folder(temporary)
            rename_synced(temporary, final)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            remove_folder(temporary, _is_our_name)
        raise
    return final


def verify(path: Path, run_id: str | None = None) -> dict[str, Any]:
    """Verify every byte of a checkpoint, and return its manifest.

    Raises:
        DamagedError: A file is missing, added or changed, or belongs to another update.
        ForeignError: It is a checkpoint of another run.
        FormatError: Another version wrote it.
    """
    manifest = _read_manifest(path)
    if manifest["update"] != int(path.name):
        raise DamagedError(f"{path} holds update {manifest['update']}, not that of its name")
    if run_id is not None and manifest["run"] != run_id:
        raise ForeignError(
            f"{path} belongs to run {manifest['run']!r}, expected {run_id!r}; move it out of this "
            "folder, which is left as it is"
        )
    wanted: dict[str, Any] = manifest["files"]
    found = {entry.name for entry in list_folder(path)} - {MANIFEST}
    for name in sorted(wanted.keys() ^ found):
        raise DamagedError(
            f"{path / name} is {'missing' if name in wanted else 'not listed in its manifest'}"
        )
    for name, expected in wanted.items():
        check_schema(expected, DIGEST, f"{path / MANIFEST}: {name}")
        with open_file(path / name) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != expected["size"]:
                raise DamagedError(f"{path / name} has {size} bytes, expected {expected['size']}")
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                raise DamagedError(
                    f"{path / name} has changed since it was written: SHA-256 differs"
                )
    return manifest


def read(path: Path, run_id: str | None = None) -> Checkpoint:
    """Verify every byte of a checkpoint, then read it.

    Raises:
        DamagedError, ForeignError, FormatError: As `verify`, or a tensor is not finite.
    """
    manifest = verify(path, run_id)
    state = parse_json(read_file(path / STATE, LARGEST_JSON), str(path / STATE))
    stems = (name.removesuffix(".safetensors") for name in manifest["files"] if name != STATE)
    tensors = {x: read_tensors(path / f"{x}.safetensors") for x in stems}
    return Checkpoint(manifest["update"], tensors, state)


def sizes(path: Path) -> Header:
    """Return the shapes of a checkpoint's weights, without reading them."""
    return read_header(path / WEIGHTS)


def metrics_digest(path: Path) -> Mapping[str, Any] | None:
    """Return the size and SHA-256 that metrics.jsonl had at a checkpoint, if it had any."""
    metrics = _read_manifest(path)["metrics"]
    if metrics is not None:
        check_schema(metrics, DIGEST, f"{path / MANIFEST}: metrics")
    return metrics


def saved(folder: Path) -> list[Path]:
    """List the checkpoints in `folder`, oldest first, by their names alone."""
    entries = list_folder(folder) if own_folder(folder) else ()
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
        ForeignError, FormatError: One is of another run or version. Nothing is touched then.
    """
    found = None
    damaged = []
    for path in reversed(saved(folder)):
        try:
            verify(path, run_id)
        except DamagedError as error:
            damaged.append((path, str(error)))
        else:
            found = path
            break
    if not own_folder(folder):
        return None
    for leftover in list_folder(folder):
        if re.fullmatch(r"\.\d{8,}\.tmp", leftover.name):
            remove_folder(leftover, _is_our_name)
    for path, reason in damaged:
        report(f"{reason}; renamed to {_rename_damaged(path).name}")
    if found is None and (aside := [x for x in list_folder(folder) if ".damaged" in x.name]):
        raise DamagedError(
            f"no intact checkpoint is left in {folder}, only {len(aside)} damaged: "
            f"train again, in another folder"
        )
    return found


def prune(folder: Path, keep_last: int, run_id: str | None = None) -> None:
    """Delete all checkpoints but the newest `keep_last` and the one of the best finite score.

    A folder that is not a checkpoint of this run, or is damaged, is not deleted.
    """
    scores: dict[Path, float] = {}
    for path in saved(folder):
        with suppress(DamagedError, ForeignError, FormatError):
            manifest = _read_manifest(path)
            held = {x.name for x in list_folder(path)}
            if run_id in (None, manifest["run"]) and held == {MANIFEST, *manifest["files"]}:
                score = manifest["score"]
                scores[path] = -math.inf if score is None else score
    best = max(scores, key=lambda p: (scores[p], int(p.name)), default=None)
    for path in list(scores)[:-keep_last]:
        if path != best:
            # Renamed first: a crash while it is deleted must not leave a damaged checkpoint.
            remove_folder(rename_synced(path, folder / f".{path.name}.tmp"), _is_our_name)


def _is_our_name(name: str) -> bool:
    """Return True for the name of a file in a checkpoint."""
    return re.fullmatch(r"\w+\.safetensors|state\.json|manifest\.json", name) is not None


def _pack(tensors: Tensors) -> bytes:
    return safetensors.torch.save({name: x.detach().contiguous() for name, x in tensors.items()})


def _manifest(
    files: Mapping[str, bytes],
    update: int,
    run_id: str,
    score: float | None,
    metrics: Mapping[str, Any] | None,
) -> bytes:
    return with_digest(
        {
            "format": FORMAT,
            "update": update,
            "run": run_id,
            "score": score if score is None or math.isfinite(score) else None,
            "files": {
                name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for name, content in files.items()
            },
            "metrics": metrics,
        }
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest, and verify it by its own digest."""
    own_folder(path)
    try:
        return read_with_digest(path / MANIFEST, SCHEMA, FORMAT)
    except FileNotFoundError:
        raise DamagedError(f"{path / MANIFEST} is missing") from None


def _rename_damaged(path: Path) -> Path:
    names = (f"{path.name}.damaged{number or ''}" for number in range(10**6))
    free = next(path.with_name(x) for x in names if not exists(path.with_name(x)))
    return rename_synced(path, free)
