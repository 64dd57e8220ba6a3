"""Intermediate results of products and of chains of two operators, as digits.

They are what one writes on paper: the products of a number and one digit, and of a chain the order
in which it is worked out, and its first result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from thinkers.tasks import bigint
from thinkers.tasks.number_tokens import BLANK, MINUS, NEGATIVE, PLUS, TIMES

MOST_OPERATORS = 2
"""Chains of more operators are not worked out: their results are no single sequence."""


@dataclass(frozen=True)
class Place:
    """An intermediate result of all questions of a task.

    Args:
        name: Its name: p0, p1 .. are the products of a number and one digit.
        digits: The names of its tokens.
        due: The thinking step from which it can be known, if each step adds or multiplies once.
    """

    name: str
    digits: Sequence[str]
    due: int


@dataclass(frozen=True)
class Result:
    """The tokens of an intermediate result of n questions.

    Args:
        written: Tokens without leading zeros, -1 beyond their end; none where it is not needed.
        padded: Tokens of its `Place`, with zeros above the highest digit and where it is not
            needed.
    """

    written: Int64[np.ndarray, "n _"]
    padded: Int64[np.ndarray, "n w"]


def places_of_products(name: str, width: int, count: int, due: int, base: int) -> list[Place]:
    """Return the places of the products of a number of up to `width` digits and `count` digits."""
    digits = bigint.num_digits((base**width - 1) * (base - 1), base)
    return [Place(f"{name}{j}", [str(i) for i in range(digits)], due) for j in range(count)]


def multiply_by_digits(
    number: Int64[np.ndarray, "l n"],
    digits: Int64[np.ndarray, "n w"],
    needed: Bool[np.ndarray, " n"],
    places: Sequence[Place],
    base: int,
) -> list[Result]:
    """Return the products of a number and each digit of another, least significant first."""
    results = []
    for j, place in enumerate(places):
        digit = digits[:, j] if j < digits.shape[1] else np.full(len(digits), -1)
        there = needed & (digit >= 0)
        factor = np.where(there, digit, 0)[None]
        limbs = bigint.num_limbs(base ** len(place.digits))
        product = bigint.multiply(number, factor, limbs)
        results.append(_result(product, base, len(place.digits), there))
    return results


def places_of_chain(size: int, num_operators: int, operators: str, base: int) -> list[Place]:
    """Return the intermediate results of chains of numbers of up to `size` digits.

    These are: the question in the order in which it is worked out; if its first operator is *, the
    products p of the first number and each digit of the second; and with two operators the result t
    of the first, and if both are *, the products q of t and each digit of the last number.
    """
    names = [f"{x}.{i}" for x in "xyz"[: num_operators + 1] for i in range(size)]
    names[size:size] = ["op1"]
    if num_operators == 2:
        names[2 * size + 1 : 2 * size + 1] = ["op2"]
    places = [Place("order", ["sign", *names], 1)]
    if "*" in operators:
        places += places_of_products("p", size, size, 2, base)
    if num_operators == 2:
        width = _width_of_first(size, operators, base)
        places.append(Place("t", ["sign", *(str(i) for i in range(width))], 3))
        if "*" in operators:
            places += places_of_products("q", width, size, 4, base)
    return places


def work_out_chain(
    digits: Int64[np.ndarray, "n i w"],
    operators: Int64[np.ndarray, "n m"],
    places: Sequence[Place],
    size: int,
    base: int,
) -> list[Result]:
    """Return the intermediate results of chains, in the order of `places_of_chain`.

    a - b*c is worked out as -b*c + a, so that the first operator comes first; a + b*c likewise.
    """
    last = operators[:, 1] if operators.shape[1] == 2 else np.full(len(operators), -1)
    first = operators[:, 0]
    later = (last == TIMES) & (first != TIMES)
    negated = later & (first == MINUS)
    order = np.where(later[:, None], [1, 2, 0], [0, 1, 2])[:, : digits.shape[1]]
    digits = np.take_along_axis(digits, order[:, :, None], 1)
    first, last = np.where(later, TIMES, first), np.where(later, PLUS, last)

    by_name: dict[str, list[Place]] = {}
    for place in places:
        by_name.setdefault(place.name.rstrip("0123456789"), []).append(place)
    results = [_order(digits, first, last, negated, size)]
    limbs = bigint.num_limbs(base ** (3 * size + 1))
    bases = np.full(len(digits), base)
    x, y = (bigint.from_digits(digits[:, i], bases, limbs) for i in range(2))
    if "p" in by_name:
        results += multiply_by_digits(x, digits[:, 1], first == TIMES, by_name["p"], base)
    if "t" in by_name:
        product = bigint.multiply(x, y, limbs)
        added = np.where(first == MINUS, x - y, x + y)
        t = bigint.carry(np.where(first == TIMES, np.where(negated, -product, product), added))
        magnitude, negative = bigint.magnitude(t)
        width = len(by_name["t"][0].digits) - 1
        number = bigint.to_digits(magnitude, bases, width)
        signed = np.column_stack([np.where(negative > 0, NEGATIVE, -1), number])
        sign = np.where(negative > 0, NEGATIVE, PLUS)
        # Without a second operator the first result is the answer, and is not written twice.
        written = np.where(last[:, None] >= 0, signed, -1)
        results.append(Result(written, np.column_stack([sign, np.maximum(number, 0)])))
        if "q" in by_name:
            both = (first == TIMES) & (last == TIMES)
            # Before a second product the first result is one too, and has no sign.
            results += multiply_by_digits(magnitude, digits[:, 2], both, by_name["q"], base)
    return results


def _order(
    digits: Int64[np.ndarray, "n i w"],
    first: Int64[np.ndarray, " n"],
    last: Int64[np.ndarray, " n"],
    negated: Bool[np.ndarray, " n"],
    size: int,
) -> Result:
    """Return the question in the order in which it is worked out."""
    wide = np.pad(digits, ((0, 0), (0, 0), (0, size - digits.shape[2])), constant_values=-1)
    zeros = np.maximum(wide, 0)
    sign = np.where(negated, NEGATIVE, -1)
    written = [sign, wide[:, 0], first, wide[:, 1]]
    padded = [np.where(negated, NEGATIVE, PLUS), zeros[:, 0], first, zeros[:, 1]]
    if digits.shape[1] == 3:
        written += [last, wide[:, 2]]
        padded += [np.where(last < 0, BLANK, last), zeros[:, 2]]
    return Result(np.column_stack(written), np.column_stack(padded))


def _width_of_first(size: int, operators: str, base: int) -> int:
    """Return the most digits of the first result of a chain."""
    most = base**size - 1
    bounds = {"*": most * most, "+": 2 * most, "-": most}
    return bigint.num_digits(max(bounds[operator] for operator in operators), base)


def _result(
    number: Int64[np.ndarray, "l n"], base: int, width: int, there: Bool[np.ndarray, " n"]
) -> Result:
    bases = np.full(number.shape[1], base)
    digits = bigint.to_digits(number, bases, width)
    return Result(
        np.where(there[:, None], digits, -1),
        np.where(there[:, None], np.maximum(digits, 0), 0),
    )
