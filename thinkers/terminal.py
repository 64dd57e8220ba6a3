"""Text for the terminal: what others wrote is printed with its control characters escaped.

A name, a text or an error may come from anybody. Raw escape sequences of it could retitle a window,
overwrite lines that were printed before, or write to the clipboard.
"""

import re
import sys
from typing import Any, TextIO

# C0 and C1 controls, DEL, the marks that reverse the direction of writing, the separators that end
# a line for some programs, and lone surrogates, which cannot be encoded.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str, keep: str = "\n\t") -> str:
    r"""Return text with control characters escaped as in Python, such as \x1b.

    Args:
        keep: Those that are left as they are; "" for a text that must be one line.
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def show(text: Any, *, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print text at once, as `visible` returns it; every line of the library is printed here.

    Characters that the encoding of the stream lacks are escaped as well.

    Args:
        stream: The standard output if None.
    """
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = visible(str(text)).encode(encoding, "backslashreplace").decode(encoding)
    print(shown, end=end, file=stream, flush=True)


def one_line(text: str, longest: int = 600) -> str:
    """Return text as one line, its line breaks as blanks; of a long one the middle is left out."""
    line = visible(" ".join(text.splitlines()), keep="\t")
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 4]} .. {line[-end:]}"
