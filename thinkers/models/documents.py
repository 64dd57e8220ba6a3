"""Documents that the rows of a batch ask about: sections of tokens, which rows share.

These functions choose, join and check the fields of `Batch` that hold them, which are all None in
a batch without documents.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.checks import check_ids, describe
from thinkers.errors import UsageError, UsageTypeError, usage_error
from thinkers.models.extra_inputs import extra_option
from thinkers.models.memory_option import has_memory, memory_option

SHAPES = {
    "sections": ("d", "n", "s"),
    "section_lengths": ("d", "n"),
    "document": ("b",),
    "document_keys": ("d",),
    "document_levels": ("d",),
}
"""Fields of documents, with their axes."""

OPTIONAL = ("document_keys", "document_levels")
"""Those that a batch with documents may lack."""

LEAST_STEPS = 2
"""Thinking steps with documents: the first reads the prompt alone."""

OF_EACH = tuple(name for name, axes in SHAPES.items() if axes[0] == "d")
"""Those that have a row for each document."""


def chosen(fields: Mapping[str, Tensor | None], index: slice | Tensor) -> dict[str, Tensor | None]:
    """Return the fields of some rows, with the documents alone that these rows refer to.

    Documents stay in their order and are numbered anew.
    """
    document = fields["document"]
    if document is None:
        return dict(fields)
    kept, numbers = document[index].unique(return_inverse=True)
    found = {name: None if x is None else x[kept] for name, x in fields.items() if name in OF_EACH}
    return found | {"document": numbers}


def joined(batches: Sequence[Any]) -> dict[str, Tensor]:
    """Return the documents of all batches, padded to the most and widest sections.

    Raises:
        UsageError: A batch has only some of the fields.
    """
    for batch in batches:
        check_complete({name: getattr(batch, name) for name in SHAPES})
    size = [max(batch.sections.shape[axis] for batch in batches) for axis in (1, 2)]
    sections, lengths, numbers, count = [], [], [], 0
    for batch in batches:
        d, n, s = batch.sections.shape
        sections.append(F.pad(batch.sections, (0, size[1] - s, 0, size[0] - n)))
        lengths.append(F.pad(batch.section_lengths, (0, size[0] - n)))
        numbers.append(batch.document + count)
        count += d
    found = {"sections": sections, "section_lengths": lengths, "document": numbers}
    return {name: torch.cat(tensors) for name, tensors in found.items()}


def real_tokens(
    sections: Int[Tensor, "d n s"], section_lengths: Int[Tensor, "d n"]
) -> Bool[Tensor, "d n s"]:
    """Return True at the real tokens of each section."""
    return torch.arange(sections.shape[2], device=sections.device) < section_lengths[..., None]


def checked(
    fields: Mapping[str, Tensor | None], num_rows: int, model: Any
) -> Int[Tensor, "d n s"] | None:
    """Check the documents of `num_rows` rows; return the sections with 0 as padding, None without.

    Under torch.compile, where values cannot be read, only padding is cleared.

    Raises:
        UsageTypeError: A field is no int64 tensor.
        UsageError: A shape, an id, a length or a document's number is invalid, a field is missing,
            or the model has no memory. The message names the value, its place and the rule.
    """
    if all(x is None for x in fields.values()):
        return None
    if not torch.compiler.is_compiling():
        _refuse_without_memory(model, "a batch with sections")
        check_complete(fields)
        sizes = _check_shapes(fields, num_rows)
        _check_values(fields, sizes, model.config)
    sections, lengths = fields["sections"], fields["section_lengths"]
    assert sections is not None and lengths is not None
    return sections.where(real_tokens(sections, lengths), 0)


def check_complete(fields: Mapping[str, Tensor | None]) -> None:
    """Raise UsageError if a field is missing that every batch with documents has."""
    given = [name for name in SHAPES if fields[name] is not None]
    for name in SHAPES:
        if name not in given and name not in OPTIONAL:
            raise UsageError(f"{name} must be set beside {given[0]}, got None")


def check_reads_sections(model: Any, section_length: int) -> None:
    """Raise UsageError if this model cannot read documents of sections of this length."""
    _refuse_without_memory(model, "questions about documents")
    if model.config.memory_section < section_length:
        raise usage_error(
            f"memory_section {model.config.memory_section}",
            f"at least {section_length}, the most tokens of a section",
            f"set --model.memory_section {section_length}",
        )


def step_counts_of(model: Any, section_length: int | None) -> tuple[int, ...]:
    """Return `model.step_counts`; where documents are read, without those too few for it.

    Args:
        section_length: The most tokens of a section of the documents; None without documents.
    """
    counts: tuple[int, ...] = model.step_counts
    if section_length is None or not has_memory(model):
        return counts
    # A model that cannot take so many says so when it is given the documents.
    return tuple(count for count in counts if count >= LEAST_STEPS) or counts


def _refuse_without_memory(model: Any, found: str) -> None:
    if not has_memory(model):
        raise usage_error(
            f"{found} for {model.name} without a memory",
            "a model that reads documents, such as thinker with memory blocks",
            "set --model.memory blocks, or choose such a model",
        )


def inputs_option(model: Any, batch: Any) -> dict[str, Any]:
    """Return what a batch has to be read besides its tokens, as keyword arguments: `memory`, the
    blocks of its documents, and `extra`.

    Raises:
        UsageError: The model has no memory.
    """
    if batch.sections is None:
        return extra_option(batch.extra)
    _refuse_without_memory(model, "a batch with sections")
    return memory_option(model.blocks_of(batch)) | extra_option(batch.extra)


def _check_shapes(fields: Mapping[str, Any], num_rows: int) -> dict[str, int]:
    """Return {axis: size}; raise an error unless the fields are int64 tensors of these axes."""
    sizes = {"b": num_rows}
    for name, axes in SHAPES.items():
        value = fields[name]
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.dtype != torch.int64:
            raise UsageTypeError(f"{name} must be an int64 tensor, got {describe(value)}")
        if name == "sections" and value.ndim == 3 and 0 not in value.shape:
            sizes |= dict(zip(axes, value.shape, strict=True))
        expected = [sizes.get(axis, axis) for axis in axes]
        if list(value.shape) != expected:
            least = ", all at least 1" if name == "sections" else ""
            shape = ", ".join(map(str, expected))
            raise UsageError(f"{name} must have shape ({shape}){least}, got {list(value.shape)}")
    return sizes


def _check_values(fields: Mapping[str, Any], sizes: Mapping[str, int], config: Any) -> None:
    sections, lengths, document = (fields[name] for name in list(SHAPES)[:3])
    wrong = (lengths < 0) | (lengths > sizes["s"])
    if wrong.any():
        number, place = wrong.nonzero()[0].tolist()
        raise UsageError(
            f"section_lengths must be in 0 .. {sizes['s']}, got {int(lengths[number, place])} at "
            f"document {number}, section {place}"
        )
    if int(lengths.max()) > config.memory_section:
        raise UsageError(
            f"a section must have at most {config.memory_section} tokens (memory_section), "
            f"got {int(lengths.max())}"
        )
    wrong = (document < 0) | (document >= sizes["d"])
    if wrong.any():
        row = int(wrong.int().argmax())
        raise UsageError(
            f"document must be in 0 .. {sizes['d'] - 1} ({sizes['d']} documents), "
            f"got {int(document[row])} in row {row}"
        )
    levels = fields["document_levels"]
    if levels is not None and not 1 <= int(levels.min()) <= int(levels.max()) <= config.read_level:
        raise UsageError(
            f"document_levels must be in 1 .. {config.read_level} (read_level), got "
            f"{int(levels.min())} .. {int(levels.max())}"
        )
    real = real_tokens(sections, lengths)
    check_ids("sections", sections.where(real, 0), config.vocab_size)
