"""Eight processes that begin, or resume, a run in one folder at the same moment.

    nohup python benchmarks/one_folder.py --rounds 50 > runs/one_folder.log &
    python benchmarks/one_folder.py --page docs

In even rounds all begin a new run; then the one that owns it is killed with SIGKILL, so that its
lock file stays. In odd rounds all resume that run, and its owner is interrupted. Exactly one may
own the folder. Each of the others must end with exit code 7, within 2 s of its own process time,
and name the owner's process and computer. The newest checkpoint must verify, and be no older than
the last one that the owner acknowledged. Rounds add up over calls. `--page FOLDER` writes the part
`one_folder` of reliability.json.

Machine: the result does not depend on it. Asked: no round of 50 fails. Exit code 1 otherwise.
"""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

from commands import Command
from harness import run_rounds
from kill_resume import RECIPE

from thinkers.files import write_file
from thinkers.runs import checkpoint

AT_ONCE, MOST_SECONDS = 8, 2.0
WAITED = 120.0
"""Seconds of the clock after which a process that neither owns nor ends is a failure."""


def main() -> None:
    run_rounds(__doc__, "one_folder", "one_folder", 50, measure)


def measure(rounds: int, out: Path) -> dict[str, Any]:
    """Start processes until so many rounds are done, those of earlier calls included."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "result.json"
    found: dict[str, Any] = {"rounds": 0, "refused": 0, "slowest": 0.0, "failed": []}
    if results.exists():
        found = json.loads(results.read_text())
    found["rounds"] -= found["rounds"] % 2  # a run is resumed in the call that began it
    while found["rounds"] < rounds:
        problems, refused, slowest = run_round(out, is_new=found["rounds"] % 2 == 0)
        found["failed"] += [f"round {found['rounds']}: {x}" for x in problems]
        found["refused"] += refused
        found["slowest"] = max(found["slowest"], round(slowest, 2))
        found["rounds"] += 1
        write_file(results, (json.dumps(found) + "\n").encode())
    return found


def run_round(out: Path, is_new: bool) -> tuple[list[str], int, float]:
    """Start all processes and end the owner.

    Returns:
        The problems, the number of those that were refused, and the longest process time of one.
    """
    run = out / "run"
    if is_new:
        shutil.rmtree(run, ignore_errors=True)
    begin = [*RECIPE, "--training.num_updates=1000000", f"--out={run}"]
    words = begin if is_new else ["train", f"--resume={run}"]
    pipe = os.pipe()
    commands = [Command(words, out / f"log-{i}", pipe) for i in range(AT_ONCE)]
    for end in pipe:
        os.close(end)
    running = wait_for_one(commands)
    problems = [] if len(running) == 1 else [f"{len(running)} own the folder"]
    refused = [x for x in commands if x not in running]
    seconds = [x.usage.ru_utime + x.usage.ru_stime for x in refused if x.usage is not None]
    owner = f"process {running[0].process} on {socket.gethostname()}" if running else "nobody"
    for one in refused:
        if one.code != 7 or owner not in one.output():
            problems.append(f"{one.code}, and {owner} is the owner: {one.output()[-200:]}")
    if max(seconds, default=0.0) > MOST_SECONDS:
        problems.append(f"refused after {max(seconds):.1f} s of process time")
    for one in running:
        deadline = time.monotonic() + WAITED
        while one.acknowledged() == 0 and not one.ends_within(0.05):
            if time.monotonic() > deadline:
                problems.append("the owner saves nothing")
                break
        one.send(signal.SIGKILL if is_new else signal.SIGTERM)
        expected = -signal.SIGKILL if is_new else 128 + signal.SIGTERM
        if not one.ends_within(WAITED) or one.code != expected:
            problems.append(f"the owner ended with {one.code}: {one.output()[-200:]}")
            one.kill()
        newest = checkpoint.newest(run / "checkpoints")
        if newest is None or int(newest.name) < one.acknowledged():
            problems.append(f"saved {one.acknowledged()}, the newest left is {newest}")
    return problems, len(refused), max(seconds, default=0.0)


def wait_for_one(commands: list[Command]) -> list[Command]:
    """Wait until all but one have ended, or for so long; return those that are running."""
    running, deadline = list(commands), time.monotonic() + WAITED
    while len(running) > 1 and time.monotonic() < deadline:
        running = [x for x in running if not x.ends_within(0)]
        time.sleep(0.005)
    return running


if __name__ == "__main__":
    main()
