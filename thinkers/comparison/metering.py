"""What a piece of work took of the process: its seconds, and its memory at the highest."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Meter:
    """Filled when the work is over.

    Args:
        seconds: Process time, of all threads.
        memory: The most bytes that the process, or the CUDA device, held meanwhile, all that it
            held before included; None where the system does not tell.
    """

    seconds: float = 0.0
    memory: int | None = None


@contextmanager
def metered(device: torch.device) -> Iterator[Meter]:
    """A meter of what is done inside."""
    meter = Meter()
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    resets = _reset()
    start = time.process_time()
    try:
        yield meter
    finally:
        meter.seconds = time.process_time() - start
        if on_cuda:
            meter.memory = torch.cuda.max_memory_allocated(device)
        elif resets:
            meter.memory = _highest()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, so that process time is the same on a machine that is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reset() -> bool:
    """Begin a new peak of the process; whether the system can: Linux alone does."""
    if sys.platform != "linux":
        return False
    try:
        RESET.write_text("5")
    except OSError:  # a container may forbid it, and an older peak would be a wrong figure
        return False
    return True


def _highest() -> int:
    lines = STATUS.read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
