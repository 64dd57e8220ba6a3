"""The torch device of a name: auto, cpu, cuda, cuda:N or mps."""

import os

import torch

from thinkers.errors import UsageError


def find_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is this rank's CUDA device, or the CPU without one.

    Raises:
        UsageError: The name is unknown, or torch finds no such device.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}") from None
    found = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if device.type not in found:
        raise UsageError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if (device.index or 0) >= found[device.type]:
        number = found[device.type] or "none"
        raise UsageError(
            f"device {name!r} must exist, and torch {torch.__version__} finds {number}"
        )
    return torch.device("cuda", local) if name == "cuda" else device
