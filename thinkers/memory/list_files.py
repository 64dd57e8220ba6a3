"""The file of an inverted index, which is its memory image: a header, then four parts.

    offset 0    header, 128 bytes: what `_HEADER` holds, zeros, and its own CRC-32 in the last four
    centroids   (L, d) float32     of the lists
    starts      (L + 1,) int64     list i holds keys starts[i] .. starts[i + 1] - 1
    ids         (n,) int64         of the keys, sorted by list
    keys        (n, d) float16     of unit length

Numbers are little-endian; each part is filled up with zeros to a multiple of 64 bytes, and has a
CRC-32 over all of them. A CRC-32 finds every change of up to 32 adjacent bits.
"""

import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt8

from thinkers.errors import DamagedError, FormatError
from thinkers.files import disk_errors, open_file, write_file

FORMAT = 1
_MAGIC = b"tk lists"
_HEADER = struct.Struct("<8sII QQQ qQd 4I")
"""_MAGIC, FORMAT, d; L, n, the most keys of an id; generation, probes, recall; CRC of each part."""
_CRC = struct.Struct("<I")
_HEADER_BYTES, _ALIGNMENT = 128, 64


@dataclass
class Parts:
    """Arrays of an inverted index, all of them views of one image of its file.

    Args:
        keys_per_id: The most keys that share an id; 1 without keys.
        generation: Generation of the store that the keys are from.
        probes: Lists to be searched for a query.
        recall: Share of the neighbours that these lists held when the index was built.
    """

    image: UInt8[np.ndarray, " bytes"]
    centroids: Float32[np.ndarray, "l d"]
    starts: Int64[np.ndarray, " l+1"]
    ids: Int64[np.ndarray, " n"]
    keys: Float16[np.ndarray, "n d"]
    keys_per_id: int = 1
    generation: int = 0
    probes: int = 1
    recall: float = 1.0

    @classmethod
    def empty(cls, num_lists: int, n: int, d: int) -> "Parts":
        """Return parts that hold zeros."""
        return _views(np.zeros(_ends(num_lists, n, d)[-1], np.uint8), num_lists, n, d)


def write_parts(path: Path, parts: Parts) -> None:
    """Write an index atomically."""
    num_lists, d = parts.centroids.shape
    sizes = (num_lists, len(parts.ids), parts.keys_per_id)
    found = (parts.generation, parts.probes, parts.recall)
    crcs = _crcs(parts.image, _ends(num_lists, len(parts.ids), d))
    header = _HEADER.pack(_MAGIC, FORMAT, d, *sizes, *found, *crcs)
    header = header.ljust(_HEADER_BYTES - _CRC.size, b"\0")
    header += _CRC.pack(zlib.crc32(header))
    parts.image[:_HEADER_BYTES] = np.frombuffer(header, np.uint8)
    write_file(path, parts.image.data)


def read_parts(path: Path) -> Parts:
    """Read an index, every byte of which is checked.

    Raises:
        DamagedError: It is damaged, or no index.
        FormatError: It is of another version.
        FileNotFoundError: Nothing is there.
    """
    with open_file(path) as stream, disk_errors(path):
        size = os.fstat(stream.fileno()).st_size
        header = stream.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            raise _damaged(path, "it does not begin as one")
        if zlib.crc32(header[: -_CRC.size]) != _CRC.unpack(header[-_CRC.size :])[0]:
            raise _damaged(path, "the CRC of its header differs")
        _, version, d, num_lists, n, per_id, generation, probes, recall, *crcs = (
            _HEADER.unpack_from(header)
        )
        if version != FORMAT:
            raise FormatError(
                f"{path} has format {version}, this version of thinkers reads {FORMAT}; rebuild it"
            )
        ends = _ends(num_lists, n, d)
        if size != ends[-1]:
            raise _damaged(path, f"its header asks for {ends[-1]} bytes, and it has {size}")
        image = np.empty(size, np.uint8)
        image[:_HEADER_BYTES] = np.frombuffer(header, np.uint8)
        if stream.readinto(image.data[_HEADER_BYTES:]) != size - _HEADER_BYTES:
            raise _damaged(path, "it became shorter while it was read")
    names = ("centroids", "starts", "ids", "keys")
    for name, crc, expected in zip(names, _crcs(image, ends), crcs, strict=True):
        if crc != expected:
            raise _damaged(path, f"the CRC of its {name} differs")
    parts = _views(image, num_lists, n, d)
    if parts.starts[0] != 0 or parts.starts[-1] != n or (np.diff(parts.starts) < 0).any():
        raise _damaged(path, "its lists do not hold its keys")
    parts.keys_per_id, parts.generation = per_id, generation
    parts.probes, parts.recall = probes, recall
    return parts


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"{path} is not the index that was written: {why}; rebuild it")


def _views(image: UInt8[np.ndarray, " bytes"], num_lists: int, n: int, d: int) -> Parts:
    kinds = (("<f4", (num_lists, d)), ("<i8", (num_lists + 1,)), ("<i8", (n,)), ("<f2", (n, d)))
    arrays = []
    for start, (kind, shape) in zip(_ends(num_lists, n, d), kinds, strict=False):
        size = math.prod(shape) * np.dtype(kind).itemsize
        arrays.append(image[start : start + size].view(kind).reshape(shape))
    centroids, starts, ids, keys = arrays
    return Parts(image, centroids, starts, ids, keys)


def _ends(num_lists: int, n: int, d: int) -> tuple[int, ...]:
    """Return the byte after the header, and after each part with what fills it up."""
    ends = [_HEADER_BYTES]
    for size in (4 * num_lists * d, 8 * (num_lists + 1), 8 * n, 2 * n * d):
        ends.append(ends[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return tuple(ends)


def _crcs(image: UInt8[np.ndarray, " bytes"], ends: tuple[int, ...]) -> list[int]:
    return [zlib.crc32(image[a:b].data) for a, b in zip(ends[:-1], ends[1:], strict=True)]
