"""The keys of a store: exact search for few, an index in a file for many, made anew if need is."""

import shutil

import pytest
import torch
from memory_cases import FakeModel, brute_force, filled, rows

from thinkers.errors import UsageError
from thinkers.memory import LongTermMemory, keys, lists, sqlite


@pytest.fixture
def small(monkeypatch):
    """Levels of more than 40 keys, of 20 blocks, have an index; it is searched whole."""
    for module in (keys, sqlite):
        monkeypatch.setattr(module, "EXACT", 40)


def index_of(folder):
    return sorted(file.name for file in folder.glob("*index*"))


def searches(memory, expected=None, topics=None):
    """Check that the memory finds what brute force does; return what it found."""
    queries = torch.randn(9, 8, generator=torch.Generator().manual_seed(3))
    found = memory.store.search(queries, 6, 1, topics)
    ids, scores = brute_force(memory, queries, 6, topics)
    assert torch.equal(found.ids, ids) and torch.equal(found.scores, scores)
    return found.ids


def test_a_level_of_many_keys_has_an_index_once_the_writer_closes(tmp_path, small, capsys):
    memory = filled(tmp_path / "m", {"a": 20})
    memory.close()
    assert index_of(tmp_path / "m") == []
    memory.write(rows(10, 5), "b")
    memory.close()
    assert len(index_of(tmp_path / "m")) == 1
    searches(LongTermMemory.open(tmp_path / "m", FakeModel()))
    capsys.readouterr()
    reader = LongTermMemory.open(tmp_path / "m", FakeModel())
    searches(reader)
    searches(reader, topics=["b"])
    assert capsys.readouterr().err == "" and reader.verify() == []


def test_what_is_written_after_an_index_is_found_too(tmp_path, small, monkeypatch):
    built = []
    build = keys.KeyRows.lists
    monkeypatch.setattr(
        keys.KeyRows,
        "lists",
        lambda rows, *a, **k: built.append(k == {} and len(rows)) or build(rows, *a, **k),
    )
    memory = filled(tmp_path / "m", {"a": 30})
    memory.rebuild()
    assert built == [30]
    for i in range(3):
        memory.write(rows(1, i), "b")
        searches(memory)
        searches(memory, topics=["b"])
    assert [x for x in built if x] == [30]
    memory.write(rows(1, 4), "b")  # a tail of more than a tenth
    searches(memory)
    assert [x for x in built if x] == [30, 34]
    before = LongTermMemory.open(tmp_path / "m", FakeModel())
    searches(before)
    assert [x for x in built if x] == [30, 34]  # the writer has saved it


def test_a_reader_makes_an_index_for_itself_and_writes_nothing(tmp_path, small, capsys):
    memory = filled(tmp_path / "m", {"a": 30})
    reader = LongTermMemory.open(tmp_path / "m", FakeModel())
    searches(reader)
    assert "made anew from the keys: it is missing" in capsys.readouterr().err
    assert index_of(tmp_path / "m") == []
    memory.close()
    assert len(index_of(tmp_path / "m")) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "older", "foreign"])
def test_an_index_that_is_damaged_is_made_anew_and_said_to_be(tmp_path, small, damage, capsys):
    memory = filled(tmp_path / "m", {"a": 30})
    memory.close()
    (file,) = (tmp_path / "m").glob("index*")
    content = bytearray(file.read_bytes())
    if damage == "older":
        memory.clear("a")
        memory.write(rows(25, 9), "c")
        memory.close()
    elif damage == "foreign":
        other = filled(tmp_path / "n", {"b": 25})
        other.write(rows(6), "b")
        other.close()
        content = next((tmp_path / "n").glob("index*")).read_bytes()
    elif damage == "flip":
        content[len(content) // 2] ^= 4
    file.write_bytes({"cut": content[:-1], "empty": b""}.get(damage, content))
    if damage == "gone":
        file.unlink()
    capsys.readouterr()
    searches(LongTermMemory.open(tmp_path / "m", FakeModel()))
    message = capsys.readouterr().err
    assert file.name in message and "made anew from the keys" in message
    with LongTermMemory.open(tmp_path / "m", FakeModel()) as memory:
        memory.rebuild()
    capsys.readouterr()
    searches(LongTermMemory.open(tmp_path / "m", FakeModel()))
    assert capsys.readouterr().err == ""


def test_a_deletion_removes_the_index_before_the_keys(tmp_path, small, monkeypatch):
    memory = filled(tmp_path / "m", {"a": 30, "b": 30})
    memory.rebuild()
    assert len(index_of(tmp_path / "m")) == 1
    (tmp_path / "m" / f".{index_of(tmp_path / 'm')[0]}.tmp").write_bytes(b"left by a killed one")
    reader = LongTermMemory.open(tmp_path / "m", FakeModel())
    searches(reader)
    with reader.view() as view:  # begun before: it still has what is deleted
        memory.clear("b")
        assert index_of(tmp_path / "m") == []
        found = view.search(torch.randn(1, 8), 100)
        assert found.ids.max() == 60 and (found.ids > 0).sum() == 60
    searches(reader)
    searches(memory)
    memory.close()
    assert len(index_of(tmp_path / "m")) == 1
    searches(LongTermMemory.open(tmp_path / "m", FakeModel()))


def test_a_view_that_is_older_than_an_index_does_not_use_it(tmp_path, small):
    memory = filled(tmp_path / "m", {"a": 30})
    reader = LongTermMemory.open(tmp_path / "m", FakeModel())
    queries = torch.randn(3, 8)
    with reader.view() as view:
        memory.write(rows(30, 7), "b")
        memory.rebuild()
        searches(reader)  # the keys are of the newer generation now
        ids = view.search(queries, 70).ids
        assert sorted(ids[0].tolist())[-30:] == list(range(1, 31)) and ids.max() == 30
        assert view.ids().tolist() == list(range(1, 31))
    with reader.view() as view:
        assert view.ids().tolist() == list(range(1, 61))


def test_upper_levels_have_an_index_of_their_own(tmp_path, small):
    memory = filled(tmp_path / "m", {"a": 90, "b": 3}, memory_levels=2, memory_group=2)
    memory.close()
    assert [name[:8] for name in index_of(tmp_path / "m")] == ["index-1-", "index-2-"]
    reader = LongTermMemory.open(tmp_path / "m", FakeModel(memory_levels=2, memory_group=2))
    found = reader.store.search(torch.randn(2, 8), 60, level=2)
    with reader.view() as view:
        assert sorted(x for x in found.ids[0].tolist() if x > 0) == view.ids(2).tolist()
        assert len(view.ids(2)) == 45 + 1 + 1


def test_lists_find_most_of_what_brute_force_does(tmp_path, small, monkeypatch):
    monkeypatch.setattr(lists, "EXACT", 40)
    memory = filled(tmp_path / "m", {"a": 400, "b": 100})
    memory.close()
    queries = torch.randn(20, 8, generator=torch.Generator().manual_seed(3))
    for topics in (None, ["a"], ["b"]):
        found = memory.store.search(queries, 5, 1, topics)
        ids, _ = brute_force(memory, queries, 5, topics)
        hits = sum(len({*x} & {*y}) for x, y in zip(found.ids.tolist(), ids.tolist(), strict=True))
        assert hits >= 90
        for i in range(0, 20, 7):
            alone = memory.store.search(queries[i : i + 1], 5, 1, topics)
            assert torch.equal(alone.ids[0], found.ids[i])
            assert torch.equal(alone.scores[0], found.scores[i])


def test_a_copy_of_a_memory_has_its_index(tmp_path, small, capsys):
    filled(tmp_path / "m", {"a": 30}).close()
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    capsys.readouterr()
    searches(LongTermMemory.open(tmp_path / "copy", FakeModel()))
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError):
        LongTermMemory.open(tmp_path / "copy", FakeModel(seed=1))
