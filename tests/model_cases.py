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


def case(name: str, own: dict[str, Any], *marks: pytest.MarkDecorator) -> Any:
    """A model with settings of its own, as the parameters of a test."""
    shown = "-".join([name, *(f"{k}={v}" for k, v in own.items())])
    return pytest.param(name, own, id=shown, marks=marks)


def cover(name: str) -> list[dict[str, Any]]:
    """Variants with every setting of `test_variants`, fewer than these: joined where they agree."""
    found: list[dict[str, Any]] = []
    for own in MODELS[name].test_variants:
        for number, other in enumerate(found):
            # What a model that is not causal cannot do is checked of its other settings, too.
            agree = own.get("causal") == other.get("causal")
            if agree and all(own.get(key, value) == value for key, value in other.items()):
                try:
                    MODELS[name].Config(**{**SIZE, **other, **own})
                except ValueError:
                    continue  # settings that exclude each other
                found[number] = other | own
                break
        else:
            found.append(own)
    return found


NAMES = list(MODELS)
JOINED = [(name, own) for name in NAMES for own in ({}, *cover(name))]
ALONE = [(name, own) for name in NAMES for own in MODELS[name].test_variants]
CASES = [case(name, own) for name, own in JOINED]
CASES += [case(name, own, pytest.mark.slow) for name, own in ALONE if (name, own) not in JOINED]
"""Every model by itself and every setting of its variants; each variant alone in slow tests."""


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
