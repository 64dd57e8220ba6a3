"""Strict JSON: one canonical form to write, and a reader with limits and a schema."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from thinkers.errors import DamagedError, ThinkersError

DEEPEST, MOST_KEYS, LONGEST_INT = 64, 300_000, 40
MOST_VALUES = 2_000_000
Schema = Mapping[str, type | tuple[type, ...]]
"""{field: its type, or types}; types are those of `json.loads`, and NoneType."""


def to_json(value: Any) -> bytes:
    """Return the canonical JSON of a value: equal values give equal bytes, which are hashed."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_json(content: bytes, where: str, error: type[ThinkersError] = DamagedError) -> Any:
    """Parse JSON in UTF-8, as strictly as its standard allows: RFC 8259.

    Refused are keys that occur twice, of which Python would drop one, numbers that are not finite,
    nesting beyond DEEPEST, more keys than MOST_KEYS, and more values than MOST_VALUES.

    Args:
        where: The name of the source, for errors.

    Raises:
        ThinkersError: The content is not such JSON; the class is `error`.
    """
    left = MOST_KEYS

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal left
        left -= len(pairs)
        if left < 0:
            raise ValueError(f"it has more than {MOST_KEYS} keys")
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = next(x for x, n in Counter(name for name, _ in pairs).items() if n > 1)
            raise ValueError(f"the key {twice[:80]!r} occurs twice")
        return made

    try:
        _check_numbers(content)
        value = json.loads(
            content.decode(),
            object_pairs_hook=make_object,
            parse_constant=_not_finite,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
        _check_depth(value)
    except UnicodeDecodeError as found:
        raise error(f"{where} is not JSON: byte {found.start} is not UTF-8") from None
    except RecursionError:
        raise error(f"{where} is not JSON: it is nested deeper than {DEEPEST}") from None
    except ValueError as found:
        raise error(f"{where} is not JSON: {found}") from None
    return value


def check_schema(
    value: Any, schema: Schema, where: str, error: type[ThinkersError] = DamagedError
) -> None:
    """Check that `value` is an object whose fields have these types; further fields may be there.

    Raises:
        ThinkersError: A field is missing or wrong, the first of which is named; the class is
            `error`.
    """
    if not isinstance(value, dict):
        raise error(f"{where} must hold a JSON object, got {json_type(value)}")
    for name, types in schema.items():
        known = types if isinstance(types, tuple) else (types,)
        if name not in value:
            raise error(f"{where} lacks {name!r}")
        # By the type itself: True is an int to isinstance.
        if type(value[name]) not in known:
            expected = " or ".join("null" if x is type(None) else x.__name__ for x in known)
            raise error(f"{where}: {name} must be {expected}, got {json_type(value[name])}")


def json_type(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _check_numbers(content: bytes) -> None:
    """Refuse at once what would take much memory before its keys and values can be counted.

    There are no more keys than colons or pairs of quotes, and no more values than commas and one
    for each list or object. Characters in texts are counted as well, so some files are refused that
    have fewer.
    """
    keys, commas = min(content.count(b":"), content.count(b'"') // 2), content.count(b",")
    if keys > MOST_KEYS:
        raise ValueError(f"its {keys} colons and quotes allow more than {MOST_KEYS} keys")
    if commas > MOST_VALUES:
        raise ValueError(f"its {commas} commas allow more than {MOST_VALUES} values")


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise RecursionError


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond the range of numbers")
    return value


def _short_int(text: str) -> int:
    if len(text) > LONGEST_INT:
        raise ValueError(f"an integer has {len(text)} digits, at most {LONGEST_INT} are read")
    return int(text)
