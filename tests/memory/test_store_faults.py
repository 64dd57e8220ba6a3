"""Writers that are killed, bits that flip, readers beside a writer: the benchmarks, in short."""

import random

import memory_blocks
import memory_flips
import memory_kills
import memory_readers
import pytest
from memory_blocks import SETTINGS, State

from thinkers.memory import keys, sqlite
from thinkers.memory.sqlite import SqliteStore

slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def early_indexes(monkeypatch):
    """What the benchmarks set for their process is undone after each test."""
    for module in (keys, sqlite):
        monkeypatch.setattr(module, "EXACT", memory_blocks.INDEXED)


@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=slow)])
def test_nothing_acknowledged_is_lost_as_writers_are_killed(tmp_path, rounds):
    found = memory_kills.measure(rounds, tmp_path / "store", tmp_path / "result.json")
    assert found["lost"] == [] and found["rounds"] == rounds and found["acknowledged"] > 0
    assert sum(found["killed_during"].values()) == rounds
    again = memory_kills.measure(rounds, tmp_path / "store", tmp_path / "result.json")
    assert again == found  # rounds of earlier calls count


@pytest.mark.parametrize("rounds", [16, pytest.param(300, marks=slow)])
def test_no_flipped_bit_gives_a_wrong_answer(tmp_path, rounds):
    found = memory_flips.measure(rounds, tmp_path, tmp_path / "result.json")
    assert found["silent"] == []
    counts = {file: sum(x.values()) for file, x in found["files"].items()}
    assert sum(counts.values()) == rounds and len(counts) >= 8
    assert any("refused" in x for x in found["files"].values())


@slow
def test_readers_see_whole_snapshots_beside_a_writer_that_is_killed(tmp_path):
    found = memory_readers.measure(0.2, tmp_path, tmp_path / "result.json", seconds=1.0)
    assert found["wrong"] == [] and found["snapshots"] > 50 and found["kills"] > 5


def test_the_checks_notice_what_is_lost_changed_or_left(tmp_path):
    store = SqliteStore.create(tmp_path / "store", **SETTINGS)
    state = State()
    for topic, count in (("a", 5), ("b", 4)):
        operation = {"do": "write", "topic": topic, "count": count}
        memory_blocks.perform(store, state, operation)
        state = state.after(operation)
    store.close()
    assert memory_kills.check(tmp_path / "store", state, None) == ([], state, False)
    begun = {"do": "write", "topic": "a", "count": 1}
    assert memory_kills.check(tmp_path / "store", state, begun) == ([], state, False)
    assert memory_kills.check(tmp_path / "store", State(), begun)[0] != []
    for wrong in (state.written("a", 1), state.cleared("b"), State(11, {"a": state.topics["a"]})):
        assert memory_kills.check(tmp_path / "store", wrong, None)[0] != []
    moved = State(state.last, {"a": state.topics["b"], "b": state.topics["a"]})
    assert memory_kills.check(tmp_path / "store", moved, None)[0] != []
    assert memory_kills.check(tmp_path / "store", state.cleared("b"), begun)[0] != []


def test_a_state_follows_from_its_operations():
    state = State().written("a", 5).written("b", 2).written("a", 1)
    assert state.topics["a"] == ((1, 2, 3, 4, 5, 11), {6: (1, 2), 7: (3, 4), 12: (5, 11)})
    assert state.topics["b"] == ((8, 9), {10: (8, 9)}) and state.last == 12
    assert state.cleared("a").topics == {"b": state.topics["b"]}
    assert state.cleared(None) == State(12) and state.sections() == 8
    assert memory_kills.draw(random.Random(0), State().written("a", 301), "write")["do"] == "clear"
