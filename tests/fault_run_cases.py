"""Operations on runs: what they must not lose, and what they must come to."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from faulty_disk import Case, CommandError, Ended
from training_cases import losses, make

from thinkers.cli.main import main
from thinkers.runs import checkpoint
from thinkers.runs.folder import read_record
from thinkers.runs.metrics import read_kept
from thinkers.runs.result import load
from thinkers.training.loop import resume, train

TEXT = "the cat sat on the mat and the dog sat on the log\n" * 40
TINY = ["--model.dim=8", "--model.num_heads=2", "--model.num_layers=1", "--task.context=8"]
TINY += ["--training.num_updates=2", "--training.batch_size=2", "--training.evaluate_examples=2"]
TINY += ["--training.device=cpu", "--training.checkpoint_every=2"]
UPDATES = dict(num_updates=4, checkpoint_every=2, keep_last=1, schedule="constant", ema=0.9)
"""Settings of a run that saves twice, keeps one checkpoint, and the average of its weights."""


def command(*words: object) -> None:
    """Run a command line; raise CommandError if it fails."""
    err = StringIO()
    with redirect_stderr(err):
        code = main([str(word) for word in words])
    if code:
        raise CommandError(code, err.getvalue())


def content(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder but its lock."""
    return {
        x.relative_to(folder).as_posix(): x.read_bytes()
        for x in sorted(folder.rglob("*"))
        if x.is_file() and x.name != ".lock"
    }


def tensors(update: int) -> checkpoint.Checkpoint:
    weights = {"weights": {"a": torch.full((3, 5), float(update))}, "optimizer": {}}
    return checkpoint.Checkpoint(update, weights, {"update": update})


class Save(Case):
    name = "save"

    def begin(self, folder: Path) -> None:
        checkpoint.save(folder / "checkpoints", tensors(2), "run")

    def act(self, folder: Path) -> None:
        home = folder / "checkpoints"
        newest = checkpoint.newest(home, "run", report=print)
        if newest is None or newest.name != "00000004":
            checkpoint.save(home, tensors(4), "run")
            print("saved update=4", flush=True)
        checkpoint.prune(home, 1, "run")

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        return lost_checkpoints(folder / "checkpoints", "run", ended)

    def result(self, folder: Path) -> Any:
        return content(folder)


class Quarantine(Save):
    """The newest checkpoint is damaged: it is renamed, and that update is saved again."""

    name = "quarantine"

    def begin(self, folder: Path) -> None:
        super().begin(folder)
        state = checkpoint.save(folder / "checkpoints", tensors(4), "run") / "state.json"
        state.write_bytes(state.read_bytes() + b" ")

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        aside = folder / "checkpoints" / "00000004.damaged"
        is_aside = aside.exists() or "renamed" not in ended.said
        return [] if is_aside else ["a damaged checkpoint that was renamed is gone"]

    def leftovers(self, folder: Path) -> list[str]:
        return [x for x in super().leftovers(folder) if not x.endswith("00000004.damaged")]


def lost_checkpoints(folder: Path, run: str, ended: Ended) -> list[str]:
    """Return what is damaged or missing of checkpoints, the first of them of update 2."""
    saved = checkpoint.saved(folder)
    for path in saved:
        checkpoint.verify(path, run)
    promised = max([2, *map(int, re.findall(r"^saved update=(\d+)$", ended.said, re.M))])
    newest = int(saved[-1].name) if saved else 0
    return [] if newest >= promised else [f"saved {promised}, and {newest} is the newest"]


class Resume(Case):
    name, every = "resume", (5, 15)

    def begin(self, folder: Path) -> None:
        train(make(settings=UPDATES), folder / "run", until=2)

    def act(self, folder: Path) -> None:
        resume(folder / "run")

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        return lost_of_run(folder / "run", ended)

    def result(self, folder: Path) -> Any:
        return run_result(folder / "run")


class Train(Case):
    name, every = "train", (7, 15)

    def begin(self, folder: Path) -> None:
        (folder / "text.txt").write_text(TEXT)

    def act(self, folder: Path) -> None:
        path = f"--task.path={folder / 'text.txt'}"
        self.train(folder, "text/decoder", *TINY, path, f"--out={folder / 'run'}")

    def again(self, folder: Path) -> None:
        is_begun = (folder / "run" / "config.json").exists()
        self.train(folder, f"--resume={folder / 'run'}") if is_begun else self.act(folder)

    def train(self, folder: Path, *words: str) -> None:
        with environment(THINKERS_CACHE=str(folder / "cache")):
            command("train", *words)

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        return lost_of_run(folder / "run", ended) if "saved update=" in ended.said else []

    def result(self, folder: Path) -> Any:
        return run_result(folder / "run")

    def leftovers(self, folder: Path) -> list[str]:
        return [x for x in super().leftovers(folder) if not x.startswith("cache")]


def lost_of_run(run: Path, ended: Ended) -> list[str]:
    """Return what is damaged or missing of a run that has saved."""
    wrong = lost_checkpoints(run / "checkpoints", read_record(run)["run"], ended)
    if wrong:
        return wrong
    newest = checkpoint.saved(run / "checkpoints")[-1]
    read_kept(run / "metrics.jsonl", checkpoint.metrics_digest(newest) or {})
    kept = checkpoint.read(newest).tensors
    # The folder model/ follows before the save is acknowledged.
    is_acknowledged = f"saved update={int(newest.name)}\n" in ended.said
    known = same(load(run).state_dict(), kept.get("ema", kept["weights"]))
    return [] if known or not is_acknowledged else ["the model is not that of the checkpoint"]


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[k]) for k, x in one.items())


def run_result(run: Path) -> Any:
    """Return the losses and weights of a run, whose model is that of its newest checkpoint."""
    newest = checkpoint.read(checkpoint.saved(run / "checkpoints")[-1])
    model = load(run).state_dict()
    assert same(model, newest.tensors.get("ema", newest.tensors["weights"]))
    return newest.update, losses(run), {name: x.tolist() for name, x in model.items()}


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables of the environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
