"""The argument `memory` of calls: a long-term memory, which a model may have layers for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from thinkers.errors import usage_error


def memory_option(memory: Any) -> dict[str, Any]:
    """Return the keyword argument `memory` if it is set: a model may not take it."""
    return {} if memory is None else {"memory": memory}


def check_takes_memory(model: Any, memory: Any) -> None:
    """Raise UsageError if a memory is given to a model that has no layers for it."""
    if memory is not None and not has_memory(model):
        raise usage_error(
            f"a memory for {model.name} without one",
            "thinker, trained with memory (--model.memory blocks)",
            "leave memory out, or train such a model",
        )


def has_memory(model: Any) -> bool:
    """Return True if a model has layers that read and write a long-term memory."""
    return getattr(getattr(model, "config", None), "memory", "none") == "blocks"


@contextmanager
def memory_top(model: Any, top: int | None) -> Iterator[None]:
    """Let a model read `top` blocks at a step inside the block; None means all.

    `memory_top` is a setting of reading alone: no weight and no block depends on it.
    """
    before = model.config
    model.config = replace(before, memory_top=top)
    try:
        yield
    finally:
        model.config = before


def memory_of_rows(memory: Any, rows: Int[Tensor, " r"]) -> Any:
    """Return the memory of some of the rows of a call."""
    if isinstance(memory, list | tuple):
        return [memory[row] for row in rows.tolist()]
    return memory.select(rows) if hasattr(memory, "select") else memory
