"""Names, things and sentences of generated stories, and the list of all their words."""

from functools import cache

WOMEN = ("Anna", "Clara", "Emma", "Greta")
MEN = ("Boris", "Daniel", "Felix", "Hugo")
NAMES = (*WOMEN, *MEN)
PLACES = ("attic", "bakery", "cellar", "harbour", "library", "orchard", "stable", "tower")
THINGS = ("apple", "book", "coin", "lamp", "rope", "spoon")
ANIMALS = {
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
MOODS = {
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


@cache
def words() -> tuple[str, ...]:
    """Return all words of stories of all kinds, with their capitals."""
    listed = (NAMES, PLACES, THINGS, COLOURS, BOXES, NUMBERS, THEN, ("she", "he", "yes", "no"))
    known = {word for choices in listed for word in choices}
    for animal, many in ANIMALS.items():
        known |= {animal, many, many.capitalize()}
    for mood, actions in MOODS.items():
        known |= {mood, *actions}
    sentences = (*MOVES, *TAKES, *DROPS, PRONOUN, PAIR, IS_A, IS, FEAR, LARGER, FITS, WHERE)
    sentences += (WHERE_THING, BEFORE, IS_IN, CARRYING, WHAT_FEAR, COLOUR, DOES_FIT, IS_LARGER)
    for sentence in (*sentences, WILL_GO, WHY_GO, WHY_TAKE):
        known |= {word.rstrip(".?") for word in sentence.split() if "{" not in word}
    return tuple(sorted(known))
