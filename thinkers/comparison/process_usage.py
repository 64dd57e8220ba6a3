"""The memory that a process used, and its end with the process that began it."""

import os
import signal
import sys
import threading
from pathlib import Path

import torch

STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> bool:
    """Begin a new peak of memory; False if the system cannot.

    `ru_maxrss` of getrusage or wait4 cannot serve: it is never reset, and a subprocess inherits the
    value of its parent.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if sys.platform != "linux":
        return False
    try:
        RESET_PEAK.write_text("5")
    except OSError:  # a container may forbid it; the peak since an earlier time would be wrong
        return False
    return True


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that the CUDA device, or else the process, held since the reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = STATUS.read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def stop_with_parent() -> None:
    """Treat the end of the standard input, a pipe of the parent, as a stop request."""
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    os.read(0, 1)  # sys.stdin's lock, held by a daemon thread, would abort the exit
    os.kill(os.getpid(), signal.SIGTERM)
