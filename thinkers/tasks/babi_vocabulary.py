"""Words and marks of stories, which are their tokens."""

import re
from collections.abc import Iterable

from thinkers.tasks.babi_format import Story

MARKS = (".", "?", ",")
PART = re.compile(r"[^\s.?,]+|[.?,]")
"""Words and marks of a text."""


def words_in(stories: Iterable[Story], whole_answers: bool) -> set[str]:
    """Return all words of `stories` in lower case.

    Args:
        whole_answers: Count each answer as one word, not as its parts.
    """
    found: set[str] = set()
    for story in stories:
        for line in story:
            found.update(PART.findall(line.text.lower()))
            answer = (line.answer or "").lower()
            found.update([answer] if whole_answers and answer else PART.findall(answer))
    return found - set(MARKS)


def longest_statement(stories: Iterable[Story]) -> int:
    """Return the most words and marks of a statement."""
    lines = (line for story in stories for line in story if line.answer is None)
    return max((len(PART.findall(line.text)) for line in lines), default=1)
