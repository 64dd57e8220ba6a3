"""Flipped bits, cuts, zeroed pages and swaps in every file of a run, a model, a memory: refused.

    nohup python benchmarks/damaged_files.py --rounds 3000 > runs/damaged_files.log &
    python benchmarks/damaged_files.py --page docs

Of 6 rounds two flip a bit, two cut a file short, one sets a page of 4,096 bytes to zero, and one
replaces a file of a checkpoint by another one, or by its namesake of another save or run. The
places take turns: a checkpoint, the folder of a run, a model, a comparison, and a memory, closed
and as a killed writer leaves it; then its files. A round is

    refused    an error with exit code 4 (6, for a memory), before a tensor of a checkpoint is read
    right      for a memory, or a file that holds no content (.lock): everything was right, or was
               made anew, which was said (see memory_flips.py)
    SILENT     anything else

Rounds add up until `--rounds`. `--page FOLDER` writes the part `damage` of reliability.json.

Machine: the result does not depend on it. Asked: none is silent. Exit code 1 otherwise.
"""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import memory_blocks
import memory_flips
import safetensors.torch
from harness import one_thread, parser, write_part

import thinkers
from thinkers.comparison import results as compared
from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.errors import DamagedError, ForeignError, FormatError
from thinkers.files import write_file
from thinkers.models import load_model
from thinkers.runs import checkpoint
from thinkers.runs.metrics import read_kept
from thinkers.runs.result import open_run

KINDS = ("flip", "cut", "flip", "cut", "zero", "swap")
PAGE, PLACES = 4096, ("checkpoint", "run", "model", "comparison", "memory", "open memory")
WITHOUT_CONTENT = (".lock", "report.html", ".log")
NOT_READ = {
    "run": ("/checkpoints/",),
    "comparison": ("/checkpoints/", "/metrics.jsonl", ".usage.json"),
}
"""{place: parts of it that have rounds of their own, or that only a resumed run reads}."""
REFUSED = (DamagedError, ForeignError, FormatError)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3000)
    arguments.add_argument("--out", type=Path, default=Path("runs/damaged_files"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    if options.page is not None:
        write_part(options.page, "damage", json.loads((options.out / "result.json").read_text()))
        return
    one_thread()
    found = measure(options.rounds, options.out)
    print(json.dumps({name: x for name, x in found.items() if name != "silent"}, indent=1))
    print("none was silent" if not found["silent"] else "silent:", *found["silent"], sep="\n")
    raise SystemExit(bool(found["silent"]))


def measure(rounds: int, out: Path, places: Sequence[str] = PLACES) -> dict[str, Any]:
    """Damage files until so many rounds are done, those of earlier calls included."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "result.json"
    found: dict[str, Any] = {"rounds": 0, "kinds": dict.fromkeys(KINDS, 0), "files": {}}
    found["silent"] = []
    if results.exists():
        found = json.loads(results.read_text())
    scene = Scene(out / "intact", places)
    while found["rounds"] < rounds:
        number = found["rounds"]
        kind, rng = KINDS[number % len(KINDS)], random.Random(number)
        place = "checkpoint" if kind == "swap" else places[number // len(KINDS) % len(places)]
        target = out / "damaged"
        shutil.rmtree(target, ignore_errors=True)
        name, what = scene.damage(place, kind, target, rng)
        outcome = scene.use(place, name, target)
        found["kinds"][kind] += 1
        counts = found["files"].setdefault(f"{place}: {name}", {})
        counts[outcome.partition(":")[0]] = counts.get(outcome.partition(":")[0], 0) + 1
        if outcome.startswith("SILENT"):
            found["silent"].append(f"round {number}, {place}, {what}: {outcome}")
        found["rounds"] += 1
        write_file(results, (json.dumps(found) + "\n").encode())
    return found


class Scene:
    """Intact folders, and what their users must find in them."""

    def __init__(self, home: Path, places: Sequence[str]):
        shutil.rmtree(home, ignore_errors=True)
        for run in ("a", "b"):
            thinkers.train(config(), home / run)
        self.saves = [home / x for x in ("a/checkpoints/00000002", "a/checkpoints/00000001")]
        self.saves.append(home / "b/checkpoints/00000002")
        self.run_id = checkpoint.verify(self.saves[0])["run"]
        assert checkpoint.read(self.saves[0], self.run_id).update == 2
        kept = checkpoint.metrics_digest(self.saves[0]) or {"size": 0}
        self.metrics = (home / "a/metrics.jsonl").read_bytes()[: kept["size"]]
        assert self.metrics
        self.folders = {"checkpoint": self.saves[0], "run": home / "a", "model": home / "a/model"}
        if "comparison" in places:
            self.folders["comparison"] = home / "compared"
            settings = {"task.max_digits": 1, "model.dim": 8, "model.num_heads": 1}
            thinkers.compare(
                "add",
                ["decoder", "looped"],
                budget="2 updates",
                seeds=1,
                num_examples=5,
                settings=settings,
                out=home / "compared",
            )
        if "memory" in places:
            memory_blocks.index_early()
            (home / "memories").mkdir()
            forms, self.state = memory_flips.make_stores(home / "memories")
            self.folders |= {"memory": forms["closed"], "open memory": forms["open"]}
        self.readers: dict[str, Callable[[Path], None]] = {
            "checkpoint": self.read_checkpoint,
            "run": self.read_run,
            "model": open_model,
            "comparison": open_comparison,
        }

    def damage(self, place: str, kind: str, target: Path, rng: random.Random) -> tuple[str, str]:
        """Copy a place to `target`, with one damage; return the file's name, and the damage."""
        source = self.folders[place]
        copy = target / source.name
        shutil.copytree(source, copy)
        if kind == "swap" and rng.random() < 0.3:
            other = rng.choice(self.saves[1:])
            shutil.rmtree(copy)
            shutil.copytree(other, copy)
            return "all files", f"the folder replaced by {other}"
        files = sorted(x for x in copy.rglob("*") if x.is_file() and x.stat().st_size)
        left_out = NOT_READ.get(place, ())
        files = [x for x in files if not any(part in x.as_posix() for part in left_out)]
        while True:
            file = rng.choice(files)
            intact = file.read_bytes()
            content, what = self.change(kind, file, intact, rng)
            if content != intact:
                file.write_bytes(content)
                return file.relative_to(copy).as_posix(), f"{file.name} {what}"

    def change(self, kind: str, file: Path, intact: bytes, rng: random.Random) -> tuple[bytes, str]:
        """Return the damaged content of a file, and what was done to it."""
        content = bytearray(intact)
        if kind == "flip":
            bit = rng.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            return bytes(content), f"bit {bit}"
        if kind == "cut":
            size = rng.randrange(len(content))
            return intact[:size], f"cut to {size} bytes"
        if kind == "zero":
            start = PAGE * rng.randrange(-(-len(content) // PAGE))
            length = len(content[start : start + PAGE])
            content[start : start + length] = bytes(length)
            return bytes(content), f"zero from {start}"
        save = rng.choice(self.saves)
        names = [x.name for x in save.iterdir()] if save == self.saves[0] else [file.name]
        other = save / rng.choice(names)
        return other.read_bytes() if other.exists() else intact, f"replaced by {other}"

    def use(self, place: str, name: str, target: Path) -> str:
        """Use what was damaged; return what came of it."""
        folder = target / self.folders[place].name
        if place not in self.readers:
            found = memory_flips.use(folder, self.state)
            known = {"rebuilt": "right", "verified": "right", "harmless": "right"}
            return known.get(found, found)
        real = safetensors.torch.load_file
        with mock.patch.object(safetensors.torch, "load_file", wraps=real) as opened:
            try:
                self.readers[place](folder)
            except REFUSED:
                # Of a comparison the model of another run may have been read before.
                late = opened.called and place != "comparison"
                return "SILENT: refused after a tensor was read" if late else "refused"
            except Exception as error:
                return f"SILENT: {type(error).__name__}: {error}"
        if name.endswith(WITHOUT_CONTENT):
            return "right"
        if name == "metrics.jsonl" and (folder / name).read_bytes().startswith(self.metrics):
            return "right"  # lines after the last save are computed again
        return "SILENT: it was read"

    def read_checkpoint(self, folder: Path) -> None:
        checkpoint.read(folder, self.run_id)

    def read_run(self, folder: Path) -> None:
        """Read a run as commands do, and its metrics as `--resume` does."""
        newest = checkpoint.newest(folder / "checkpoints", self.run_id)
        assert newest is not None
        kept = checkpoint.metrics_digest(newest)
        assert kept is not None
        read_kept(folder / "metrics.jsonl", kept)
        open_run(folder)


def open_model(folder: Path) -> None:
    load_model(folder)


def open_comparison(folder: Path) -> None:
    """Read a comparison, and the runs in it."""
    found = compared.read(folder)
    assert all(found.results.values())
    for name in found.results:
        open_run(compared.run_folder(folder, name, 0))


def config() -> Config:
    settings = Training(
        num_updates=2, checkpoint_every=1, evaluate_examples=2, batch_size=3, ema=0.9, log_every=1
    )
    task = thinkers.TASKS["add"].Config(max_digits=1)
    return Config.fit(thinkers.MODELS["decoder"], task, settings, dim=8, num_layers=1, num_heads=2)


if __name__ == "__main__":
    main()
