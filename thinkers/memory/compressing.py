"""Compression of sections into blocks, and of whole groups of blocks into those of the next level.

What is compressed further is read back first, as it is rounded on the disk: blocks do not depend on
whether they were written by one call or by several.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thinkers.memory.blocks import UNKNOWN, Blocks, join
from thinkers.memory.rows import Meta, rounded
from thinkers.memory.sections import Section, as_tensors

CHUNK = 256
"""Sections or groups that are compressed at once."""


def compress(
    model: Any,
    sections: Sequence[Section],
    topic: str,
    meta: Meta,
    first: int,
    keep_text: bool,
    before: Float[Tensor, "m c"] | None = None,
) -> Iterator[Blocks]:
    """Yield the blocks of level 1 of sections.

    Args:
        first: The id of the first block.
        keep_text: Keep the text of each section, and its tokens.
        before: The block before the first section, which a model with `memory_conditioned` reads if
            they are of one text.
    """
    for start in range(0, len(sections), CHUNK):
        some = sections[start : start + CHUNK]
        latents = _of_sections(model, some, meta, before)
        before = latents[-1]
        yield Blocks(
            latents=latents,
            keys=_keys(model, latents),
            sizes=torch.full((len(some),), meta.size(1)),
            levels=torch.ones(len(some), dtype=torch.int64),
            topics=[topic] * len(some),
            sources=[x.source for x in some],
            spans=torch.tensor([x.span for x in some]),
            lines=torch.tensor([x.lines for x in some]),
            texts=[x.text if keep_text else None for x in some],
            tokens=[torch.tensor(x.tokens) if keep_text else None for x in some],
            children=[()] * len(some),
            ids=torch.arange(first + start, first + start + len(some)),
        )


def compress_groups(model: Any, waiting: Blocks, level: int, meta: Meta, first: int) -> Blocks:
    """Return the blocks of `level`, from 2, of the whole groups among those that wait, in order.

    Args:
        first: The id of the first block.
    """
    g = meta.group
    groups = [range(i, i + g) for i in range(0, len(waiting) // g * g, g)]
    like = next(model.parameters())
    parts = []
    for start in range(0, len(groups), CHUNK):
        index = torch.tensor([list(group) for group in groups[start : start + CHUNK]])
        children = waiting.latents[index, : meta.size(level - 1)]
        children = children.to(like.device, like.dtype)
        parts.append(_as_read(model.compress_level(children, level), meta))
    latents = torch.cat(parts)
    spans, lines, ids = (x.tolist() for x in (waiting.spans, waiting.lines, waiting.ids))
    sources = [{waiting.sources[i] for i in group} for group in groups]
    # A block over several sources, or over parts that do not follow each other, has no place.
    whole = [
        len(names) == 1 and _adjacent([spans[i] for i in group])
        for names, group in zip(sources, groups, strict=True)
    ]
    return Blocks(
        latents=latents,
        keys=_keys(model, latents),
        sizes=torch.full((len(groups),), meta.size(level)),
        levels=torch.full((len(groups),), level),
        topics=[waiting.topics[group[0]] for group in groups],
        sources=[next(iter(x)) if one else "" for x, one in zip(sources, whole, strict=True)],
        spans=_ranges(spans, groups, whole),
        lines=_ranges(lines, groups, whole),
        texts=[None] * len(groups),
        tokens=[None] * len(groups),
        children=[tuple(ids[i] for i in group) for group in groups],
        ids=torch.arange(first, first + len(groups)),
    )


def compress_levels(model: Any, blocks: Blocks, before: Sequence[Blocks], meta: Meta) -> Blocks:
    """Return blocks of level 1 of one topic, and then those that complete groups above them.

    Args:
        before: For each level but the last, the blocks of the topic that are in no group yet.
    """
    made = [blocks]
    for level in range(2, meta.levels + 1):
        waiting = join([before[level - 2], made[-1]])
        if len(waiting) < meta.group:
            break
        first = int(made[-1].ids[-1]) + 1
        made.append(compress_groups(model, waiting, level, meta, first))
    return join(made)


def still_waiting(before: Sequence[Blocks], blocks: Blocks, meta: Meta) -> list[Blocks]:
    """Return the blocks of a topic that are in no group after `compress_levels`, as `before`."""
    found = []
    for level in range(1, meta.levels):
        here = blocks.select((blocks.levels == level).nonzero()[:, 0].tolist())
        all_waiting = join([before[level - 1], here])
        whole = len(all_waiting) // meta.group * meta.group
        found.append(all_waiting.select(range(whole, len(all_waiting))))
    return found


def _of_sections(
    model: Any, sections: Sequence[Section], meta: Meta, before: Float[Tensor, "m c"] | None
) -> Float[Tensor, "n m c"]:
    """Return the latents of sections as they are read later."""
    like = next(model.parameters())
    tokens, lengths = as_tensors(sections, like.device)
    if not model.config.memory_conditioned:
        return _as_read(model.compress(tokens, lengths), meta)
    # One before each section; those that do not begin a text wait for it.
    assert before is not None or not sections[0].span[0], "a text from its beginning"
    found = torch.zeros(len(sections) + 1, meta.size(1), meta.dim)
    if before is not None:
        found[0] = before
    for rows in _in_order(sections):
        given = (tokens[rows], lengths[rows])
        if sections[rows[0]].span[0]:
            latents = model.compress(*given, before=found[rows].to(like.device, like.dtype))
        else:
            latents = model.compress(*given)
        found[[row + 1 for row in rows]] = _as_read(latents, meta)
    return found[1:]


def _in_order(sections: Sequence[Section]) -> list[list[int]]:
    """Return the places of first sections of a text, then of second ones, and so on; those of a
    text that began before follow first ones."""
    found: list[list[int]] = [[]]
    place = 0
    for number, section in enumerate(sections):
        place = place + 1 if section.span[0] else 0
        found += [[] for _ in range(place + 1 - len(found))]
        found[place].append(number)
    return [rows for rows in found if rows]


def _adjacent(spans: Sequence[Sequence[int]]) -> bool:
    return all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))


def _ranges(
    ranges: Sequence[Sequence[int]], groups: Sequence[range], whole: Sequence[bool]
) -> Tensor:
    """Return the first and last of each group; UNKNOWN where it is of several sources."""
    return torch.tensor(
        [
            (ranges[group[0]][0], ranges[group[-1]][1]) if one else (UNKNOWN, UNKNOWN)
            for group, one in zip(groups, whole, strict=True)
        ]
    )


def _as_read(latents: Float[Tensor, "n m c"], meta: Meta) -> Float[Tensor, "n m c"]:
    """Return latents as they are read after they were written."""
    found: np.ndarray = rounded(latents.detach().float().cpu().numpy(), meta.dtype)
    return torch.from_numpy(found)


def _keys(model: Any, latents: Float[Tensor, "n m c"]) -> Float[Tensor, "n m d"]:
    """Return the keys of blocks, in float32: those of the latents that are read."""
    like = next(model.parameters())
    found: Tensor = model.block_keys(latents.to(like.device, like.dtype))
    return found.detach().float().cpu()
