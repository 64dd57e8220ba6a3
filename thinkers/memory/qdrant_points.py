"""Points of a Qdrant collection: blocks, and the one point that holds the state of a store.

A block is the point of its id. Its keys are a multi-vector, whose similarity to a query is that of
the best key, as our score is; everything else is its payload, with bytes in base64. `topic`,
`level` and `id` are numbers that filters use. Both rows have the checksums of the SQLite store.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinkers.errors import DamagedError
from thinkers.json_files import parse_with_digest, with_digest
from thinkers.memory.rows import FORMAT, Meta, Topic, damaged
from thinkers.optional import require
from thinkers.strict_json import Schema

Row = tuple[Any, ...]
STATE_ID = 0
"""The point of the state; blocks begin with 1."""
KEYS = "keys"
FILTERED = ("id", "topic", "level")
_SCHEMA: Schema = {"format": int, "meta": str, "topics": list, "next_topic": int}
_NUMBERS = ("start", "stop", "first_line", "last_line")
_PARTS = ("children", "source", "latents", "text", "tokens")


def models() -> Any:
    """Return the classes of requests to Qdrant."""
    return require("qdrant_client.models", "qdrant", "a store in Qdrant")


@dataclass(frozen=True)
class State:
    """The state of a store, written at once: what it names is committed, and nothing else.

    Args:
        next_topic: Id of the next new topic; none is given twice.
        writer: Name of the one process that may write; "" if none does.
    """

    meta: Meta
    topics: dict[str, Topic]
    next_topic: int
    writer: str

    def to_payload(self) -> dict[str, Any]:
        """Return the payload of the state; `generation` and `writer` are there to be compared."""
        value = {
            "format": FORMAT,
            "meta": self.meta.to_bytes().decode(),
            "topics": [[x.id, x.to_bytes().decode()] for x in self.topics.values()],
            "next_topic": self.next_topic,
        }
        return {
            "state": with_digest(value).decode(),
            "generation": self.meta.generation,
            "writer": self.writer,
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any], place: Path) -> "State":
        """Parse the payload of a state.

        Raises:
            DamagedError: It is not as it was written.
            FormatError: Another version wrote it.
        """
        text, writer = payload.get("state"), payload.get("writer")
        if not isinstance(text, str) or not isinstance(writer, str):
            raise damaged(place, "a state that no version writes")
        found = parse_with_digest(text.encode(), place, _SCHEMA, FORMAT)
        meta = Meta.from_bytes(found["meta"].encode(), place)
        topics = [Topic.from_bytes(id, x.encode(), meta, place) for id, x in found["topics"]]
        counts = [sum(x.counts[level] for x in topics) for level in range(meta.levels)]
        if counts != list(meta.counts) or payload.get("generation") != meta.generation:
            raise damaged(place, "a state whose parts do not fit each other")
        return cls(meta, {x.name: x for x in topics}, found["next_topic"], writer)


def block_point(key: Sequence[Any], row: Sequence[Any], meta: Meta) -> Any:
    """Return the point of a block from its rows of KEY_COLUMNS and BLOCK_COLUMNS."""
    id, topic, level, content, key_crc = key
    vectors = np.frombuffer(content, "<f2").astype(np.float32).reshape(-1, meta.index_dim)
    payload = {"id": id, "topic": topic, "level": level, "key_crc": key_crc, "crc": row[12]}
    payload |= zip(_NUMBERS, row[3:7], strict=True)
    payload |= zip(_PARTS, map(_to_text, row[7:12]), strict=True)
    return models().PointStruct(id=id, vector={KEYS: vectors.tolist()}, payload=payload)


def key_row(point: Any, place: Path) -> Row:
    """Return the row of KEY_COLUMNS of a point, whose checksum is still to be compared."""
    try:
        payload = point.payload
        content = np.array(point.vector[KEYS], np.float32).astype("<f2").tobytes()
        return (point.id, *(payload[x] for x in ("topic", "level")), content, payload["key_crc"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise damaged(place, f"block {point.id} has keys that no version writes") from None


def block_row(point: Any, place: Path) -> Row:
    """Return the row of BLOCK_COLUMNS of a point, whose checksum is still to be compared."""
    try:
        payload = point.payload
        if payload["id"] != point.id:
            raise ValueError
        numbers = (payload[x] for x in ("topic", "level", *_NUMBERS))
        return point.id, *numbers, *(_to_bytes(payload[x]) for x in _PARTS), payload["crc"]
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise damaged(place, f"block {point.id} holds what no version writes") from None


def rows(point: Any, place: Path) -> tuple[int, Row | None, Row | None]:
    """Return the id and the rows of a point, BLOCK_COLUMNS first; None for one without form."""
    found: list[Row | None] = []
    for read in (block_row, key_row):
        try:
            found.append(read(point, place))
        except DamagedError:
            found.append(None)
    return point.id, found[0], found[1]


def _to_text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _to_bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


# Filters ------------------------------------------------------------------------------------------


def is_id(ids: Iterable[int]) -> Any:
    return models().HasIdCondition(has_id=list(ids))


def equals(field: str, value: int | str) -> Any:
    m = models()
    return m.FieldCondition(key=field, match=m.MatchValue(value=value))


def is_any(field: str, values: Iterable[int]) -> Any:
    m = models()
    return m.FieldCondition(key=field, match=m.MatchAny(any=list(values)))


def is_of_topics(state: State) -> Any:
    return all_of(is_any("topic", [x.id for x in state.topics.values()]))


def at_most(field: str, value: int) -> Any:
    m = models()
    return m.FieldCondition(key=field, range=m.Range(lte=value))


def all_of(*conditions: Any) -> Any:
    return models().Filter(must=list(conditions))


def any_of(*conditions: Any) -> Any:
    return models().Filter(should=list(conditions))


def none_of(*conditions: Any) -> Any:
    return models().Filter(must_not=list(conditions))
