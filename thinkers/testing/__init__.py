"""check_model: the properties that every way of thinking must have, ours and anybody's."""

import copy
from collections.abc import Callable

import torch

from thinkers.models.base import Model
from thinkers.testing.forward import answers, causality, independence, refusals, scores, states
from thinkers.testing.generation import answering, caching, generation, modes
from thinkers.testing.helpers import TOLERANCES
from thinkers.testing.training import gradients, grading, losses, repeatability, saving

PROPERTIES: dict[str, Callable[[Model], None]] = {
    check.__name__: check
    for check in (
        refusals,
        answers,
        states,
        causality,
        independence,
        caching,
        generation,
        modes,
        scores,
        answering,
        losses,
        grading,
        gradients,
        repeatability,
        saving,
    )
}
"""What every model must have, by name, in the order in which it is checked."""


def check_model(model: Model) -> None:
    """Nothing if `model` has every property of `PROPERTIES`; it is left as it was.

    Raises:
        AssertionError: naming the first property that it lacks, and where.
        ValueError: if its weights are neither float32 nor float64.
    """
    weight = next(model.parameters())
    if weight.dtype not in TOLERANCES:
        raise ValueError(f"weights must be float32 or float64, got {weight.dtype}")
    for name, check in PROPERTIES.items():
        with torch.random.fork_rng([weight.device] if weight.is_cuda else []):
            torch.manual_seed(20011)
            try:
                check(copy.deepcopy(model).eval())
            except AssertionError as error:
                raise AssertionError(f"{model.name} lacks {name!r}: {error}") from error
            except Exception as error:
                kind = type(error).__name__
                raise AssertionError(f"{model.name} lacks {name!r}: {kind}: {error}") from error


__all__ = ["PROPERTIES", "check_model"]
