"""A store in Qdrant: interrupted writes and deletions, writers, and payloads that have changed."""

import os
import sys

import numpy as np
import pytest
from store_cases import QDRANT, SETTINGS, WARNINGS, blocks, brute_force, queries, same

from thinkers.errors import DamagedError, LockedError, ResourceError, UsageError
from thinkers.memory.qdrant import QdrantStore
from thinkers.memory.qdrant_points import KEYS, STATE_ID, all_of, is_id, models

pytestmark = WARNINGS


@pytest.fixture(params=QDRANT)
def qdrant(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    made.close()


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    monkeypatch.setitem(sys.modules, "qdrant_client.models", None)
    with pytest.raises(UsageError, match=r"thinkers\[qdrant\]"):
        QdrantStore.create(None, "blocks", **SETTINGS)


def test_a_server_that_does_not_answer_is_an_error_of_resources():
    client = pytest.importorskip("qdrant_client").QdrantClient(
        "http://127.0.0.1:9", timeout=1, check_compatibility=False
    )
    with pytest.raises(ResourceError, match="qdrant:blocks: .*refused"):
        QdrantStore(client, "blocks")


def test_an_interrupted_write_is_not_there_and_is_removed(qdrant):
    store = qdrant.create()
    written = blocks(3)
    store.append(written)
    commit, store._commit = store._commit, lambda old, new: None
    store.append(blocks(4, 4, ("b",)))
    store._commit = commit
    assert store.topics() == {"a": 3} and store.verify() == []
    asked = queries(2)
    assert same(store.search(asked, 9), brute_force(written, asked, 9))
    with pytest.raises(UsageError, match="not there"):
        store.fetch([4])
    store.close()
    store = qdrant.open()
    store.lock()
    assert len(qdrant.client.retrieve("blocks", list(range(9)), with_payload=True)) == 4
    assert store.append(blocks(2, 4)) == [4, 5] and store.verify() == []


def test_an_interrupted_deletion_is_finished(qdrant):
    store = qdrant.create()
    written = blocks(6, topics=("a", "b"))
    store.append(written)
    purge, store._purge = store._purge, lambda state: None
    store.delete("a")
    store._purge = purge
    asked = queries(2)
    assert same(store.search(asked, 9), brute_force(written, asked, 9, ("b",)))
    assert store.verify() == []
    with store.view() as view:
        assert view.ids().tolist() == [2, 4, 6] and not view.meta.is_wiped
        with pytest.raises(UsageError, match="not there"):
            view.fetch([1])
    store.compact()
    assert len(qdrant.client.retrieve("blocks", list(range(9)), with_payload=True)) == 4
    assert store.meta.is_wiped and store.verify() == []


def test_a_deletion_ends_a_view(qdrant):
    store = qdrant.create()
    store.append(blocks(4, topics=("a", "b")))
    with store.view() as view:
        view.fetch([1, 2])
        store.delete("a")
        for read in (lambda: view.search(queries(1), 1), lambda: view.fetch([2]), view.ids):
            with pytest.raises(LockedError, match="were deleted while they were read"):
                read()
    assert store.fetch([2]).topics == ["b"]


def test_one_process_writes_at_a_time(qdrant):
    store = qdrant.create()
    other = qdrant.open()
    with pytest.raises(LockedError, match=f"process {os.getpid()} on "):
        other.append(blocks(1))
    assert other.topics() == {}, "reading needs no lock"
    store.append(blocks(1))
    store.close()
    assert other.append(blocks(1, 2)) == [2] and other.meta.last == 2
    with pytest.raises(LockedError):
        store.append(blocks(1, 3))
    other.break_lock()
    assert store.append(blocks(1, 3)) == [3]
    with pytest.raises(LockedError):
        other.append(blocks(1, 4))
    assert store.verify() == [] and store.topics() == {"a": 3}


def test_the_lock_of_a_killed_process_is_taken_over(qdrant, monkeypatch):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    store = qdrant.create()
    monkeypatch.setattr(os, "getpid", lambda: child)
    store.close()
    store.lock()
    monkeypatch.undo()
    assert qdrant.open().append(blocks(1)) == [1]


def test_a_second_collection_of_a_name_is_refused(qdrant):
    qdrant.create()
    with pytest.raises(UsageError, match="which exists"):
        qdrant.create()
    with pytest.raises(UsageError, match="no such collection"):
        QdrantStore(qdrant.client, "other")
    with pytest.raises(UsageError, match="index Qdrant makes by itself"):
        qdrant.open().rebuild()


@pytest.mark.parametrize(
    "id, change",
    [
        (2, {"latents": "AAAA"}),
        (2, {"source": "AAA"}),
        (2, {"topic": 1}),
        (2, {"level": 2}),
        (2, {"start": 1}),
        (2, {"crc": 1}),
        (2, {"key_crc": 1}),
        (2, {"id": 3}),
        (2, {"text": 5}),
    ],
)
def test_a_changed_payload_is_found(qdrant, id, change):
    from thinkers.memory.qdrant_points import models

    store = qdrant.create()
    store.append(blocks(4, topics=("a", "b")))
    strong = models().WriteOrdering.STRONG
    qdrant.client.set_payload("blocks", change, all_of(is_id([id])), wait=True, ordering=strong)
    with pytest.raises(DamagedError, match=f"block {id}"):
        store.fetch([id])
    assert any(f"block {id}" in fault.place for fault in store.verify())
    if set(change) & {"topic", "level", "key_crc"}:
        with pytest.raises(DamagedError, match=f"block {id}"):
            store.search(queries(1), 9, level=change.get("level", 1))


def test_changed_keys_are_found(qdrant):
    store = qdrant.create()
    store.append(blocks(3))
    (point,) = qdrant.client.retrieve("blocks", [2], with_payload=True, with_vectors=[KEYS])
    vectors = np.array(point.vector[KEYS], np.float32)
    vectors[1, 3] *= -1
    changed = models().PointStruct(id=2, vector={KEYS: vectors.tolist()}, payload=point.payload)
    qdrant.client.upsert("blocks", [changed], wait=True)
    for read in (lambda: store.fetch([2]), lambda: store.search(queries(1), 3)):
        with pytest.raises(DamagedError, match="keys of block 2"):
            read()
    assert [fault.place for fault in store.verify()] == ["block 2", *["topic 'a'"] * 2]


@pytest.mark.parametrize("field", ["state", "generation", "writer"])
def test_a_changed_state_is_found(qdrant, field):
    from thinkers.memory.qdrant_points import models

    store = qdrant.create()
    store.append(blocks(2))
    state = store.read_state().to_payload()["state"]
    value = {"state": state.replace("a", "b", 1), "generation": 7, "writer": 7}[field]
    strong = models().WriteOrdering.STRONG
    chosen = all_of(is_id([STATE_ID]))
    qdrant.client.set_payload("blocks", {field: value}, chosen, wait=True, ordering=strong)
    with pytest.raises(DamagedError, match="qdrant:blocks"):
        store.topics()
    assert [fault.place for fault in store.verify()] == ["qdrant:blocks"]
