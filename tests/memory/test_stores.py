"""The contract of `Store`, for SQLite and for Qdrant: see `store_cases`."""

from dataclasses import replace

import pytest
import torch
from memory_cases import FakeModel, rows
from store_cases import (
    QDRANT,
    WARNINGS,
    Sqlite,
    assert_equal,
    blocks,
    brute_force,
    grouped,
    queries,
    same,
)

from thinkers.errors import DamagedError, UsageError
from thinkers.memory import LongTermMemory
from thinkers.memory.memory import store_settings

pytestmark = WARNINGS


@pytest.fixture(params=[Sqlite, *QDRANT])
def place(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    made.close()


def test_blocks_are_read_as_they_were_written(place):
    store = place.create()
    written = blocks(7, topics=("a", "b"))
    assert store.append(written) == [1, 2, 3, 4, 5, 6, 7]
    assert_equal(store.fetch(range(1, 8)), written)
    assert_equal(store.fetch([5, 2, 5]), written.select([4, 1, 4]))
    assert store.topics() == {"a": 4, "b": 3} and store.meta.last == 7
    assert store.verify() == []
    store.close()
    assert_equal(place.open().fetch(torch.tensor([7, 1])), written.select([6, 0]))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_types_of_latents(place, dtype):
    store = place.create(dtype=dtype)
    written = blocks(3)
    store.append(written)
    error = (store.fetch([1, 2, 3]).latents - written.latents).abs().max()
    assert error == 0 if dtype == "float16" else 0 < error < 0.02


@pytest.mark.parametrize("k", [1, 4, 40])
def test_search_gives_what_brute_force_gives(place, k):
    store = place.create()
    written = blocks(31, topics=("a", "b", "c"))
    store.append(written)
    asked = queries(6)
    assert same(store.search(asked, k), brute_force(written, asked, k))
    chosen = brute_force(written, asked, k, ("c", "a"))
    assert same(store.search(asked, k, topics=["c", "a"]), chosen)
    alone = store.search(asked[3:4], k)
    together = store.search(asked, k)
    assert torch.equal(alone.scores[0], together.scores[3])
    assert torch.equal(alone.ids[0], together.ids[3])


def test_equal_blocks_are_found_by_lower_id(place):
    store = place.create()
    one = blocks(40)
    written = replace(one, keys=one.keys[:1].expand(40, 2, 5).contiguous())
    store.append(written.select(range(25)))
    store.append(replace(written.select(range(25, 40))))
    found = store.search(queries(3), 3)
    assert found.ids.tolist() == [[1, 2, 3]] * 3 and found.scores.unique(dim=1).shape[1] == 1


def test_an_empty_store_finds_nothing(place):
    store = place.create()
    found = store.search(queries(2), 3)
    assert found.ids.tolist() == [[-1] * 3] * 2 and (found.scores == -torch.inf).all()
    assert store.topics() == {} and store.verify() == [] and len(store.fetch([])) == 0
    assert store.append(blocks(0)) == []
    with store.view() as view:
        assert len(view) == 0 and view.ids().tolist() == []


def test_a_level_holds_its_blocks_and_those_below_whose_group_is_not_whole(place):
    store = place.create()
    store.append(blocks(6, topics=("a",)))
    store.append(grouped("a", [1, 2, 3, 4], 7))
    with store.view() as view:
        assert view.ids(1).tolist() == [1, 2, 3, 4, 5, 6]
        assert view.ids(2, ["a"]).tolist() == view.ids(2).tolist() == [5, 6, 7]
        assert view.ungrouped("a") == [[5, 6]]
        assert view.ungrouped("none") == [[]] and len(view) == 6
        held = view.fetch([5, 6, 7])
        assert held.children == [(), (), (1, 2, 3, 4)] and held.sizes.tolist() == [2, 2, 4]
        asked = queries(4)
        assert same(view.search(asked, 5, level=2), brute_force(held, asked, 5))
        assert set(view.search(asked, 9).ids.flatten().tolist()) == {-1, *range(1, 7)}
    assert store.verify() == []


def test_a_topic_is_deleted(place):
    store = place.create()
    written = blocks(8, topics=("a", "b"))
    store.append(written)
    assert store.delete("a") == 4 and store.topics() == {"b": 4}
    asked = queries(3)
    assert same(store.search(asked, 5), brute_force(written, asked, 5, ("b",)))
    with pytest.raises(UsageError, match="block 1 of .*not there"):
        store.fetch([2, 1])
    assert store.append(blocks(2, 9, ("a",))) == [9, 10], "an id is never given twice"
    assert store.topics() == {"b": 4, "a": 2} and store.verify() == []
    assert store.delete(None) == 6 and store.topics() == {}
    assert store.search(asked, 2).ids.tolist() == [[-1, -1]] * 3 and store.verify() == []


def test_all_blocks_are_replaced_at_once(place):
    store = place.create()
    store.append(blocks(5, topics=("a", "b")))
    new = [blocks(2, 6, ("b",)), blocks(1, 8, ("c",))]
    assert store.replace(new, fingerprint="b" * 64) == [6, 7, 8]
    assert store.topics() == {"b": 2, "c": 1} and store.meta.fingerprint == "b" * 64
    assert_equal(store.fetch([6, 7]), new[0])
    with pytest.raises(UsageError, match="not there"):
        store.fetch([5])
    assert store.verify() == []


def test_a_view_does_not_see_what_is_written_meanwhile(place):
    store = place.create()
    first = blocks(9)
    store.append(first)
    asked = queries(4)
    with store.view() as view:
        expected = brute_force(first, asked, 12)
        assert same(view.search(asked, 12), expected)
        store.append(blocks(9, 10, ("b",)))
        assert same(view.search(asked, 12), expected)
        assert view.ids().tolist() == list(range(1, 10)) and view.topics() == {"a": 9}
        with pytest.raises(UsageError, match="not there"):
            view.fetch([10])
    for read in (view.ids, lambda: view.search(asked, 1), lambda: view.fetch([1])):
        with pytest.raises(UsageError, match="a view of .* that was closed"):
            read()
    with store.view() as view:
        assert len(view) == 18 and view.ids(1, ["b"]).tolist() == list(range(10, 19))


@pytest.mark.parametrize(
    "change, match",
    [
        ({"latents": float("nan")}, "no finite latent"),
        ({"latents": float("inf")}, "no finite latent"),
        ({"keys": float("nan")}, "a key of length nan"),
        ({"keys": 2.0}, "a key of length"),
    ],
)
def test_vectors_that_cannot_be_read_back_are_refused(place, change, match):
    store = place.create()
    store.append(blocks(2))
    bad = blocks(3, 3)
    ((name, value),) = change.items()
    getattr(bad, name)[1] = value
    with pytest.raises(DamagedError, match=match):
        store.append(bad)
    assert store.topics() == {"a": 2} and store.append(blocks(3, 3)) == [3, 4, 5]
    assert store.verify() == []


def test_arguments_are_checked(place):
    store = place.create()
    store.append(blocks(3, topics=("apple",)))
    for arguments, match in (
        ({"k": 0}, "k must be an integer at least 1"),
        ({"k": 1, "level": 3}, r"level must be an integer in 1 \.\. 2"),
        ({"k": 1, "topics": ["aple"]}, "such as 'apple'"),
        ({"k": 1, "topics": "apple"}, "must be a list"),
    ):
        with pytest.raises(UsageError, match=match):
            store.search(queries(1), **arguments)
    with pytest.raises(UsageError, match="such as 'apple'"):
        store.delete("aple")
    with pytest.raises(ArithmeticError, match="query 1"):
        store.search(torch.tensor([[1.0, 0, 0, 0, 0], [torch.nan] * 5]), 1)
    with pytest.raises(UsageError, match="block 4"):
        store.fetch([4])


def test_a_store_of_another_model_is_refused(place):
    store = place.create()
    other = place.open()
    store.replace([], fingerprint="b" * 64)
    with pytest.raises(UsageError, match="written by the model bbbb"):
        other.search(queries(1), 1)


def test_a_long_term_memory_stands_on_any_store(place):
    model = FakeModel(memory_levels=2)
    store = place.create(**store_settings(model, None))
    memory = LongTermMemory(store, model)
    assert memory.write(rows(9), "x") == list(range(1, 10)) and len(memory) == 9
    assert memory.write(rows(3, 1), "y") == [12, 13, 14]
    found = memory.search(torch.randn(2, model.config.dim), 4, ["x"])
    assert set(found.ids.flatten().tolist()) <= set(range(1, 10))
    assert memory.read([14, 1]).topics == ["y", "x"] and memory.verify() == []
    assert memory.clear("x") == 9 and memory.topics() == {"y": 3}
    memory.compact()
    memory.close()
