"""Strict JSON: what is read is what was written, or it is refused with the reason."""

import json
import math
import os
import time
from pathlib import Path

import pytest

from thinkers import strict_json
from thinkers.errors import DamagedError, DataError, ResourceError
from thinkers.files import append, open_file, read_file, write_file
from thinkers.json_files import read_json, read_with_digest, with_digest
from thinkers.strict_json import DEEPEST, check_schema, parse_json, to_json

VALUE = {"b": [1, 2.5, None, True, "ß\n\ud800"], "a": {"c": {}, "d": -(10**30)}}


def test_what_is_written_is_read():
    assert parse_json(to_json(VALUE), "x") == VALUE
    assert to_json(VALUE) == to_json(dict(reversed(VALUE.items())))
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="Out of range"):
            to_json({"a": value})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"{} {}", "Extra data"),
        (b"'a'", "Expecting value"),
        (b'{"a": 1, "a": 1}', "the key 'a' occurs twice"),
        (b'{"b": {"a": 1, "c": 2, "a": 3}}', "the key 'a' occurs twice"),
        (b'{"a": 1, "\\u0061": 1}', "the key 'a' occurs twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[Infinity]", "Infinity is no number"),
        (b"1e999", "1e999 is beyond the range"),
        (b"-1e999", "beyond the range"),
        (b"1" * 41, "41 digits, at most 40"),
        (b"1" * 5000, "5000 digits"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'"\xc3', "byte 1 is not UTF-8"),
        (b"\xef\xbb\xbf{}", "UTF-8 BOM"),
        ('{"a": 1}'.encode("utf-16"), "byte 0 is not UTF-8"),
        (b"[" * 10**6, "nested deeper than 64"),
        (b'{"a":' * 10**5, "nested deeper than 64"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested deeper than 64"),
        (b'"\n"', "Invalid control character"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_the_reason(content, reason):
    with pytest.raises(DamagedError, match=f"x is not JSON: .*{reason}"):
        parse_json(content, "x")
    with pytest.raises(DataError, match="x is not JSON"):
        parse_json(content, "x", DataError)


def test_the_deepest_and_the_most_are_read(monkeypatch):
    for deep in (b"[" * DEEPEST + b"]" * DEEPEST, b"[" * DEEPEST + b"1" + b"]" * DEEPEST):
        assert json.dumps(parse_json(deep, "x")).encode() == deep
    monkeypatch.setattr(strict_json, "MOST_KEYS", 100)
    many = {str(i): 0 for i in range(100)}
    assert parse_json(to_json(many), "x") == many
    with pytest.raises(DamagedError, match="more than 100 keys"):
        parse_json(to_json([many, {"a": 1}]), "x")


def test_characters_in_texts_are_not_said_to_be_keys_or_values(monkeypatch):
    monkeypatch.setattr(strict_json, "MOST_KEYS", 4)
    monkeypatch.setattr(strict_json, "MOST_VALUES", 4)
    assert parse_json(b'["a:::::,,,,"]', "x") == ["a:::::,,,,"]
    with pytest.raises(DamagedError, match="its 5 commas allow more than 4 values"):
        parse_json(b'["a,,,,,"]', "x")
    with pytest.raises(DamagedError, match="its 5 colons and quotes allow more than 4 keys"):
        parse_json(to_json({str(i): 0 for i in range(5)}), "x")


def test_refusals_take_no_time():
    start = time.process_time()
    twice = ",".join(f'"{min(i, 99_998)}":0' for i in range(100_000))
    many = b"[" + b"0," * 10**7 + b"0]"
    for content in (b"[" * 10**7, b'{"a":' * 10**6, b"1" * 10**7, f"{{{twice}}}".encode(), many):
        with pytest.raises(DamagedError):
            parse_json(content, "x")
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "x must hold a JSON object, got list"),
        (None, "x must hold a JSON object, got null"),
        ({}, "x lacks 'a'"),
        ({"a": True}, "x: a must be int, got bool"),
        ({"a": 1.0}, "x: a must be int, got float"),
        ({"a": 1}, "x lacks 'b'"),
        ({"a": 1, "b": 3}, "x: b must be str or null, got int"),
    ],
)
def test_the_first_field_that_is_wrong_is_named(value, message):
    schema = {"a": int, "b": (str, type(None))}
    with pytest.raises(DamagedError, match=message):
        check_schema(value, schema, "x")
    for found in ("s", None):
        check_schema({"a": 1, "b": found, "c": []}, schema, "x")


def test_every_change_of_a_file_with_a_digest_is_detected(tmp_path):
    file = tmp_path / "a.json"
    write_file(file, with_digest(VALUE))
    assert read_with_digest(file, {"a": dict}) == VALUE
    content = file.read_bytes()
    others = [
        content.replace(b"2.5", b"2.6"),
        content.replace(b"\n", b"  ", 1),
        content.replace(b"2.5", b"2.50"),
        content + b" ",
        content[:-1],
        to_json(VALUE),
        to_json(VALUE | {"sha256": None}),
        to_json(VALUE | {"sha256": "0" * 64}),
        b"[]",
    ]
    for other in others:
        assert other != content
        file.write_bytes(other)
        with pytest.raises(DamagedError, match="a.json"):
            read_with_digest(file, {})
    with pytest.raises(FileNotFoundError):
        read_with_digest(tmp_path / "none.json", {})


def test_nothing_but_plain_files_is_read_or_appended_to(tmp_path):
    plain = tmp_path / "plain"
    plain.write_bytes(b"{}")
    (tmp_path / "link").symlink_to(plain)
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "dangling", "pipe", "folder"):
        path = tmp_path / name
        for call in (
            lambda path=path: open_file(path),
            lambda path=path: read_json(path, {}),
            lambda path=path: append(path, b"x"),
        ):
            with pytest.raises(DamagedError, match=f"{name} must be a plain file, and is"):
                call()
    assert plain.read_bytes() == b"{}" and not (tmp_path / "none").exists()
    assert read_json(tmp_path / "link", {}, DataError, follow=True) == {}
    for name in ("pipe", "folder"):
        with pytest.raises(DataError, match="plain file"):
            read_json(tmp_path / name, {}, DataError, follow=True)
    for name in ("none", "plain/none", "dangling"):
        with pytest.raises(FileNotFoundError):
            read_json(tmp_path / name, {}, follow=True)
    with pytest.raises(DamagedError, match="plain file"):
        open_file(Path("/dev/zero"))


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert read_file(tmp_path / "a", 3) == b"123"
    with pytest.raises(DamagedError, match="at most 2 bytes"):
        read_file(tmp_path / "a", 2)
    os.truncate(tmp_path / "a", 1 << 40)  # a size without content
    with pytest.raises(DamagedError, match="at most"):
        read_file(tmp_path / "a", 1 << 39)


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "outside").write_bytes(b"mine")
    for name in ("a", ".b.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    write_file(tmp_path / "a", b"new")
    write_file(tmp_path / "b", b"new")
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert {x: (tmp_path / x).read_bytes() for x in "ab"} == {"a": b"new", "b": b"new"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error_of_the_system(tmp_path):
    (tmp_path / "a").touch(mode=0)
    with pytest.raises(ResourceError, match="Permission denied"):
        open_file(tmp_path / "a")
