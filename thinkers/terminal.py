"""Text for the terminal: control characters in names, texts and errors are escaped.

Names, texts and errors may be untrusted. Raw escape sequences in them could retitle a window,
overwrite printed lines, or write to the clipboard.
"""

import re
import sys
from typing import Any, TextIO

# C0 and C1 controls, DEL, bidirectional marks, separators that end a line for some programs, and
# lone surrogates, which cannot be encoded.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str, keep: str = "\n\t") -> str:
    r"""Return text with control characters escaped as in Python, such as \x1b.

    Args:
        keep: Control characters that are not escaped; "" for text that must be one line.
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def show(text: Any, *, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print text as `visible` returns it, and flush; the library prints every line through this.

    Characters that the encoding of the stream lacks are escaped as well.

    Args:
        stream: The standard output if None.
    """
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = visible(str(text)).encode(encoding, "backslashreplace").decode(encoding)
    print(shown, end=end, file=stream, flush=True)


def one_line(text: str, longest: int = 600) -> str:
    """Return text as one line, line breaks replaced by blanks; shorten a long one in the middle."""
    line = visible(" ".join(text.splitlines()), keep="\t")
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 4]} .. {line[-end:]}"
