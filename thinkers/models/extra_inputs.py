"""Other inputs of rows than tokens, by name: `Batch.extra`, and the argument `extra` of calls."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thinkers.checks import describe
from thinkers.errors import UsageError, UsageTypeError, usage_error

Extra = Mapping[str, Tensor] | None
"""{name: one input for each row (b, ..)}; None for rows of tokens alone."""


def extra_option(extra: Extra) -> dict[str, Any]:
    """Return the keyword argument `extra` if it is set: a model may not take it."""
    return {} if extra is None else {"extra": extra}


def check_extra(model: Any, extra: Any, num_rows: int | None = None) -> None:
    """Check other inputs of a call, or of a batch.

    Args:
        num_rows: Number of rows; None does not check it.

    Raises:
        UsageTypeError: It is no mapping from names to tensors.
        UsageError: The model does not take these inputs, or there is not one for each row.
    """
    if extra is None:
        return
    if not isinstance(extra, Mapping):
        raise UsageTypeError(f"extra must be a dict of tensors by name, got {describe(extra)}")
    taken = tuple(getattr(model, "takes_extra", ()))
    if not taken or set(extra) != set(taken):
        raise usage_error(
            f"extra with {', '.join(map(str, extra)) or 'nothing'} for {model.name}",
            f"extra with {', '.join(taken)}" if taken else "a model that reads other inputs",
            "see docs/own_input.md, or leave extra out",
        )
    for name, x in extra.items():
        if not isinstance(x, Tensor) or x.ndim < 2:
            raise UsageTypeError(f"extra[{name!r}] must be a tensor (b, ..), got {describe(x)}")
        if num_rows is not None and len(x) != num_rows:
            raise UsageError(f"extra[{name!r}] must have {num_rows} rows, got {len(x)}")


def extra_of_rows(extra: Extra, rows: slice | Int[Tensor, " r"] | Bool[Tensor, " b"]) -> Extra:
    """Return the inputs of some rows."""
    return None if extra is None else {name: x[rows] for name, x in extra.items()}


def joined_extra(batches: Sequence[Any]) -> Extra:
    """Return the inputs of the rows of all batches, which have the same ones."""
    first = batches[0].extra
    for place, batch in enumerate(batches):
        if (batch.extra is None) != (first is None) or set(batch.extra or ()) != set(first or ()):
            raise UsageError(
                f"extra must have the same inputs in all batches, got {sorted(first or ())} at 0 "
                f"and {sorted(batch.extra or ())} at {place}"
            )
        for name, x in (batch.extra or {}).items():
            kinds = [(str(y.dtype), list(y.shape[1:])) for y in (first[name], x)]  # type: ignore[index]
            if kinds[0] != kinds[1]:
                raise UsageError(
                    f"extra[{name!r}] must have one dtype and shape in all batches, got "
                    f"{describe(first[name])} at 0 and {describe(x)} at {place}"  # type: ignore[index]
                )
    return first and {name: torch.cat([x.extra[name] for x in batches]) for name in first}
