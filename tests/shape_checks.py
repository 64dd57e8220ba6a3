"""Checks of annotated shapes in every call, without those that have passed before.

A check takes longer than most calls do. What it reads are types, data types, the sizes that an
annotation names as numbers, and which other sizes are equal. Calls of a function that agree in all
of these have the same outcome, so only the first of them is checked.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable
from typing import Any

import jaxtyping
import torch

check_every_call = jaxtyping.jaxtyped


def form_of_tensor(x: torch.Tensor) -> object:
    return type(x), x.dtype, x.shape


def form_of_sequence(values: tuple[Any, ...] | list[Any]) -> object:
    return type(values), *[form(x) for x in values]


def form_of_dict(values: dict[Any, Any]) -> object:
    return type(values), *[(name, form(x)) for name, x in values.items()]


FORMS: list[tuple[type, Callable[[Any], object]]] = [
    (torch.Tensor, form_of_tensor),
    (tuple, form_of_sequence),
    (list, form_of_sequence),
    (dict, form_of_dict),
    (str, str),  # annotations of literals read it
    (object, type),
]
FOUND: dict[type, Callable[[Any], object]] = {}  # the search in FORMS, once for each type


def form(value: object) -> object:
    """All that a check may read of a value, as a key."""
    kind = type(value)
    how = FOUND.get(kind)
    if how is None:
        how = FOUND[kind] = next(how for base, how in FORMS if issubclass(kind, base))
    return how(value)


def pattern(found: object, kept: frozenset[int], order: dict[int, int]) -> object:
    """The form with sizes other than those kept numbered in the order of their appearance."""
    if isinstance(found, torch.Size):
        return tuple(x if x in kept else order.setdefault(x, -1 - len(order)) for x in found)
    if isinstance(found, tuple):
        return tuple(pattern(x, kept, order) for x in found)
    return found


def sizes_by_number(fn: Callable[..., Any]) -> frozenset[int] | None:
    """Sizes that annotations of `fn` name as numbers, and 1; None if they compute with sizes."""
    text = " ".join(map(str, fn.__annotations__.values()))
    shapes = re.findall(r"\[[\w.]+, ['\"](.*?)['\"]\]", text)
    axes = [axis.lstrip("*#") for shape in shapes for axis in shape.split()]
    if not all(re.fullmatch(r"\w*|\.\.\.", axis) for axis in axes):
        return None
    return frozenset({1, *(int(axis) for axis in axes if axis.isdigit())})


def jaxtyped(fn: Any = None, *, typechecker: Any) -> Any:
    """Decorate as jaxtyping does; check arguments and result after the call, each form once."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not isinstance(fn, types.FunctionType) or inspect.isgeneratorfunction(fn):
        return check_every_call(fn, typechecker=typechecker)
    results: list[Any] = []

    def given(*args: Any, **kwargs: Any) -> Any:
        return results.pop()

    # The names in annotations are those of the module of `fn`.
    body = types.FunctionType(given.__code__, fn.__globals__, fn.__name__, None, given.__closure__)
    checked = check_every_call(functools.update_wrapper(body, fn), typechecker=typechecker)
    passed, kept = set[object](), sizes_by_number(fn)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        found = form((args, kwargs, result))
        if found not in passed:
            whole = found if kept is None else pattern(found, kept, {})
            if whole not in passed:
                results.append(result)
                checked(*args, **kwargs)
            passed.update((found, whole))
        return result

    return call
