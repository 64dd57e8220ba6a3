"""Cutting of texts into sections of a memory, and where each section stood."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.checks import check_ids, check_shape, describe
from thinkers.errors import DataError, UsageError, UsageTypeError, three_lines, usage_error
from thinkers.memory.blocks import UNKNOWN
from thinkers.strict_json import to_json
from thinkers.tasks import Task

LONGEST_NAME = 200
"""Characters of the name of a topic."""


@dataclass(frozen=True)
class Section:
    """A part of a text that becomes one block; the fields are those of `Blocks`."""

    tokens: list[int]
    source: str
    span: tuple[int, int]
    lines: tuple[int, int] = (UNKNOWN, UNKNOWN)
    text: str | None = None


def cut(
    texts: Any, task: Task | None, size: int, vocab_size: int, sources: Sequence[str] | None
) -> list[Section]:
    """Cut texts into sections of `size` tokens, the last of a text of fewer.

    Start tokens are left out: a section is a part of a text anywhere in it.

    Args:
        texts: Texts, which need a task; or tokens (b, t) of b sections.
        sources: The name of each text, or of each row.

    Raises:
        UsageError: Texts without a task, arguments of other types, or tokens that are none.
        DataError: A text that is empty, or that the task cannot read.
    """
    if isinstance(texts, Tensor):
        rows = _token_rows(texts, size, vocab_size)
        names = _names(sources, len(rows))
        return [Section(row, name, (0, len(row))) for row, name in zip(rows, names, strict=True)]
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UsageError(
            f"texts must be a list of texts, or int64 tokens (b, t), got {type(texts).__name__}"
        )
    if task is None:
        raise usage_error(
            "texts for a memory that was opened without a task",
            "a task, which turns texts into tokens",
            "pass task=, or a run in place of its model",
        )
    names = _names(sources, len(texts))
    return [
        section
        for number, (text, name) in enumerate(zip(texts, names, strict=True))
        for section in _cut_text(text, number, name, task, size)
    ]


def cut_lines(
    texts: Sequence[str], task: Task, size: int, sources: Sequence[str]
) -> Iterator[Section]:
    """Yield the sections of texts as `cut` does, but none holds more than one line.

    Blank lines are left out. Errors are those of `cut`.
    """
    for number, (text, source) in enumerate(zip(texts, sources, strict=True)):
        offset = 0
        for line, content in enumerate(text.split("\n"), 1):
            if not content.strip():
                continue
            for section in _cut_text(content, number, source, task, size, line):
                span = offset, offset + len(section.tokens)
                offset = span[1]
                yield replace(section, span=span, lines=(line, line))


def _token_rows(tokens: Tensor, size: int, vocab_size: int) -> list[list[int]]:
    _, t = check_shape("texts", tokens)
    if t > size:
        raise UsageError(f"sections must have at most {size} tokens (memory_section), got {t}")
    check_ids("texts", tokens, vocab_size)
    rows: list[list[int]] = tokens.tolist()
    return rows


def _names(sources: Any, count: int) -> list[str]:
    if sources is None:
        return [""] * count
    if not isinstance(sources, Sequence) or isinstance(sources, str) or len(sources) != count:
        raise UsageError(f"sources must be a list of {count} names, got {sources!r}")
    return [check_source(name) for name in sources]


def check_source(name: Any) -> str:
    """Return the name of a source; raise UsageError if it is none."""
    return _checked_name(name, "the name of a source", 4096)


def check_topic(name: Any) -> str:
    """Return the name of a topic; raise UsageError if it is none."""
    if name == "":
        raise usage_error("an empty topic", "a name", "choose another name")
    return _checked_name(name, "topic", LONGEST_NAME)


def _checked_name(name: Any, what: str, longest: int) -> str:
    if not isinstance(name, str):
        raise UsageError(f"{what} must be a text, got {name!r}")
    if len(name) > longest or not name.isprintable():
        raise usage_error(
            f"{what} {name[:50]!r}",
            f"at most {longest} printable characters",
            "choose another name",
        )
    return name


def _cut_text(
    text: Any, number: int, source: str, task: Task, size: int, first_line: int = 1
) -> Iterator[Section]:
    """Yield the sections of a text."""
    tokens = _encode(text, number, source, task, first_line)
    spans = [(i, min(i + size, len(tokens))) for i in range(0, len(tokens), size)]
    pieces = [task.decode(tokens[start:stop]) for start, stop in spans]
    lines = _lines(text, tokens, spans, pieces, task)
    for span, piece, place in zip(spans, pieces, lines, strict=True):
        yield Section(tokens[slice(*span)], source, span, place, piece)


def _encode(text: Any, number: int, source: str, task: Task, first_line: int = 1) -> list[int]:
    name = source or f"text {number}"
    try:
        if not isinstance(text, str):
            raise UsageError(f"it must be a text, got {type(text).__name__}")
        tokens = task.without_start(task.encode(text))
    except UsageError as error:
        line, error = _first_error(text, task, first_line) or (0, error)
        place = name if not line else f"{name}:{line}" if source else f"{name}, line {line}"
        found, *others = str(error).splitlines()
        rule = others[0].removeprefix("expected: ") if len(others) == 2 else "text of the task"
        found = found.removeprefix("found: ")
        raise DataError(three_lines(f"{place}: {found}", rule, "change or remove it")) from None
    if not tokens:
        raise DataError(
            three_lines(f"{name}, which is empty", "texts of at least one token", "remove it")
        )
    return tokens


def _first_error(text: Any, task: Task, first_line: int) -> tuple[int, UsageError] | None:
    """Return the first line that cannot be read, and its error; None if all can."""
    lines = text.split("\n") if isinstance(text, str) else []
    for number, line in enumerate(lines, first_line):
        try:
            task.encode(line)
        except UsageError as error:
            return number, error
    return None


def _lines(
    text: str,
    tokens: list[int],
    spans: Sequence[tuple[int, int]],
    pieces: Sequence[str],
    task: Task,
) -> list[tuple[int, int]]:
    """Return the first and the last line of each section, from 1; UNKNOWN if that is not known."""
    breaks = text.count("\n")
    if sum(piece.count("\n") for piece in pieces) == breaks:
        before = accumulate((piece.count("\n") for piece in pieces[:-1]), initial=0)
        # A line break belongs to the line that it ends.
        return [
            (n + 1, n + 1 + piece[:-1].count("\n")) for n, piece in zip(before, pieces, strict=True)
        ]
    # Tokens may be words, which leave line breaks out: then a text is that of its lines.
    by_line = [task.without_start(task.encode(line)) for line in text.split("\n")]
    of_token = [number for number, line in enumerate(by_line, 1) for _ in line]
    if [token for line in by_line for token in line] != tokens:
        return [(UNKNOWN, UNKNOWN)] * len(spans)
    return [(of_token[start], of_token[stop - 1]) for start, stop in spans]


def as_tensors(
    sections: Sequence[Section], device: torch.device
) -> tuple[Int[Tensor, "n s"], Int[Tensor, " n"]]:
    """Return the tokens of sections, padded by 0 on the right, and their lengths."""
    lengths = torch.tensor([len(x.tokens) for x in sections], device=device)
    tokens = [torch.tensor(x.tokens, device=device) for x in sections]
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True), lengths


def vocabulary_digest(task: Any) -> str:
    """Return the SHA-256 of what each token of a task means; raise UsageTypeError for no task."""
    if not isinstance(task, Task):
        raise UsageTypeError(f"task must be a Task, got {describe(task)}")
    meanings = [task.decode([token]) for token in range(task.vocab_size)]
    return hashlib.sha256(to_json([meanings, task.start_token])).hexdigest()
