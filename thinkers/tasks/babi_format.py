"""Reader of the text format of the bAbI tasks, and its split into train, valid and test.

The format, and the 20 kinds, are those of Weston et al. 2015 (https://arxiv.org/abs/1502.05698).
A line is a number and a sentence; a question is followed, between tabs, by its answer and the
numbers of its supporting facts; number 1 begins a story.
"""

import errno
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from thinkers.data.sources import data_error
from thinkers.errors import system_errno
from thinkers.files import exists, is_folder, is_plain_file
from thinkers.tasks import babi_worlds
from thinkers.tasks.base import SPLITS


class Line(NamedTuple):
    """A statement, or a question with its answer and the line numbers of its supporting facts."""

    text: str
    answer: str | None = None
    support: tuple[int, ...] = ()


Story = list[Line]
"""Lines of a story, line 1 first."""
LONGEST_NUMBER = 9
"""Digits of a number in a file."""


# Generating stories is slow, and models that are compared ask for the same ones.
@lru_cache(maxsize=8)
def generated_stories(kind: int, split: str, count: int, asked: int = 1) -> tuple[Story, ...]:
    """Return the first `count` generated stories of a kind, parsed like those of a file.

    With `asked`, they have up to that number of questions where others have one.
    """
    text = "".join(babi_worlds.generate_story(kind, split, i, asked) for i in range(count))
    return tuple(parse_stories(text.encode(), f"generated stories of kind {kind}"))


def files_of(path: Path, kinds: Sequence[int]) -> list[Path]:
    """Return the files that `read_splits` reads.

    Raises:
        DataError: A file is missing, or is not a plain file.
    """
    files = [path]
    if is_folder(path):
        files = [_only_file(path, kind, part) for kind in kinds for part in ("train", "test")]
    for file in files:
        if not is_plain_file(file):
            found = "No plain file" if exists(file) else "No such file or folder"
            raise data_error(str(file), found, "a file of stories", "change --task.path")
    return files


def read_splits(path: Path, kinds: Sequence[int]) -> dict[str, list[list[Story]]]:
    """Return the stories of a folder or file by split and by kind, in the order of `kinds`.

    Every tenth story of a folder's training files is valid. Of a single file, which is taken as one
    kind, the ninth of each ten is valid and the tenth is test.

    Raises:
        DataError: A file is missing, damaged, or too small to have a question in every split.
    """
    number_of_kinds = len(kinds) if is_folder(path) else 1
    found: dict[str, list[list[Story]]] = {
        split: [[] for _ in range(number_of_kinds)] for split in SPLITS
    }
    if is_folder(path):
        for place, kind in enumerate(kinds):
            train, test = (_only_file(path, kind, part) for part in ("train", "test"))
            for number, story in enumerate(read_stories(train)):
                found["valid" if number % 10 == 9 else "train"][place].append(story)
            found["test"][place] += read_stories(test)
    else:
        for number, story in enumerate(read_stories(path)):
            found[{8: "valid", 9: "test"}.get(number % 10, "train")][0].append(story)
    for split, by_kind in found.items():
        lines = (line for stories in by_kind for story in stories for line in story)
        if not any(line.answer is not None for line in lines):
            raise data_error(
                str(path), f"no question for {split}", "at least ten stories", "use a larger file"
            )
    return found


def _only_file(folder: Path, kind: int, part: str) -> Path:
    pattern = f"qa{kind}_*{part}.txt"
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        found = f"{len(files)} files {pattern}"
        raise data_error(str(folder), found, "one", "change --task.path or --task.kinds")
    return files[0]


def read_stories(file: Path) -> list[Story]:
    """Return the stories of a file.

    Raises:
        DataError: The file cannot be read, or a line breaks the format; both are named.
    """
    try:
        return parse_stories(file.read_bytes(), str(file))
    except OSError as error:
        if system_errno(error) not in (None, errno.EACCES, errno.EPERM):
            raise  # of the disk or the system: the file may be right
        why = error.strerror or "it cannot be read"
        raise data_error(str(file), why, "a file of stories", "change --task.path") from None


def parse_stories(data: bytes, source: str) -> list[Story]:
    """Return the stories of the content of a file, named `source` in errors: see `read_stories`."""
    stories: list[Story] = []
    for place, raw in enumerate(data.splitlines(), 1):
        where = f"{source}, line {place}"
        try:
            text = raw.decode("utf-8-sig" if place == 1 else "utf-8")  # without a byte order mark
        except UnicodeDecodeError as error:
            found = f"byte {error.start} is {raw[error.start]:#04x}"
            raise data_error(where, found, "UTF-8", "convert the file") from None
        if not text.strip():
            continue
        number, line = _parse_line(text, where)
        if number == 1:
            stories.append([])
        elif not stories or number != len(stories[-1]) + 1:
            wanted = f"1 or {len(stories[-1]) + 1}" if stories else "1"
            raise data_error(where, f"number {number}", wanted, "number the lines of a story")
        story = stories[-1]
        if line.answer is not None:
            for fact in line.support:
                if not 1 <= fact <= len(story) or story[fact - 1].answer is not None:
                    wanted = "the number of a statement before it in its story"
                    raise data_error(where, f"supporting fact {fact}", wanted, "correct it")
        story.append(line)
    if not stories:
        raise data_error(source, "no story", "numbered lines", "use another file")
    return stories


def _parse_line(text: str, where: str) -> tuple[int, Line]:
    number, _, rest = text.strip().partition(" ")
    if not _is_number(number) or not rest.strip():
        raise data_error(where, repr(text[:40]), "a number, a space and a sentence", "correct it")
    sentence, *others = (part.strip() for part in rest.split("\t"))
    if not others:
        return int(number), Line(sentence)
    facts = others[1].split() if len(others) == 2 else []
    answer = others[0]
    numbers = all(map(_is_number, facts))
    if len(others) != 2 or not sentence or not all(answer.split(",")) or not numbers:
        wanted = "a question, its answer and the numbers of supporting lines, between tabs"
        raise data_error(where, repr(text[:60]), wanted, "correct it")
    return int(number), Line(sentence, answer, tuple(int(fact) for fact in facts))


def _is_number(text: str) -> bool:
    # int refuses thousands of digits with an error of its own.
    return text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER
