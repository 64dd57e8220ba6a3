"""Timing, peak memory and the command line of the benchmarks; nothing here runs by itself.

Benchmarks assert ratios, not times. Both sides run in one process, in turn, on one thread, and
process time counts: a faster machine, or another process beside, changes both sides alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from thinkers.files import write_file
from thinkers.runs import checkpoint
from thinkers.runs.folder import read_record

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Settings of glibc with which freed tensors go back to the system and peaks are exact."""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that prints the docstring of a benchmark as it is written."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def case_parser(doc: str | None, cases: Sequence[str], out: str) -> argparse.ArgumentParser:
    """A parser of benchmarks that train cases over seeds, with results under `out`."""
    arguments = parser(doc)
    arguments.add_argument("--cases", nargs="*", choices=cases, help="default: all")
    arguments.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    arguments.add_argument("--workers", type=int, default=1, help="runs at once")
    arguments.add_argument("--out", type=Path, default=Path(out))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    return arguments


def run_jobs(run_job: Callable[[Any], str], jobs: Sequence[Any], workers: int) -> None:
    """Run jobs in processes of their own, and print the line that each returns."""
    # Subprocesses that are spawned: each has torch, and its one thread, for itself.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        for line in pool.map(run_job, jobs):
            print(line, flush=True)


def measured(result: Path, measure: Callable[[], Any]) -> Any:
    """Return what a file of results holds; measure and write it first if there is none."""
    if not result.exists():
        write_file(result, (json.dumps(measure()) + "\n").encode())
    return json.loads(result.read_text())


def write_part(page: Path, name: str, value: Any, file: str = "reliability.json") -> None:
    """Write one part of a file of results in a folder of pages; the other parts stay."""
    place = page / file
    parts = json.loads(place.read_text()) if place.exists() else {}
    content = json.dumps(parts | {name: value}, indent=1, sort_keys=True)
    write_file(place, (content + "\n").encode())


def run_rounds(
    doc: str | None, name: str, part: str, rounds: int, measure: Callable[[int, Path], Any]
) -> None:
    """Run the command line of a benchmark of rounds, which keeps its results in runs/`name`.

    Args:
        part: The part of reliability.json that `--page` writes.
        rounds: The number of rounds unless `--rounds` is given.
        measure: measure(rounds, out) returns the results, with a list "failed".

    Raises:
        SystemExit: With 1 if a round failed.
    """
    arguments = parser(doc)
    arguments.add_argument("--rounds", type=int, default=rounds)
    arguments.add_argument("--out", type=Path, default=Path("runs") / name)
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    if options.page is not None:
        results = json.loads((options.out / "result.json").read_text())
        return write_part(options.page, part, results)
    found = measure(options.rounds, options.out)
    print(json.dumps(found))
    print("none failed" if not found["failed"] else "failed:", *found["failed"], sep="\n")
    raise SystemExit(bool(found["failed"]))


def file_name(case: str) -> str:
    """Return the name of a case in file names."""
    return case.replace(", ", "_").replace(" ", "_")


def flops_of(folder: Path) -> int:
    """Return the operations of all updates of a run, of which metrics.jsonl has every tenth."""
    newest = checkpoint.saved(folder / "checkpoints")[-1]
    return checkpoint.read(newest, read_record(folder)["run"]).state["flops"]


def process_seconds(call: Callable[[], object]) -> float:
    """Process time of a call, in seconds."""
    start = time.process_time()
    call()
    return time.process_time() - start


def alternate(
    calls: Sequence[Callable[[], object]],
    repeats: int,
    clock: Callable[[Callable[[], object]], float] = process_seconds,
) -> list[float]:
    """Median seconds of each call, all of them in turn, `repeats` times."""
    times = [[clock(call) for call in calls] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def peak_growth(call: Callable[[], object]) -> float:
    """MiB by which a call raises the resident memory of this process at its highest (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak to what is resident now
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MiB of this process by a field of its status (Linux): VmRSS now, VmHWM at its highest."""
    with open("/proc/self/status") as file:
        return int(next(line.split()[1] for line in file if line.startswith(field))) / 1024


def in_new_process(script: str, *arguments: object) -> float:
    """Run a script in a new process and return the number that it prints.

    Peaks are measured so: memory that an earlier call left to this process would hide some.
    """
    command = [sys.executable, script, *map(str, arguments)]
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def one_thread() -> None:
    """Compute on one thread, so that process time is the time of one core."""
    torch.set_num_threads(1)
