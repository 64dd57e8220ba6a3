"""Timing, peak memory and the command line of the benchmarks; nothing here runs by itself.

Benchmarks assert ratios, not times. Both sides run in one process, in turn, on one thread, and
process time counts: a faster machine, or another process beside, changes both sides alike.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Settings of glibc with which freed tensors go back to the system and peaks are exact."""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that prints the docstring of a benchmark as it is written."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


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
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
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
