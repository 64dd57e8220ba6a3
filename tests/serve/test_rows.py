"""Text as it is given out: whole characters, up to the first text of `stop`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkers.serve.rows import StoppedText, before_stops

pytestmark = pytest.mark.extras
pytest.importorskip("openai")  # with the tests of the server, not with those of the core

LETTERS = "ab—猫"
TOKENS = st.lists(st.binary(min_size=1, max_size=3), max_size=12)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=4)


def written(pieces, stops):
    """The text of tokens that stand for these bytes, piece by piece; the last one is the end."""
    text, found = StoppedText(pieces, stops), []
    for token in range(len(pieces)):
        found.append(text.add(token))
        if text.is_stopped:
            break
    return [*found, text.end()], text.is_stopped


def expected(pieces, stops):
    """The same from whole texts: up to the first token with which a text of `stop` is complete."""
    for count in range(1, len(pieces) + 1):
        whole = b"".join(pieces[:count])
        while whole:  # without an incomplete character at the end
            try:
                text = whole.decode()
                break
            except UnicodeDecodeError as error:
                whole = whole[: error.start]
        else:
            text = ""
        if any(stop in text for stop in stops):
            return before_stops(text, stops), True
    return b"".join(pieces).decode("utf-8", "replace"), False


@given(st.text(LETTERS, max_size=20), st.lists(st.integers(0, 40), max_size=12), STOPS)
def test_pieces_are_whole_characters_and_join_to_the_text_before_a_stop(text, cuts, stops):
    raw = text.encode()
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[a:b] for a, b in zip(places, places[1:], strict=False)]
    found, is_stopped = written(pieces, stops)
    assert ("".join(found), is_stopped) == expected(pieces, stops)
    assert "\ufffd" not in "".join(found)


@given(TOKENS)
def test_bytes_that_are_no_text_become_the_replacement_character(pieces):
    assert "".join(written(pieces, [])[0]) == b"".join(pieces).decode("utf-8", "replace")


def test_nothing_is_given_out_that_a_stop_may_take_back():
    found, is_stopped = written([b"one<e", b"n", b"d>", b"never"], ["<end>"])
    assert found == ["one", "", "", ""] and is_stopped
    found, is_stopped = written([b"one<e", b"n", b"ough"], ["<end>"])
    assert found == ["one", "", "<enough", ""] and not is_stopped
    assert written([b"one<e"], ["<end>"]) == (["one", "<e"], False)
    assert written([b"one<end", b">"], ["<end>"]) == (["one", "", ""], True)


@pytest.mark.parametrize("text", ["a.b.c", "", "abc"])
def test_a_whole_text_ends_before_its_first_stop(text):
    assert before_stops(text, ["c", "."]) == text.replace("c", ".").partition(".")[0]
