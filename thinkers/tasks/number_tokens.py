"""Tokens of the number tasks, and their text form: `12+34=`, or `10>2:12+34=` with bases.

Digit d is token d. Models read and write numbers least significant digit first, so that the first
digit of a sum depends on the first digits of its operands alone. Text has the usual order: runs of
digits are reversed between text and tokens, except those of sequences.
"""

import re
from collections.abc import Iterable

from jaxtyping import Int
from torch import Tensor

from thinkers.errors import UsageError

DIGITS = "0123456789ABCDEF"
PLUS, MINUS, TIMES, POWER, EQUALS, COMMA = range(16, 22)
NEGATIVE, BLANK, END, PAD = range(22, 26)
BASE = 24
"""Token of base b, 2 .. 16, less b."""
START = BASE + 17
"""First token of every row."""
VOCAB_SIZE = START + 1
OPEN, CLOSE = VOCAB_SIZE, VOCAB_SIZE + 1
"""Around a call of a tool, in tasks that have one; others have no such tokens."""
SYMBOL_TOKENS = {"+": PLUS, "-": MINUS, "*": TIMES, "^": POWER, "=": EQUALS, ",": COMMA, "_": BLANK}
SYMBOL_TOKENS |= {"[": OPEN, "]": CLOSE}

_TEXT = dict(enumerate(DIGITS)) | {token: x for x, token in SYMBOL_TOKENS.items()} | {NEGATIVE: "-"}
_RUN = re.compile(f"[{DIGITS}_]+")
_BASES = re.compile("([0-9]+)>([0-9]+):")
_DIVIDING = re.compile(r"(?<=[0-9A-Fa-f_])[ \t\r\n]+(?=[0-9A-Fa-f_])")
SPACES = " \t\r\n"
UPPER = str.maketrans("abcdef", "ABCDEF")


def encode(
    text: str,
    *,
    symbols: str,
    in_bases: range,
    out_bases: range,
    reverse: bool,
    width: int = 0,
) -> list[int]:
    """Return the tokens of `text`, the start token first.

    Args:
        symbols: The allowed characters besides digits and blanks.
        in_bases: The bases of prompts; `text` must name its two bases if there is a choice.
        out_bases: The bases of answers.
        reverse: True if runs of digits are numbers and must be reversed.
        width: The width to which numbers of the question, or its one sequence, are padded.

    Raises:
        UsageError: naming the first character that is not allowed, its position, and what is.
    """
    written, places = without_spaces(text)
    tokens = [START]
    start, in_base, out_base = 0, max(in_bases), max(out_bases)
    if len(in_bases) * len(out_bases) > 1 and (">" in written or "=" in written):
        start, in_base, out_base = read_bases(written, in_bases, out_bases)
        tokens += [BASE + in_base, BASE + out_base]

    body = written[start:].translate(UPPER)
    question = body.find("=") if "=" in body else 0
    for position, character in enumerate(body, start):
        base = in_base if position - start < question else out_base
        base = base if question else max(in_base, out_base)  # without `=` it may be either
        if character not in DIGITS[:base] and character not in symbols + "_":
            raise wrong_character(text, places[position], DIGITS[:base] + symbols + "_")
    if width:
        body = _with_blanks(body, width, reverse)
    ordered = _reverse_runs(body) if reverse else body
    for before, character in zip(" " + ordered, ordered, strict=False):
        # One character, two tokens: a minus between numbers, or the sign of an answer.
        if character == "-" and before not in DIGITS + "_":
            tokens.append(NEGATIVE)
        elif character in SYMBOL_TOKENS:
            tokens.append(SYMBOL_TOKENS[character])
        else:
            tokens.append(DIGITS.index(character))
    return tokens


def without_spaces(text: str) -> tuple[str, list[int]]:
    """Return `text` without its spaces, and the position in `text` of each character left.

    A space inside a number is kept, to be refused later: `1 2` could mean 12, or 1 and 2.
    """
    dividing = {found.start() for found in _DIVIDING.finditer(text)}
    places = [place for place, x in enumerate(text) if x not in SPACES or place in dividing]
    return "".join(text[place] for place in places), places


def wrong_character(text: str, position: int, allowed: str) -> UsageError:
    """Build the error about the character of `text` at `position`, or about its early end."""
    found = repr(text[position]) if position < len(text) else "its end"
    shown = text if len(text) <= 100 else text[:99] + "…"
    return UsageError(
        f"character {position} of {shown!r} must be one of {' '.join(allowed)}, got {found}"
    )


def _with_blanks(body: str, width: int, reverse: bool) -> str:
    question, equals, answer = body.partition("=")
    justify = str.rjust if reverse else str.ljust
    wide = _RUN.sub(lambda run: justify(run[0], width, "_"), question, 0 if reverse else 1)
    return wide + equals + answer


def decode(
    tokens: Iterable[int] | Int[Tensor, " t"], *, reverse: bool, vocab_size: int = VOCAB_SIZE
) -> str:
    """Return the text of `tokens`, up to the end token, without start tokens and padding."""
    bases, body = [], ""
    for position, token in enumerate(int(token) for token in tokens):
        if not 0 <= token < vocab_size:
            raise UsageError(f"token {position} must be in 0 .. {vocab_size - 1}, got {token}")
        if token == END:
            break
        if token in (START, PAD):
            continue
        if token in _TEXT:
            body += _TEXT[token]
        elif token > PAD and not body:
            bases.append(str(token - BASE))
        else:
            body += f"<{token - BASE}>"  # a base in an answer is wrong: it is shown at its place
    head = ">".join(bases) + ":" if bases else ""
    return head + (_reverse_runs(body) if reverse else body)


def _reverse_runs(text: str) -> str:
    return _RUN.sub(lambda run: run[0][::-1], text)


def read_bases(text: str, in_bases: range, out_bases: range) -> tuple[int, int, int]:
    """Return the length of the prefix of `text` that names its bases, and the two bases."""
    found = _BASES.match(text)
    if found is None:
        example = f"{in_bases[0]}>{out_bases[-1]}:"
        raise UsageError(f"a prompt must begin with its two bases, such as {example}, got {text!r}")
    in_base, out_base = int(found[1]), int(found[2])
    for base, bases, what in ((in_base, in_bases, "first"), (out_base, out_bases, "second")):
        if base not in bases:
            raise UsageError(
                f"the {what} base of {text!r} must be in {bases[0]} .. {bases[-1]}, got {base}"
            )
    return found.end(), in_base, out_base
