"""Generators of stories with questions, in the text format of the bAbI tasks.

The kinds are those of Weston et al. 2015 (https://arxiv.org/abs/1502.05698), by their numbers;
words and sentences are new. A generator simulates a small world: it draws what happens next,
keeps the state of the world, and writes statements and questions about it. A story is a pure
function of (kind, split, number).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from thinkers.prng import Rng, hash_integers
from thinkers.tasks.babi_words import (
    ANIMALS,
    BEFORE,
    BOXES,
    CARRYING,
    COLOUR,
    COLOURS,
    DOES_FIT,
    DROPS,
    FEAR,
    FITS,
    IS,
    IS_A,
    IS_IN,
    IS_LARGER,
    LARGER,
    MOODS,
    MOVES,
    NAMES,
    NUMBERS,
    PAIR,
    PLACES,
    PRONOUN,
    TAKES,
    THEN,
    THINGS,
    WHAT_FEAR,
    WHERE,
    WHERE_THING,
    WHY_GO,
    WHY_TAKE,
    WILL_GO,
    WOMEN,
)
from thinkers.tasks.base import SPLITS, split_of_hash

MAX_LINES = 24
OPENING_LINES = 2
"""Lines that decide the split of a story; all questions come after them."""
_SALT = 29


class Story:
    """Numbered lines of a story that is being written, with at most `asked` questions at a place.

    `size` is the number of its lines, those of questions after a question left out.
    """

    def __init__(self, asked: int = 1) -> None:
        self.lines: list[str] = []
        self.asked, self.size = asked, 0

    def add_statement(self, text: str) -> int:
        """Append a statement and return its line number."""
        self.lines.append(f"{len(self.lines) + 1} {text}")
        self.size += 1
        return len(self.lines)

    def subjects(self, rng: Rng, choices: Iterable[str]) -> list[str]:
        """Return those of `choices` that are asked about here, `asked` or all, in random order."""
        known = tuple(choices)
        return rng.sample(known, min(self.asked, len(known)))

    def add_question(self, question: str, answer: str, support: Sequence[int]) -> None:
        """Append a question, its answer and the line numbers of its supporting facts."""
        numbers = " ".join(str(number) for number in sorted(set(support)))
        self.size += "\t" not in self.lines[-1]
        self.lines.append(f"{len(self.lines) + 1} {question}\t{answer}\t{numbers}")


def add_move(rng: Rng, story: Story, name: str, place: str) -> int:
    """Append the move of a person to a place, and return its line number."""
    return story.add_statement(rng.choice(MOVES).format(name, place))


def other_place(rng: Rng, place: str | None) -> str:
    """Return a random place other than `place`."""
    return rng.choice([other for other in PLACES if other != place])


class Walk:
    """World of people who go from place to place.

    `at` holds for each person the place and the number of the line that states it.
    """

    def __init__(self, rng: Rng, story: Story, people: int):
        self.rng, self.story = rng, story
        self.people = rng.sample(NAMES, people)
        self.at: dict[str, tuple[str, int]] = {}

    def go(self, name: str | None = None) -> str:
        """Let a person, by default a random one, go to another place, and return the name."""
        name = name or self.rng.choice(self.people)
        place = other_place(self.rng, self.at.get(name, (None, 0))[0])
        self.at[name] = place, add_move(self.rng, self.story, name, place)
        return name


def walks(rng: Rng, story: Story) -> Iterator[tuple[str, str, int]]:
    """Five times write two moves, and yield names, their places and the lines that state them."""
    walk = Walk(rng, story, 4)
    for _ in range(5):
        walk.go()
        walk.go()
        for name in story.subjects(rng, walk.at):
            yield name, *walk.at[name]


def one_fact(rng: Rng, story: Story) -> None:
    """Write kind 1, single supporting fact: the place of a person."""
    for name, place, line in walks(rng, story):
        story.add_question(WHERE.format(name), place, [line])


def yes_no(rng: Rng, story: Story) -> None:
    """Write kind 6, yes/no questions: is a person at a place?"""
    for name, place, line in walks(rng, story):
        is_there = rng.below(2) == 0
        asked = place if is_there else other_place(rng, place)
        story.add_question(IS_IN.format(name, asked), "yes" if is_there else "no", [line])


class Errands(Walk):
    """World of people who go from place to place, and take and drop things, `hands` at once.

    `holder` maps a thing to the person who holds it; `trails` holds for each thing its places in
    order, each with the lines that prove it, the latest last; `actions` the lines of each person's
    taking and dropping.
    """

    def __init__(self, rng: Rng, story: Story, people: int, things: int, hands: int):
        super().__init__(rng, story, people)
        self.things = rng.sample(THINGS, things)
        self.hands = hands
        self.holder: dict[str, str] = {}
        self.trails: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        self.actions: dict[str, list[int]] = {}

    def carried(self, name: str) -> list[str]:
        """Return the things that a person holds."""
        return [thing for thing in self.things if self.holder.get(thing) == name]

    def act(self) -> None:
        """Let one thing happen: a person goes, takes or drops.

        A take or a drop that is not possible becomes a move, so that every call writes one line.
        """
        choice = self.rng.below(6)
        if not (self.at and (self.take() if choice < 2 else choice == 2 and self.drop())):
            name = self.go()
            for thing in self.carried(name):
                place, line = self.at[name]
                self.trails[thing].append((place, (line, self.trails[thing][-1][1][-1])))

    def take(self, name: str | None = None) -> bool:
        """Let a person take a thing at their place; return False if there is none, or no free hand.

        A thing that was not mentioned yet may be anywhere, and so here.
        """
        name = name or self.rng.choice(list(self.at))
        if len(self.carried(name)) == self.hands:
            return False
        place, since = self.at[name]
        free = [
            thing
            for thing in self.things
            if thing not in self.holder and self.trails.get(thing, [(place, ())])[-1][0] == place
        ]
        if not free:
            return False
        thing = self.rng.choice(free)
        line = self.story.add_statement(self.rng.choice(TAKES).format(name, thing))
        self.holder[thing] = name
        trail = self.trails.setdefault(thing, [])
        # The proof of its place: the lines so far if it was known to be here; else only the line
        # that brought the person here, since the thing must have been here already.
        before = trail.pop()[1] if trail else (since,)
        trail.append((place, (*before, line)))
        self.actions.setdefault(name, []).append(line)
        return True

    def drop(self) -> bool:
        """Let the holder of a random thing drop it; return False if nobody holds any."""
        if not self.holder:
            return False
        thing = self.rng.choice(list(self.holder))
        name = self.holder.pop(thing)
        line = self.story.add_statement(self.rng.choice(DROPS).format(name, thing))
        place, before = self.trails[thing].pop()
        self.trails[thing].append((place, (*before, line)))
        self.actions.setdefault(name, []).append(line)
        return True


def two_facts(rng: Rng, story: Story) -> None:
    """Write kind 2, two supporting facts: the place of a thing, by its holder's moves.

    Each of two people takes a thing before the first question, and holds one at most, so that the
    two things are seldom at one place: who ignores which thing is asked for guesses between them.
    """
    errands = Errands(rng, story, 2, 2, hands=1)
    (one, other), go, take = errands.people, errands.go, errands.take
    orders: Sequence[Sequence[tuple[Callable[[str], object], str]]] = (
        ((go, one), (take, one), (go, other), (take, other)),
        ((go, one), (go, other), (take, one), (take, other)),
        ((go, one), (go, other), (take, other), (take, one)),
    )

    def ask() -> None:
        for thing in story.subjects(rng, [x for x in errands.things if x in errands.trails]):
            place, lines = errands.trails[thing][-1]
            story.add_question(WHERE_THING.format(thing), place, lines)

    # With more questions than one, some are asked where one thing is known, and its holder's place
    # can be learned before the things are distinguished.
    often = story.asked > 1
    for count, (deed, name) in enumerate(orders[rng.below(3)], 1):
        deed(name)
        if count == 4 or often and errands.trails:
            ask()
    for count in range(1, 7):
        errands.act()
        if count % 2 == 0 or often:
            ask()


def three_facts(rng: Rng, story: Story) -> None:
    """Write kind 3, three supporting facts: the place of a thing before another place."""
    errands = Errands(rng, story, 2, 2, hands=2)
    for _ in range(3):
        for _ in range(3):
            errands.act()
        while not (moved := [thing for thing, trail in errands.trails.items() if len(trail) > 1]):
            errands.act()
        for thing in story.subjects(rng, moved):
            (before, first), (place, last) = errands.trails[thing][-2:]
            story.add_question(BEFORE.format(thing, place), before, [*first, *last])


def counting(rng: Rng, story: Story) -> None:
    """Write kind 7, counting: the number of things that a person carries."""
    errands = Errands(rng, story, 2, 4, hands=4)
    for _ in range(5):
        errands.act()
        errands.act()
        while not errands.actions:
            errands.act()
        for name in story.subjects(rng, errands.actions):
            count = NUMBERS[len(errands.carried(name))]
            story.add_question(CARRYING.format(name), count, errands.actions[name])


def pronouns(rng: Rng, story: Story) -> None:
    """Write kind 11, basic coreference: the place of a person called she or he."""
    walk = Walk(rng, story, 4)
    for _ in range(5):
        name = walk.go()
        place, line = walk.at[name]
        verb, place = rng.choice(MOVES).split()[1], other_place(rng, place)
        who = "she" if name in WOMEN else "he"
        again = story.add_statement(PRONOUN.format(rng.choice(THEN), who, verb, place))
        walk.at[name] = place, again
        lines = {name: [line, again]}
        for asked in [name] if rng.below(2) else story.subjects(rng, walk.at):
            place, line = walk.at[asked]
            story.add_question(WHERE.format(asked), place, lines.get(asked, [line - 1, line]))


def pairs(rng: Rng, story: Story) -> None:
    """Write kind 12, conjunction: the place of a person who went with another."""
    people = rng.sample(NAMES, 4)
    at: dict[str, tuple[str, int]] = {}
    for _ in range(5):
        for _ in range(2):
            names = rng.sample(people, 2)
            place = other_place(rng, at.get(names[0], (None, 0))[0])
            verb = rng.choice(MOVES).split()[1]
            line = story.add_statement(PAIR.format(*names, verb, place))
            at.update({name: (place, line) for name in names})
        for name in story.subjects(rng, at):
            story.add_question(WHERE.format(name), at[name][0], [at[name][1]])


def add_shuffled(rng: Rng, story: Story, texts: Sequence[str]) -> dict[str, int]:
    """Append all of `texts` in random order, and return the line number of each."""
    return {text: story.add_statement(text) for text in rng.sample(texts, len(texts))}


def deduction(rng: Rng, story: Story) -> None:
    """Write kind 15, basic deduction: the fear of a named animal, known from its species."""
    animals, names = rng.sample(tuple(ANIMALS), 4), rng.sample(NAMES, 4)
    feared = {animal: rng.choice([x for x in animals if x != animal]) for animal in animals}
    fears = {x: FEAR.format(ANIMALS[x].capitalize(), ANIMALS[y]) for x, y in feared.items()}
    sorts = {name: rng.choice(animals) for name in names}
    is_a = {name: IS_A.format(name, animal) for name, animal in sorts.items()}
    lines = add_shuffled(rng, story, [*fears.values(), *is_a.values()])
    for name in rng.sample(names, 4):
        animal = sorts[name]
        support = [lines[is_a[name]], lines[fears[animal]]]
        story.add_question(WHAT_FEAR.format(name), ANIMALS[feared[animal]], support)


def induction(rng: Rng, story: Story) -> None:
    """Write kind 16, basic induction: the colour of an animal, known from one of its species."""
    animals, names = rng.sample(tuple(ANIMALS), 3), rng.sample(NAMES, 5)
    colours = dict(zip(animals, rng.sample(COLOURS, 3), strict=True))
    sorts = dict(zip(names, [*animals, rng.choice(animals), rng.choice(animals)], strict=True))
    is_a = {name: IS_A.format(name, animal) for name, animal in sorts.items()}
    shown = {name: IS.format(name, colours[sorts[name]]) for name in names[:3]}
    lines = add_shuffled(rng, story, [*is_a.values(), *shown.values()])
    for name in names[3:]:
        other = next(x for x in names if sorts[x] == sorts[name])
        support = [lines[is_a[name]], lines[is_a[other]], lines[shown[other]]]
        story.add_question(COLOUR.format(name), colours[sorts[name]], support)


def sizes(rng: Rng, story: Story) -> None:
    """Write kind 18, size reasoning: does one box fit in another, by a chain of comparisons?"""
    order = rng.sample(BOXES, 5)
    steps = []
    for large, small in zip(order[:-1], order[1:], strict=True):
        is_larger = rng.below(2) == 0
        steps.append(LARGER.format(large, small) if is_larger else FITS.format(small, large))
    lines = add_shuffled(rng, story, steps)
    for _ in range(4):
        first, second = sorted(order.index(x) for x in rng.sample(order, 2))
        large, small = order[first], order[second]
        is_so = rng.below(2) == 0
        pair = (large, small) if is_so else (small, large)
        asked = IS_LARGER.format(*pair) if rng.below(2) else DOES_FIT.format(*pair[::-1])
        support = [lines[step] for step in steps[first:second]]
        story.add_question(asked, "yes" if is_so else "no", support)


def motives(rng: Rng, story: Story) -> None:
    """Write kind 20, agent motivations: a person's next place, and the reasons of actions."""
    names = rng.sample(NAMES, 3)
    moods = dict(zip(names, rng.sample(tuple(MOODS), 3), strict=True))
    lines = add_shuffled(rng, story, [IS.format(name, moods[name]) for name in names])
    for name in rng.sample(names, 3):
        mood, (place, thing) = moods[name], MOODS[moods[name]]
        since = lines[IS.format(name, mood)]
        story.add_question(WILL_GO.format(name), place, [since])
        went = add_move(rng, story, name, place)
        story.add_question(WHY_GO.format(name, place), mood, [since, went])
        took = story.add_statement(rng.choice(TAKES).format(name, thing))
        story.add_question(WHY_TAKE.format(name, thing), mood, [since, took])


KINDS: dict[int, Callable[[Rng, Story], None]] = {
    1: one_fact,
    2: two_facts,
    3: three_facts,
    6: yes_no,
    7: counting,
    11: pronouns,
    12: pairs,
    15: deduction,
    16: induction,
    18: sizes,
    20: motives,
}


def generate_story(kind: int, split: str, number: int, asked: int = 1) -> str:
    """Return the text of story `number` of a kind and split: lines, each with a line break.

    Stories that are too long or belong to another split are drawn again.

    Args:
        asked: Most questions at a place of the story where the kind asks one at random.
    """
    for attempt in range(100_000):
        story = Story(asked)
        KINDS[kind](Rng(hash_integers(kind, SPLITS.index(split), number, attempt)), story)
        is_short = story.size <= MAX_LINES
        if is_short and split_of(kind, story.lines[:OPENING_LINES]) == split:
            return "".join(f"{line}\n" for line in story.lines)
    raise RuntimeError(f"no {split} story of kind {kind} in 100,000 attempts")


def split_of(kind: int, opening: Sequence[str]) -> str:
    """Return the split of stories that begin with the lines `opening`, by their hash.

    Stories of two splits never begin alike, so no question, with the lines before it, is in both.
    """
    content = [int.from_bytes(line.encode()) for line in opening]
    return split_of_hash(_SALT, kind, *content)
