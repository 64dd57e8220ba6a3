"""Share of damaged checkpoints that reading refuses: bit flips, truncations, swapped files.

    python benchmarks/damaged_checkpoints.py [--trials 500]

Every trial copies a checkpoint of a real run, damages the copy once, and reads it. It counts as
missed if the read succeeds, or if a safetensors file is opened before the error.

Machine: the result does not depend on it. Asked: all are refused. Exit code 1 if one is missed.
Measured: docs/measured.md.
"""

import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import safetensors.torch
from harness import parser

from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.errors import DamagedError, ForeignError, FormatError
from thinkers.models import MODELS
from thinkers.runs import checkpoint
from thinkers.tasks import TASKS
from thinkers.training.loop import train


def flip(target: Path, others: list[Path], random: random.Random) -> str:
    """Flip one bit of one file."""
    file = random.choice(sorted(target.iterdir()))
    content = bytearray(file.read_bytes())
    bit = random.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return f"bit {bit} of {file.name}"


def truncate(target: Path, others: list[Path], random: random.Random) -> str:
    """Cut one file short."""
    file = random.choice(sorted(target.iterdir()))
    size = random.randrange(file.stat().st_size)
    file.write_bytes(file.read_bytes()[:size])
    return f"{file.name} cut to {size} bytes"


def swap(target: Path, others: list[Path], random: random.Random) -> str:
    """Replace a file by another of the checkpoint, or by its namesake of another save or run."""
    while True:
        file = random.choice(sorted(target.iterdir()))
        source = random.choice(others)
        names = [p.name for p in source.iterdir()] if source.name == target.name else [file.name]
        other = source / random.choice(names)
        if other.exists() and other.read_bytes() != file.read_bytes():
            shutil.copyfile(other, file)
            return f"{file.name} replaced by {other}"


def swap_folder(target: Path, others: list[Path], random: random.Random) -> str:
    """Replace the folder by that of another save or run, under its own name."""
    source = random.choice(others[1:])
    shutil.rmtree(target)
    shutil.copytree(source, target)
    return f"the folder replaced by {source}"


KINDS = (flip, flip, flip, truncate, swap, swap_folder)


def measure(trials: int, folder: Path, seed: int = 0) -> list[str]:
    """Return the damages that were missed; print how many of each kind were tried."""
    for run in ("a", "b"):
        settings = Training(
            num_updates=2, checkpoint_every=1, evaluate_examples=2, batch_size=3, ema=0.9, seed=0
        )
        task = TASKS["add"].Config(max_digits=1)
        config = Config.fit(MODELS["decoder"], task, settings, dim=8, num_layers=1, num_heads=2)
        train(config, folder / run)
    run_id = checkpoint.verify(folder / "a/checkpoints/00000002")["run"]
    source = folder / "a/checkpoints/00000002"
    others = [source, folder / "a/checkpoints/00000001", folder / "b/checkpoints/00000002"]
    assert checkpoint.read(source, run_id).update == 2

    draws, missed, tried = random.Random(seed), [], Counter[str]()
    for _ in range(trials):
        target = folder / "damaged" / source.name
        shutil.copytree(source, target)
        kind = draws.choice(KINDS)
        what = kind(target, others, draws)
        tried[kind.__name__] += 1
        with mock.patch.object(safetensors.torch, "load_file") as opened:
            try:
                checkpoint.read(target, run_id)
                missed.append(what)
            except (DamagedError, ForeignError, FormatError):
                missed += [f"{what}: refused after a tensor was read"] * opened.called
        shutil.rmtree(target.parent)
    print(", ".join(f"{count} x {kind}" for kind, count in sorted(tried.items())))
    return missed


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=500)
    trials = arguments.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        missed = measure(trials, Path(folder))
    print(f"{trials - len(missed)} of {trials} damaged checkpoints refused", *missed, sep="\n")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
