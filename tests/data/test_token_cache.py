"""The cache of tokenized texts: entries follow the text, and damaged ones are made again."""

import hashlib
import itertools
import json
import os
import threading

import numpy as np
import pytest

from thinkers.data import token_cache, tokenizers
from thinkers.data.sources import cache_folder, find_source
from thinkers.data.token_cache import tokenize, tokenizer_for
from thinkers.data.tokenizers import ByteTokenizer, CharacterTokenizer
from thinkers.errors import DataError, UsageError


@pytest.fixture
def source(tmp_path, text):
    (tmp_path / "lines.txt").write_text(text)
    return find_source(str(tmp_path / "lines.txt"))


@pytest.fixture
def written(monkeypatch):
    """The keys of the entries that were made."""
    keys, write = [], token_cache._write_entry
    monkeypatch.setattr(token_cache, "_write_entry", lambda *a: (keys.append(a[1]), write(*a)))
    return keys


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_tokens_are_the_text_cut_at_nine_tenths_of_its_bytes(source, kind, text):
    tokenizer = tokenizer_for(source, kind, 300, "error", 0.9)
    found = tokenize(source, tokenizer, "error")
    raw = text.encode()
    cut = int(0.9 * len(raw))
    cut += raw[cut] & 0xC0 == 0x80
    assert tokenizer.decode(found.tokens[: found.num_train].tolist()) == raw[:cut].decode()
    assert tokenizer.decode(found.tokens[found.num_train :].tolist()) == raw[cut:].decode()
    assert found.tokens.dtype == (np.uint8 if len(tokenizer) <= 256 else np.uint16)
    assert not found.tokens.flags.writeable


def test_byte_pairs_are_learned_from_the_training_part_alone(tmp_path):
    (tmp_path / "t.txt").write_text("ab " * 900 + "xy " * 100)
    tokenizer = tokenizer_for(find_source(str(tmp_path / "t.txt")), "bpe", 300, "error", 0.9)
    assert b" ab" in tokenizer.token_bytes
    assert not any(len(x) > 1 and b"x" in x for x in tokenizer.token_bytes)


def test_an_entry_is_used_until_the_text_changes(source, tmp_path, written, text):
    for _ in range(3):
        token_cache._verified.clear()
        tokens = tokenize(source, ByteTokenizer(), "error").tokens
    assert len(written) == 1
    copy = tmp_path / "elsewhere.txt"
    copy.write_text(text)
    tokenize(find_source(str(copy)), ByteTokenizer(), "error")
    assert len(written) == 1, "the same text under another name"
    copy.write_text(text.replace("spät", "früh"))
    other = tokenize(find_source(str(copy)), ByteTokenizer(), "error").tokens
    assert len(written) == 2 and len(other) == len(tokens) and (other != tokens).any()
    tokenize(source, ByteTokenizer(), "skip")
    assert len(written) == 3


@pytest.mark.parametrize("kind", ["byte", "character"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "grow"])
def test_a_damaged_entry_is_made_again(source, kind, damage, empty_cache, text):
    def decoded():
        token_cache._verified.clear()
        tokenizer = tokenizer_for(source, kind, 300, "error", 0.9)
        return tokenizer.decode(tokenize(source, tokenizer, "error").tokens.tolist())

    assert decoded() == text
    files = [file for file in empty_cache.rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) == (2 if kind == "byte" else 3)
    for file in files:
        content = bytearray(file.read_bytes())
        place = len(content) // 2
        content[place] ^= 4
        new = {"flip": content, "truncate": content[:place], "grow": content + b"x"}
        if damage == "delete":
            file.unlink()
        else:
            file.write_bytes(new[damage])
        assert decoded() == text, file


def test_an_interrupted_write_leaves_nothing_that_is_taken_for_an_entry(source, monkeypatch, text):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_cache._TokenWriter, "_put", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tokenize(source, ByteTokenizer(), "error")
    folder = cache_folder() / "text"
    assert not [path for path in folder.iterdir() if path.is_dir()]
    key = next(folder.glob(".*.lock")).name[1:-5]
    (folder / f".{key}.tmp").mkdir()  # left by a process that SIGKILL ended
    (folder / f".{key}.tmp" / token_cache.TOKENS).write_bytes(b"half")
    tokens = tokenize(source, ByteTokenizer(), "error").tokens
    assert ByteTokenizer().decode(tokens.tolist()) == text


def test_concurrent_calls_wait_for_the_first_to_make_the_entry(source, written):
    found, start = [], threading.Barrier(5)

    def work():
        start.wait()
        found.append(tokenize(source, ByteTokenizer(), "error").tokens)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1 and len(found) == 5
    assert all((tokens == found[0]).all() for tokens in found)


def test_skipped_bytes_are_reported(tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"ab\xffc\xc3(\xe2\x82" + "é".encode() + b"\xf0\x9f\x98")
    found = tokenize(find_source(str(tmp_path / "bad.txt")), ByteTokenizer(), "skip")
    assert found.bad_bytes == 7
    assert "bad.txt: 7 bytes that are not UTF-8 skipped" in capsys.readouterr().err


def test_a_text_that_changes_while_it_is_read_is_refused(source, monkeypatch):
    write = token_cache._write_entry

    def write_and_change(*args):
        write(*args)
        source.files[0].write_text("other")

    monkeypatch.setattr(token_cache, "_write_entry", write_and_change)
    with pytest.raises(DataError, match="changed while it was read"):
        tokenize(source, ByteTokenizer(), "error")


def test_a_character_without_a_token_is_named_with_its_place(source, text):
    tokenizer = CharacterTokenizer("".join(sorted(set(text) - {"ä"})))
    with pytest.raises(DataError, match="lines.txt: 'ä', 16 characters after byte 0"):
        tokenize(source, tokenizer, "error")


def test_a_cache_that_cannot_be_written_is_a_usage_error(source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set THINKERS_CACHE"):
        tokenize(source, ByteTokenizer(), "error")


def test_an_entry_is_read_strictly_and_verified_by_its_digests(source, empty_cache):
    before = tokenize(source, ByteTokenizer(), "error")
    (entry,) = (x for x in (empty_cache / "text").iterdir() if x.is_dir())
    metadata, tokens = entry / "metadata.json", entry / "tokens.bin"
    digest = hashlib.sha256(tokens.read_bytes()).hexdigest()
    assert json.loads(metadata.read_bytes())["tokens_sha256"] == digest
    expected = before.tokens.copy()
    outside = empty_cache.parent / "outside"
    for file, damage in itertools.product(
        (metadata, tokens),
        (
            lambda file: file.write_bytes(b"[" * 5000),
            lambda file: file.write_bytes(file.read_bytes()[::-1]),
            lambda file: (file.rename(outside), file.symlink_to(outside)),
            lambda file: (file.unlink(), os.mkfifo(file)),
        ),
    ):
        damage(file)
        token_cache._verified.clear()
        assert (tokenize(source, ByteTokenizer(), "error").tokens == expected).all()
        assert file.is_file() and not file.is_symlink()
