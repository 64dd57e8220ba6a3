"""The rule by which tokens may halt before the last step: what calls take as `halt`."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.errors import UsageError, usage_error

Halt = float | Literal["answered", "policy"] | None
"""A threshold in 0 .. 1: a token halts after the first step at which its gate is above it, so that
1 never halts. "answered": at the first step whose likeliest token is not `wait_token`. "policy":
where the model's policy chooses OUTPUT; callers set it by `policy`. None: after `num_steps`."""


def halt_option(halt: Halt) -> dict[str, Any]:
    """Return the keyword argument `halt` if it is set: a model may not take it."""
    return {} if halt is None else {"halt": halt}


def rule_record(halt: Halt) -> dict[str, Any]:
    """Return the rule as results record it: {"halt": 0.5} or {"policy": True}."""
    return {"policy": True} if halt == "policy" else {"halt": halt}


def rule_name(halt: Halt) -> str:
    """Return the rule in words, as a user gave it: policy, or halt 0.5."""
    return "policy" if halt == "policy" else f"halt {halt}"


def with_policy(halt: Halt, policy: bool) -> Halt:
    """Return the rule of a call that takes `halt` and `policy`.

    Raises:
        UsageError: Both are set, or `policy` is no bool.
    """
    if not isinstance(policy, bool):
        raise UsageError(f"policy must be True or False, got {policy!r}")
    if not policy or halt == "policy":
        return halt
    if halt is not None:
        raise usage_error(
            f"halt {halt} with policy",
            "one of them: a policy decides by itself when to stop",
            "leave one out",
        )
    return "policy"


def check_halt(model: Any, halt: Any) -> Halt:
    """Return `halt`, or raise UsageError if it is invalid or this model cannot halt by it."""
    if halt is None:
        return None
    if halt == "policy" and isinstance(halt, str):
        if "policy" not in model.halts_by:
            raise usage_error(
                f"policy for {model.name} without one",
                "thinker with policy (--model.policy true), trained by thinkers reinforce",
                "leave policy out, or train such a model",
            )
        return "policy"
    if halt == "answered" and isinstance(halt, str):
        if "answered" not in model.halts_by:
            raise usage_error(
                f'halt "answered" for {model.name} with other settings',
                "a causal model trained with step_loss wait, whose states are read out as they are "
                "(num_coda_layers 0), such as links/halting",
                "leave halt out, or train such a model",
            )
        return "answered"
    is_number = isinstance(halt, int | float) and not isinstance(halt, bool)
    if not is_number or not 0 <= halt <= 1:
        raise UsageError(f'halt must be a number in 0 .. 1, "answered" or None, got {halt!r}')
    if "gate" not in model.halts_by:
        raise usage_error(
            f"halt {halt} for {model.name} without a gate",
            "looped, thoughtsformer or thinker, trained with halting (--model.halting true)",
            "leave halt out, or train such a model",
        )
    return float(halt)


def full_steps(tokens: Int[Tensor, "*b"], steps: int) -> Int[Tensor, "*b"]:
    """Return the steps that every token takes where none halts."""
    return torch.full_like(tokens, steps)


def check_steps_taken(steps: Tensor, shape: tuple[int, int], most: int) -> None:
    """Raise UsageError if these are not the steps of tokens of this shape: 0 .. most each."""
    if tuple(steps.shape) != shape:
        raise UsageError(f"steps must have the shape {list(shape)}, got {list(steps.shape)}")
    if steps.numel() and not 0 <= int(steps.min()) <= int(steps.max()) <= most:
        least, largest = int(steps.min()), int(steps.max())
        raise UsageError(f"steps must be in 0 .. {most} (num_steps), got {least} .. {largest}")


@dataclass
class HaltingCache:
    """The cache of a model whose tokens may halt.

    Args:
        kept: The model's cache without halting.
        taken: Steps of each row's newest token.
    """

    kept: Any
    num_steps: int
    halt: float | Literal["answered", "policy"]
    taken: Int[Tensor, " b"]

    def select(self, rows: Int[Tensor, " r"]) -> None:
        """Keep only these rows."""
        self.kept.select(rows)
        self.taken = self.taken[rows]
