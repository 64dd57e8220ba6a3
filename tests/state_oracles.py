"""Solvers of the tasks on states, which read text alone: loops in plain Python."""


def cups(text, **_):
    """Return (answer, due step) after each swap."""
    ball, found = 1, []
    for step, word in enumerate(text.split(), 1):
        a, b = int(word[0]), int(word[1])
        assert a != b
        if ball == a:
            ball = b
        elif ball == b:
            ball = a
        found.append((str(ball), step))
    return found


def automaton(text, rule=110, updates=None, **_):
    """Return (cell, due step) of each cell after `updates`, or else as many as the text asks."""
    count, cells = text.split(":")
    updates = int(count) if updates is None else updates
    table = {f"{n:03b}": str(rule >> n & 1) for n in range(8)}
    for _ in range(updates):
        wide = "00" + cells
        cells = "".join(table[wide[i : i + 3]] for i in range(len(cells)))
    return [(cell, updates) for cell in cells]


def links(text, num_values=5, **_):
    """Return (value, due step) of each token."""
    words, found = text.split(), []

    def follow(place):
        if place < 0:
            return 0, 0
        back, added = map(int, words[place].split("+"))
        value, depth = follow(place - back)
        return (value + added) % num_values, depth + 1

    for place in range(len(words)):
        value, depth = follow(place)
        found.append((str(value), depth))
    return found


SOLVE = {"cups": cups, "automaton": automaton, "links": links}
