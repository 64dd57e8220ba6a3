"""Memory, open files, threads and disk of one process over a long time: they must stay constant.

    nohup python benchmarks/soak.py --minutes 20 > runs/soak.log &
    python benchmarks/soak.py --page docs

`train` trains cups, evaluates and saves every 100 updates, and generates after each save; `store`
writes, clears, compacts, rebuilds and searches a memory. Every 5 s a sample is taken: resident
memory, open files, threads, mappings, children, bytes on the disk without metrics.jsonl, and the
process time of an update. The first fifth of the samples of a process is its warm-up. After it the
slope of memory over 1,000 updates (operations of a store), by least squares, is computed, and the
growth of all else from the first third to the last. Minutes add up over calls, of which each
continues the run in a new process; each figure is the largest of all processes with 20 samples or
more. `--page FOLDER` writes the part `soak` of reliability.json.

Machine: memory hardly depends on it; times do. Asked: at most 1 MB per 1,000 updates, and 2 % in
all; no more open files, threads, mappings or children in the last third than in the first; at most
half more on the disk; an update takes at most 5 % longer. Exit code 1 otherwise.
"""

import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import memory_blocks
import memory_kills
import torch
from harness import one_thread, parser, resident, write_part
from memory_blocks import SETTINGS, State

import thinkers
from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.files import write_file
from thinkers.memory.sqlite import SqliteStore

PARTS, EVERY, FEWEST = ("train", "store"), 5.0, 20
STEP = 100
MOST_SLOPE, MOST_GROWTH, MOST_DRIFT, MOST_DISK = 1.0, 0.02, 0.05, 0.5
COUNTS = ("files", "threads", "maps", "children")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=20.0, help="of each part")
    arguments.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    arguments.add_argument("--out", type=Path, default=Path("runs/soak"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    results = options.out / "result.json"
    if options.page is not None:
        write_part(options.page, "soak", json.loads(results.read_text()))
        return
    one_thread()
    options.out.mkdir(parents=True, exist_ok=True)
    found = json.loads(results.read_text()) if results.exists() else {}
    failed = []
    for part in options.parts:
        file = options.out / f"{part}.jsonl"
        left = options.minutes - minutes_of(read_samples(file))
        if left > 0:
            {"train": train, "store": churn}[part](options.out, Sampler(file, left))
        found[part] = summary(read_samples(file))
        failed += [f"{part}: {x}" for x in problems(found[part])]
        write_file(results, (json.dumps(found) + "\n").encode())
    print(json.dumps(found, indent=1))
    print("all stays constant" if not failed else "failed:", *failed, sep="\n")
    raise SystemExit(bool(failed))


class Sampler:
    """Take samples of this process at intervals, and say when its minutes are over."""

    def __init__(self, file: Path, minutes: float):
        self.file = file
        self.start, self.next = time.monotonic(), 0.0
        self.end = self.start + 60 * minutes
        self.done, self.spent = 0, time.process_time()

    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    def take(self, number: int, folder: Path) -> None:
        """Append a sample, unless one was taken a moment ago.

        Args:
            number: Updates or operations so far.
        """
        now, spent = time.monotonic(), time.process_time()
        if now < self.next:
            return
        place, cost = Path("/proc/self"), (spent - self.spent) / max(1, number - self.done)
        self.next, self.done, self.spent = now + EVERY, number, spent
        sample = {
            "process": os.getpid(),
            "seconds": now - self.start,
            "number": number,
            "mb": resident("VmRSS"),
            "files": len(list((place / "fd").iterdir())),
            "threads": len(list((place / "task").iterdir())),
            "maps": len((place / "maps").read_text().splitlines()),
            "children": len((place / "task" / str(os.getpid()) / "children").read_text().split()),
            "disk": disk(folder),
            "cost": cost,
        }
        with self.file.open("a") as stream:
            stream.write(json.dumps(sample) + "\n")


class Over(Exception):
    """The minutes of a part are over."""


def train(out: Path, sampler: Sampler) -> None:
    """Train, evaluate, save and generate in one process."""
    folder = out / "run"

    def after(state: Any, result: Any) -> None:
        if result.update % STEP == 0:
            model, task = thinkers.open_run(folder) if (folder / "model").exists() else (None, None)
            if model is not None:
                thinkers.answer((model, task), "12 35 14")
        sampler.take(result.update, folder)
        if sampler.is_over():
            raise Over

    try:
        if (folder / "config.json").exists():
            thinkers.resume(folder, callbacks=[after])
        else:
            thinkers.train(config(), folder, callbacks=[after])
    except Over:
        pass


def config() -> Config:
    settings = Training(
        num_updates=10_000_000,
        batch_size=16,
        checkpoint_every=STEP,
        evaluate_every=STEP,
        evaluate_examples=50,
        keep_last=2,
        ema=0.99,
        device="cpu",
    )
    task = thinkers.TASKS["cups"].Config()
    sizes = dict(dim=32, num_layers=1, num_heads=2, num_steps=2, max_length=64)
    return Config.fit(thinkers.MODELS["looped"], task, settings, **sizes)


def churn(out: Path, sampler: Sampler) -> None:
    """Write, clear, compact, rebuild and search a memory in one process."""
    memory_blocks.index_early()
    folder = out / f"store-{os.getpid()}"
    store, state, rng = SqliteStore.create(folder, **SETTINGS), State(), random.Random(0)
    number = 0
    while not sampler.is_over():
        kinds = ("write", "write", "write", "write", "clear", "compact", "rebuild")
        operation = memory_kills.draw(rng, state, rng.choice(kinds))
        memory_blocks.perform(store, state, operation)
        state = state.after(operation)
        if number % 50 == 0:
            torch.manual_seed(number)
            with store.view() as view:
                assert not memory_blocks.differences(view, state)
        number += 1
        sampler.take(number, folder)
    store.close()


def disk(folder: Path) -> int:
    """Bytes of the files in a folder, without metrics.jsonl, which has a line for each update."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.name != "metrics.jsonl" else 0
        except FileNotFoundError:
            continue
    return total


def read_samples(file: Path) -> dict[int, list[dict[str, Any]]]:
    """{process: its samples}."""
    found: dict[int, list[dict[str, Any]]] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        sample = json.loads(line)
        found.setdefault(sample["process"], []).append(sample)
    return found


def minutes_of(samples: dict[int, list[dict[str, Any]]]) -> float:
    return sum(one[-1]["seconds"] for one in samples.values()) / 60


def summary(samples: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return each figure of the process, among those with samples enough, where it is largest."""
    found: dict[str, Any] = {"minutes": minutes_of(samples), "processes": len(samples)}
    found["done"] = max((one[-1]["number"] for one in samples.values()), default=0)
    for one in samples.values():
        rest = one[len(one) // 5 :]
        if len(one) < FEWEST or rest[-1]["number"] == rest[0]["number"]:
            continue
        third = max(1, len(rest) // 3)
        first, last = rest[:third], rest[-third:]
        middle = {
            x: [statistics.median(s[x] for s in part) for part in (first, last)]
            for x in ("mb", "cost")
        }
        figures = {
            "slope": 1000 * slope([s["number"] for s in rest], [s["mb"] for s in rest]),
            "growth": middle["mb"][1] / middle["mb"][0] - 1,
            "drift": middle["cost"][1] / middle["cost"][0] - 1,
            "disk": max(s["disk"] for s in last) / max(s["disk"] for s in first) - 1,
        }
        figures |= {x: max(s[x] for s in last) - max(s[x] for s in first) for x in COUNTS}
        for name, value in figures.items():
            found[name] = max(found.get(name, value), value)
    return found


def slope(x: list[float], y: list[float]) -> float:
    """The slope of y over x by least squares."""
    return statistics.linear_regression(x, y).slope


def problems(found: dict[str, Any]) -> list[str]:
    """Return which figures are beyond what is asked."""
    if "slope" not in found:
        return ["too few samples"]
    limits = {
        "growth": MOST_GROWTH,
        "drift": MOST_DRIFT,
        "disk": MOST_DISK,
        **dict.fromkeys(COUNTS, 0),
    }
    beyond = [f"{name} {found[name]:.3g}" for name, most in limits.items() if found[name] > most]
    if found["slope"] > MOST_SLOPE:
        beyond.append(f"slope {found['slope']:.3g} MB per 1,000")
    return beyond


if __name__ == "__main__":
    main()
