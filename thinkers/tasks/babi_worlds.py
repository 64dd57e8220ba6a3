"""Small worlds that tell stories of their own, in the text format of the bAbI tasks.

The kinds are those of Weston et al. 2015 (https://arxiv.org/abs/1502.05698), by their numbers;
words, sentences and worlds are ours. A story is a function of (kind, split, number), and its split
is a hash of its kind and first two lines: no story told in one split begins like one of another,
so no question with the lines before it is in two.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache

from thinkers.prng import Rng, hash_integers
from thinkers.tasks.base import SPLITS, split_of_hash

WOMEN = ("Anna", "Clara", "Emma", "Greta")
MEN = ("Boris", "Daniel", "Felix", "Hugo")
NAMES = (*WOMEN, *MEN)
PLACES = ("attic", "bakery", "cellar", "harbour", "library", "orchard", "stable", "tower")
THINGS = ("apple", "book", "coin", "lamp", "rope", "spoon")
BEASTS = {
    "cat": "cats",
    "dog": "dogs",
    "frog": "frogs",
    "hawk": "hawks",
    "mouse": "mice",
    "snake": "snakes",
}
COLOURS = ("black", "brown", "green", "grey", "white", "yellow")
BOXES = ("barrel", "basket", "box", "chest", "crate", "cup", "jar", "trunk")
NUMBERS = ("none", "one", "two", "three", "four")
MOTIVES = {
    "bored": ("garden", "ball"),
    "cold": ("bedroom", "blanket"),
    "hungry": ("kitchen", "bread"),
    "thirsty": ("well", "bucket"),
}
MOVES = tuple(f"{{}} {verb} to the {{}}." for verb in ("went", "walked", "moved", "ran"))
TAKES = tuple(f"{{}} {verb} the {{}}." for verb in ("took", "fetched", "grabbed"))
DROPS = tuple(f"{{}} {verb} the {{}}." for verb in ("dropped", "left"))
PRONOUN = "{} {} {} to the {}."
THEN = ("Afterwards", "Then", "Later")
PAIR = "{} and {} {} to the {}."
IS_A, IS, FEAR = "{} is a {}.", "{} is {}.", "{} fear {}."
LARGER, FITS = "The {} is larger than the {}.", "The {} fits in the {}."
WHERE, WHERE_THING, BEFORE = "Where is {}?", "Where is the {}?", "Where was the {} before the {}?"
IS_IN, CARRYING = "Is {} in the {}?", "How many things is {} carrying?"
WHAT_FEAR, COLOUR = "What does {} fear?", "What colour is {}?"
DOES_FIT, IS_LARGER = "Does the {} fit in the {}?", "Is the {} larger than the {}?"
WILL_GO, WHY_GO, WHY_TAKE = (
    "Where will {} go?",
    "Why did {} go to the {}?",
    "Why did {} take the {}?",
)

MOST_LINES = 24
OPENING = 2
"""Lines of a story that decide its split; no question is asked before them."""
_SALT = 29


class Story:
    """Numbered lines: statements, and questions with their answers and supporting lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> int:
        """Add a statement; its number."""
        self.lines.append(f"{len(self.lines) + 1} {text}")
        return len(self.lines)

    def ask(self, question: str, answer: str, support: Sequence[int]) -> None:
        """Add a question."""
        numbers = " ".join(str(number) for number in sorted(set(support)))
        self.lines.append(f"{len(self.lines) + 1} {question}\t{answer}\t{numbers}")


def move(rng: Rng, story: Story, name: str, place: str) -> int:
    """Tell that somebody goes somewhere."""
    return story.say(rng.choice(MOVES).format(name, place))


def elsewhere(rng: Rng, place: str | None) -> str:
    """A place that is another one."""
    return rng.choice([other for other in PLACES if other != place])


class Walk:
    """Who is where, since which line."""

    def __init__(self, rng: Rng, story: Story, people: int):
        self.rng, self.story = rng, story
        self.people = rng.sample(NAMES, people)
        self.at: dict[str, tuple[str, int]] = {}

    def go(self) -> str:
        """Somebody goes elsewhere."""
        name = self.rng.choice(self.people)
        place = elsewhere(self.rng, self.at.get(name, (None, 0))[0])
        self.at[name] = place, move(self.rng, self.story, name, place)
        return name


def walks(rng: Rng, story: Story) -> Iterator[tuple[str, str, int]]:
    """Five times: two walks, and of somebody the name, the place and the line that says so."""
    walk = Walk(rng, story, 4)
    for _ in range(5):
        walk.go()
        walk.go()
        name = rng.choice(list(walk.at))
        yield name, *walk.at[name]


def one_fact(rng: Rng, story: Story) -> None:
    """Kind 1: where somebody is."""
    for name, place, line in walks(rng, story):
        story.ask(WHERE.format(name), place, [line])


def yes_no(rng: Rng, story: Story) -> None:
    """Kind 6: whether somebody is somewhere."""
    for name, place, line in walks(rng, story):
        is_there = rng.below(2) == 0
        asked = place if is_there else elsewhere(rng, place)
        story.ask(IS_IN.format(name, asked), "yes" if is_there else "no", [line])


class Errands(Walk):
    """People who walk, and take and leave things; where each thing has been, and since when.

    `been` holds for each place the lines that say so, that of the latest deed last.
    """

    def __init__(self, rng: Rng, story: Story, people: int, things: int):
        super().__init__(rng, story, people)
        self.things = rng.sample(THINGS, things)
        self.holder: dict[str, str] = {}
        self.been: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        self.deeds: dict[str, list[int]] = {}

    def carried(self, name: str) -> list[str]:
        """What somebody holds."""
        return [thing for thing in self.things if self.holder.get(thing) == name]

    def act(self) -> None:
        """Something happens: somebody walks, takes or leaves."""
        choice = self.rng.below(6)
        if not (self.at and (self.take() if choice < 2 else choice == 2 and self.drop())):
            name = self.go()
            for thing in self.carried(name):
                place, line = self.at[name]
                self.been[thing].append((place, (line, self.been[thing][-1][1][-1])))

    def take(self) -> bool:
        """Somebody takes a thing that lies where they are, or lay nowhere yet."""
        name = self.rng.choice(list(self.at))
        place, since = self.at[name]
        free = [
            thing
            for thing in self.things
            if thing not in self.holder and self.been.get(thing, [(place, ())])[-1][0] == place
        ]
        if not free:
            return False
        thing = self.rng.choice(free)
        line = self.story.say(self.rng.choice(TAKES).format(name, thing))
        self.holder[thing] = name
        trail = self.been.setdefault(thing, [])
        before = trail.pop()[1] if trail else (since,)  # it lay here, or nobody knew of it
        trail.append((place, (*before, line)))
        self.deeds.setdefault(name, []).append(line)
        return True

    def drop(self) -> bool:
        """Somebody leaves a thing where they are."""
        if not self.holder:
            return False
        thing = self.rng.choice(list(self.holder))
        name = self.holder.pop(thing)
        line = self.story.say(self.rng.choice(DROPS).format(name, thing))
        place, before = self.been[thing].pop()
        self.been[thing].append((place, (*before, line)))
        self.deeds.setdefault(name, []).append(line)
        return True


def two_facts(rng: Rng, story: Story) -> None:
    """Kind 2: where a thing is, by who has it and where they went."""
    errands = Errands(rng, story, 2, 2)
    for _ in range(4):
        errands.act()
        errands.act()
        while not errands.been:
            errands.act()
        thing = rng.choice(list(errands.been))
        place, lines = errands.been[thing][-1]
        story.ask(WHERE_THING.format(thing), place, lines)


def three_facts(rng: Rng, story: Story) -> None:
    """Kind 3: where a thing was before."""
    errands = Errands(rng, story, 2, 2)
    for _ in range(3):
        for _ in range(3):
            errands.act()
        while not (moved := [thing for thing, been in errands.been.items() if len(been) > 1]):
            errands.act()
        thing = rng.choice(moved)
        (before, first), (place, last) = errands.been[thing][-2:]
        story.ask(BEFORE.format(thing, place), before, [*first, *last])


def counting(rng: Rng, story: Story) -> None:
    """Kind 7: how many things somebody carries."""
    errands = Errands(rng, story, 2, 4)
    for _ in range(5):
        errands.act()
        errands.act()
        while not errands.deeds:
            errands.act()
        name = rng.choice(list(errands.deeds))
        count = NUMBERS[len(errands.carried(name))]
        story.ask(CARRYING.format(name), count, errands.deeds[name])


def pronouns(rng: Rng, story: Story) -> None:
    """Kind 11: where somebody is, who was called she or he."""
    walk = Walk(rng, story, 4)
    for _ in range(5):
        name = walk.go()
        place, line = walk.at[name]
        verb, place = rng.choice(MOVES).split()[1], elsewhere(rng, place)
        who = "she" if name in WOMEN else "he"
        again = story.say(PRONOUN.format(rng.choice(THEN), who, verb, place))
        walk.at[name] = place, again
        lines = {name: [line, again]}
        asked = name if rng.below(2) else rng.choice(list(walk.at))
        place, line = walk.at[asked]
        story.ask(WHERE.format(asked), place, lines.get(asked, [line - 1, line]))


def pairs(rng: Rng, story: Story) -> None:
    """Kind 12: where somebody is, who went with another."""
    people = rng.sample(NAMES, 4)
    at: dict[str, tuple[str, int]] = {}
    for _ in range(5):
        for _ in range(2):
            names = rng.sample(people, 2)
            place = elsewhere(rng, at.get(names[0], (None, 0))[0])
            verb = rng.choice(MOVES).split()[1]
            line = story.say(PAIR.format(*names, verb, place))
            at.update({name: (place, line) for name in names})
        name = rng.choice(list(at))
        story.ask(WHERE.format(name), at[name][0], [at[name][1]])


def told(rng: Rng, story: Story, texts: Sequence[str]) -> dict[str, int]:
    """Say all of these in random order; their numbers."""
    return {text: story.say(text) for text in rng.sample(texts, len(texts))}


def deduction(rng: Rng, story: Story) -> None:
    """Kind 15: what somebody fears, as all of their sort do."""
    beasts, names = rng.sample(tuple(BEASTS), 4), rng.sample(NAMES, 4)
    feared = {beast: rng.choice([x for x in beasts if x != beast]) for beast in beasts}
    fears = {
        beast: FEAR.format(BEASTS[beast].capitalize(), BEASTS[x]) for beast, x in feared.items()
    }
    sorts = {name: rng.choice(beasts) for name in names}
    is_a = {name: IS_A.format(name, beast) for name, beast in sorts.items()}
    lines = told(rng, story, [*fears.values(), *is_a.values()])
    for name in rng.sample(names, 4):
        beast = sorts[name]
        support = [lines[is_a[name]], lines[fears[beast]]]
        story.ask(WHAT_FEAR.format(name), BEASTS[feared[beast]], support)


def induction(rng: Rng, story: Story) -> None:
    """Kind 16: what colour somebody has, as another of their sort does."""
    beasts, names = rng.sample(tuple(BEASTS), 3), rng.sample(NAMES, 5)
    colours = dict(zip(beasts, rng.sample(COLOURS, 3), strict=True))
    sorts = dict(zip(names, [*beasts, rng.choice(beasts), rng.choice(beasts)], strict=True))
    is_a = {name: IS_A.format(name, beast) for name, beast in sorts.items()}
    shown = {name: IS.format(name, colours[sorts[name]]) for name in names[:3]}
    lines = told(rng, story, [*is_a.values(), *shown.values()])
    for name in names[3:]:
        other = next(x for x in names if sorts[x] == sorts[name])
        support = [lines[is_a[name]], lines[is_a[other]], lines[shown[other]]]
        story.ask(COLOUR.format(name), colours[sorts[name]], support)


def sizes(rng: Rng, story: Story) -> None:
    """Kind 18: what fits in what, by steps from the larger to the smaller."""
    order = rng.sample(BOXES, 5)
    steps = []
    for large, small in zip(order[:-1], order[1:], strict=True):
        is_larger = rng.below(2) == 0
        steps.append(LARGER.format(large, small) if is_larger else FITS.format(small, large))
    lines = told(rng, story, steps)
    for _ in range(4):
        first, second = sorted(order.index(x) for x in rng.sample(order, 2))
        large, small = order[first], order[second]
        is_so = rng.below(2) == 0
        if rng.below(2):
            asked = IS_LARGER.format(*((large, small) if is_so else (small, large)))
        else:
            asked = DOES_FIT.format(*((small, large) if is_so else (large, small)))
        support = [lines[step] for step in steps[first:second]]
        story.ask(asked, "yes" if is_so else "no", support)


def motives(rng: Rng, story: Story) -> None:
    """Kind 20: where somebody will go, and why they went there or took what they took."""
    names = rng.sample(NAMES, 3)
    moods = dict(zip(names, rng.sample(tuple(MOTIVES), 3), strict=True))
    lines = told(rng, story, [IS.format(name, moods[name]) for name in names])
    for name in rng.sample(names, 3):
        mood, (place, thing) = moods[name], MOTIVES[moods[name]]
        since = lines[IS.format(name, mood)]
        story.ask(WILL_GO.format(name), place, [since])
        went = move(rng, story, name, place)
        story.ask(WHY_GO.format(name, place), mood, [since, went])
        took = story.say(rng.choice(TAKES).format(name, thing))
        story.ask(WHY_TAKE.format(name, thing), mood, [since, took])


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


def generate_story(kind: int, split: str, number: int) -> str:
    """One story: its lines, each with its end."""
    for attempt in range(100_000):
        story = Story()
        KINDS[kind](Rng(hash_integers(kind, SPLITS.index(split), number, attempt)), story)
        is_short = len(story.lines) <= MOST_LINES
        if is_short and split_of(kind, story.lines[:OPENING]) == split:
            return "".join(f"{line}\n" for line in story.lines)
    raise RuntimeError(f"no {split} story of kind {kind} in 100,000 attempts")


def split_of(kind: int, opening: Sequence[str]) -> str:
    """The split of stories that begin so: train for 8 of 10, valid and test for one each."""
    content = [int.from_bytes(line.encode()) for line in opening]
    return split_of_hash(_SALT, kind, *content)


@cache
def words() -> tuple[str, ...]:
    """All words that stories of any kind are made of, as they are written there."""
    listed = (NAMES, PLACES, THINGS, COLOURS, BOXES, NUMBERS, THEN, ("she", "he", "yes", "no"))
    known = {word for choices in listed for word in choices}
    for beast, many in BEASTS.items():
        known |= {beast, many, many.capitalize()}
    for mood, deeds in MOTIVES.items():
        known |= {mood, *deeds}
    sentences = (*MOVES, *TAKES, *DROPS, PRONOUN, PAIR, IS_A, IS, FEAR, LARGER, FITS, WHERE)
    sentences += (WHERE_THING, BEFORE, IS_IN, CARRYING, WHAT_FEAR, COLOUR, DOES_FIT, IS_LARGER)
    for sentence in (*sentences, WILL_GO, WHY_GO, WHY_TAKE):
        known |= {word.rstrip(".?") for word in sentence.split() if "{" not in word}
    return tuple(sorted(known))
