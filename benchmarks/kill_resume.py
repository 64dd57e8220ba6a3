"""Kill a run with SIGKILL at random moments, resume it each time: is anything ever lost?

python benchmarks/kill_resume.py [--kills 100]

Commands as a person types them, in forks of one process that has imported everything, on a run
that saves every other update, with a curriculum, an average of the weights and accumulated
micro-batches. After each kill the newest whole checkpoint must be no older than the last one that
was acknowledged ("saved update=N"); the next command must go on from it; and the weights at the end
must equal those of a run that nobody disturbed, bit for bit. A run that comes to its end early is
checked, and a new one takes the remaining kills.
"""

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch._dynamo  # the first optimiser of a process imports it

import thinkers
from thinkers.cli.main import main
from thinkers.runs import checkpoint  # noqa: F401, imported once for all

RECIPE = [
    *("train", "add/decoder", "--model.dim=16", "--model.num_layers=1", "--task.curriculum=true"),
    *("--task.threshold=0.01", "--task.window=50", "--training.batch_size=10"),
    *("--training.accumulation=2", "--training.ema=0.9", "--training.checkpoint_every=2"),
    *("--training.evaluate_examples=10", "--training.keep_last=2", "--training.log_every=1"),
    "--training.device=cpu",
]


class Command:
    """A `thinkers` command in a process of its own, which prints into a file."""

    def __init__(self, arguments: list[str], log: Path):
        self.log = log
        self.code: int | None = None
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = main(arguments)
            sys.stdout.flush()
            os._exit(code)

    def ends_within(self, seconds: float) -> bool:
        """Whether it came to its end in that time."""
        deadline = time.monotonic() + seconds
        while self.code is None and time.monotonic() < deadline:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                self.code = os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        return self.code is not None

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)

    def output(self) -> str:
        return self.log.read_text()

    def acknowledged(self) -> int:
        """The newest update that it said was saved."""
        return max(map(int, re.findall(r"^saved update=(\d+)$", self.output(), re.M)), default=0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return thinkers.load(folder).state_dict()


def differences(ours: Path, theirs: Path) -> list[str]:
    """What of a run's end is not equal to the last bit."""
    a, b = (checkpoint.read(checkpoint.saved(x / "checkpoints")[-1]) for x in (ours, theirs))
    found = [
        f"{file}/{name}"
        for file, tensors in b.tensors.items()
        for name, x in tensors.items()
        if not torch.equal(a.tensors[file][name], x)
    ]
    found += [n for n, x in weights(theirs).items() if not torch.equal(weights(ours)[n], x)]
    lines = [
        re.sub(r'"minutes": [^,}]+', "", (run / "metrics.jsonl").read_text())
        for run in (ours, theirs)
    ]
    return found + ["metrics.jsonl"] * (lines[0] != lines[1])


def measure(kills: int, num_updates: int, folder: Path, seed: int = 0) -> list[str]:
    """What went wrong in so many kills; prints where they fell."""
    draws = random.Random(seed)
    begin = [*RECIPE, f"--training.num_updates={num_updates}"]
    start = time.monotonic()
    undisturbed = Command([*begin, f"--out={folder / 'undisturbed'}"], folder / "log")
    assert undisturbed.ends_within(3600) and undisturbed.code == 0, undisturbed.output()
    usual = time.monotonic() - start

    wrong: list[str] = []
    killed, runs, acknowledged, moments = 0, 0, 0, []
    run = folder / "killed"
    while killed < kills or run.exists():
        resume = (run / "config.json").exists()
        words = ["train", f"--resume={run}"] if resume else [*begin, f"--out={run}"]
        command = Command(words, folder / "log")
        if not command.ends_within(draws.uniform(0, 0.4 * usual) if killed < kills else 3600):
            command.kill()
            killed += 1
            acknowledged = max(acknowledged, command.acknowledged())
            moments.append(acknowledged)
            newest = checkpoint.newest(run / "checkpoints") if acknowledged else None
            if acknowledged and (newest is None or int(newest.name) < acknowledged):
                wrong.append(f"kill {killed}: {acknowledged} was saved, {newest} is left")
        elif command.code != 0:
            wrong.append(f"after kill {killed}: {command.output()[-500:]}")
            break
        else:
            wrong += [f"run {runs}: {x}" for x in differences(run, folder / "undisturbed")]
            runs, acknowledged = runs + 1, 0
            shutil.rmtree(run)
    print(f"{killed} kills of {runs} runs of {num_updates} updates, after updates {moments}")
    return wrong


def command_line() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--updates", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = measure(arguments.kills, arguments.updates, Path(folder))
    print("nothing was lost" if not wrong else "lost:", *wrong, sep="\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    command_line()
