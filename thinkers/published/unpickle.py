"""Reading the authors' own files, which are pickles, without trusting them."""

import json
import os
import pickle
import re
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from thinkers.errors import DataError, UsageError
from thinkers.models.base import Model

TIME_LIMIT_S = 300.0
HOLDERS = ("model", "state_dict", "model_state_dict")
"""Where training scripts put the weights beside the rest of their state."""

AUTHORS = (
    "deep_plan_transformer",
    "autoregressive_encoder_decoder_transformer",
    "baseline_transformer",
    "core",
    "utils",
)
"""Packages of the authors' whose settings lie beside the weights; none of it is imported."""


def import_checkpoint(
    system: str, checkpoint: str | Path, settings: str | Path, out: str | Path
) -> Model:
    """The model of an author's checkpoint, saved as a model folder in `out`.

    Args:
        checkpoint: A file that `torch.save` wrote, or a safetensors file.
        settings: A JSON file with the published hyper-parameters.

    Raises:
        UsageError: `out` has something in it, or the system is unknown.
        DataError: A file is missing, is no checkpoint, holds anything beside tensors and plain
            values, takes too long, or does not fit the settings.
    """
    from thinkers import published

    published.reader(system)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} must be empty or absent; choose another folder")
    chosen = read_settings(settings)
    model = published.load(system, read_weights(checkpoint), chosen)
    model.save(folder)
    return model


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a JSON file."""
    try:
        found = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; settings are a JSON file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def read_weights(path: str | Path, time_limit_s: float = TIME_LIMIT_S) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, read by a process of its own.

    That process loads with weights_only=True, which builds tensors and plain values and calls
    nothing else that a file names, and hands the tensors over as safetensors. A file that makes
    it crash, swell or hang harms nobody.
    """
    source = Path(path)
    if not source.is_file():
        raise DataError(f"{source} does not exist or is no file; expected a checkpoint")
    from safetensors.torch import load_file

    if source.suffix == ".safetensors":
        try:
            return load_file(source)
        except Exception as error:
            raise DataError(f"{source} cannot be read as safetensors: {error}") from None
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
                f"{source} must be read within {time_limit_s:g} s, and was not"
            ) from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise DataError(f"{source} cannot be read as a checkpoint: {reason}")
        return load_file(target)


class Inert:
    """What stands for a class of the author's: made of anything, it does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass


def find_weights(found: Any) -> dict[str, Tensor]:
    """The tensors of what a checkpoint holds, wherever its training script put them."""
    if isinstance(found, Mapping):
        for holder in HOLDERS:
            if isinstance(found.get(holder), Mapping):
                return find_weights(found[holder])
    tensors = isinstance(found, Mapping) and all(isinstance(x, Tensor) for x in found.values())
    if not tensors or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"no weights by name were found, alone or under one of {HOLDERS}")
    return dict(found)


def convert(source: str, target: str) -> None:
    """Write the tensors of a pickled checkpoint as safetensors: the body of the other process."""
    import torch
    from safetensors.torch import save_file

    # A few bytes of a file can ask for any amount of memory.
    allowed = (1 << 30) + 8 * Path(source).stat().st_size
    resource.setrlimit(resource.RLIMIT_DATA, (allowed + (2 << 30),) * 2)
    # Files from before torch 1.6 are no archives, and their names cannot be listed beforehand.
    archive = zipfile.is_zipfile(source)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(source) if archive else []
    known: Any = [(Inert, name) for name in names if name.partition(".")[0] in AUTHORS]
    with torch.serialization.safe_globals(known):
        weights = find_weights(torch.load(source, map_location="cpu", weights_only=True))
    wanted = sum(x.numel() * x.element_size() for x in weights.values())
    if wanted > allowed:
        raise ValueError(f"its weights must take at most {allowed} bytes, got {wanted}")
    # Tied weights share memory, which safetensors refuses.
    save_file({name: x.detach().contiguous().clone() for name, x in weights.items()}, target)


def main() -> None:
    """Convert one file to another, or say in one line why not."""
    try:
        convert(*sys.argv[1:])
    except pickle.UnpicklingError as error:
        # What torch says here goes on to recommend loading without the protection.
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else "something else"
        sys.exit(f"it must hold tensors and plain values alone, got {what}")
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        sys.exit(f"{type(error).__name__}: {first[:300]}")


if __name__ == "__main__":
    main()
