"""Rows of a store as bytes: what each column holds, and the checksum over all of them.

SQLite has no checksums: a bit that flipped on the disk would be read as if it had been written.
"""

import secrets
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float16, Int8, Int64

from thinkers.errors import DamagedError, three_lines
from thinkers.json_files import parse_with_digest, with_digest
from thinkers.strict_json import Schema

FORMAT = 1
"""Version of the tables and of the bytes in them; another one is refused."""
DTYPES = ("float16", "int8")
"""Types of latents on the disk."""
LARGEST = 1 << 20
"""The largest size of a vector or a section; more in the settings of a store is damage."""
SIZES = ("dim", "index_dim", "latents", "section", "levels", "group")
"""Settings of a store that are sizes."""
_KEY = struct.Struct("<3q")
_BLOCK = struct.Struct("<12q")


@dataclass(frozen=True)
class Meta:
    """Settings and counts of a store.

    Args:
        store: Random name of this store.
        fingerprint: Fingerprint of the model whose blocks these are.
        vocabulary: Digest of the meaning of its tokens; "" as long as no text was written.
        dim: Width of a latent.
        index_dim: Width of a key.
        latents: Number of latents of a block of level 1.
        section: The most tokens of a section.
        levels: Number of levels, the sections of text included.
        group: Blocks that one of the next level is compressed from.
        dtype: Type of the latents on the disk.
        generation: Number of writes and deletions so far.
        deleted: Generation of the last deletion; 0 before any.
        last: The last id that was given.
        counts: Number of blocks of each level.
        is_wiped: False as long as deleted bytes may be left on the disk, which a reader that was
            open at the deletion still reads.
        format: Version of the tables and of the bytes in them.
    """

    store: str
    fingerprint: str
    vocabulary: str
    dim: int
    index_dim: int
    latents: int
    section: int
    levels: int
    group: int
    dtype: Literal["float16", "int8"]
    generation: int
    deleted: int
    last: int
    counts: Sequence[int]
    is_wiped: bool
    format: int = FORMAT

    @classmethod
    def empty(cls, **settings: Any) -> "Meta":
        """Return the settings of a new store.

        Args:
            settings: Fields that the model and its task determine, and `dtype`.
        """
        own: dict[str, Any] = dict(
            store=secrets.token_hex(8), generation=0, deleted=0, last=0, is_wiped=True
        )
        return cls(**own, counts=[0] * settings["levels"], **settings)

    def after_deletion(self, counts: Sequence[int]) -> "Meta":
        """Return the settings with which a deletion is committed.

        Args:
            counts: Number of blocks that are left of each level.
        """
        return replace(self, counts=counts, deleted=self.generation + 1, is_wiped=False)

    def size(self, level: int) -> int:
        """Return the number of latents of a block of this level."""
        return self.latents * (self.group // 2) ** (level - 1)

    def to_bytes(self) -> bytes:
        return with_digest(asdict(self))

    @classmethod
    def from_bytes(cls, content: Any, path: Path) -> "Meta":
        """Parse the settings of the store at `path`.

        Raises:
            FormatError: Another version wrote them.
            DamagedError: They are not as they were written.
        """
        found = _parse_sealed(content, path, "meta")
        is_valid = all(found[name] >= 1 for name in SIZES) and too_large(found) is None
        is_valid &= found["levels"] == 1 or found["group"] > 1
        counts = found["counts"]
        is_valid &= all(type(x) is int and x >= 0 for x in counts) and found["last"] >= sum(counts)
        is_valid &= len(counts) == found["levels"] and found["dtype"] in DTYPES
        if not is_valid:
            raise damaged(path, "settings that no version writes")
        return cls(**{field.name: found[field.name] for field in fields(cls)})


_META_SCHEMA: Schema = {
    "format": int,
    **dict.fromkeys(("store", "fingerprint", "vocabulary", "dtype"), str),
    **dict.fromkeys(("dim", "index_dim", "latents", "section", "levels", "group"), int),
    **dict.fromkeys(("generation", "deleted", "last"), int),
    "counts": list,
    "is_wiped": bool,
}


def too_large(settings: Mapping[str, Any]) -> str | None:
    """Describe the size that a store cannot have, of settings of `Meta`; None if there is none."""
    for name in SIZES:
        if settings[name] > LARGEST:
            return f"{name} {settings[name]}"
    levels, half = settings["levels"], settings["group"] // 2
    if settings["latents"] * half ** min(levels - 1, 64) > LARGEST:
        return f"{settings['latents']} * {half}^{levels - 1} latents in a block of level {levels}"
    return None


@dataclass
class Topic:
    """A topic: its blocks by level, and those of each level but the last that are in no group."""

    id: int
    name: str
    counts: list[int]
    ungrouped: list[list[int]]

    def to_bytes(self) -> bytes:
        return with_digest(asdict(self))

    @classmethod
    def from_bytes(cls, id: Any, content: Any, meta: Meta, path: Path) -> "Topic":
        """Parse a topic; raise DamagedError if it is not as it was written."""
        found = _parse_sealed(content, path, "topic")
        rows = [found["counts"], *found["ungrouped"]]
        is_valid = found["id"] == id and len(found["counts"]) == meta.levels
        is_valid &= len(found["ungrouped"]) == meta.levels - 1
        is_valid &= all(type(x) is list for x in rows)
        if not is_valid or any(type(x) is not int or x < 0 for row in rows for x in row):
            raise damaged(path, f"topic {id}, which no version writes so")
        counts, ungrouped = list(found["counts"]), [list(ids) for ids in found["ungrouped"]]
        return cls(id, found["name"], counts, ungrouped)


_TOPIC_SCHEMA: Schema = {"id": int, "name": str, "counts": list, "ungrouped": list}


_SCHEMAS = {"meta": (_META_SCHEMA, FORMAT), "topic": (_TOPIC_SCHEMA, None)}


@lru_cache(maxsize=1 << 14)  # every view reads them, and few of them change between two views
def _parse_sealed(content: Any, path: Path, table: str) -> dict[str, Any]:
    """Parse a column that holds JSON with its own digest; the result must not be changed."""
    if not isinstance(content, bytes):
        raise damaged(path, "a column that holds no JSON")
    return parse_with_digest(content, path, *_SCHEMAS[table])


def damaged(path: Path, found: str) -> DamagedError:
    """Build the error of a store that is not as it was written."""
    return DamagedError(
        three_lines(
            f"{path}: {found}",
            "a memory as it was written",
            "see what else is damaged by thinkers memory verify; restore the folder from a copy",
        )
    )


# Vectors ------------------------------------------------------------------------------------------


def pack_keys(keys: Float[np.ndarray, "n m d"], sizes: Sequence[int]) -> list[bytes]:
    """Return the bytes of the keys of each block."""
    halves = keys.astype("<f2")
    return [halves[i, :size].tobytes() for i, size in enumerate(sizes)]


def unpack_keys(content: bytes | bytearray, size: int, meta: Meta) -> Float16[np.ndarray, "m d"]:
    """Return the keys of a block; raise ValueError if their number does not fit the bytes."""
    return np.frombuffer(content, "<f2").reshape(size, meta.index_dim)


def pack_latents(
    latents: Float[np.ndarray, "n m c"], sizes: Sequence[int], dtype: str
) -> list[bytes]:
    """Return the bytes of the latents of each block; those of int8 begin with the factors."""
    if dtype == "float16":
        parts = [_halves(latents)]
    else:
        parts = list(_steps(latents))
    return [b"".join(part[i, :size].tobytes() for part in parts) for i, size in enumerate(sizes)]


def unpack_latents(content: bytes, size: int, meta: Meta) -> Float[np.ndarray, "m c"]:
    """Return latents in float32; raise ValueError if their number does not fit the bytes."""
    if meta.dtype == "float16":
        return np.frombuffer(content, "<f2").reshape(size, meta.dim).astype(np.float32)
    factors = np.frombuffer(content[: 4 * size], "<f4").reshape(size, 1)
    steps = np.frombuffer(content[4 * size :], np.int8).reshape(size, meta.dim)
    return steps.astype(np.float32) * factors


def rounded(latents: Float[np.ndarray, "n m c"], dtype: str) -> Float[np.ndarray, "n m c"]:
    """Return latents as they are read after they were written."""
    if dtype == "float16":
        return _halves(latents).astype(np.float32)
    factors, steps = _steps(latents)
    with np.errstate(invalid="ignore"):
        return steps.astype(np.float32) * factors


def _halves(latents: Float[np.ndarray, "n m c"]) -> Float16[np.ndarray, "n m c"]:
    with np.errstate(over="ignore"):  # what is too large is refused by its infinity
        return latents.astype("<f2")


def _steps(
    latents: Float[np.ndarray, "n m c"],
) -> tuple[Float[np.ndarray, "n m 1"], Int8[np.ndarray, "n m c"]]:
    """Return (factors, steps), latent = factor * step: a factor for each latent, a 127th of its
    largest absolute value."""
    factors = (np.abs(latents).max(2, keepdims=True) / 127).astype("<f4")
    with np.errstate(invalid="ignore"):  # a latent that is not finite, as its factor shows
        steps = np.rint(latents / np.where(factors > 0, factors, 1))
    return factors, np.nan_to_num(steps).clip(-127, 127).astype(np.int8)


# Rows ---------------------------------------------------------------------------------------------

KEY_COLUMNS = "id, topic, level, keys, crc"
"""Columns of the table of keys; `topic` is the id of the topic."""
BLOCK_COLUMNS = (
    "id, topic, level, start, stop, first_line, last_line, children, source, latents, text, "
    "tokens, crc"
)
"""Columns of the table of blocks: the first 7 are numbers, the next 5 bytes."""


def key_row(id: int, topic: int, level: int, keys: bytes) -> tuple[Any, ...]:
    return id, topic, level, keys, key_crc(id, topic, level, keys)


def key_crc(id: int, topic: int, level: int, keys: bytes) -> int:
    return zlib.crc32(keys, zlib.crc32(_KEY.pack(id, topic, level)))


def block_row(numbers: Sequence[int], parts: Sequence[bytes | None]) -> tuple[Any, ...]:
    """Return a row of BLOCK_COLUMNS: seven numbers, five texts or bytes, and the checksum."""
    return *numbers, *parts, block_crc(numbers, parts)


def block_crc(numbers: Sequence[int], parts: Sequence[bytes | None]) -> int:
    # With the lengths, so that no byte can move from one column to the next.
    lengths = [-1 if part is None else len(part) for part in parts]
    crc = zlib.crc32(_BLOCK.pack(*numbers, *lengths))
    for part in parts:
        if part:
            crc = zlib.crc32(part, crc)
    return crc


def check_key(row: Sequence[Any], path: Path) -> None:
    """Raise DamagedError unless a row of KEY_COLUMNS has its checksum."""
    try:
        is_intact = key_crc(*row[:4]) == row[4]
    except (TypeError, struct.error):  # a column of another type
        is_intact = False
    if not is_intact:
        raise damaged(path, f"the keys of block {row[0]} do not have their checksum")


def check_block(row: Sequence[Any], path: Path) -> None:
    """Raise DamagedError unless a row of BLOCK_COLUMNS has its checksum."""
    try:
        is_intact = block_crc(row[:7], row[7:12]) == row[12]
    except (TypeError, struct.error):
        is_intact = False
    if not is_intact:
        raise damaged(path, f"block {row[0]} does not have its checksum")


def pack_ids(ids: Sequence[int]) -> bytes:
    """Return the bytes of ids, or of tokens."""
    return struct.pack(f"<{len(ids)}q", *ids)


def unpack_ids(content: bytes) -> Int64[np.ndarray, " n"]:
    """Return ids or tokens; raise ValueError if their number does not fit the bytes."""
    return np.frombuffer(content, "<i8").astype(np.int64)
