"""Answers questions about stories from their sentences alone, sentence by sentence."""

import re

GO = r"(?:went|walked|moved|ran) to the (\w+)\."
TOOK, LEFT = r"(?:took|fetched|grabbed)", r"(?:dropped|left)"
COUNTS = ["none", "one", "two", "three", "four"]
WOMEN = {"Anna", "Clara", "Emma", "Greta"}


def replay(facts, whole):
    """Where people and things have been, one place after another, and who holds what.

    In a whole story nothing is taken from a hand, and only what was taken is left; of supporting
    facts alone, what was left unsaid is inferred.
    """
    trails, hands, last = {}, {}, None

    def visit(who, place):
        trail = trails.setdefault(who, [])
        if not trail or trail[-1] != place:
            trail.append(place)

    for fact in facts:
        if match := re.fullmatch(r"(\w+) and (\w+) " + GO, fact):
            visit(match[1], match[3])
            visit(match[2], match[3])
        elif match := re.fullmatch(r"(?:Afterwards|Then|Later) (she|he) " + GO, fact):
            assert (match[1] == "she") == (last in WOMEN), "nobody who is called so"
            visit(last, match[2])
        elif match := re.fullmatch(r"(\w+) " + GO, fact):
            last = match[1]
            visit(last, match[2])
            for thing in hands.get(last, ()):
                visit(thing, match[2])
        elif match := re.fullmatch(rf"(\w+) {TOOK} the (\w+)\.", fact):
            holders = [held for held in hands.values() if match[2] in held]
            assert not (whole and holders), "taken twice"
            for held in holders:
                held.remove(match[2])
            hands.setdefault(match[1], []).append(match[2])
            if match[1] in trails:
                assert match[2] not in trails or trails[match[2]][-1] == trails[match[1]][-1]
                visit(match[2], trails[match[1]][-1])
        elif match := re.fullmatch(rf"(\w+) {LEFT} the (\w+)\.", fact):
            if whole or match[2] in hands.get(match[1], ()):
                hands[match[1]].remove(match[2])
            if match[1] in trails:
                visit(match[2], trails[match[1]][-1])
    return trails, hands


def plural_facts(facts):
    """{singular: what all of this sort fear}, {name: its sort}, {name: what it is called}."""
    fears, sorts, states = {}, {}, {}
    for fact in facts:
        if match := re.fullmatch(r"(\w+) fear (\w+)\.", fact):
            fears[match[1].lower()] = match[2]
        elif match := re.fullmatch(r"(\w+) is an? (\w+)\.", fact):
            sorts[match[1]] = match[2]
        elif match := re.fullmatch(r"(\w+) is (\w+)\.", fact):
            states[match[1]] = match[2]
    return fears, sorts, states


def is_larger(facts, a, b):
    """Whether a is larger than b, by any number of steps."""
    below = {}
    for fact in facts:
        if match := re.fullmatch(r"The (\w+) is larger than the (\w+)\.", fact):
            below.setdefault(match[1], set()).add(match[2])
        elif match := re.fullmatch(r"The (\w+) fits in the (\w+)\.", fact):
            below.setdefault(match[2], set()).add(match[1])
    seen, ahead = set(), [a]
    while ahead:
        now = ahead.pop()
        for other in below.get(now, set()) - seen:
            seen.add(other)
            ahead.append(other)
    return b in seen


def solve(facts, question, whole=True):
    """The answer, or an AssertionError where the story does not say."""
    trails, hands = replay(facts, whole)
    fears, sorts, states = plural_facts(facts)
    if match := re.fullmatch(r"Where is (?:the )?(\w+)\?", question):
        return trails[match[1]][-1]
    if match := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        trail = trails[match[1]]
        place = len(trail) - 1 - trail[::-1].index(match[2])
        assert place > 0
        return trail[place - 1]
    if match := re.fullmatch(r"Is (\w+) in the (\w+)\?", question):
        return "yes" if trails[match[1]][-1] == match[2] else "no"
    if match := re.fullmatch(r"How many things is (\w+) carrying\?", question):
        return COUNTS[len(hands.get(match[1], []))]
    if match := re.fullmatch(r"What does (\w+) fear\?", question):
        beast = sorts[match[1]]
        (many,) = [x for x in fears if x == beast + "s" or (beast, x) == ("mouse", "mice")]
        return fears[many]
    if match := re.fullmatch(r"What colour is (\w+)\?", question):
        assert match[1] not in states
        found = {states[x] for x in states if sorts[x] == sorts[match[1]]}
        (colour,) = found
        return colour
    if match := re.fullmatch(r"Is the (\w+) larger than the (\w+)\?", question):
        return decide(facts, match[1], match[2])
    if match := re.fullmatch(r"Does the (\w+) fit in the (\w+)\?", question):
        return decide(facts, match[2], match[1])
    if match := re.fullmatch(r"Where will (\w+) go\?", question):
        goals = {"bored": "garden", "cold": "bedroom", "hungry": "kitchen", "thirsty": "well"}
        return goals[states[match[1]]]
    if match := re.fullmatch(r"Why did (\w+) (?:go to|take) the \w+\?", question):
        return states[match[1]]
    raise AssertionError(f"nobody can answer {question}")


def decide(facts, a, b):
    larger, smaller = is_larger(facts, a, b), is_larger(facts, b, a)
    assert larger != smaller, "the story does not say"
    return "yes" if larger else "no"
