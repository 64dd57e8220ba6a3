"""Damage of any file of a memory is noticed: an error that names it, never a wrong answer."""

import re
import shutil
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from memory_cases import FakeModel, Words, rows, text

from thinkers.errors import DamagedError, FormatError, UsageError
from thinkers.json_files import with_digest
from thinkers.memory import LongTermMemory
from thinkers.memory.rows import FORMAT, Meta, block_crc, key_crc, pack_ids

LEVELS = dict(memory_levels=2, memory_group=2)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A memory of 9 sections of two topics, the pairs of each one level up."""
    folder = tmp_path_factory.mktemp("intact") / "m"
    memory = LongTermMemory.create(folder, FakeModel(**LEVELS), Words())
    memory.write([text(40)], "a", sources=["x.txt"], keep_text=True)
    memory.write([text(32, 1)], "b", keep_text=True)
    memory.close()
    return folder


@pytest.fixture
def folder(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "m")


def change(folder, sql, *values):
    """Change a store as no version of the library does."""
    connection = sqlite3.connect(folder / "memory.db", isolation_level=None)
    connection.execute(sql, values)
    connection.close()


def select(folder, sql):
    connection = sqlite3.connect(folder / "memory.db")
    connection.text_factory = bytes
    found = connection.execute(sql).fetchall()
    connection.close()
    return found


def opened(folder):
    return LongTermMemory.open(folder, FakeModel(**LEVELS), Words())


BLOCK = dict(topic=2, level=2, start=8, stop=9, first_line=7, last_line=7, crc=5)
BLOCK |= dict(source=b"y.txt", text=b"w1 w2", tokens=b"12345678", children=b"")


@pytest.mark.parametrize("column", [*BLOCK, "latents"])
def test_a_change_of_any_column_of_a_block_is_noticed(folder, column):
    if column == "latents":
        (latents,) = select(folder, "SELECT latents FROM block WHERE id = 3")[0]
        value = bytes([latents[0] ^ 1]) + latents[1:]
    else:
        value = BLOCK[column]
    before = select(folder, f"SELECT {column} FROM block WHERE id = 3")[0][0]
    assert before != value or column == "children"
    if column == "children":
        value = pack_ids([1, 2])
    change(folder, f"UPDATE block SET {column} = ? WHERE id = 3", value)
    memory = opened(folder)
    with pytest.raises(DamagedError, match="block 3 does not have its checksum") as error:
        memory.read([1, 3])
    assert error.value.exit_code == 4 and len(str(error.value).splitlines()) == 3
    assert memory.read([1, 2, 4]).ids.tolist() == [1, 2, 4]  # the others are as they were
    assert any("block 3" in str(fault) for fault in memory.verify())


def test_bytes_that_move_between_columns_are_noticed(folder):
    ((words, tokens),) = select(folder, "SELECT text, tokens FROM block WHERE id = 3")
    change(folder, "UPDATE block SET text = ? WHERE id = 3", words + tokens[:8])
    change(folder, "UPDATE block SET tokens = ? WHERE id = 3", tokens[8:])
    with pytest.raises(DamagedError, match="block 3 does not have its checksum"):
        opened(folder).read([3])


@pytest.mark.parametrize("column", ["topic", "level", "keys", "crc"])
def test_a_change_of_any_column_of_keys_is_noticed_by_a_search(folder, column):
    value = {"topic": 2, "level": 2, "keys": b"x" * 32, "crc": 5}[column]
    change(folder, f"UPDATE key SET {column} = ? WHERE id = 3", value)
    memory = opened(folder)
    with pytest.raises(DamagedError):
        memory.store.search(torch.randn(1, 8), 3)
    with pytest.raises(DamagedError, match="keys of block 3"):
        memory.read([3])
    assert any("block 3" in str(fault) for fault in memory.verify())


@pytest.mark.parametrize("table", ["key", "block"])
def test_a_row_that_is_missing_is_noticed(folder, table):
    change(folder, f"DELETE FROM {table} WHERE id = 4")
    memory = opened(folder)
    with pytest.raises(DamagedError, match="of block 4 are missing"):
        memory.read([4])
    if table == "key":
        with pytest.raises(DamagedError, match="keys of 8 blocks of level 1, where 9 were"):
            memory.store.search(torch.randn(1, 8), 3)
    faults = [str(fault) for fault in memory.verify()]
    assert any("block 4: its" in x for x in faults) and any("topic 'a'" in x for x in faults)
    with pytest.raises(DamagedError, match="blocks of topic 'a', where"):
        memory.clear("a")
    assert memory.topics() == {"a": 5, "b": 4}
    memory.clear()  # all of it is possible
    assert memory.verify() == [] and len(memory) == 0


def test_rows_in_the_place_of_others_are_noticed(folder):
    """Rows of which each has its checksum, but for another place."""
    row = select(folder, "SELECT keys, crc FROM key WHERE id = 2")[0]
    change(folder, "UPDATE key SET keys = ?, crc = ? WHERE id = 5", *row)
    row = select(folder, "SELECT latents, crc FROM block WHERE id = 2")[0]
    change(folder, "UPDATE block SET latents = ?, crc = ? WHERE id = 5", *row)
    row = select(folder, "SELECT value FROM topic WHERE id = 2")[0]
    change(folder, "UPDATE topic SET value = ? WHERE id = 1", *row)
    memory = opened(folder)
    for call in (lambda: memory.store.search(torch.randn(1, 8), 3), lambda: memory.read([5])):
        with pytest.raises(DamagedError):
            call()
    with pytest.raises(DamagedError, match="topic 1"):
        memory.topics()
    assert memory.verify() != []


def rewrite(folder, id, **values):
    """Change a block, with checksums that fit."""
    columns = "id, topic, level, start, stop, first_line, last_line, children, source, latents"
    row = list(select(folder, f"SELECT {columns}, text, tokens FROM block WHERE id = {id}")[0])
    names = [*columns.split(", "), "text", "tokens"]
    for name, value in values.items():
        if name == "keys":
            crc = key_crc(id, row[1], row[2], value)
            change(folder, "UPDATE key SET keys = ?, crc = ? WHERE id = ?", value, crc, id)
        else:
            row[names.index(name)] = value
            change(folder, f"UPDATE block SET {name} = ? WHERE id = ?", value, id)
    change(folder, "UPDATE block SET crc = ? WHERE id = ?", block_crc(row[:7], row[7:]), id)


@pytest.mark.parametrize(
    "values",
    [
        {"latents": b""},
        {"latents": b"x" * 63},
        {"latents": b"x" * 66},
        {"latents": np.full((2, 16), np.nan, "<f2").tobytes()},
        {"latents": np.full((2, 16), -np.inf, "<f2").tobytes()},
        {"keys": b"x" * 30},
        {"keys": np.full((2, 8), np.nan, "<f2").tobytes()},
        {"topic": 9},
        {"level": 2},
        {"level": 10**9},
        {"text": b"\xff\xfe"},
        {"source": b"\xc3"},
        {"tokens": b"1234567"},
        {"children": b"1"},
    ],
    ids=lambda x: repr(x)[:40],
)
def test_rows_that_no_version_writes_are_refused_though_their_checksums_fit(folder, values):
    rewrite(folder, 3, **values)
    memory = opened(folder)
    with pytest.raises(DamagedError, match="block 3"):
        memory.read([3])
    assert memory.verify() != []
    if "keys" in values:
        with pytest.raises(DamagedError):
            memory.store.search(torch.randn(1, 8), 3)


def meta_of(folder):
    return Meta.from_bytes(select(folder, "SELECT value FROM meta")[0][0], folder)


def set_meta(folder, content):
    change(folder, "UPDATE meta SET value = ?", content)


def test_settings_that_do_not_fit_are_refused(folder):
    meta = meta_of(folder)
    for values in (
        dict(dim=0),
        dict(dim=1 << 30),
        dict(levels=10**6, counts=(0,)),
        dict(counts=(9,)),
        dict(counts=(-1, 4)),
        dict(last=3),
        dict(dtype="float64"),
        dict(latents=1 << 19, levels=9, group=1 << 19, counts=(0,) * 9),
    ):
        set_meta(folder, replace(meta, **values).to_bytes())
        with pytest.raises(DamagedError, match="settings that no version writes"):
            LongTermMemory.open(folder)
    for content in (b"", b"{}", b"\xff", meta.to_bytes().replace(b'"dim": 16', b'"dim": 17'), 3):
        set_meta(folder, content)
        with pytest.raises(DamagedError):
            LongTermMemory.open(folder)
    set_meta(folder, meta.to_bytes())
    assert opened(folder).verify() == []
    counts = (meta.counts[0] - 1, meta.counts[1])
    set_meta(folder, replace(meta, counts=counts).to_bytes())
    with pytest.raises(DamagedError, match="the number of blocks in the settings"):
        opened(folder).topics()


def test_a_newer_format_asks_for_an_upgrade(folder):
    set_meta(folder, replace(meta_of(folder), format=FORMAT + 1).to_bytes())
    with pytest.raises(FormatError, match="of a newer version.* upgrade") as error:
        LongTermMemory.open(folder)
    assert error.value.exit_code == 4


def test_ids_that_would_be_given_twice_are_refused(folder):
    change(folder, "UPDATE sqlite_sequence SET seq = 3 WHERE name = 'block'")
    memory = opened(folder)
    with pytest.raises(DamagedError, match="a last id of 3"):
        memory.write(rows(1))
    assert any("the last id is 3" in str(fault) for fault in memory.verify())


# The log and the generation ----------------------------------------------------------------------


def test_writes_that_are_gone_with_the_log_are_noticed(intact, tmp_path):
    """SQLite itself takes a log to end where it is damaged."""
    whole = shutil.copytree(intact, tmp_path / "whole")
    memory = opened(whole)
    for i in range(3):
        memory.write(rows(1, i), "c")
    for name in ("cut", "flip", "gone"):
        shutil.copytree(whole, tmp_path / name)
    log = "memory.db-wal"
    content = bytearray((whole / log).read_bytes())
    (tmp_path / "cut" / log).write_bytes(content[:-5000])
    content[-100] ^= 16
    (tmp_path / "flip" / log).write_bytes(content)
    (tmp_path / "gone" / log).unlink()
    for name, lost in (("cut", "1 of"), ("flip", "1 of"), ("gone", "3 of")):
        damaged = opened(tmp_path / name)
        for call in (damaged.topics, lambda: damaged.write(rows(1)), lambda: damaged.read([1])):  # noqa: B023
            with pytest.raises(DamagedError, match=f"{lost} 5 writes are gone"):
                call()
        assert [f"{lost} 5 writes" in str(fault) for fault in damaged.verify()] == [True]
        damaged.rebuild()  # accepts what is left
        assert damaged.verify() == [] and damaged.topics()["a"] == 5
        damaged.close()


@pytest.mark.parametrize("kind", ["gone", "flip", "foreign", "newer", "empty"])
def test_a_generation_that_is_not_as_it_was_written_is_noticed(folder, kind):
    file = folder / "generation.json"
    value = {"format": FORMAT, "store": meta_of(folder).store, "generation": 2}
    content = {
        "flip": file.read_bytes().replace(b": 2", b": 1"),
        "foreign": with_digest(value | {"store": "0" * 16}),
        "newer": with_digest(value | {"format": FORMAT + 1}),
        "empty": b"",
    }
    file.unlink() if kind == "gone" else file.write_bytes(content[kind])
    memory = opened(folder)
    for call in (memory.topics, lambda: memory.read([1]), lambda: memory.write(rows(1))):
        with pytest.raises(FormatError if kind == "newer" else DamagedError):
            call()
    assert memory.verify() != []
    memory.rebuild()
    assert memory.verify() == [] and memory.topics() == {"a": 5, "b": 4}


def test_files_of_two_memories_do_not_make_one(intact, tmp_path):
    other = LongTermMemory.create(tmp_path / "other", FakeModel(**LEVELS), Words())
    for i in range(2):
        other.write(rows(2, i))
    other.close()
    mixed = shutil.copytree(intact, tmp_path / "mixed")
    shutil.copyfile(tmp_path / "other" / "memory.db", mixed / "memory.db")
    with pytest.raises(DamagedError, match="the generation of another memory"):
        opened(mixed).topics()


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 20000])
def test_a_database_that_was_cut_is_noticed(folder, size):
    content = (folder / "memory.db").read_bytes()
    assert len(content) > 20000
    (folder / "memory.db").write_bytes(content[:size])
    with pytest.raises(DamagedError, match="memory.db"):
        opened(folder).read(range(1, 10))


def test_what_is_no_database_is_damaged(folder):
    (folder / "memory.db").write_bytes(b"not a database, but a text of some length" * 200)
    with pytest.raises(DamagedError, match="file is not a database") as error:
        LongTermMemory.open(folder)
    assert re.fullmatch(r"found: .*\nexpected: .*\nfix: .*", str(error.value))


def test_children_of_another_topic_are_noticed(folder):
    with opened(folder).view() as view:
        upper = [i for i in view.ids(2).tolist() if view.fetch([i]).children[0]]
        assert view.fetch(upper[:1]).topics == ["a"]
    rewrite(folder, upper[0], children=pack_ids([1, 9]))
    assert any("its child 9 is not one" in str(fault) for fault in opened(folder).verify())


def test_verify_lists_all_faults_and_changes_nothing(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    memory = opened(folder)
    assert memory.verify() == []
    memory.close()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    for id in (2, 5, 8):
        change(folder, "UPDATE block SET start = 99 WHERE id = ?", id)
    places = {fault.place for fault in opened(folder).verify()}
    assert {"block 2", "block 5", "block 8"} <= places
    with pytest.raises(UsageError):
        LongTermMemory.open(folder / "memory.db")
