"""Random changes of bytes, of values of JSON and of words; nothing here runs by itself.

Every change is a function of the generator that is passed, so that a case is repeated by its seed.
"""

import copy
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 255, 2**31, -(2**31), 2**63, -(2**63) - 1, 10**39, 1.5, -0.0, 1e308, 1e-308)
VALUES = (None, True, False, *NUMBERS, "", "x", "0", "nan", "é", "\0", "\ud800", "x" * 999)
CONTAINERS: tuple[Any, ...] = ([], {}, [[]], {"": None}, [0] * 99, {"x": {"x": [None]}})
BYTES = (b"\0", b"\xff", b"\n", b"\r", b"\t", b" ", b"0", b"-", b"9" * 5000, b"\xef\xbb\xbf")
JSON = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"true", b"NaN", b"-Infinity", b"1e999"),
    *(b"\\ud800", b"\\u0000", b'{"a":', b"[" * 99, b'"a":1,', b"1" * 41, b"0x1", b"-0", b"//"),
)
YAML = (
    *(b": ", b"- ", b"? ", b"&a ", b"*a", b"!!binary ", b"!!set ", b"!!python/name:os ", b"|\n"),
    *(b"2020-01-01: ", b"0x" + b"f" * 5000, b"1:1:1", b".inf", b".nan", b"<<: ", b"{}", b"~", b"%"),
    *(b"\n---\n", b"\n  ", b"'", b'"', b"#", b"@", b"2020-99-99", b"!!timestamp x", b"[" * 200),
)


def change_bytes(rng: Random, corpus: Sequence[bytes], tokens: Sequence[bytes] = BYTES) -> bytes:
    """Return one of `corpus` after a few random changes.

    Args:
        tokens: Pieces that mean something in this format, some of which are inserted.
    """
    content = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place, other = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        kind = rng.randrange(8)
        if kind == 0 and content:
            content[place % len(content)] ^= 1 << rng.randrange(8)
        elif kind == 1 and content:
            content[place % len(content)] = rng.randrange(256)
        elif kind == 2:
            del content[place : min(other, place + rng.choice((1, 4, 64, 1 << 30)))]
        elif kind == 3:
            content[place:place] = rng.choice((*tokens, *BYTES))
        elif kind == 4:
            content[place:other] = rng.choice(tokens)
        elif kind == 5:
            content[place:place] = content[place : min(other, place + 999)] * rng.choice((1, 2, 50))
        elif kind == 6:
            donor = rng.choice(corpus)
            begin = rng.randrange(len(donor) + 1)
            content[place:other] = donor[begin : begin + rng.randrange(1, 200)]
        else:
            content[place : place + rng.choice((1, 8, 512, 4096))] = b""
            content[place:place] = bytes(rng.choice((1, 8, 512, 4096)))
    return bytes(content[: 1 << 22])


def change_value(rng: Random, value: Any) -> Any:
    """Return a copy of a value of JSON after a few random changes of what it holds."""
    holder = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place: Any = holder
        key: Any = 0
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.9:
            place = place[key]
            key = rng.choice([*place] if isinstance(place, dict) else range(len(place)))
        kind = rng.randrange(8)
        if kind < 4:
            place[key] = rng.choice(VALUES)
        elif kind == 4:
            place[key] = copy.deepcopy(rng.choice(CONTAINERS))
        elif kind == 5 and place is not holder:
            del place[key]
        elif kind == 6 and isinstance(place, dict):
            place[rng.choice(("x", "", "sha256", "format", str(key) + "x"))] = place[key]
        elif isinstance(place[key], str):
            place[key] = place[key][: rng.randrange(len(place[key]) + 1)] + rng.choice(
                ("", "a", "\0")
            )
        elif isinstance(place[key], int | float) and not isinstance(place[key], bool):
            place[key] = rng.choice(
                (place[key] + 1, place[key] - 1, -place[key], float(place[key]))
            )
    return holder[0]


def change_words(rng: Random, lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the words of one of `lines` after a few random changes."""
    words = list(rng.choice(lines))
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(words) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            words.insert(place, rng.choice(rng.choice(lines)))
        elif kind == 1 and words:
            del words[place % len(words)]
        elif words:
            word = words[place % len(words)].encode("utf-8", "surrogateescape")
            tokens = (b"=", b"--", b".", b"-", b"null", b"1e999", b"nan", b"[", b"{", b"\xe9", b",")
            changed = change_bytes(rng, [word], tokens)[:20000]
            words[place % len(words)] = changed.replace(b"\0", b"").decode(errors="surrogateescape")
    return words
