"""Floating-point operations of a Thinker's long-term memory: matrix products at 2mnk."""

from typing import Any

import torch

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
    sizes = (batch.section_lengths > 0).sum(1)
    compressed, vectors = _compression(model, sizes, batch.sections.shape[2])
    length, section = batch.tokens.shape[1], model.config.section
    # After prompts a row thinks once, otherwise at the end of each section.
    number = length // section if batch.prompt_lengths is None else 1
    asked = sizes[batch.document].repeat_interleave(number)
    keys = 2 * vectors * model.config.dim * model.config.index_dim
    read = keys + _reading(model, asked, vectors, steps, training)
    if not training:
        return compressed + read
    width = length if batch.prompt_lengths is None else int(batch.prompt_lengths.max())
    watched = _watched(model, asked, width, steps)
    replayed = batch.section_lengths.shape[1] > REPLAYED_SECTIONS
    return (3 + replayed) * compressed + 3 * read + watched


def _compression(model: Any, sizes: torch.Tensor, width: int) -> tuple[int, int]:
    """Return the operations of compressing documents of these sizes, and their vectors."""
    process, compressor = model.process, model.compressor
    blocks = int(sizes.sum())
    total = model.text.flops(blocks, width) + compressor.flops(process, blocks, width)
    vectors = 0
    for level in range(1, model.config.read_level):
        group = compressor.group
        groups = int((sizes // group).sum())
        vectors += int((sizes % group).sum()) * compressor.size(level)
        total += compressor.merge_flops(process, groups, level + 1)
        sizes = sizes // group
    return total, vectors + int(sizes.sum()) * compressor.size(model.config.read_level)


def _reading(model: Any, sizes: torch.Tensor, vectors: int, steps: int, training: bool) -> int:
    """Return the operations of the index and of attending to blocks, at all steps but the first."""
    config, process, rows = model.config, model.process, len(sizes)
    dim, key = config.dim, config.index_dim
    blocks = sum(_blocks_read(config, int(n)) for n in sizes)
    size = model.compressor.size(config.read_level)
    top = None if training else config.memory_top
    total = 0
    each = 2 * rows * dim * key + 2 * blocks * size * key
    if top is None:
        total += process.project_flops(vectors)
        read = blocks * size
    else:
        read = sum(min(top, _blocks_read(config, int(n))) for n in sizes) * size
        each += process.project_flops(read)
    each += config.num_layers * attention_flops(1, config.num_latents, read, dim)
    return total + (steps - 1) * each


def _watched(model: Any, sizes: torch.Tensor, width: int, steps: int) -> int:
    """Return the operations of the attention scores that the loss of the index is computed from."""
    config = model.config
    size = model.compressor.size(config.read_level)
    total = 0
    for s in range(1, steps):
        memory = len(sizes) * memory_size(config, s, width, config.num_latents)
        total += memory + sum(_blocks_read(config, int(n)) for n in sizes) * size
    return 2 * total * config.num_latents * config.dim * config.num_layers


def _blocks_read(config: Any, sections: int) -> int:
    """Return the number of blocks that can be read of a document of `sections` sections."""
    total = 0
    for _ in range(1, config.read_level):
        total += sections % config.memory_group
        sections //= config.memory_group
    return total + sections
