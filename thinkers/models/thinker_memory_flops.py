"""Floating-point operations of a Thinker's long-term memory: matrix products at 2mnk."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.models.batch import Batch
from thinkers.models.thinker_flops import memory_size
from thinkers.models.thinker_memory import REPLAYED_SECTIONS
from thinkers.nn.layers import attention_flops


def of_documents(model: Any, batch: Batch, steps: int, training: bool) -> int:
    """Count the operations of compressing a batch's documents and of reading them in every step.

    In training all blocks are read, and attention is computed once more for the loss of the index;
    otherwise `memory_top` of them. Sections of a document count at the width of the widest.
    """
    if batch.sections is None:
        return 0
    assert batch.section_lengths is not None and batch.document is not None
    sizes, levels = (batch.section_lengths > 0).sum(1), model.levels_read(batch)
    compressed = _compression(model, sizes, levels, batch.sections.shape[2])
    blocks, vectors = _readable(model, sizes, levels)
    length, section = batch.tokens.shape[1], model.config.section
    # After prompts a row thinks once, otherwise at the end of each section.
    number = length // section if batch.prompt_lengths is None else 1
    asked = batch.document.repeat_interleave(number)
    keys = 2 * int(vectors.sum()) * model.config.dim * model.config.index_dim
    read = keys + _reading(model, asked, blocks, vectors, steps, training)
    if not training:
        return compressed + read
    width = length if batch.prompt_lengths is None else int(batch.prompt_lengths.max())
    watched = _watched(model, vectors[asked], width, steps)
    replayed = batch.section_lengths.shape[1] > REPLAYED_SECTIONS
    # Sections that are read in order are read once more, without gradient.
    times = 3 + replayed + model.config.memory_conditioned
    return times * compressed + 3 * read + watched


def _compression(
    model: Any, sizes: Int[Tensor, " d"], levels: Int[Tensor, " d"], width: int
) -> int:
    """Return the operations of compressing documents of these numbers of sections."""
    process, compressor = model.process, model.compressor
    sections, later = int(sizes.sum()), 0
    if model.config.memory_conditioned:
        later = sections - int((sizes > 0).sum())
    total = model.text.flops(sections, width)
    total += compressor.flops(process, sections - later, width)
    total += compressor.flops(process, later, width + compressor.num_latents)
    for level in range(2, model.config.read_level + 1):
        sizes = (sizes // compressor.group).where(levels >= level, 0)
        total += compressor.merge_flops(process, int(sizes.sum()), level)
    return total


def _readable(
    model: Any, sizes: Int[Tensor, " d"], levels: Int[Tensor, " d"]
) -> tuple[Int[Tensor, " d"], Int[Tensor, " d"]]:
    """Return the numbers of blocks and of their latents that can be read of each document."""
    group, size = model.config.memory_group, model.compressor.size
    blocks, vectors = torch.zeros_like(sizes), torch.zeros_like(sizes)
    for level in range(2, model.config.read_level + 1):
        rises = levels >= level
        left = (sizes % group).where(rises, sizes)
        blocks, vectors = blocks + left, vectors + left * size(level - 1)
        sizes = (sizes // group).where(rises, 0)
    return blocks + sizes, vectors + sizes * size(model.config.read_level)


def _reading(
    model: Any,
    asked: Int[Tensor, " r"],
    blocks: Int[Tensor, " d"],
    vectors: Int[Tensor, " d"],
    steps: int,
    training: bool,
) -> int:
    """Return the operations of the index and of attending to blocks, at all steps but the first.

    Args:
        asked: The document of each thinking.
        blocks, vectors: Blocks and latents of each document.
    """
    config, process = model.config, model.process
    read, projected = int(vectors[asked].sum()), 0
    each = 2 * config.index_dim * (len(asked) * config.dim + read)
    top = None if training else config.memory_top
    if top is None or top >= int(blocks.max()):
        projected = process.project_flops(int(vectors.sum()))
    else:
        best = blocks[asked].clamp(max=top)
        read = int(best.sum()) * model.compressor.size(config.read_level)
        each += process.project_flops(read)
    each += config.num_layers * attention_flops(1, config.num_latents, read, config.dim)
    return projected + (steps - 1) * each


def of_choice(model: Any, blocks: int, vectors: int) -> tuple[int, int, int]:
    """Count what a row whose memory has these blocks, of these latents, adds to a step.

    Returns:
        Operations of choosing blocks, and of projecting those that are read, at each step that
        reads; operations of projecting them once for all steps, where all are read; latents read.
    """
    if not blocks:
        return 0, 0, 0
    config, top = model.config, model.config.memory_top
    choice = 2 * config.index_dim * (config.dim + vectors)
    if top is None or top >= blocks:
        return choice, model.process.project_flops(vectors), vectors
    read = top * model.compressor.size(config.read_level)
    return choice + model.process.project_flops(read), 0, read


def _watched(model: Any, vectors: Int[Tensor, " r"], width: int, steps: int) -> int:
    """Return the operations of the attention scores that the loss of the index is computed from.

    Args:
        vectors: Latents of the document of each thinking.
    """
    config = model.config
    total = (steps - 1) * int(vectors.sum())
    for s in range(1, steps):
        total += len(vectors) * memory_size(config, s, width, config.num_latents)
    return 2 * total * config.num_latents * config.dim * config.num_layers
