"""Counter-based random numbers: pure functions of keys and counters, in any order, without state.

Batches, noise and splits are drawn by them, so that a resumed run, another rank or another order
of rows draws the same. A stream is a 64-bit key; its i-th number is the finaliser of SplitMix64
(Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195) applied to key + i * GOLDEN.
Arithmetic is modulo 2**64.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt64
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_ONES = 2**64 - 1


def mix(x: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """Mix the bits of 64-bit numbers: a bijection, each output bit depending on every input bit."""
    x = x ^ (x >> np.uint64(30))
    x *= _FIRST
    x ^= x >> np.uint64(27)
    x *= _SECOND
    x ^= x >> np.uint64(31)
    return x


@lru_cache(maxsize=1024)
def constants(count: int, salt: int) -> UInt64[np.ndarray, " count"]:
    """Return odd multipliers for hashing; a larger `count` only adds to a smaller one."""
    numbers = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN + np.uint64(salt)
    found = mix(numbers) | np.uint64(1)
    found.setflags(write=False)  # every caller gets the same array
    return found


def row_keys(
    seed: int, stream: int, updates: Int64[np.ndarray, " u"], num_rows: int
) -> UInt64[np.ndarray, "u r"]:
    """Return a key for each row of each update: a hash of (seed, stream, update, row)."""
    key = mix(np.array([seed % 2**64], np.uint64) + GOLDEN)
    for numbers in (np.array([stream]), updates, np.arange(num_rows)):
        key = mix(key[..., None] + (numbers.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return key[0, 0]


class Draws:
    """Random integers for many rows at once, each row from its own key."""

    def __init__(self, keys: UInt64[np.ndarray, " n"]):
        self.keys = keys
        self.used = 0

    def __len__(self) -> int:
        return len(self.keys)

    def below(self, bound: int | Int64[np.ndarray, " n"], width: int) -> Int64[np.ndarray, "n w"]:
        """Return `width` new integers for each row, uniform in 0 .. bound - 1.

        Args:
            bound: Below 2**32, one for all rows or one for each. Probabilities differ by at most
                2**-32.
        """
        # (32 random bits * bound) >> 32 needs no division and no rejection (Lemire 2019,
        # https://doi.org/10.1145/3230636); every row uses as many numbers as any other.
        counters = np.arange(self.used + 1, self.used + width + 1, dtype=np.uint64) * GOLDEN
        self.used += width
        bits = mix(self.keys[:, None] + counters)
        bits >>= np.uint64(32)
        bits *= np.asarray(bound, np.uint64).reshape(-1, 1)
        bits >>= np.uint64(32)
        return bits.view(np.int64)


class Rng:
    """Random choices one at a time, from one key; `Draws` makes them for many rows at once."""

    def __init__(self, key: int):
        self.key, self.used = key, 0

    def below(self, bound: int) -> int:
        """Return a random integer in 0 .. bound - 1."""
        self.used += 1
        return (mix_int(self.key + self.used * int(GOLDEN)) >> 32) * bound >> 32

    def choice(self, choices: Sequence[str]) -> str:
        """Return a random element of `choices`."""
        return choices[self.below(len(choices))]

    def sample(self, choices: Sequence[str], count: int) -> list[str]:
        """Return `count` elements at different places of `choices`, in random order."""
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def hash_integers(*numbers: int) -> int:
    """Return a 64-bit hash of integers of any size."""
    found = 0
    for number in numbers:
        found = mix_int(found + number.bit_length() + 1)
        for place in range(0, number.bit_length(), 64):
            found = mix_int(found + int(GOLDEN) * ((number >> place & _ONES) + 1))
    return found


def mix_int(x: int) -> int:
    """Return `mix` of one Python integer, many times faster than by an array of one element."""
    x &= _ONES
    x = (x ^ x >> 30) * int(_FIRST) & _ONES
    x = (x ^ x >> 27) * int(_SECOND) & _ONES
    return x ^ x >> 31


def draw(*numbers: int) -> int:
    """Return 63 random bits that are a function of `numbers`."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def seed_generators(device: torch.device, *numbers: int) -> None:
    """Seed torch's generators by `numbers`, so that dropout is a function of them."""
    # torch.manual_seed seeds every kind of device there is, which takes as long as a small layer.
    torch.default_generator.manual_seed(draw(*numbers))
    if device.type == "cuda":
        torch.cuda.manual_seed(draw(*numbers))


_GOLDEN_SIGNED = int(GOLDEN) - 2**64
"""GOLDEN as int64, the largest integer type of torch on every device; products wrap alike."""


def uniform(
    keys: Int[Tensor, " b"], stream: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return uniform numbers in [0, 1) of shape (b, *shape), a function of each row's key alone.

    A row draws the same numbers at any index of a batch.
    """
    count = torch.arange(math.prod(shape), device=keys.device).view(shape)
    seeds = mix_tensor(keys + mix_tensor(torch.tensor(stream + 1, device=keys.device)))
    bits = mix_tensor(seeds.view(-1, *[1] * len(shape)) + count * _GOLDEN_SIGNED)
    # 53 bits fill the mantissa of a float64; the shift of an int64 copies the sign, hence the mask.
    return ((bits >> 11) & (2**53 - 1)).to(torch.float64).div(2**53).to(dtype)


def normal(
    keys: Int[Tensor, " b"], stream: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return standard normal numbers (b, *shape), by the Box-Muller transform of uniform ones."""
    u, angle = uniform(keys, stream, (2, *shape), torch.float64).unbind(1)
    return ((-2 * (1 - u).log()).sqrt() * (2 * math.pi * angle).cos()).to(dtype)


def mix_tensor(x: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """Return `mix` of int64 numbers plus GOLDEN; masks make right shifts logical."""
    x = (x + _GOLDEN_SIGNED) ^ (((x + _GOLDEN_SIGNED) >> 30) & (2**34 - 1))
    x = x * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))
