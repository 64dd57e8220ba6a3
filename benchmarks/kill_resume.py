"""Loss of saved work when a run is killed with SIGKILL at random moments and resumed each time.

    python benchmarks/kill_resume.py [--kills 100] [--num_updates 400]

The commands of a user run in forks of one process that has imported everything. The run saves every
other update and has a curriculum, an average of the weights and accumulated micro-batches. After
each kill the newest valid checkpoint must be no older than the last one that was acknowledged
("saved update=N"), and the next command must resume from it. Weights, state and metrics at the end
must equal those of an undisturbed run, bit for bit. A run that ends early is checked, and a new one
takes the remaining kills.

Machine: the result does not depend on it. Asked: nothing is lost. Exit code 1 otherwise. Measured:
docs/measured.md.
"""

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
from harness import parser

import thinkers
from thinkers.cli.main import main
from thinkers.runs import checkpoint  # noqa: F401, imported before the forks

RECIPE = [
    *("train", "add/decoder", "--model.dim=16", "--model.num_layers=1", "--task.curriculum=true"),
    *("--task.threshold=0.01", "--task.window=50", "--training.batch_size=10"),
    *("--training.accumulation=2", "--training.ema=0.9", "--training.checkpoint_every=2"),
    *("--training.evaluate_examples=10", "--training.keep_last=2", "--training.log_every=1"),
    "--training.device=cpu",
]


class Command:
    """A `thinkers` command in a forked process, which prints into a file."""

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
        """Wait, and return True if the command ended within so many seconds."""
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
        """The newest update that the command reported as saved, 0 if there is none."""
        return max(map(int, re.findall(r"^saved update=(\d+)$", self.output(), re.M)), default=0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return thinkers.load(folder).state_dict()


def differences(ours: Path, theirs: Path) -> list[str]:
    """Names of the tensors and files at the end of a run that are not equal bit for bit."""
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
    """Return what was lost in so many kills; print after which updates they came."""
    rng = random.Random(seed)
    begin = [*RECIPE, f"--training.num_updates={num_updates}"]
    start = time.monotonic()
    undisturbed = Command([*begin, f"--out={folder / 'undisturbed'}"], folder / "log")
    assert undisturbed.ends_within(3600) and undisturbed.code == 0, undisturbed.output()
    duration = time.monotonic() - start

    lost: list[str] = []
    killed, runs, acknowledged, moments = 0, 0, 0, []
    run = folder / "killed"
    while killed < kills or run.exists():
        resume = (run / "config.json").exists()
        arguments = ["train", f"--resume={run}"] if resume else [*begin, f"--out={run}"]
        command = Command(arguments, folder / "log")
        if not command.ends_within(rng.uniform(0, 0.4 * duration) if killed < kills else 3600):
            command.kill()
            killed += 1
            acknowledged = max(acknowledged, command.acknowledged())
            moments.append(acknowledged)
            newest = checkpoint.newest(run / "checkpoints") if acknowledged else None
            if acknowledged and (newest is None or int(newest.name) < acknowledged):
                lost.append(f"kill {killed}: saved {acknowledged}, the newest left is {newest}")
        elif command.code != 0:
            lost.append(f"after kill {killed}: {command.output()[-500:]}")
            break
        else:
            lost += [f"run {runs}: {x}" for x in differences(run, folder / "undisturbed")]
            runs, acknowledged = runs + 1, 0
            shutil.rmtree(run)
    print(f"{killed} kills of {runs} runs of {num_updates} updates, after updates {moments}")
    return lost


def command_line() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=100)
    arguments.add_argument("--num_updates", type=int, default=400)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lost = measure(options.kills, options.num_updates, Path(folder))
    print("nothing was lost" if not lost else "lost:", *lost, sep="\n")
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    command_line()
