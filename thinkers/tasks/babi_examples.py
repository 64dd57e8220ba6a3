"""Examples of stories: a question after statements, and rows of several questions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from thinkers.models.batch import IGNORED, Batch

Asked = tuple[list[int], list[int]]
"""Tokens of a question, or of statements and a question, and of its answer."""


class Example(NamedTuple):
    """Tokens of a question after the statements before it, and of its answer with the end token.

    The prompt begins with the start token.
    """

    prompt: list[int]
    answer: list[int]
    bucket: tuple[int, int]
    """Index of its kind in `kinds`, and number of statements: the order of the curriculum."""
    story: int
    """Index of its story in its split."""
    others: tuple[Asked, ...] = ()
    """The other questions after the same statements, and their answers."""
    sections: tuple[tuple[int, ...], ...] = ()
    """Its statements, if they are read by sections; the prompt is then the question alone."""

    def first(self, count: int, max_length: int) -> list[Asked]:
        """Return this question and those after it, `count` or all, as many as fit in a row."""
        found = [(self.prompt, self.answer), *self.others[: count - 1]]
        while len(found) > 1 and _length(found) > max_length:
            found.pop()
        return found

    def longest(self, count: int) -> int:
        """Return the tokens of `count` questions and answers after their statements, or of all."""
        return _length([(self.prompt, self.answer), *self.others[: count - 1]])


def examples_at(
    facts: Sequence[int],
    asked: Sequence[Asked],
    bucket: tuple[int, int],
    story: int,
    sections: tuple[tuple[int, ...], ...] = (),
) -> Iterator[Example]:
    """Yield an example for each of the questions that follow the statements `facts`."""
    for i, (question, answer) in enumerate(asked):
        others = (*asked[i + 1 :], *asked[:i])
        yield Example([*facts, *question], answer, bucket, story, others, sections)


def question_batch(
    rows: Sequence[Sequence[Asked]], keys: Int64[np.ndarray, " b"], pad_token: int, is_written: bool
) -> Batch:
    """Return rows of one or more questions, all graded, padded to the longest.

    The first question of a row, after its statements, is its prompt.

    Args:
        is_written: Each answer is read before the next question, with its end token; without, the
            answers are targets alone, of the last position of their questions.
    """
    texts: list[tuple[list[int], list[int]]] = []
    for asked in rows:
        read: list[int] = []
        graded: list[int] = []
        for question, answer in asked:
            read += question
            graded += [IGNORED] * (len(question) - 1)
            graded += answer
            if is_written:
                read += answer
                graded.append(IGNORED)
        # The end of the last answer is predicted and never read.
        texts.append((read[:-1], graded[:-1]) if is_written else (read, graded))
    lengths = np.array([len(read) for read, _ in texts])
    shape = len(rows), lengths.max()
    tokens, targets = np.full(shape, pad_token), np.full(shape, IGNORED)
    for row, (read, graded) in enumerate(texts):
        tokens[row, : len(read)], targets[row, : len(graded)] = read, graded
    prompts = np.array([len(asked[0][0]) for asked in rows])
    return Batch(*(torch.from_numpy(x) for x in (tokens, targets, prompts, lengths, keys)))


def _length(asked: Sequence[Asked]) -> int:
    return sum(len(question) + len(answer) for question, answer in asked)
