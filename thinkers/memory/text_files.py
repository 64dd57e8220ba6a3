"""Files of text that are written to a memory, which is made if there is none."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thinkers.errors import DataError, three_lines
from thinkers.files import exists, is_folder, is_plain_file, read_file
from thinkers.memory.database import DATABASE
from thinkers.memory.memory import TOPIC, LongTermMemory, require_memory
from thinkers.memory.sections import check_source, check_topic, cut, cut_lines
from thinkers.runs.result import RunLike, open_with_task
from thinkers.user_paths import user_path

LARGEST = 1 << 28
"""Bytes of a file; its tokens are all in memory at once."""


@dataclass(frozen=True)
class Added:
    """The files that were added to a memory.

    Args:
        blocks: Number of sections that they were cut into.
        tokens: Number of their tokens.
        topics: Number of sections of each topic of the memory, after it.
    """

    blocks: int
    tokens: int
    topics: dict[str, int]


def add_files(
    run: RunLike,
    files: Sequence[str | Path],
    folder: str | Path,
    topic: str = TOPIC,
    *,
    by_line: bool = False,
    keep_text: bool = False,
) -> Added:
    """Write files to the memory in a folder, all or none; it is made if the folder is absent.

    Blocks have the name of their file as it is given here, as their source.

    Args:
        run: The run that compresses them, its folder, or (model, task).
        by_line: Cut at the end of each line too, so that no section holds more than one.
        keep_text: Keep the texts beside the latents.

    Raises:
        DataError: A file cannot be read, is empty, is not UTF-8, or has a word that the task does
            not know. The message names the file, the line and, of a byte that is not UTF-8, its
            place in the line, from 1.
        UsageError: The folder holds something else, or the memory of another model.
        DamagedError: The model's latents are not finite, or the memory is damaged.
        ResourceError: The disk is full; the memory is as it was.
        LockedError: Another process writes to the memory; the message names it.
    """
    place, topic = user_path(folder, "folder"), check_topic(topic)
    paths = [user_path(file, "file") for file in files]
    texts = [read_text(path) for path in paths]
    model, task = open_with_task(run)
    require_memory(model)
    size, vocab_size = model.config.memory_section, model.config.vocab_size
    # Before a memory is made, which a text that cannot be read would leave empty.
    names = [check_source(str(path)) for path in paths]
    if by_line:
        sections = list(cut_lines(texts, task, size, names))
    else:
        sections = cut(texts, task, size, vocab_size, names)
    begin = LongTermMemory.open if exists(place / DATABASE) else LongTermMemory.create
    with begin(place, (model, task)) as memory:
        ids = memory.write_sections(sections, topic, keep_text)
        return Added(len(ids), sum(len(x.tokens) for x in sections), memory.topics())


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: It cannot be read, is empty, or is not UTF-8.
    """
    if not os.access(path, os.R_OK):
        is_there = is_folder(path) or is_plain_file(path)
        what = "permission denied" if is_there else "no such file"
        raise _error(str(path), what, "a file that can be read")
    try:
        content = read_file(path, LARGEST, DataError, follow=True)
    except DataError as error:
        found = str(error).removeprefix(f"{path} ")
        raise _error(str(path), found, "a plain file, not too large to be in memory") from None
    try:
        # A mark of the byte order is no text, but editors on Windows begin files with it.
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, byte = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        found = f"byte 0x{content[error.start]:02x} is not UTF-8"
        raise _error(f"{path}:{line}:{byte}", found, "text in UTF-8") from None
    if not text.strip():
        raise _error(str(path), "an empty file", "a file with text")
    return text


def _error(place: str, found: str, expected: str) -> DataError:
    return DataError(three_lines(f"{place}: {found}", expected, "change the file, or leave it out"))
