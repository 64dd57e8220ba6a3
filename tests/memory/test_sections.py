"""Texts are cut into sections, each with its place in the text."""

import pytest
import torch
from memory_cases import Words, rows, text

import thinkers
from thinkers.errors import UsageError
from thinkers.memory.sections import cut, vocabulary_digest

PROSE = "the first line\nthe second line, which is longer\n\nafter an empty one\nlast"


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    """A task of bytes of text."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(PROSE * 20)
    return thinkers.build_task("text", path=str(file), context=8)


def test_a_text_is_the_sum_of_its_sections(prose):
    sections = cut([PROSE], prose, 7, 256, ["a.txt"])
    assert "".join(x.text for x in sections) == PROSE
    assert [x.span for x in sections] == [
        (i, min(i + 7, len(PROSE))) for i in range(0, len(PROSE), 7)
    ]
    assert {x.source for x in sections} == {"a.txt"}
    assert sum((x.tokens for x in sections), []) == prose.encode(PROSE)


def test_sections_know_their_lines(prose):
    for section in cut([PROSE], prose, 7, 256, None):
        start, stop = section.span
        first = 1 + PROSE[:start].count("\n")
        assert section.lines == (first, 1 + PROSE[: stop - 1].count("\n"))


def test_lines_are_known_where_tokens_are_words():
    parts = [text(5), "", text(12, 1), text(2, 2)]
    sections = cut(["\n".join(parts)], Words(), 8, 40, None)
    assert [x.lines for x in sections] == [(1, 3), (3, 3), (3, 4)]
    assert [len(x.tokens) for x in sections] == [8, 8, 3]


def test_lines_are_unknown_where_a_text_is_more_than_its_lines():
    class Joined(Words):
        def encode(self, text):
            return [*super().encode(text), *([1] if "\n" in text else [])]

    sections = cut([f"{text(5)}\n{text(5, 1)}"], Joined(), 8, 40, None)
    assert {x.lines for x in sections} == {(0, 0)}


def test_start_tokens_are_left_out():
    (section,) = cut(["w3 w4"], Words(), 8, 40, None)
    assert section.tokens == [3, 4] and Words().encode("w3 w4") == [0, 3, 4]


def test_rows_of_tokens_are_sections():
    tokens = rows(3, t=5)
    sections = cut(tokens, None, 8, 40, ["a", "b", "c"])
    assert torch.equal(torch.tensor([x.tokens for x in sections]), tokens)
    assert [(x.source, x.span, x.text) for x in sections] == [(s, (0, 5), None) for s in "abc"]


def test_a_source_has_a_printable_name():
    for sources in ([3], ["a\x1bb"], ["x" * 5000], "a"):
        with pytest.raises(UsageError, match="source"):
            cut(["w1"], Words(), 8, 40, sources)


def test_digests_of_vocabularies_differ_where_meanings_do(prose):
    class More(Words):
        vocab_size = 41

    class WithoutStart(Words):
        start_token = None

    tasks = (Words(), More(), WithoutStart(), prose)
    assert len({vocabulary_digest(x) for x in tasks}) == 4
    assert vocabulary_digest(Words()) == vocabulary_digest(Words(seed=3))
