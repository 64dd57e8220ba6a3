"""Compression of the kept texts of a memory anew, for other weights than wrote it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from thinkers.errors import usage_error
from thinkers.memory.blocks import Blocks, join
from thinkers.memory.compressing import compress, compress_levels, still_waiting
from thinkers.memory.rows import Meta
from thinkers.memory.sections import Section, cut
from thinkers.memory.store import View
from thinkers.tasks import Task

CHUNK = 1000
"""Sections that are compressed at once."""


def recompressed(model: Any, task: Task | None, view: View, meta: Meta) -> Iterator[Blocks]:
    """Yield the blocks of all texts of a snapshot anew, levels above the first included.

    Args:
        view: A snapshot of the memory as it is.
        meta: The settings of the new blocks.

    Raises:
        UsageError: The text of a block was not kept, or there is no task to read it.
    """
    ids = view.ids(1).tolist()
    chunks = [ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)]
    # By their tokens, sections are the same again; a text that was cut may have other tokens.
    by_tokens = view.meta.vocabulary == meta.vocabulary
    _require_kept(view, chunks, by_tokens, task)
    waiting: dict[str, list[Blocks]] = {}
    latest: dict[str, Tensor] = {}
    places: dict[tuple[str, str], int] = {}
    last = meta.last
    for some in chunks:
        old = view.fetch(some)
        for topic in dict.fromkeys(old.topics):
            rows = old.select([i for i, name in enumerate(old.topics) if name == topic])
            sections = [
                section
                for i in range(len(rows))
                for section in _placed(
                    _sections(rows, i, task, by_tokens, meta, model.config.vocab_size),
                    rows,
                    i,
                    places,
                )
            ]
            given = model, sections, topic, meta, last + 1, True, latest.get(topic)
            parts = list(compress(*given))
            latest[topic] = parts[-1].latents[-1]
            before = waiting.get(topic) or [parts[0].select([])] * (meta.levels - 1)
            blocks = compress_levels(model, join(parts), before, meta)
            waiting[topic] = still_waiting(before, blocks, meta)
            last = int(blocks.ids[-1])
            yield blocks


def _require_kept(view: View, chunks: list[list[int]], by_tokens: bool, task: Task | None) -> None:
    """Raise UsageError unless each block has what it is to be compressed from."""
    missing = 0
    for some in chunks:
        blocks = view.fetch(some)
        kept = blocks.tokens if by_tokens else blocks.texts
        missing += sum(x is None for x in kept)
    if missing:
        raise usage_error(
            f"{missing} of {len(view)} blocks, whose text was not kept",
            "a memory that was written with keep_text",
            "write the texts to a new memory",
        )
    if not by_tokens and task is None:
        raise usage_error(
            "texts to be compressed by a model without its task",
            "a task, which turns texts into tokens",
            "pass task=, or a run in place of its model",
        )


def _sections(
    blocks: Blocks, i: int, task: Task | None, by_tokens: bool, meta: Meta, vocab_size: int
) -> list[Section]:
    """Return the sections of block i, several if they are shorter now."""
    text, tokens = blocks.texts[i], blocks.tokens[i]
    if not by_tokens:
        return cut([text], task, meta.section, vocab_size, None)
    assert tokens is not None
    parts = [part.tolist() for part in tokens.split(meta.section)]
    if len(parts) == 1:
        return [Section(parts[0], "", (0, len(tokens)), text=text)]
    texts = [None if task is None or text is None else task.decode(part) for part in parts]
    return [Section(x, "", (0, len(x)), text=y) for x, y in zip(parts, texts, strict=True)]


def _placed(
    sections: list[Section], blocks: Blocks, i: int, places: dict[tuple[str, str], int]
) -> Iterator[Section]:
    """Yield the sections of block i with their source and the places of their tokens in it.

    Args:
        places: Number of tokens so far of each topic's sources, which this changes.
    """
    first, last = blocks.lines[i].tolist()
    key = blocks.topics[i], blocks.sources[i]
    if int(blocks.spans[i, 0]) == 0:  # the source begins, perhaps once more
        places[key] = 0
    for section in sections:
        start = places.get(key, 0)
        places[key] = start + len(section.tokens)
        yield replace(section, source=key[1], span=(start, places[key]), lines=(first, last))
