"""Parts of a memory: topics and blocks that are left out are not found, the others as they are."""

import pytest
import torch
from memory_cases import FakeModel, brute_force, filled, latents, rows

from thinkers.errors import UsageError
from thinkers.memory import LongTermMemory
from thinkers.memory.parts import snapshot


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """A memory that no test changes, with equal keys in two topics."""
    made = filled(tmp_path_factory.mktemp("parts") / "m", {"a": 30, "b": 20})
    made.write(rows(30), "twice")
    yield made
    made.close()


def query(n, seed=0):
    return FakeModel().block_query(latents(n, seed)[:, None])


@pytest.mark.parametrize("topics", [None, ["b"], ["a", "twice"], []])
def test_a_part_finds_the_best_blocks_of_its_topics(memory, topics):
    with memory.part(topics).view() as view:
        found = view.search(query(5), 8)
        ids, scores = brute_force(memory, query(5), 8, topics)
        assert torch.equal(found.ids, ids) and torch.equal(found.scores, scores)
        assert (
            view.ids().tolist()
            == sorted(brute_force(memory, query(1), 80, topics)[0][0])[-len(view) or 80 :]
        )
        assert len(view.fetch(view.ids())) == len(view)


def test_what_is_left_out_is_replaced_by_the_next_best(memory):
    every, _ = brute_force(memory, query(6), 80)
    without = every[:3, 0].tolist() + every[3:, 2].tolist()
    with memory.part(without=without).view() as view:
        found = view.search(query(6), 4)
        assert not set(view.ids().tolist()) & set(without)
        assert view.search(query(1), 90).ids[0].tolist().count(-1) == 10 + len(set(without))
    for row, best in zip(found.ids.tolist(), every.tolist(), strict=True):
        assert row == [id for id in best if id not in without][:4]
    with memory.part(["b"], without).view() as view:
        assert set(view.ids().tolist()) == set(range(31, 51)) - set(without)


def test_parts_of_a_level_are_its_groups_and_what_waits(tmp_path):
    memory = filled(tmp_path / "m", {"a": 9, "b": 4}, memory_levels=2, memory_group=4)
    with memory.view() as view, memory.part(["a"]).view() as part:
        every = view.fetch(view.ids(2))
        expected = [
            id for id, topic in zip(every.ids.tolist(), every.topics, strict=True) if topic == "a"
        ]
        assert part.ids(2).tolist() == expected and len(expected) == 3 and len(part) == 9
        found = part.search(torch.randn(1, 8), 9, level=2)
        assert sorted(found.ids[0].tolist()) == [-1] * 6 + expected


def test_an_unknown_topic_is_named_before_anything_is_read(memory):
    with pytest.raises(UsageError, match="'twise', which is not in the memory(.|\n)*'twice'"):
        memory.part(["a", "twise"])
    with pytest.raises(UsageError, match="topics must be a list of names"):
        memory.part("a")
    with pytest.raises(UsageError, match="written by the model"):
        memory.part(["a"]).check(FakeModel(seed=1))


def test_views_of_a_snapshot_are_one(tmp_path):
    memory = filled(tmp_path / "m", {"a": 4})
    with snapshot(memory.part(["a"])) as fixed:
        memory.write(rows(3, 9), "a")
        for _ in range(2):
            with fixed.view() as view:
                assert view.ids().tolist() == [1, 2, 3, 4]
        fixed.check(FakeModel())
    assert LongTermMemory.open(tmp_path / "m").topics() == {"a": 7}
    memory.clear("a")
    with pytest.raises(UsageError, match="of which it has none"), memory.part(["a"]).view():
        pass
