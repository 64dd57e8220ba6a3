"""Texts are read whole and in order, vocabularies can be undone, a cache is never trusted."""

import json
import os
import shutil
import sys
import threading
import types

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinkers.data import sources, token_cache, tokenizers
from thinkers.data.sources import cache_folder, find, read
from thinkers.data.token_cache import prepare, tokenizer_for
from thinkers.data.tokenizers import BPETokenizer, Bytes, Characters, from_state
from thinkers.errors import DamagedError, DataError, UsageError

LINES = "".join(f"Wer reitet so spät durch Nacht und Wind? {i * i}\n" for i in range(211))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "_known", {})
    return tmp_path / "cache"


def text_of(source, share=1.0, bad_bytes="error"):
    return [
        "".join(t for part in half for t, _ in read(part, bad_bytes))
        for half in source.split(share)
    ]


# files


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(alphabet="aé∀𝄞\n"), min_size=1, max_size=3), share=st.floats(0, 1))
def test_any_piece_and_any_cut_give_the_text_back(tmp_path, monkeypatch, texts, share):
    monkeypatch.setattr(sources, "PIECE", 3)
    folder = tmp_path / "many"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for i, text in enumerate([*texts, "end"]):
        (folder / f"{i}.txt").write_bytes(text.encode())
    whole = "".join([*texts, "end"])
    first, rest = text_of(find(str(folder)), share)
    assert first + rest == whole
    beyond = len(first.encode()) - int(share * len(whole.encode()))
    assert 0 <= beyond <= 3


def test_a_folder_is_read_in_sorted_order_without_hidden_files(tmp_path):
    for name in ("b/one.txt", "b/.two.txt", ".git/three", "a.md", "c"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(f"<{name}>")
    assert text_of(find(str(tmp_path / "texts")))[0] == "<a.md><b/one.txt><c>"


@pytest.mark.parametrize("name", ["missing.txt", "empty.txt", "folder"])
def test_what_holds_no_text_is_refused(tmp_path, name):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=name):
        find(str(tmp_path / name))


BAD = b"ab\xffc\xc3(\xe2\x82" + "é".encode() + b"\xf0\x9f\x98"


def test_bad_bytes_are_named_replaced_or_skipped_and_counted(tmp_path, monkeypatch):
    (tmp_path / "bad.txt").write_bytes(BAD)
    source = find(str(tmp_path / "bad.txt"))
    for piece in (1, 2, 5, 100):
        monkeypatch.setattr(sources, "PIECE", piece)
        with pytest.raises(DataError, match=r"bad.txt: byte 0xff at offset 2 "):
            text_of(source)
        assert text_of(source, bad_bytes="skip")[0] == "abc(é"
        assert text_of(source, bad_bytes="replace")[0] == BAD.decode("utf-8", "replace")
        for way in ("skip", "replace"):
            (part,), _ = source.split(1.0)
            assert sum(bad for _, bad in read(part, way)) == 1 + 1 + 2 + 3


def test_an_offset_counts_from_the_start_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE", 7)
    (tmp_path / "a.txt").write_bytes("é".encode() * 50 + b"\x80")
    with pytest.raises(DataError, match="at offset 100 "):
        text_of(find(str(tmp_path / "a.txt")), 0.37)


# data sets


@pytest.fixture
def data_set(monkeypatch):
    """A stand-in for the library `datasets`, and what was asked of it."""
    asked = []

    def load_dataset(name, configuration, split, streaming):
        asked.append((name, configuration, split, streaming))
        if name == "gone":
            raise ConnectionError("no such place\nsecond line")
        column = "words" if name == "odd" else "text"
        return ({column: f"document {i} é"} for i in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_a_data_set_is_streamed_once_up_to_its_limit(data_set):
    for _ in range(2):
        found = text_of(find("hf:some/where:en", max_bytes=40))[0]
        assert found == "document 0 é\ndocument 1 é\ndocument 2 é\n"
    assert data_set == [("some/where", "en", "train", True)]
    assert len(text_of(find("hf:some/where", max_bytes=41))[0]) == 13 * 3


def test_a_data_set_that_cannot_be_had_is_told_in_three_lines(data_set, monkeypatch, empty_cache):
    with pytest.raises(DataError, match="hf:gone: ConnectionError: no such place") as error:
        find("hf:gone")
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises(DataError, match="columns words"):
        find("hf:odd")
    assert not any(empty_cache.rglob("*.*"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install \"thinkers\[text\]\""):
        find("hf:any")


# vocabularies


@pytest.fixture(scope="module")
def pairs():
    return BPETokenizer.learn([LINES], 300)


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_and_pairs_can_be_undone(pairs, text):
    for vocabulary in (Bytes(), pairs):
        tokens = vocabulary.encode(text)
        assert vocabulary.decode(tokens.tolist()) == text
        assert vocabulary.lengths[tokens].sum() == len(text.encode())


def test_tokens_are_bytes_characters_and_frequent_pairs(pairs):
    assert Bytes().encode("aé").tolist() == [97, 0xC3, 0xA9]
    letters = Characters("\nabé𝄞")
    assert letters.encode("é𝄞\n").tolist() == [3, 4, 0]
    assert letters.decode([4, 1]) == "𝄞a"
    with pytest.raises(tokenizers.UnknownCharacter, match="'c' at character 2"):
        letters.encode("abc")
    with pytest.raises(tokenizers.UnknownCharacter):
        letters.encode("\U0010ffff")
    assert len(pairs) == 300 and b" reitet" in pairs.pieces
    assert len(pairs.encode(LINES)) < len(LINES) / 3


def test_pairs_found_in_stretches_are_those_of_the_whole(pairs, monkeypatch):
    whole = pairs.tokenizer.encode(LINES).ids
    monkeypatch.setattr(tokenizers, "AT_ONCE", 997)
    assert pairs.encode(LINES).tolist() == whole


def test_a_vocabulary_is_kept_as_json(pairs):
    for vocabulary in (Bytes(), Characters("é\n "), pairs):
        again = from_state(json.loads(json.dumps(vocabulary.state())), "here")
        assert again.pieces == vocabulary.pieces and again.digest == vocabulary.digest
    for state in ({"kind": "bpe", "tokenizer": {}}, {"kind": "character"}, {"kind": "x"}, {}):
        with pytest.raises(DamagedError, match="here holds no vocabulary"):
            from_state(state, "here")


# cache


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "lines.txt").write_text(LINES)
    return find(str(tmp_path / "lines.txt"))


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_prepared_tokens_are_the_text_cut_at_nine_tenths(lines, kind):
    vocabulary = tokenizer_for(lines, kind, 300, "error", 0.9)
    found = prepare(lines, vocabulary, "error")
    raw = LINES.encode()
    cut = int(0.9 * len(raw))
    cut += raw[cut] & 0xC0 == 0x80
    assert vocabulary.decode(found.tokens[: found.boundary].tolist()) == raw[:cut].decode()
    assert vocabulary.decode(found.tokens[found.boundary :].tolist()) == raw[cut:].decode()
    assert found.tokens.dtype == (np.uint8 if len(vocabulary) <= 256 else np.uint16)
    assert not found.tokens.flags.writeable


def test_pairs_are_learned_from_the_training_part_alone(tmp_path):
    (tmp_path / "t.txt").write_text("ab " * 900 + "xy " * 100)
    vocabulary = tokenizer_for(find(str(tmp_path / "t.txt")), "bpe", 300, "error", 0.9)
    assert b" ab" in vocabulary.pieces
    assert not any(len(piece) > 1 and b"x" in piece for piece in vocabulary.pieces)


def written(monkeypatch):
    """The list that grows by one each time that an entry is made."""
    made, write = [], token_cache._write
    monkeypatch.setattr(token_cache, "_write", lambda *a: (made.append(a[1]), write(*a)))
    return made


def test_what_is_in_the_cache_is_used_until_the_text_changes(lines, tmp_path, monkeypatch):
    made = written(monkeypatch)
    for _ in range(3):
        token_cache._known.clear()
        tokens = prepare(lines, Bytes(), "error").tokens
    assert len(made) == 1
    copy = tmp_path / "elsewhere.txt"
    copy.write_text(LINES)
    prepare(find(str(copy)), Bytes(), "error")
    assert len(made) == 1, "the same text under another name"
    copy.write_text(LINES.replace("spät", "früh"))
    other = prepare(find(str(copy)), Bytes(), "error").tokens
    assert len(made) == 2 and len(other) == len(tokens) and (other != tokens).any()
    prepare(lines, Bytes(), "skip")
    assert len(made) == 3


@pytest.mark.parametrize("kind", ["byte", "character"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete", "grow"])
def test_a_damaged_cache_is_made_again(lines, kind, harm, empty_cache):
    def prepared():
        token_cache._known.clear()
        vocabulary = tokenizer_for(lines, kind, 300, "error", 0.9)
        return vocabulary.decode(prepare(lines, vocabulary, "error").tokens.tolist())

    assert prepared() == LINES
    files = [file for file in empty_cache.rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) == (2 if kind == "byte" else 3)
    for file in files:
        content = bytearray(file.read_bytes())
        place = len(content) // 2
        content[place] ^= 4
        new = {"flip": content, "truncate": content[:place], "grow": content + b"x"}
        if harm == "delete":
            file.unlink()
        else:
            file.write_bytes(new[harm])
        assert prepared() == LINES, file


def test_an_interrupted_preparation_leaves_nothing_that_is_taken_for_whole(lines, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_cache._Writer, "_put", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(lines, Bytes(), "error")
    folder = cache_folder() / "text"
    assert not [path for path in folder.iterdir() if path.is_dir()]
    key = next(folder.glob(".*.lock")).name[1:-5]
    (folder / f".{key}.tmp").mkdir()  # what a process leaves that was killed for good
    (folder / f".{key}.tmp" / token_cache.TOKENS).write_bytes(b"half")
    assert Bytes().decode(prepare(lines, Bytes(), "error").tokens.tolist()) == LINES


def test_many_that_prepare_at_once_wait_for_the_first(lines, monkeypatch):
    made = written(monkeypatch)
    found, start = [], threading.Barrier(5)

    def work():
        start.wait()
        found.append(prepare(lines, Bytes(), "error").tokens)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(found) == 5
    assert all((tokens == found[0]).all() for tokens in found)


def test_bad_bytes_are_told(tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(BAD)
    found = prepare(find(str(tmp_path / "bad.txt")), Bytes(), "skip")
    assert found.bad_bytes == 7
    assert "bad.txt: 7 bytes that are not UTF-8 skipped" in capsys.readouterr().err


def test_a_text_that_changes_meanwhile_is_refused(lines, monkeypatch):
    write = token_cache._write

    def changing(*args):
        write(*args)
        lines.files[0].write_text("other")

    monkeypatch.setattr(token_cache, "_write", changing)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(lines, Bytes(), "error")


def test_a_character_without_a_token_is_named_with_its_place(lines):
    with pytest.raises(DataError, match="lines.txt: 'ä', 16 characters after byte 0"):
        prepare(lines, Characters("".join(sorted(set(LINES) - {"ä"}))), "error")


def test_a_cache_that_cannot_be_written_is_a_usage_error(lines, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set THINKERS_CACHE"):
        prepare(lines, Bytes(), "error")


def test_the_default_cache_is_in_the_home_folder(monkeypatch):
    monkeypatch.delenv("THINKERS_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(cache_folder()) == os.path.join("/somewhere", ".cache", "thinkers")
