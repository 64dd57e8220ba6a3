"""One of two ranks fails, is killed, stops or leaves at a random update; the run is resumed.

    nohup python benchmarks/ranks.py --rounds 50 > runs/ranks.log &
    python benchmarks/ranks.py --page docs

Two forks train as under torchrun, by gloo. At a random update one of them raises an error, is
killed (SIGKILL), is stopped (SIGSTOP) or exits. The other must end by itself: within 30 s, or where
a rank is stopped within 10 s after the timeout of the process group, which is 10 s here (5 minutes
by default). status.json must name the rank that raised and its update. Then the run is resumed by
two ranks, and in the last 4 of every 16 rounds by one: by two its weights, state and metrics must
equal those of an undisturbed run of two ranks, bit for bit; by one, the losses within 1e-5. Rounds
add up over calls. `--page FOLDER` writes the part `ranks` of reliability.json.

Machine: the result does not depend on it. Asked: no round of 50 fails. Exit code 1 otherwise.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimiser of a process imports it
from commands import differences
from harness import run_rounds

import thinkers
from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.files import write_file
from thinkers.runs import checkpoint
from thinkers.training import distributed, loop

EVENTS = ("raise", "kill", "stop", "leave")
UPDATES, TIMEOUT, MOST_SECONDS = 12, 10.0, 30.0


def main() -> None:
    run_rounds(__doc__, "ranks", "ranks", 50, measure)


def measure(rounds: int, out: Path) -> dict[str, Any]:
    """Disturb runs until so many rounds are done, those of earlier calls included."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "result.json"
    found: dict[str, Any] = {"rounds": 0, "events": dict.fromkeys(EVENTS, 0), "failed": []}
    found["slowest"] = 0.0
    if results.exists():
        found = json.loads(results.read_text())
    undisturbed = out / "undisturbed"
    shutil.rmtree(undisturbed, ignore_errors=True)
    codes, _ = run_ranks(undisturbed, 2)
    assert codes == [0, 0], (out / "log-0").read_text()[-2000:]
    while found["rounds"] < rounds:
        number = found["rounds"]
        event = EVENTS[number % len(EVENTS)]
        seconds, problems = disturb(event, number, out / "run", undisturbed)
        found["failed"] += [f"round {number}, {event}: {x}" for x in problems]
        found["slowest"] = max(found["slowest"], round(seconds, 1))
        found["events"][event] += 1
        found["rounds"] += 1
        write_file(results, (json.dumps(found) + "\n").encode())
    return found


def disturb(event: str, number: int, run: Path, undisturbed: Path) -> tuple[float, list[str]]:
    """Disturb a run and resume it; return the seconds until the other rank ended, and problems."""
    shutil.rmtree(run, ignore_errors=True)
    rng = random.Random(number)
    rank, update = rng.randrange(2), rng.randrange(1, UPDATES)
    codes, seconds = run_ranks(run, 2, (event, rank, update))
    problems = []
    if codes[1 - rank] in (None, 0):
        problems.append(f"the other rank ended with {codes[1 - rank]} after {seconds:.0f} s")
    status = run / "status.json"
    if event == "raise":
        found = json.loads(status.read_text()) if status.exists() else {}
        if (found.get("rank"), found.get("step"), found.get("code")) != (rank, update, 1):
            problems.append(f"rank {rank} raised after update {update}; status.json has {found}")
    newest = checkpoint.newest(run / "checkpoints", report=problems.append)
    saved = update // 3 * 3
    if (0 if newest is None else int(newest.name)) < saved:
        problems.append(f"after update {update} the newest save is {newest}")
    ranks = 1 if number % 16 >= 12 else 2
    codes, _ = run_ranks(run, ranks)
    if codes != [0] * ranks:
        return seconds, [*problems, f"resuming ended with {codes}"]
    if ranks == 2:
        return seconds, problems + differences(run, undisturbed)
    ours, theirs = (losses(x) for x in (run, undisturbed))
    is_near = len(ours) == len(theirs) and torch.allclose(ours, theirs, rtol=1e-5, atol=0)
    return seconds, problems + ["other losses"] * (not is_near)


def losses(run: Path) -> torch.Tensor:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return torch.tensor([x["loss"] for x in lines if "loss" in x])


def run_ranks(
    run: Path, world: int, event: tuple[str, int, int] | None = None
) -> tuple[list[int | None], float]:
    """Train or resume a run by forks; return their exit codes, and the seconds after the event.

    The code is None of a rank that had to be killed, since it did not end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    marker = run.parent / "marker"
    marker.unlink(missing_ok=True)
    processes = []
    for rank in range(world):
        if (process := os.fork()) == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            be_rank(run, rank, event, marker)
        processes.append(process)
    codes: list[int | None] = [None] * world
    began, limit = 0.0, MOST_SECONDS if event is None or event[0] != "stop" else 2 * TIMEOUT
    waiting = set(range(world)) - ({event[1]} if event and event[0] == "stop" else set())
    while waiting and (began == 0.0 or time.monotonic() < began + limit):
        for rank in list(waiting):
            process, status = os.waitpid(processes[rank], os.WNOHANG)
            if process:
                codes[rank] = os.waitstatus_to_exitcode(status)
                waiting.discard(rank)
        if began == 0.0 and marker.exists():
            began = time.monotonic()
        time.sleep(0.01)
    seconds = time.monotonic() - began if began else 0.0
    for rank in range(world):
        if codes[rank] is None:
            os.kill(processes[rank], signal.SIGKILL)
            os.waitpid(processes[rank], 0)
    return codes, seconds


def be_rank(run: Path, rank: int, event: tuple[str, int, int] | None, marker: Path) -> None:
    """Train or resume as one rank, and end this process."""
    with (run.parent / f"log-{rank}").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    distributed.TIMEOUT = timedelta(seconds=TIMEOUT)
    real = loop.step

    def step(state: Any, *rest: Any) -> Any:
        if event is not None and (rank, state.update) == event[1:]:
            marker.touch()
            happen(event[0])
        return real(state, *rest)

    loop.step = step
    code = 0
    try:
        if (run / "config.json").exists():
            thinkers.resume(run)
        else:
            thinkers.train(config(), run)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def happen(event: str) -> None:
    if event == "raise":
        raise RuntimeError("a fault of this rank")
    if event == "leave":
        os._exit(0)
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[event])


def config() -> Config:
    settings = Training(
        num_updates=UPDATES,
        batch_size=8,
        accumulation=2,
        log_every=1,
        checkpoint_every=3,
        evaluate_examples=4,
        device="cpu",
        ema=0.9,
    )
    task = thinkers.TASKS["add"].Config(max_digits=2, curriculum=True, window=12, threshold=0.05)
    sizes = dict(dim=8, num_layers=1, num_heads=2)
    return Config.fit(thinkers.MODELS["looped"], task, settings, **sizes)


if __name__ == "__main__":
    main()
