"""Random numbers that are a pure function of who asks: no generator, no state, any order.

A stream is a 64-bit key; its i-th number is the finaliser of SplitMix64 (Steele, Lea and Flood
2014, https://doi.org/10.1145/2660193.2660195) applied to key + i * GOLDEN. Arithmetic is modulo
2**64.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_ONES = 2**64 - 1


def mix(x: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """A bijection of 64-bit numbers whose every output bit depends on every input bit."""
    x = x ^ (x >> np.uint64(30))
    x *= _FIRST
    x ^= x >> np.uint64(27)
    x *= _SECOND
    x ^= x >> np.uint64(31)
    return x


def constants(count: int, salt: int) -> UInt64[np.ndarray, " count"]:
    """Odd multipliers, the first ones the same for every `count`."""
    numbers = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN + np.uint64(salt)
    return mix(numbers) | np.uint64(1)


def row_keys(
    seed: int, stream: int, updates: Int64[np.ndarray, " u"], num_rows: int
) -> UInt64[np.ndarray, "u r"]:
    """One key for every row of every update: a hash of (seed, stream, update, row)."""
    key = mix(np.array([seed % 2**64], np.uint64) + GOLDEN)
    for numbers in (np.array([stream]), updates, np.arange(num_rows)):
        key = mix(key[..., None] + (numbers.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return key[0, 0]


class Draws:
    """Numbers for many rows at once, each row from its own key."""

    def __init__(self, keys: UInt64[np.ndarray, " n"]):
        self.keys = keys
        self.used = 0

    def __len__(self) -> int:
        return len(self.keys)

    def below(self, bound: int | Int64[np.ndarray, " n"], width: int) -> Int64[np.ndarray, "n w"]:
        """`width` new numbers for every row, uniform in 0 .. bound - 1.

        The bound, one for all rows or one for each, must be below 2**32; no number is more than
        2**-32 likelier than another.
        """
        counters = np.arange(self.used + 1, self.used + width + 1, dtype=np.uint64) * GOLDEN
        self.used += width
        bits = mix(self.keys[:, None] + counters)
        bits >>= np.uint64(32)
        bits *= np.asarray(bound, np.uint64).reshape(-1, 1)
        bits >>= np.uint64(32)
        return bits.view(np.int64)


class Dice:
    """Random choices one at a time, a function of a key; `Draws` is for many rows."""

    def __init__(self, key: int):
        self.key, self.used = key, 0

    def below(self, bound: int) -> int:
        """A number of 0 .. bound - 1."""
        self.used += 1
        return (mixed(self.key + self.used * int(GOLDEN)) >> 32) * bound >> 32

    def pick(self, choices: Sequence[str]) -> str:
        """One of these."""
        return choices[self.below(len(choices))]

    def deal(self, choices: Sequence[str], count: int) -> list[str]:
        """So many of these, all different, in random order."""
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def hashed(*numbers: int) -> int:
    """64 bits that depend on all of these, however large they are."""
    found = 0
    for number in numbers:
        found = mixed(found + number.bit_length() + 1)
        for place in range(0, number.bit_length(), 64):
            found = mixed(found + int(GOLDEN) * ((number >> place & _ONES) + 1))
    return found


def mixed(x: int) -> int:
    """As `mix`, for one number: many times faster than an array of one."""
    x &= _ONES
    x = (x ^ x >> 30) * int(_FIRST) & _ONES
    x = (x ^ x >> 27) * int(_SECOND) & _ONES
    return x ^ x >> 31
