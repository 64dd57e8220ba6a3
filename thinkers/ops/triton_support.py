"""Whether Triton kernels can run here; nothing is imported before they are asked for."""

import importlib.util
import os

import torch
from torch import Tensor

GRID = 65535
"""Programs along the second axis of a CUDA grid."""


def interpreted() -> bool:
    """Whether Triton was asked to run its kernels on the CPU, one instruction after the other."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def lacks(q: Tensor) -> str | None:
    """Why kernels cannot take tensors like `q`, or None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if q.device.type != "cuda" and not interpreted():
        return "the kernels run on CUDA, or on the CPU under TRITON_INTERPRET=1"
    if q.shape[-1] > 256:
        return f"head dims reach 256, not {q.shape[-1]}"
    if q.shape[0] * q.shape[1] > GRID:
        return f"batch rows times heads reach {GRID}, not {q.shape[0] * q.shape[1]}"
    if q.dtype == torch.float64:
        return "float64 is not theirs"
    return None
