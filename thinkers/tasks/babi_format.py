"""Stories with questions, read from the text format of the bAbI tasks.

The format, and the 20 kinds, are those of Weston et al. 2015 (https://arxiv.org/abs/1502.05698).
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from thinkers.data.sources import data_error
from thinkers.tasks import babi_worlds
from thinkers.tasks.base import SPLITS


class Line(NamedTuple):
    """A statement, or a question with its answer and the numbers of the lines that support it."""

    text: str
    answer: str | None = None
    support: tuple[int, ...] = ()


Story = list[Line]
"""Line 1 first."""


@lru_cache(maxsize=8)
def told(kind: int, split: str, count: int) -> tuple[Story, ...]:
    """So many of our own stories, read as a file of them would be."""
    text = "".join(babi_worlds.generate_story(kind, split, number) for number in range(count))
    return tuple(parse(text.encode(), f"stories of kind {kind}"))


def read_splits(path: Path, kinds: Sequence[int]) -> dict[str, list[list[Story]]]:
    """The stories of a folder or file, by split and by kind, in the order of `kinds`.

    Of a folder's training files every tenth story is for valid; of a single file, which is one
    kind, the ninth and tenth of each ten are for valid and test.
    """
    number_of_kinds = len(kinds) if path.is_dir() else 1
    found: dict[str, list[list[Story]]] = {
        split: [[] for _ in range(number_of_kinds)] for split in SPLITS
    }
    if path.is_dir():
        for place, kind in enumerate(kinds):
            train, test = (_only(path, kind, part) for part in ("train", "test"))
            for number, story in enumerate(read(train)):
                found["valid" if number % 10 == 9 else "train"][place].append(story)
            found["test"][place] += read(test)
    else:
        for number, story in enumerate(read(path)):
            found[{8: "valid", 9: "test"}.get(number % 10, "train")][0].append(story)
    for split, by_kind in found.items():
        lines = (line for stories in by_kind for story in stories for line in story)
        if not any(line.answer is not None for line in lines):
            raise data_error(
                str(path), f"no question for {split}", "at least ten stories", "take a larger file"
            )
    return found


def _only(folder: Path, kind: int, part: str) -> Path:
    pattern = f"qa{kind}_*{part}.txt"
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        found = f"{len(files)} files {pattern}"
        raise data_error(str(folder), found, "one", "set --task.path or --task.kinds")
    return files[0]


def read(file: Path) -> list[Story]:
    """The stories of a file in the format of bAbI.

    Raises:
        DataError: naming the file, and the line that cannot be.
    """
    try:
        return parse(file.read_bytes(), str(file))
    except OSError as error:
        why = error.strerror or "it cannot be read"
        raise data_error(str(file), why, "a file of stories", "set --task.path") from None


def parse(data: bytes, source: str) -> list[Story]:
    """The stories of a text in the format of bAbI: see `read`."""
    stories: list[Story] = []
    for place, raw in enumerate(data.splitlines(), 1):
        where = f"{source}, line {place}"
        try:
            text = raw.decode("utf-8-sig" if place == 1 else "utf-8")
        except UnicodeDecodeError as error:
            found = f"byte {error.start} is {raw[error.start]:#04x}"
            raise data_error(where, found, "UTF-8", "convert the file") from None
        if not text.strip():
            continue
        number, line = _line(text, where)
        if number == 1:
            stories.append([])
        elif not stories or number != len(stories[-1]) + 1:
            wanted = f"1 or {len(stories[-1]) + 1}" if stories else "1"
            raise data_error(where, f"number {number}", wanted, "number the lines of a story")
        story = stories[-1]
        if line.answer is not None:
            for fact in line.support:
                if not 1 <= fact <= len(story) or story[fact - 1].answer is not None:
                    wanted = "numbers of statements before it in its story"
                    raise data_error(where, f"supporting fact {fact}", wanted, "correct it")
        story.append(line)
    if not stories:
        raise data_error(source, "no story", "numbered lines", "take another file")
    return stories


def _line(text: str, where: str) -> tuple[int, Line]:
    number, _, rest = text.strip().partition(" ")
    if not (number.isascii() and number.isdigit()) or not rest.strip():
        raise data_error(where, repr(text[:40]), "a number, a space and a sentence", "correct it")
    sentence, *others = (part.strip() for part in rest.split("\t"))
    if not others:
        return int(number), Line(sentence)
    facts = others[1].split() if len(others) == 2 else []
    answer = others[0]
    numbers = all(fact.isascii() and fact.isdigit() for fact in facts)
    if len(others) != 2 or not sentence or not all(answer.split(",")) or not numbers:
        wanted = "a question, its answer and the numbers of supporting lines, between tabs"
        raise data_error(where, repr(text[:60]), wanted, "correct it")
    return int(number), Line(sentence, answer, tuple(int(fact) for fact in facts))
