"""Conditions under which the Triton kernels can run; triton itself is not imported here."""

import importlib.util
import os

import torch
from torch import Tensor

MAX_GRID_Y = 65535
"""CUDA's limit on programs along the second axis of a grid, which is batch rows times heads."""


def interpreter_enabled() -> bool:
    """Return True if TRITON_INTERPRET=1 runs kernels on the CPU, in Python."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unsupported_reason(q: Tensor) -> str | None:
    """The reason for which the kernels cannot take tensors like `q` (b, h, t, d), or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if q.device.type != "cuda" and not interpreter_enabled():
        return "the kernels run on CUDA, or on the CPU under TRITON_INTERPRET=1"
    if q.shape[-1] > 256:
        return f"the kernels take a head dim of at most 256, not {q.shape[-1]}"
    if q.shape[0] * q.shape[1] > MAX_GRID_Y:
        return (
            f"the kernels take at most {MAX_GRID_Y} batch rows times heads, "
            f"not {q.shape[0] * q.shape[1]}"
        )
    if q.dtype == torch.float64:
        return "the kernels do not compute in float64"
    return None
