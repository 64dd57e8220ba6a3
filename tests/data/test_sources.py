"""Sources of text: files are read completely and in order, and errors name file and place."""

import os
import shutil
import sys
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinkers.data import sources
from thinkers.data.sources import cache_folder, find_source, read_pieces
from thinkers.errors import DataError, UsageError


def parts_of(source, share=1.0, bad_bytes="error"):
    """The text of the first `share` of a source, and of the rest."""
    return [
        "".join(text for part in half for text, _ in read_pieces(part, bad_bytes))
        for half in source.split(share)
    ]


# files


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(alphabet="aé∀𝄞\n"), min_size=1, max_size=3), share=st.floats(0, 1))
def test_the_parts_of_a_split_join_to_the_text_at_any_piece_size(
    tmp_path, monkeypatch, texts, share
):
    monkeypatch.setattr(sources, "PIECE_BYTES", 3)
    folder = tmp_path / "many"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for i, text in enumerate([*texts, "end"]):
        (folder / f"{i}.txt").write_bytes(text.encode())
    joined = "".join([*texts, "end"])
    first, rest = parts_of(find_source(str(folder)), share)
    assert first + rest == joined
    beyond = len(first.encode()) - int(share * len(joined.encode()))
    assert 0 <= beyond <= 3


def test_a_folder_is_read_in_sorted_order_without_hidden_files(tmp_path):
    for name in ("b/one.txt", "b/.two.txt", ".git/three", "a.md", "c"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(f"<{name}>")
    assert parts_of(find_source(str(tmp_path / "texts")))[0] == "<a.md><b/one.txt><c>"


@pytest.mark.parametrize("name", ["missing.txt", "empty.txt", "folder"])
def test_a_source_without_text_is_refused(tmp_path, name):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=name):
        find_source(str(tmp_path / name))


BAD = b"ab\xffc\xc3(\xe2\x82" + "é".encode() + b"\xf0\x9f\x98"


def test_bytes_that_are_not_utf8_are_named_replaced_or_skipped_and_counted(tmp_path, monkeypatch):
    (tmp_path / "bad.txt").write_bytes(BAD)
    source = find_source(str(tmp_path / "bad.txt"))
    for size in (1, 2, 5, 100):
        monkeypatch.setattr(sources, "PIECE_BYTES", size)
        with pytest.raises(DataError, match=r"bad.txt: byte 0xff at offset 2 "):
            parts_of(source)
        assert parts_of(source, bad_bytes="skip")[0] == "abc(é"
        assert parts_of(source, bad_bytes="replace")[0] == BAD.decode("utf-8", "replace")
        for treatment in ("skip", "replace"):
            (part,), _ = source.split(1.0)
            assert sum(bad for _, bad in read_pieces(part, treatment)) == 1 + 1 + 2 + 3


def test_the_offset_of_a_bad_byte_counts_from_the_start_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 7)
    (tmp_path / "a.txt").write_bytes("é".encode() * 50 + b"\x80")
    with pytest.raises(DataError, match="at offset 100 "):
        parts_of(find_source(str(tmp_path / "a.txt")), 0.37)


# data sets of the hub


@pytest.fixture
def requests(monkeypatch):
    """The requests that a stand-in for the library `datasets` was sent."""
    sent = []

    def load_dataset(name, configuration, split, streaming):
        sent.append((name, configuration, split, streaming))
        if name == "gone":
            raise ConnectionError("no such place\nsecond line")
        column = "words" if name == "odd" else "text"
        return ({column: f"document {i} é"} for i in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return sent


def test_a_data_set_is_streamed_once_up_to_its_limit(requests):
    for _ in range(2):
        found = parts_of(find_source("hf:some/where:en", max_bytes=40))[0]
        assert found == "document 0 é\ndocument 1 é\ndocument 2 é\n"
    assert requests == [("some/where", "en", "train", True)]
    assert len(parts_of(find_source("hf:some/where", max_bytes=41))[0]) == 13 * 3


def test_a_data_set_that_cannot_be_streamed_is_an_error_of_three_lines(
    requests, monkeypatch, empty_cache
):
    with pytest.raises(DataError, match="hf:gone: ConnectionError: no such place") as error:
        find_source("hf:gone")
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises(DataError, match="the columns words\nexpected: a column called text"):
        find_source("hf:odd")
    assert not any(empty_cache.rglob("*.*"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install \"thinkers\[text\]\""):
        find_source("hf:any")


def test_the_default_cache_is_in_the_home_folder(monkeypatch):
    monkeypatch.delenv("THINKERS_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(cache_folder()) == os.path.join("/somewhere", ".cache", "thinkers")
