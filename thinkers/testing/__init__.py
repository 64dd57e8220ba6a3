"""check_model: test the properties that every model must have, on any model."""

import copy
from collections.abc import Callable

from thinkers.errors import UsageError
from thinkers.models.base import Model
from thinkers.prng import seed_generators
from thinkers.process_state import keep_process_state
from thinkers.testing.forward import (
    batch_independence,
    causality,
    input_checks,
    outputs,
    scores,
    states,
)
from thinkers.testing.generation import answers, caching, evaluation_mode, generation
from thinkers.testing.halting import halted_caching, halting
from thinkers.testing.helpers import TOLERANCES
from thinkers.testing.memory import long_term_memory
from thinkers.testing.training import (
    correctness,
    gradients,
    loss_shares,
    reproducibility,
    saving,
)

PROPERTIES: dict[str, Callable[[Model], None]] = {
    check.__name__: check
    for check in (
        input_checks,
        outputs,
        states,
        causality,
        batch_independence,
        caching,
        generation,
        evaluation_mode,
        scores,
        answers,
        halting,
        halted_caching,
        long_term_memory,
        loss_shares,
        correctness,
        gradients,
        reproducibility,
        saving,
    )
}
"""{name: check} in the order in which they run."""


def check_model(model: Model) -> None:
    """Check every property of `PROPERTIES` on copies of `model`, which stays unchanged.

    Raises:
        AssertionError: The first property that fails, in two lines: the values found and the rule.
        ValueError: The weights are neither float32 nor float64.
    """
    weight = next(model.parameters())
    if weight.dtype not in TOLERANCES:
        raise UsageError(
            f"check_model needs float32 or float64 weights, got {weight.dtype}; "
            "pass model.float() or model.double()"
        )
    for name, check in PROPERTIES.items():
        with keep_process_state(weight.device):
            seed_generators(weight.device, 20011)
            try:
                check(copy.deepcopy(model).eval())
            except AssertionError as error:
                raise AssertionError(failure(model, name, str(error))) from error
            except Exception as error:
                # A model that is not finished fails in many ways; all of them name the property.
                found = f"the check raised {type(error).__name__}: {error}"
                raise AssertionError(failure(model, name, found)) from error


def failure(model: Model, name: str, found: str) -> str:
    """Build the message: property, value found, and the rule in the docstring of the check."""
    rule = " ".join((PROPERTIES[name].__doc__ or "").split()).removeprefix("Check that ")
    return f"{model.name} fails the property {name!r}: {found}\nexpected: {rule}"


__all__ = ["PROPERTIES", "check_model"]
