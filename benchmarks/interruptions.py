"""SIGTERM and SIGINT at random moments of training, evaluating, generating and comparing.

    nohup python benchmarks/interruptions.py --rounds 200 > runs/interruptions.log &
    python benchmarks/interruptions.py --page docs

Each round runs a command in a fork and sends it one of the two signals at a random moment, in every
third round again within 0.3 s. It must end with 130 or 143, or by the signal where it has nothing
to save; a command that was done first ends with 0. No process of it may be left. Training must have
saved, and is resumed: weights, state and metrics must equal those of a run without signals, bit for
bit. A comparison is resumed too, and must have the same scores. Evaluating and generating must
leave every byte of the run as it was. Rounds add up over calls. `--page FOLDER` writes the part
`signals` of reliability.json.

Machine: the longest time to the end is of a shared machine. Asked: no round fails, and the end
comes within 10 s. Exit code 1 otherwise.
"""

import hashlib
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from commands import Command, differences
from harness import run_rounds
from kill_resume import MOST_SECONDS, RECIPE, make_undisturbed

from thinkers.comparison import results as compared
from thinkers.files import write_file
from thinkers.runs import checkpoint

VERBS = ("train", "train", "evaluate", "generate", "compare")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
TRAIN = [*RECIPE, "--training.num_updates=60"]
COMPARE = [
    *("compare", "add", "--models=decoder,looped", "--budget=60 updates", "--seeds=1"),
    *("--num_examples=50", "--task.max_digits=1", "--model.dim=8", "--model.num_heads=1"),
    "--training.batch_size=8",
]
LONGEST = 10.0


def main() -> None:
    run_rounds(__doc__, "interruptions", "signals", 200, measure)


def measure(rounds: int, out: Path) -> dict[str, Any]:
    """Interrupt commands until so many rounds are done, those of earlier calls included."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "result.json"
    found: dict[str, Any] = {"rounds": 0, "by_verb": {}, "slowest": 0.0, "failed": []}
    if results.exists():
        found = json.loads(results.read_text())
    scene = Scene(out)
    while found["rounds"] < rounds:
        number = found["rounds"]
        verb = VERBS[number % len(VERBS)]
        outcome, seconds, problems = scene.interrupt(verb, number)
        counts = found["by_verb"].setdefault(verb, {})
        counts[outcome] = counts.get(outcome, 0) + 1
        found["slowest"] = max(found["slowest"], round(seconds, 2))
        found["failed"] += [f"round {number}, {verb}: {x}" for x in problems]
        found["rounds"] += 1
        write_file(results, (json.dumps(found) + "\n").encode())
    return found


class Scene:
    """A run and a comparison that were not interrupted, and how long each command takes."""

    def __init__(self, out: Path):
        self.out = out
        self.run, seconds = make_undisturbed(TRAIN, out)
        self.words = {
            "train": [*TRAIN, f"--out={out / 'run'}"],
            "compare": [*COMPARE, f"--out={out / 'compared'}"],
            "evaluate": ["evaluate", str(self.run), "--num_examples=500"],
            "generate": ["generate", str(self.run), "--prompt=1+2="],
        }
        self.seconds = {"train": seconds}
        for verb in ("evaluate", "generate", "compare"):
            shutil.rmtree(out / "compared", ignore_errors=True)
            start = time.monotonic()
            self.complete(self.words[verb])
            self.seconds[verb] = time.monotonic() - start
        self.scores = scores(out / "compared")
        self.digest = digest(self.run)

    def complete(self, words: list[str]) -> list[str]:
        """Run a command to its end; return the problem if it fails."""
        command = Command(words, self.out / "log")
        if not command.ends_within(MOST_SECONDS):
            command.kill()
        return [] if command.code == 0 else [f"{words[:2]}: {command.output()[-300:]}"]

    def interrupt(self, verb: str, number: int) -> tuple[str, float, list[str]]:
        """Interrupt a command; return what came of it, its seconds to the end, and problems."""
        for name in ("run", "compared"):
            shutil.rmtree(self.out / name, ignore_errors=True)
        rng = random.Random(number)
        which = rng.choice(SIGNALS)
        command = Command(self.words[verb], self.out / "log")
        if command.ends_within(rng.uniform(0, 1.1 * self.seconds[verb])):
            outcome, seconds = "done before", 0.0
            problems = [f"ended with {command.code}"] if command.code else []
        else:
            start = time.monotonic()
            command.send(which)
            if number % 3 == 2 and not command.ends_within(rng.uniform(0, 0.3)):
                command.send(which)
            outcome, problems = which.name, []
            if not command.ends_within(LONGEST):
                problems = [f"still running {LONGEST} s after {which.name}"]
                command.kill()
            seconds = time.monotonic() - start
            # Without anything to save a signal ends a process at once: a shell shows the same code.
            if command.code not in (0, 128 + which, -which):
                problems.append(f"{which.name} gave {command.code}: {command.output()[-300:]}")
        if left := command.left():
            problems.append(f"processes {left} are left")
        return outcome, seconds, problems + self.check(verb, command)

    def check(self, verb: str, command: Command) -> list[str]:
        """Return what is wrong after a command was interrupted and called again."""
        if verb in ("evaluate", "generate"):
            return [] if digest(self.run) == self.digest else ["the run has changed"]
        folder = self.out / {"train": "run", "compare": "compared"}[verb]
        if not (folder / "config.json").exists():
            return self.complete(self.words[verb])  # as if it had never been called
        if verb == "compare":
            problems = self.complete(["compare", "--resume", f"--out={folder}"])
            is_same = problems or scores(folder) == self.scores
            return problems if is_same else ["other scores"]
        problems = []
        newest = checkpoint.newest(folder / "checkpoints")
        if (0 if newest is None else int(newest.name)) < command.acknowledged():
            problems.append(f"saved {command.acknowledged()}, the newest left is {newest}")
        if command.code in (130, 143) and newest is None:
            problems.append("nothing was saved")
        problems += self.complete(["train", f"--resume={folder}"])
        return problems or differences(folder, self.run)


def scores(folder: Path) -> dict[str, Any]:
    """{contender: scores of its runs} of a finished comparison."""
    found = compared.read(folder).results
    return {name: [x.record["scores"] for x in runs] for name, runs in found.items()}


def digest(folder: Path) -> str:
    """A digest of all files of a run; who holds its lock is none of its content."""
    files = sorted(x for x in folder.rglob("*") if x.is_file() and x.name != ".lock")
    content = b"".join(str(x).encode() + x.read_bytes() for x in files)
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
