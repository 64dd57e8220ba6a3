"""Exact whole numbers of any size, many at once: rows of limbs in base 2**20.

A number is a column of an (l, n) array, least significant limb first. All limbs are in
0 .. 2**20 - 1, except the last, which holds whatever is left, the sign included. Twenty bits leave
room in 64 for sums of limb products, and hold five digits of any base up to 16.
"""

import numpy as np
from jaxtyping import Int64

BITS = 20
MASK = (1 << BITS) - 1
CHUNK = 5


def num_limbs(bound: int) -> int:
    """How many limbs hold every number from -bound to bound."""
    return max(1, -(-bound.bit_length() // BITS))


def num_digits(number: int, base: int) -> int:
    """How many digits `number`, at least 0, takes in `base`."""
    count = 1
    while number >= base:
        number //= base
        count += 1
    return count


def carry(limbs: Int64[np.ndarray, "l n"]) -> Int64[np.ndarray, "l n"]:
    """The same numbers, in place, with every limb but the last in range."""
    for low, high in zip(limbs[:-1], limbs[1:], strict=True):
        high += low >> BITS
        low &= MASK
    return limbs


def from_digits(
    digits: Int64[np.ndarray, "n w"], base: Int64[np.ndarray, " n"], limbs: int
) -> Int64[np.ndarray, "l n"]:
    """The numbers that the digits write, least significant first; -1 is no digit.

    Args:
        limbs: Enough to hold them, see `num_limbs`.
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
    """The digits of numbers from 0 to base**width - 1, least significant first, -1 beyond them."""
    limbs = limbs.copy()
    digits = np.empty((limbs.shape[1], width), np.int64)
    scale = base**CHUNK
    for start in range(0, width, CHUNK):
        rest = limbs[0] if start + CHUNK >= width else _divide(limbs, scale)
        for column in range(start, min(start + CHUNK, width)):
            quotient = rest // base
            digits[:, column] = rest - quotient * base
            rest = quotient
    written = np.logical_or.accumulate(digits[:, ::-1] > 0, axis=1)[:, ::-1]
    digits[:, 1:][~written[:, 1:]] = -1
    return digits


def _divide(
    limbs: Int64[np.ndarray, "l n"], divisor: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """The remainders of a long division that leaves the quotients in `limbs`."""
    rest = np.zeros_like(limbs[0])
    for limb in limbs[::-1]:
        rest = (rest << BITS) + limb
        np.floor_divide(rest, divisor, out=limb)
        rest -= limb * divisor
    return rest


def multiply(
    a: Int64[np.ndarray, "i n"], b: Int64[np.ndarray, "j n"], limbs: int
) -> Int64[np.ndarray, "l n"]:
    """The products, exact where neither number is negative and `limbs` are enough to hold them."""
    product = np.zeros((limbs, a.shape[1]), np.int64)
    for shift, limb in enumerate(a[:limbs]):
        some = b[: limbs - shift]
        product[shift : shift + len(some)] += limb * some
    return carry(product)


def magnitude(
    limbs: Int64[np.ndarray, "l n"],
) -> tuple[Int64[np.ndarray, "l n"], Int64[np.ndarray, " n"]]:
    """The absolute values, and 1 where a number is negative and 0 elsewhere."""
    negative = limbs[-1] < 0
    return carry(np.where(negative, -limbs, limbs)), negative.astype(np.int64)
