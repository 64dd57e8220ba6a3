"""The state of the process that the library changes while it works, and that a caller gets back."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TORCH_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def keep_process_state(device: torch.device | None = None) -> Iterator[None]:
    """Give torch's random streams, its number of threads and its CUDA device back at the end.

    The name of a folder that torch adds to the environment on its first update goes, too.

    Weights, dropout and compared examples are functions of seeds of their own, which are set in
    torch's global generators; without this, every random number that the caller draws afterwards
    would be a function of those seeds. It serves as a decorator, too.

    What the library never sets needs no restoring: the streams of Python and numpy, default dtype,
    deterministic algorithms, working folder. tests/test_process_state.py compares all
    of them before and after each public call.

    Args:
        device: The device that will be used. CUDA's stream can only be kept once CUDA is
            initialized.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.init()
    cpu, threads = torch.get_rng_state(), torch.get_num_threads()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    current = torch.cuda.current_device() if cuda is not None else None
    had_name = TORCH_FOLDER in os.environ
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if not had_name:
            os.environ.pop(TORCH_FOLDER, None)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if cuda is not None and current is not None:
            torch.cuda.set_device(current)
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: process time then does not depend on other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet_loggers(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Let these loggers report this level and above only, then restore their levels."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
