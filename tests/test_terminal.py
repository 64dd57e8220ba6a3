"""Text of others on the terminal: escaped, printable in any encoding, and printed in one place."""

import ast
import io

import pytest
from paths import ROOT

from thinkers.terminal import one_line, show, visible

HIDDEN = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ud800\udcff",
]


@pytest.mark.parametrize("character", HIDDEN, ids=ascii)
def test_control_characters_are_escaped_except_line_breaks_and_tabs(character):
    shown = visible(f"a{character}b")
    if character in "\n\t":
        assert shown == f"a{character}b"
    else:
        assert character not in shown and shown.isprintable() and shown.isascii()
    assert character not in visible(f"a{character}b", keep="")


def test_escapes_are_those_of_python_and_other_text_is_as_it_was():
    assert visible("\x1b]0;title\x07\r\x9b31m\u202e") == r"\x1b]0;title\x07\r\x9b31m\u202e"
    text = "é ü 字 🙂 👩\u200d👩 \\x1b a\tb\nc"
    assert visible(text) == text


def test_text_that_the_encoding_lacks_is_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    show("0.9 ± 0.1 \x1b 字", stream=stream)
    assert raw.getvalue() == b"0.9 \\xb1 0.1 \\x1b \\u5b57\n"


def test_one_line_has_no_break_and_keeps_both_ends_of_a_long_text():
    assert one_line("a\nb\r\nc\x0bd\u2028e") == "a b c d e"
    line = one_line("begin" + "x" * 10_000 + "end", 100)
    assert len(line) == 100 and line.startswith("begin") and line.endswith("end")


def test_every_line_is_printed_by_show():
    found = []
    for file in sorted((ROOT / "thinkers").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == "print" and file.name != "terminal.py":
                    found.append(f"{file.name}:{node.lineno}")
    assert found == []
