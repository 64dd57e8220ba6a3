"""Every model of MODELS, at defaults and at its test_variants, in sizes of milliseconds."""

from typing import Any

import pytest
import torch

import thinkers
from thinkers.models import MODELS, Batch, Model

SIZE: dict[str, Any] = {
    "vocab_size": 13,
    "dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_steps": 2,
    "max_steps": 4,
    "max_length": 67,
}
CASES = [
    pytest.param(name, own, id="-".join([name, *(f"{k}={v}" for k, v in own.items())]))
    for name in MODELS
    for own in ({}, *MODELS[name].test_variants)
]
NAMES = list(MODELS)


def tiny(name: str, own: dict[str, Any] | None = None, **more: Any) -> Model:
    """A small model of this name in evaluation mode, the same one every time."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)  # without those of devices, which takes longer
        return thinkers.build_model(name, **{**SIZE, **(own or {}), **more}).eval()


def ids(*shape: int, high: int = SIZE["vocab_size"], seed: int = 0) -> torch.Tensor:
    """Tokens, the same ones every time."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def lesson(model: Model, b: int, t: int) -> Batch:
    """Whole rows, each position graded: what a model that sees the future learns from, too."""
    high = model.config.vocab_size
    return Batch(ids(b, t, high=high), ids(b, t, high=high, seed=1))


def thinks(model: Model) -> bool:
    """Return True if the model takes more than one number of steps."""
    return len(model.step_counts) > 1
