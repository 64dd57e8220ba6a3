"""Generated stories of any number of statements, whose people come and go."""

from collections.abc import Sequence
from functools import lru_cache

from thinkers.checks import check_int
from thinkers.errors import UsageError
from thinkers.prng import Rng, hash_integers
from thinkers.tasks.babi_format import Story, parse_stories
from thinkers.tasks.babi_words import NAMES, THINGS, WHERE, WHERE_THING
from thinkers.tasks.babi_worlds import OPENING_LINES, Errands, Walk, split_of
from thinkers.tasks.babi_worlds import Story as Written
from thinkers.tasks.base import SPLITS

KINDS = (1, 2)
"""The kinds that can be of any length: the place of a person, and that of a thing."""
CAST = 3
"""People who go from place to place at one time; the others stay where they are."""
ASKED_EVERY = 4
"""Statements between questions in training stories."""
ASKED_AT_END = 4
"""Most questions of a held-out story, all after its last statement."""


def check_long(statements: int | None, path: str, kinds: Sequence[int]) -> None:
    """Raise UsageError if there are no stories of these kinds with this number of statements."""
    if statements is None:
        return
    check_int("statements", statements, ASKED_EVERY)
    if path:
        raise UsageError(f"statements must be None for stories of a path, which is {path!r}")
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"kinds must be among 1, 2 with statements, got {kind}")


@lru_cache(maxsize=8)
def long_stories(
    kind: int, split: str, count: int, statements: int, asked: int = 1
) -> tuple[Story, ...]:
    """Return the first `count` stories of a kind and split, all of this length.

    Args:
        asked: Most questions at a place of a training story.
    """
    text = "".join(_generate(kind, split, number, statements, asked) for number in range(count))
    return tuple(parse_stories(text.encode(), f"generated stories of kind {kind}"))


def _generate(kind: int, split: str, number: int, statements: int, asked: int) -> str:
    """Return the text of story `number`: a pure function of the arguments."""
    attempt = 0
    while True:
        key = hash_integers(kind, SPLITS.index(split), number, attempt, statements)
        story = Written(asked if split == "train" else ASKED_AT_END)
        _write(Rng(key), story, kind, statements, ASKED_EVERY if split == "train" else statements)
        is_asked = any("\t" in line for line in story.lines)
        if is_asked and split_of(kind, story.lines[:OPENING_LINES]) == split:
            return "".join(f"{line}\n" for line in story.lines)
        attempt += 1


def _write(rng: Rng, story: Written, kind: int, statements: int, every: int) -> None:
    """Write a story; who moves changes little by little, so that answers are found all over it."""
    world: Walk = Walk(rng, story, len(NAMES))
    if kind == 2:
        world = Errands(rng, story, len(NAMES), len(THINGS), hands=1)
    people = world.people
    for count in range(1, statements + 1):
        first = (count - 1) * (len(people) - CAST + 1) // statements
        world.people = people[first : first + CAST]
        if isinstance(world, Errands):
            world.act()
        else:
            world.go()
        if count % every and count < statements:
            continue
        if isinstance(world, Errands):
            for thing in story.subjects(rng, world.trails):
                place, lines = world.trails[thing][-1]
                story.add_question(WHERE_THING.format(thing), place, lines)
        else:
            for name in story.subjects(rng, world.at):
                place, line = world.at[name]
                story.add_question(WHERE.format(name), place, [line])
