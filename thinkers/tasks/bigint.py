"""Exact integers of any size, many at once, in numpy: columns of limbs in base 2**20.

A number is a column of an (l, n) array of int64, least significant limb first. All limbs are in
0 .. 2**20 - 1, except the last, which holds the rest of the number with its sign. A product of two
limbs has 40 bits, so that 2**23 of them can be summed before a carry without overflow; and five
digits of any base up to 16 fit in a limb.
"""

import numpy as np
from jaxtyping import Int64

BITS = 20
MASK = (1 << BITS) - 1
CHUNK = 5
"""Digits that are converted at once: 16**5 = 2**20."""


def num_limbs(bound: int) -> int:
    """Return the number of limbs that hold every number from -bound to bound."""
    return max(1, -(-bound.bit_length() // BITS))


def num_digits(number: int, base: int) -> int:
    """Return the number of digits of `number`, which is at least 0, in `base`."""
    count = 1
    while number >= base:
        number //= base
        count += 1
    return count


def carry(limbs: Int64[np.ndarray, "l n"]) -> Int64[np.ndarray, "l n"]:
    """Bring every limb but the last into range, in place, and return `limbs`."""
    # The shift of numpy is arithmetic: a negative limb borrows from the next one.
    for low, high in zip(limbs[:-1], limbs[1:], strict=True):
        high += low >> BITS
        low &= MASK
    return limbs


def from_digits(
    digits: Int64[np.ndarray, "n w"], base: Int64[np.ndarray, " n"], limbs: int
) -> Int64[np.ndarray, "l n"]:
    """Return the numbers with these digits, least significant first; -1 is no digit.

    Args:
        limbs: Number of limbs, enough to hold them: see `num_limbs`.
    """
    width = digits.shape[1]
    number = np.zeros((limbs, len(digits)), np.int64)
    for start in reversed(range(0, width, CHUNK)):
        number *= base**CHUNK
        chunk = np.zeros(len(digits), np.int64)
        for column in reversed(range(start, min(start + CHUNK, width))):
            chunk *= base
            chunk += np.maximum(digits[:, column], 0)
        number[0] += chunk
        carry(number)
    return number


def to_digits(
    limbs: Int64[np.ndarray, "l n"], base: Int64[np.ndarray, " n"], width: int
) -> Int64[np.ndarray, "n w"]:
    """Return the digits of numbers in 0 .. base**width - 1, least significant first, then -1."""
    limbs = limbs.copy()
    digits = np.empty((limbs.shape[1], width), np.int64)
    scale = base**CHUNK  # one long division gives five digits
    for start in range(0, width, CHUNK):
        rest = limbs[0] if start + CHUNK >= width else _divide(limbs, scale)
        for column in range(start, min(start + CHUNK, width)):
            quotient = rest // base
            digits[:, column] = rest - quotient * base
            rest = quotient
    # Digits above the highest that is not 0 become -1; the first digit stays, since 0 is written 0.
    written = np.logical_or.accumulate(digits[:, ::-1] > 0, axis=1)[:, ::-1]
    digits[:, 1:][~written[:, 1:]] = -1
    return digits


def _divide(
    limbs: Int64[np.ndarray, "l n"], divisor: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Divide in place by long division: return the remainders, leave the quotients in `limbs`."""
    rest = np.zeros_like(limbs[0])
    for limb in limbs[::-1]:
        rest = (rest << BITS) + limb
        np.floor_divide(rest, divisor, out=limb)
        rest -= limb * divisor
    return rest


def multiply(
    a: Int64[np.ndarray, "i n"], b: Int64[np.ndarray, "j n"], limbs: int
) -> Int64[np.ndarray, "l n"]:
    """Return the products of numbers that are not negative; `limbs` must be enough for them."""
    product = np.zeros((limbs, a.shape[1]), np.int64)
    for shift, limb in enumerate(a[:limbs]):
        some = b[: limbs - shift]
        product[shift : shift + len(some)] += limb * some
    return carry(product)


def magnitude(
    limbs: Int64[np.ndarray, "l n"],
) -> tuple[Int64[np.ndarray, "l n"], Int64[np.ndarray, " n"]]:
    """Return the absolute values, and 1 for each negative number, 0 for the others."""
    negative = limbs[-1] < 0
    return carry(np.where(negative, -limbs, limbs)), negative.astype(np.int64)
