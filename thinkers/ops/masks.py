"""Masks as functions of the indices (b, h, q, k), True where the pair belongs to the mask.

The indices are int64 tensors that broadcast to (b, h, t, s), as in the stops of
`stop_grad_attention`: one function serves to stop gradients, build a table and draw a picture.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from thinkers.errors import UsageError
from thinkers.user_paths import user_path

PairMask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Banded:
    """A mask with the range of keys outside of which it is False and need not be evaluated."""

    mask: PairMask
    span: Callable[[int, int], tuple[int, int]]
    """(first query, end of the queries) -> (first key, end of the keys)."""

    def __call__(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.mask(b, h, q, k)


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """True where the key is not later than the query."""
    return k <= q


def reasoning_near(num_reasoning: int, window: int) -> PairMask:
    """True where the key is a reasoning token of at most `window` time steps ago.

    Every time step is an ordinary token followed by `num_reasoning` reasoning tokens. Reasoning
    tokens of the query's own time step are not near, and ordinary tokens never are.
    """
    _at_least("num_reasoning", num_reasoning, 0)
    _at_least("window", window, 0)
    size = num_reasoning + 1

    def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # Comparing positions instead of time steps divides one row and one column of indices, not
        # a whole (t, s) tensor of them.
        newest, oldest = q // size * size, (q // size - window) * size
        return (k % size != 0) & (k < newest) & (k >= oldest)

    return Banded(near, lambda first, end: ((first // size - window) * size, end))


def reasoning_far(num_reasoning: int, window: int) -> PairMask:
    """True where the key is a reasoning token of more than `window` time steps ago."""
    _at_least("num_reasoning", num_reasoning, 0)
    _at_least("window", window, 0)
    size = num_reasoning + 1

    def far(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k % size != 0) & (k < (q // size - window) * size)

    return Banded(far, lambda first, end: (0, ((end - 1) // size - window) * size))


def thought_chains(num_thoughts: int) -> PairMask:
    """True where a ThoughtsFormer element may attend: bases up to its own, its chain up to itself.

    The sequence is chain after chain: a base element and its `num_thoughts` thoughts.
    """
    _at_least("num_thoughts", num_thoughts, 0)
    size = num_thoughts + 1

    def chains(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        base = (k % size == 0) & (k // size <= q // size)
        return base | ((k // size == q // size) & (k <= q))

    return chains


def sections(size: int) -> PairMask:
    """True where the key lies in the query's own section and is not later than the query."""
    _at_least("size", size, 1)

    def same(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= q // size * size) & (k <= q)

    return Banded(same, lambda first, end: (first // size * size, end))


def finished_sections(size: int) -> PairMask:
    """True where the key lies in a section that ended before the query's section began."""
    _at_least("size", size, 1)

    def before(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k < q // size * size

    return Banded(before, lambda first, end: (0, (end - 1) // size * size))


def only_heads(mask: PairMask, heads: tuple[int, ...]) -> PairMask:
    """`mask` for the given query heads, False for all others."""

    def some(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        wanted = torch.zeros_like(h, dtype=torch.bool)
        for head in heads:
            wanted = wanted | (h == head)
        return mask(b, h, q, k) & wanted

    return some


def both(first: PairMask, second: PairMask) -> PairMask:
    """True where both masks are True."""
    return lambda b, h, q, k: first(b, h, q, k) & second(b, h, q, k)


def either(first: PairMask, second: PairMask) -> PairMask:
    """True where at least one of the masks is True."""
    return lambda b, h, q, k: first(b, h, q, k) | second(b, h, q, k)


def invert(mask: PairMask) -> PairMask:
    """True where the mask is False."""
    return lambda b, h, q, k: ~mask(b, h, q, k)


def table(
    mask: PairMask,
    t: int,
    s: int | None = None,
    num_heads: int = 1,
    device: torch.device | str = "cpu",
) -> Bool[Tensor, "h t s"]:
    """The mask as a tensor for `t` queries and `s` keys, by default `t`."""
    q = torch.arange(t, device=device)[None, None, :, None]
    k = torch.arange(t if s is None else s, device=device)[None, None, None, :]
    h = torch.arange(num_heads, device=device)[None, :, None, None]
    zero = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=device)
    return mask(zero, h, q, k).expand(1, num_heads, t, k.shape[3])[0]


def picture(
    mask: PairMask, n: int, path: str | Path | None = None, cell: int = 12, head: int = 0
) -> UInt8[Tensor, "height width 3"]:
    """Draw the mask for `n` queries (rows) and `n` keys (columns), and write a PNG to `path`.

    Args:
        cell: Width and height of a pair in pixels, its border of one pixel included.
        head: Index of the query head to draw.

    Raises:
        ValueError: if `n`, `cell` or `head` is too small.
    """
    _at_least("n", n, 1)
    _at_least("head", head, 0)
    _at_least("cell", cell, 2)
    pixels = colours(table(mask, n, num_heads=head + 1)[head], cell)
    if path is not None:
        user_path(path).write_bytes(png(pixels))
    return pixels


def colours(mask: Bool[Tensor, "t s"], cell: int = 12) -> UInt8[Tensor, "height width 3"]:
    """Draw a table: blue where it is True, a square of `cell` pixels for each pair."""
    blue, pale, line = torch.tensor([[38, 84, 160], [232, 237, 245], [255, 255, 255]]).byte()
    pixels = torch.where(mask[:, :, None], blue, pale)
    pixels = pixels.repeat_interleave(cell, dim=0).repeat_interleave(cell, dim=1)
    pixels[cell - 1 :: cell] = line
    pixels[:, cell - 1 :: cell] = line
    return pixels


def png(pixels: UInt8[Tensor, "height width 3"]) -> bytes:
    """Encode an image as a PNG."""
    height, width, _ = pixels.shape
    # A 0 before each row of pixels: the filter type "none".
    filtered = torch.cat([pixels.new_zeros(height, 1), pixels.reshape(height, -1)], dim=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(filtered.numpy().tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    )


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be an integer of at least {least}, got {value!r}")
