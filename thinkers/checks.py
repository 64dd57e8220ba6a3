"""Validation of arguments and settings: errors name the value found, its place and the rule."""

import operator
from collections.abc import Mapping
from dataclasses import field, fields
from functools import lru_cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from thinkers.errors import UsageError, UsageTypeError

NOT_CAUSAL = "{what} needs a causal model, and this configuration reads the future"


def check_int(name: str, value: Any, low: int, high: int | None = None, limit: str = "") -> int:
    """Return `value` as an int within low .. high.

    Args:
        limit: Name of the setting that gives `high`, for the message.

    Raises:
        UsageError: It is not an integer, or out of range.
    """
    try:
        if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        allowed = f"at least {low}" if high is None else f"in {low} .. {high}"
        source = f" ({limit})" if limit else ""
        raise UsageError(f"{name} must be an integer {allowed}{source}, got {value!r}")
    return number


def check_ids(name: str, ids: Tensor, vocab_size: int) -> None:
    """Raise ValueError naming the first id outside the vocabulary, and its position."""
    low, high = ids.aminmax()
    if low >= 0 and high < vocab_size:
        return
    place = ((ids < 0) | (ids >= vocab_size)).nonzero()[0].tolist()
    raise UsageError(
        f"{name} must be in 0 .. {vocab_size - 1} (vocab_size {vocab_size}), "
        f"got {int(ids[tuple(place)])} at {place}"
    )


def check_lengths(name: str, lengths: Any, b: int, t: int) -> None:
    """Raise TypeError or ValueError unless these are lengths of b rows of t columns."""
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64:
        raise UsageTypeError(f"{name} must be an int64 tensor, got {describe(lengths)}")
    if lengths.shape != (b,):
        raise UsageError(f"{name} must have shape ({b},), got {list(lengths.shape)}")
    wrong = (lengths < 1) | (lengths > t)
    if wrong.any():
        row = int(wrong.int().argmax())
        raise UsageError(f"{name} must be in 1 .. {t}, got {int(lengths[row])} in row {row}")


def describe(value: Any) -> str:
    """Describe a value in words: the dtype and shape of a tensor, or its type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__


def check_shape(name: str, tokens: Any) -> tuple[int, int]:
    """Return the shape (b, t) of token ids; raise TypeError or ValueError for any other tensor."""
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
        raise UsageTypeError(f"{name} must be an int64 tensor, got {describe(tokens)}")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise UsageError(f"{name} must have shape (b, t) with b, t >= 1, got {list(tokens.shape)}")
    return tokens.shape[0], tokens.shape[1]


def check_rows(
    tokens: Any, lengths: Any, prompt_lengths: Any, vocab_size: int, max_length: int
) -> None:
    """Raise an error unless these are valid token ids and lengths of rows padded on the right.

    Values of tensors are read here and nowhere else in a forward pass. Under torch.compile, where
    they cannot be read, nothing is checked.

    Raises:
        TypeError: A tensor is not int64.
        ValueError: A shape, an id or a length is invalid; the message names it and its position.
    """
    if torch.compiler.is_compiling():
        return
    b, t = check_shape("tokens", tokens)
    longest = t
    if lengths is not None:
        check_lengths("lengths", lengths, b, t)
        longest = int(lengths.max())
    if prompt_lengths is not None:
        check_lengths("prompt_lengths", prompt_lengths, b, t)
        if lengths is not None and (prompt_lengths > lengths).any():
            row = int((prompt_lengths > lengths).int().argmax())
            raise UsageError(
                "prompt_lengths must be at most lengths, "
                f"got {int(prompt_lengths[row])} of {int(lengths[row])} in row {row}"
            )
    if longest > max_length:
        raise UsageError(f"a row must have at most {max_length} tokens (max_length), got {longest}")
    if lengths is not None:
        tokens = tokens.where(torch.arange(t, device=tokens.device) < lengths[:, None], 0)
    check_ids("tokens", tokens, vocab_size)


def check_targets(targets: Any, tokens: Any, lengths: Any, vocab_size: int, ignored: int) -> None:
    """Raise an error unless `targets` holds an id or `ignored` for each real token.

    Under torch.compile nothing is checked, as in `check_rows`.
    """
    if torch.compiler.is_compiling():
        return
    b, t = check_one_per_token("targets", targets, tokens)
    if lengths is not None:
        check_lengths("lengths", lengths, b, t)
        targets = targets.where(torch.arange(t, device=tokens.device) < lengths[:, None], 0)
    check_ids("targets", targets.where(targets != ignored, 0), vocab_size)


def check_one_per_token(name: str, values: Any, tokens: Any) -> tuple[int, int]:
    """Return the shape (b, t) of tokens; raise an error unless `values` has it, as int64."""
    if not isinstance(values, Tensor) or values.dtype != torch.int64:
        raise UsageTypeError(f"{name} must be an int64 tensor, got {describe(values)}")
    b, t = check_shape("tokens", tokens)
    if values.shape != (b, t):
        raise UsageError(f"{name} must have the shape of tokens {[b, t]}, got {list(values.shape)}")
    return b, t


def check_due(due: Any, tokens: Any, lengths: Any) -> None:
    """Raise an error unless `due` holds a thinking step, from 1, for each real token.

    Under torch.compile nothing is checked, as in `check_rows`.
    """
    if torch.compiler.is_compiling():
        return
    _, t = check_one_per_token("due", due, tokens)
    if lengths is not None:
        due = due.where(torch.arange(t, device=due.device) < lengths[:, None], 1)
    if (due < 1).any():
        row, column = (int(x) for x in (due < 1).nonzero()[0])
        raise UsageError(
            "due must be at least 1 at every real token, "
            f"got {int(due[row, column])} at row {row}, position {column}"
        )


def check_early(early: Any, tokens: Any, due: Any, vocab_size: int, ignored: int) -> None:
    """Raise an error unless `early` holds answers, (b, t, k), beside due steps.

    Under torch.compile nothing is checked, as in `check_rows`.
    """
    if torch.compiler.is_compiling():
        return
    if not isinstance(early, torch.Tensor) or early.dtype != torch.int64:
        raise UsageTypeError(f"early must be an int64 tensor, got {describe(early)}")
    if early.ndim != 3 or early.shape[:2] != tokens.shape:
        expected = [*tokens.shape, "k"]
        raise UsageError(f"early must have the shape {expected}, got {list(early.shape)}")
    if due is None:
        raise UsageError("due must be set beside early, whose answers end before it, got None")
    odd = (early != ignored) & ((early < 0) | (early >= vocab_size))
    if odd.any():
        place = odd.nonzero()[0].tolist()
        raise UsageError(
            f"early must be {ignored} or in 0 .. {vocab_size - 1}, got {int(early[tuple(place)])} "
            f"at row {place[0]}, position {place[1]}, step {place[2] + 1}"
        )


def check_positions(positions: Any, tokens: Any, lengths: Any) -> None:
    """Raise an error unless `positions` holds a number, from 0, for each real token.

    Under torch.compile nothing is checked, as in `check_rows`.
    """
    if torch.compiler.is_compiling():
        return
    _, t = check_one_per_token("positions", positions, tokens)
    if lengths is not None:
        columns = torch.arange(t, device=positions.device)
        positions = positions.where(columns < lengths[:, None], 0)
    low, high = positions.aminmax()
    if low < 0 or high >= 2**31:
        wrong = (positions < 0) | (positions >= 2**31)
        row, column = (int(x) for x in wrong.nonzero()[0])
        raise UsageError(
            "positions must be in 0 .. 2**31 - 1 at every real token, "
            f"got {int(positions[row, column])} at row {row}, column {column}"
        )


def check_choices(config: Any) -> None:
    """Raise ValueError unless each field typed as a Literal, or that or None, has such a value."""
    for name, known in _choices_of(type(config)).items():  # type: ignore[arg-type]
        value = getattr(config, name)
        if value not in known:
            raise UsageError(f"{name} must be one of {known}, got {value!r}")


@lru_cache(maxsize=256)
def _choices_of(kind: type) -> dict[str, list[str | None]]:
    return {x.name: known for x in fields(kind) if (known := _choices(x.type))}


def added(default: Any) -> Any:
    """Declare a setting of a Config or of Training that was added since format 2 began.

    Files that were saved before lack it, and mean its default, under which everything must be as it
    was without the setting. Every other setting is demanded of a file.
    """
    return field(default=default, metadata={"added": True})


def missing_settings(config: Any, settings: Mapping[str, Any]) -> list[str]:
    """Return the settings of this Config that a saved file must hold and that are not among these.

    A setting that was written and is gone must not be replaced by its default.
    """
    demanded = [x.name for x in fields(config) if x.init and "added" not in x.metadata]
    return [name for name in demanded if name not in settings]


def _choices(kind: Any) -> list[str | None]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    parts = [_choices(part) for part in get_args(kind) if part is not NoneType]
    if not all(parts):  # a number or a text is allowed besides
        return []
    return [word for part in parts for word in part] + [None] * bool(parts)


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds an infinite value or none; None if none does.

    The test is exact: only where a sum is not finite are all values looked at. Sums take a
    twentieth of the time, and one wait for the device.
    """
    floating = {name: x.detach() for name, x in tensors.items() if x.is_floating_point()}
    sums = [x.sum().double() for x in floating.values()]
    # What is not finite leaves no sum finite; large finite values alone may do so too.
    if not sums or (len({x.device for x in sums}) == 1 and torch.stack(sums).isfinite().all()):
        return None
    return next((name for name, x in floating.items() if not x.isfinite().all()), None)
