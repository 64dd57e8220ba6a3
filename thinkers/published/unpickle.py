"""Read published checkpoint files, which are pickles, without trusting them."""

import os
import pickle
import re
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from thinkers.errors import DataError, ResourceError, UsageError, describe, exit_code
from thinkers.files import (
    exists,
    is_folder,
    is_plain_file,
    list_folder,
    make_folders,
    make_temporary,
    remove_folder,
    rename_synced,
)
from thinkers.json_files import read_json
from thinkers.models.base import Model
from thinkers.user_paths import user_path

TIME_LIMIT_S = 300.0
HOLDERS = ("model", "state_dict", "model_state_dict")
"""Keys under which training scripts store the weights among the rest of their state."""

AUTHORS = (
    "deep_plan_transformer",
    "autoregressive_encoder_decoder_transformer",
    "baseline_transformer",
    "core",
    "utils",
)
"""Packages of the authors whose objects are saved with the weights; none is imported."""


def import_checkpoint(
    system: str, checkpoint: str | Path, settings: str | Path, out: str | Path
) -> Model:
    """Load a published checkpoint and save it as a model folder in `out`.

    Args:
        checkpoint: A file that `torch.save` wrote, or a safetensors file.
        settings: A JSON file with the published hyper-parameters.

    Raises:
        UsageError: `out` is not empty, or the system is unknown.
        DataError: A file is missing, is not a checkpoint, holds anything other than tensors and
            plain values, takes too long to read, or does not fit the settings.
    """
    from thinkers import published

    published.importer(system)
    folder = user_path(out, "out")
    file, place = user_path(checkpoint, "checkpoint"), user_path(settings, "settings")
    if exists(folder) and (not is_folder(folder) or list_folder(folder)):
        raise UsageError(f"{folder} is not an empty folder; pass a folder that is empty or absent")
    if exists(folder):
        folder = folder.resolve()  # no folder can be renamed to "." or to a link
    chosen = read_settings(place)
    model = published.load(system, read_weights(file), chosen)
    # Renamed when it is whole: half a model would be in the way of the next import.
    temporary = folder.with_name(f".{folder.name}.tmp")
    make_folders(folder.parent)
    make_temporary(temporary, _is_ours)
    try:
        model.save(temporary)
        rename_synced(temporary, folder)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            remove_folder(temporary, _is_ours)
        raise
    return model


def _is_ours(name: str) -> bool:
    """Return True for the name of a file that `Model.save` writes."""
    return name.removeprefix(".").removesuffix(".tmp") in ("config.json", "model.safetensors")


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read the settings in a JSON file."""
    try:
        return read_json(user_path(path, "settings"), {}, DataError, follow=True)
    except FileNotFoundError:
        raise DataError(
            f"settings file {path} does not exist; pass a JSON file with the published settings"
        ) from None


def read_weights(path: str | Path, time_limit_s: float = TIME_LIMIT_S) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, in a child process.

    The child process loads with weights_only=True, which builds tensors and plain values and
    calls nothing else that a file names, and returns the tensors as a safetensors file. A file
    that makes the child crash, hang or exhaust its memory does not harm this process.
    """
    source = Path(path)
    if not is_plain_file(source):
        raise DataError(f"checkpoint {source} does not exist or is not a file")
    from safetensors.torch import load_file

    if source.suffix == ".safetensors":
        try:
            return load_file(source)
        except Exception as error:
            if exit_code(error) == ResourceError.exit_code:
                raise
            raise DataError(f"checkpoint {source} cannot be read as safetensors: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "weights.safetensors"
        command = [sys.executable, "-m", "thinkers.published.unpickle", str(source), str(target)]
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=time_limit_s, env=environment
            )
        except subprocess.TimeoutExpired:
            raise DataError(
                f"checkpoint {source} was not read within the limit of {time_limit_s:g} s"
            ) from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise DataError(f"checkpoint {source} cannot be read: {reason}")
        return load_file(target)


class Placeholder:
    """Stand in for a class of the authors: accept any arguments and do nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass


def find_weights(found: Any) -> dict[str, Tensor]:
    """Return the weights in the content of a checkpoint, alone or under one of HOLDERS."""
    if isinstance(found, Mapping):
        for holder in HOLDERS:
            if isinstance(found.get(holder), Mapping):
                return find_weights(found[holder])
    tensors = isinstance(found, Mapping) and all(isinstance(x, Tensor) for x in found.values())
    if not tensors or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"it holds no weights by name, neither alone nor under one of {HOLDERS}")
    return dict(found)


def convert(source: str, target: str) -> None:
    """Write the tensors of a pickled checkpoint as safetensors, in the child process."""
    import torch
    from safetensors.torch import save_file

    # A few bytes of a pickle can ask for any amount of memory, so it is bounded by the file size.
    allowed = (1 << 30) + 8 * Path(source).stat().st_size
    resource.setrlimit(resource.RLIMIT_DATA, (allowed + (2 << 30),) * 2)
    # Files written before torch 1.6 are not archives: their globals cannot be listed beforehand.
    archive = zipfile.is_zipfile(source)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(source) if archive else []
    known: Any = [(Placeholder, name) for name in names if name.partition(".")[0] in AUTHORS]
    with torch.serialization.safe_globals(known):
        weights = find_weights(torch.load(source, map_location="cpu", weights_only=True))
    wanted = sum(x.numel() * x.element_size() for x in weights.values())
    if wanted > allowed:
        raise ValueError(f"its weights take {wanted} bytes; at most {allowed} fit the file size")
    # Tied weights share memory, which safetensors refuses to write.
    save_file({name: x.detach().contiguous().clone() for name, x in weights.items()}, target)


def main() -> None:
    """Convert one file to another, or exit with the reason in one line."""
    try:
        convert(*sys.argv[1:])
    except pickle.UnpicklingError as error:
        # The message of torch recommends to load without the protection; it is not passed on.
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else "something else"
        sys.exit(f"it must hold nothing but tensors and plain values, got {what}")
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {describe(error)}")


if __name__ == "__main__":
    main()
