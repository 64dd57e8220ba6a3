"""Stories that are read by sections: their statements are documents, and rows hold questions alone.

Sections are numbered, since blocks of a memory have no order, and the last of several statements
about a person is the one that counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch

from thinkers.errors import usage_error
from thinkers.models.batch import Batch
from thinkers.prng import mix_tensor
from thinkers.tasks.answers import SCORING_SECTIONS
from thinkers.tasks.babi_examples import Example


def numbers_to(most_statements: int, size: int) -> set[str]:
    """Return the words for the numbers of sections of `size` statements."""
    return {str(number) for number in range(1, 1 + -(-most_statements // size))}


def context(
    statements: Sequence[Sequence[int]], size: int | None, token_of: Mapping[str, int]
) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
    """Return what a row reads before its question, and the sections that it asks about.

    Sections are `size` statements, each after its number; with None, the row reads all statements.

    Raises:
        UsageError: There are more sections than words for their numbers.
    """
    if size is None:
        return [token for statement in statements for token in statement], ()
    found = []
    for number, start in enumerate(range(0, len(statements), size), 1):
        if str(number) not in token_of:
            raise usage_error(
                f"a story of {len(statements)} statements, in sections of {size}",
                f"at most {number - 1} sections, for whose numbers the run has words",
                "use shorter stories, or train a new run",
            )
        part = statements[start : start + size]
        found.append((token_of[str(number)], *chain.from_iterable(part)))
    return [], tuple(found)


def asked_in_turn(examples: Sequence[Example], count: int) -> list[Example]:
    """Return for each `count` rows the questions at the place of the first of them, in turn.

    A model thinks of a question when it has read the prompt, so that each is a row of its own; that
    rows share a story spares reading it again for each of them.
    """
    found = []
    for row in range(len(examples)):
        example = examples[row - row % count]
        turn = row % count % (1 + len(example.others))
        if turn:
            question, answer = example.others[turn - 1]
            example = example._replace(prompt=[*example.prompt[:1], *question], answer=answer)
        found.append(example)
    return found


def rows_at_once(examples: Sequence[Example], most: int) -> int:
    """Return how many of these are scored at once."""
    longest = max((len(x.sections) for x in examples), default=1)
    return max(1, min(most, SCORING_SECTIONS // max(1, longest)))


def with_documents(batch: Batch, examples: Sequence[Example], is_training: bool) -> Batch:
    """Return the batch with the sections of its rows' stories; equal ones are shared."""
    numbers: dict[tuple[int, int], int] = {}
    found = [numbers.setdefault((x.story, x.bucket[1]), len(numbers)) for x in examples]
    document = torch.tensor(found)
    # The first row of a document is the same in a larger batch.
    first = torch.tensor([found.index(number) for number in numbers.values()])
    stories = [examples[row].sections for row in first.tolist()]
    most = max(1, max(len(story) for story in stories))
    widest = max(1, max(len(section) for story in stories for section in (*story, ())))
    sections = torch.zeros(len(stories), most, widest, dtype=torch.int64)
    lengths = torch.zeros(len(stories), most, dtype=torch.int64)
    for number, story in enumerate(stories):
        for place, section in enumerate(story):
            sections[number, place, : len(section)] = torch.tensor(section)
            lengths[number, place] = len(section)
    assert batch.keys is not None
    return replace(
        batch,
        sections=sections,
        section_lengths=lengths,
        document=document,
        document_keys=mix_tensor(batch.keys[first]) if is_training else None,
    )
