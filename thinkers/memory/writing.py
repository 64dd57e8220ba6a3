"""Writing of blocks to the tables of a store, inside of a transaction."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from thinkers.errors import DamagedError, three_lines
from thinkers.memory.blocks import Blocks
from thinkers.memory.kmeans import UNIT
from thinkers.memory.rows import (
    BLOCK_COLUMNS,
    KEY_COLUMNS,
    Meta,
    Topic,
    block_row,
    damaged,
    key_row,
    pack_ids,
    pack_keys,
    pack_latents,
    rounded,
)


def insert_blocks(
    connection: sqlite3.Connection,
    meta: Meta,
    topics: dict[str, Topic],
    blocks: Blocks,
    database: Path,
) -> Meta:
    """Insert blocks, and change `topics` by them; return the new settings.

    Raises:
        DamagedError: Latents or keys are not finite, or ids were given before.
    """
    if not len(blocks):
        return meta
    # AUTOINCREMENT alone would take the word of one unprotected number for it.
    sequence = dict(connection.execute("SELECT name, seq FROM sqlite_sequence")).get(b"block", 0)
    if sequence != meta.last:
        raise damaged(database, f"a last id of {sequence!r}, where {meta.last} was given")
    meta, changed = count_blocks(
        meta, topics, blocks, lambda name: _new_topic(connection, name, meta)
    )
    keys, rows = as_rows(meta, {name: topic.id for name, topic in topics.items()}, blocks)
    for table, columns, some in (("key", KEY_COLUMNS, keys), ("block", BLOCK_COLUMNS, rows)):
        marks = ",".join("?" * len(columns.split(",")))
        connection.executemany(f"INSERT INTO {table}({columns}) VALUES({marks})", some)
    connection.executemany(
        "UPDATE topic SET value = ? WHERE id = ?",
        [(topic.to_bytes(), topic.id) for topic in changed],
    )
    return meta


def count_blocks(
    meta: Meta, topics: dict[str, Topic], blocks: Blocks, new_topic: Callable[[str], Topic]
) -> tuple[Meta, list[Topic]]:
    """Count blocks to be written in `topics`; return the new settings and the topics changed.

    Raises:
        DamagedError: Latents or keys are not finite.
    """
    n = len(blocks)
    assert blocks.ids.tolist() == list(range(meta.last + 1, meta.last + n + 1)), "ids in order"
    _check_vectors(blocks, meta)
    counts = list(meta.counts)
    changed = {}
    for name, level, id, children in zip(
        blocks.topics, blocks.levels.tolist(), blocks.ids.tolist(), blocks.children, strict=True
    ):
        if name not in topics:
            topics[name] = new_topic(name)
        topic = changed[name] = topics[name]
        counts[level - 1] += 1
        topic.counts[level - 1] += 1
        if level < meta.levels:
            topic.ungrouped[level - 1].append(id)
        if level > 1:
            # Groups are whole, and in the order of ids.
            waiting = topic.ungrouped[level - 2]
            assert children and waiting[: len(children)] == list(children), "children in order"
            del waiting[: len(children)]
    return replace(meta, last=meta.last + n, counts=counts), list(changed.values())


def _new_topic(connection: sqlite3.Connection, name: str, meta: Meta) -> Topic:
    # Twice, since its id is part of what it holds.
    id = connection.execute("INSERT INTO topic(value) VALUES(x'')").lastrowid
    assert id is not None
    return empty_topic(id, name, meta)


def empty_topic(id: int, name: str, meta: Meta) -> Topic:
    return Topic(id, name, [0] * meta.levels, [[] for _ in range(meta.levels - 1)])


def _check_vectors(blocks: Blocks, meta: Meta) -> None:
    """Raise DamagedError unless what would be read is finite, and keys have unit length."""
    sizes = blocks.sizes.numpy()
    real = np.arange(blocks.latents.shape[1]) < sizes[:, None]
    latents = rounded(blocks.latents.numpy(), meta.dtype)
    keys = blocks.keys.numpy().astype(np.float16).astype(np.float32)
    odd = ~np.isfinite(latents).all(2) & real
    lengths = np.linalg.norm(keys, axis=2)
    odd |= ~(np.abs(lengths - 1) <= UNIT) & real
    if odd.any():
        place = int(odd.any(1).argmax())
        number = int(odd[place].argmax())
        is_finite = np.isfinite(latents[place, number]).all()
        what = f"a key of length {lengths[place, number]:.3g}" if is_finite else "no finite latent"
        raise DamagedError(
            three_lines(
                f"block {place} of those to be written: {what}, as latent {number}",
                "finite latents within the range of float16, and keys of length 1",
                "use another checkpoint: the weights of this one have diverged",
            )
        )


def as_rows(
    meta: Meta, topics: dict[str, int], blocks: Blocks
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return blocks as rows of KEY_COLUMNS and rows of BLOCK_COLUMNS."""
    sizes = blocks.sizes.tolist()
    all_keys = pack_keys(blocks.keys.numpy(), sizes)
    all_latents = pack_latents(blocks.latents.numpy(), sizes, meta.dtype)
    spans, lines = blocks.spans.tolist(), blocks.lines.tolist()
    key_rows, block_rows = [], []
    for i, (id, level) in enumerate(zip(blocks.ids.tolist(), blocks.levels.tolist(), strict=True)):
        topic, text, tokens = topics[blocks.topics[i]], blocks.texts[i], blocks.tokens[i]
        key_rows.append(key_row(id, topic, level, all_keys[i]))
        parts = (
            pack_ids(blocks.children[i]),
            blocks.sources[i].encode(),
            all_latents[i],
            None if text is None else text.encode(),
            None if tokens is None else pack_ids(tokens.tolist()),
        )
        block_rows.append(block_row((id, topic, level, *spans[i], *lines[i]), parts))
    return key_rows, block_rows
