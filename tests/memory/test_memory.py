"""LongTermMemory: what was written is found, read, cleared, and belongs to one model."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from memory_cases import FakeModel, Words, brute_force, filled, latents, rows, text

from thinkers.errors import UsageError
from thinkers.memory import LongTermMemory


def test_what_is_written_is_read_by_another_opening(tmp_path):
    with LongTermMemory.create(tmp_path / "m", FakeModel(), Words()) as memory:
        ids = memory.write([text(20), text(3, 1)], "a", sources=["x", "y"], keep_text=True)
        more = memory.write(rows(2, 5), "b")
    assert ids == [1, 2, 3, 4] and more == [5, 6]
    again = LongTermMemory.open(tmp_path / "m", FakeModel(), Words())
    assert again.topics() == {"a": 4, "b": 2} and len(again) == 6 and again.verify() == []
    blocks = again.read(ids)
    assert list(blocks.sources) == ["x", "x", "x", "y"] and list(blocks.topics) == ["a"] * 4
    assert blocks.spans.tolist() == [[0, 8], [8, 16], [16, 20], [0, 3]]
    assert " ".join(blocks.texts[:3]) == text(20)
    assert [x.tolist() for x in blocks.tokens] == [Words().encode(x)[1:] for x in blocks.texts]
    assert again.read([6]).texts == [None] and again.read([6]).tokens == [None]
    padded = torch.nn.utils.rnn.pad_sequence(blocks.tokens, batch_first=True)
    expected = FakeModel().compress(padded, torch.tensor([8, 8, 4, 3]))
    torch.testing.assert_close(blocks.latents, expected, atol=2e-3, rtol=1e-3)
    assert torch.equal(blocks.latents, blocks.latents.half().float())
    assert blocks.keys.norm(dim=-1) == pytest.approx(torch.ones(4, 2), abs=1e-3)
    assert again.read(torch.tensor([3, 1])).ids.tolist() == [3, 1]
    assert len(again.read([])) == 0


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_sections_of_a_text_are_compressed_with_the_block_before(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("thinkers.memory.compressing.CHUNK", chunk)
    model = FakeModel(memory_conditioned=True)
    memory = LongTermMemory.create(tmp_path / "m", model, Words())
    ids = memory.write([text(20), text(3, 1), text(9, 2)], "a", keep_text=True)
    ids += memory.write([text(10, 3)], "a", keep_text=True)
    ids += memory.write(rows(2, 5), "a", keep_text=True)  # each of them a text
    blocks, before = memory.read(ids), None
    starts = blocks.spans[:, 0].tolist()
    assert starts == [0, 8, 16, 0, 0, 8, 0, 8, 0, 0]
    for number, start in enumerate(starts):
        before = blocks.latents[number - 1][None] if start else None
        tokens = blocks.tokens[number][None]
        found = model.compress(tokens, torch.tensor([tokens.shape[1]]), before)[0]
        assert torch.equal(blocks.latents[number], found.half().float())


def test_int8_takes_half_the_space_and_a_step_of_accuracy(tmp_path):
    memory = LongTermMemory.create(tmp_path / "m", FakeModel(), dtype="int8")
    ids = memory.write(rows(5))
    exact = FakeModel().compress(rows(5), torch.full((5,), 8))
    largest = exact.abs().amax(-1, keepdim=True)
    assert ((memory.read(ids).latents - exact).abs() <= largest / 254 + 1e-6).all()
    with pytest.raises(UsageError, match="dtype must be one of"):
        LongTermMemory.create(tmp_path / "n", FakeModel(), dtype="int4")


def test_search_is_brute_force_over_the_keys(tmp_path):
    memory = filled(tmp_path / "m", {"a": 30, "b": 20, "c": 1})
    memory.write(rows(30), "twice")  # equal keys: the lower id is first
    latent = latents(7)
    queries = FakeModel().block_query(latent[:, None])
    for k, topics in ((4, None), (90, None), (3, ["b"]), (5, ["a", "c"]), (2, []), (40, ["twice"])):
        found = memory.search(latent, k, topics)
        ids, scores = brute_force(memory, queries, k, topics)
        assert torch.equal(found.ids, ids)
        assert torch.equal(found.scores, scores * 10)
    asked = torch.cat([latent[:, None], latents(7, 9)[:, None]], 1)  # the first latent asks
    assert torch.equal(memory.search(asked, 4).scores, memory.search(latent, 4).scores)


def test_a_row_of_a_search_does_not_depend_on_the_others(tmp_path):
    memory = filled(tmp_path / "m", {"a": 60})
    queries = torch.randn(33, 8, generator=torch.Generator().manual_seed(1))
    with memory.view() as view:
        together = view.search(queries, 5)
        for i in range(len(queries)):
            alone = view.search(queries[i : i + 1], 5)
            assert torch.equal(alone.ids[0], together.ids[i])
            assert torch.equal(alone.scores[0], together.scores[i])


def test_an_empty_memory_finds_nothing(tmp_path):
    memory = LongTermMemory.create(tmp_path / "m", FakeModel())
    found = memory.search(latents(2), 3)
    assert found.ids.tolist() == [[-1] * 3] * 2 and found.scores.tolist() == [[-torch.inf] * 3] * 2
    assert len(memory) == 0 and memory.topics() == {} and memory.clear() == 0
    with memory.view() as view:
        assert len(view) == 0 and view.ids().tolist() == []
    assert memory.verify() == []


def test_a_view_is_one_snapshot(tmp_path):
    memory = filled(tmp_path / "m", {"a": 5, "b": 5})
    queries = torch.randn(2, 8)
    with memory.view() as view:
        before = view.search(queries, 4)
        memory.write(rows(20, 7), "a")
        memory.clear("b")
        again = LongTermMemory.open(tmp_path / "m")
        assert again.topics() == {"a": 25}
        assert len(view) == 10 and view.topics() == {"a": 5, "b": 5}
        assert torch.equal(view.search(queries, 4).ids, before.ids)
        assert view.ids().tolist() == list(range(1, 11))
        assert list(view.fetch([6]).topics) == ["b"]
    assert memory.topics() == {"a": 25}
    with memory.view() as view:
        assert view.search(queries, 40).ids.max() == 30
    with pytest.raises(UsageError, match="a view of .* that was closed"):
        view.ids()


# Levels


def test_groups_of_a_topic_become_blocks_of_the_next_level(tmp_path):
    memory = filled(tmp_path / "m", {"a": 9, "b": 3}, memory_levels=3, memory_group=2)
    memory.write(rows(1, 9), "b")
    assert memory.topics() == {"a": 9, "b": 4} and memory.verify() == []
    with memory.view() as view:
        top = view.fetch(view.ids(3))
        ids = {level: view.ids(level).tolist() for level in (1, 2, 3)}
    a, b = range(1, 10), (16, 17, 18, 20)
    assert ids[1] == [*a, *b]
    # Four pairs of a, two of b; the ninth of a has no partner.
    assert len(ids[2]) == 4 + 2 + 1 and len(ids[3]) == 2 + 1 + 1
    assert 9 in ids[2] and 9 in ids[3]
    for i in range(len(top)):
        below = memory.read(top.children[i]) if top.children[i] else None
        if below is not None:
            assert set(below.topics) == {top.topics[i]} and set(below.levels.tolist()) == {2}
    assert top.levels.tolist().count(3) == 3
    found = memory.store.search(torch.randn(1, 8), 50, level=3)
    assert sorted(x for x in found.ids[0].tolist() if x > 0) == ids[3]


def test_blocks_do_not_depend_on_how_many_calls_wrote_them(tmp_path):
    settings = dict(memory_levels=3, memory_group=2)
    sections = rows(11)
    one = LongTermMemory.create(tmp_path / "one", FakeModel(**settings))
    one.write(sections)
    many = LongTermMemory.create(tmp_path / "many", FakeModel(**settings))
    for part in sections.split([1, 4, 3, 2, 1]):
        many.write(part)
    assert many.verify() == []
    for level in (1, 2, 3):
        blocks = []
        for memory in (one, many):
            with memory.view() as view:
                blocks.append(view.fetch(view.ids(level)))
        assert torch.equal(*(x.latents[x.levels == level] for x in blocks))
        assert torch.equal(*(x.keys[x.levels == level] for x in blocks))


def test_blocks_above_sections_name_their_source_where_it_is_one(tmp_path):
    model = FakeModel(memory_levels=2, memory_group=2)
    memory = LongTermMemory.create(tmp_path / "m", model, Words())
    memory.write([text(24), text(8, 1)], sources=["x", "y"])
    with memory.view() as view:
        upper = view.fetch(view.ids(2))
    assert list(upper.sources) == ["x", ""]
    assert upper.spans.tolist() == [[0, 16], [0, 0]] and upper.lines.tolist() == [[1, 1], [0, 0]]


# Clearing


def content(folder):
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))


def traces(memory, ids):
    """Bytes of blocks: each latent, each key, each text."""
    blocks = memory.read(ids)
    vectors = [*blocks.latents.flatten(0, 1), *blocks.keys.flatten(0, 1)]
    return [x.half().numpy().tobytes() for x in vectors] + [x.encode() for x in blocks.texts]


@pytest.mark.parametrize("topic", ["secret", None])
def test_no_byte_of_what_is_cleared_is_left(tmp_path, topic):
    memory = LongTermMemory.create(tmp_path / "m", FakeModel(memory_levels=2), Words())
    kept = memory.write([text(40)], "a", keep_text=True)
    ids = memory.write([text(90, 1)], "secret", sources=["hidden_source"], keep_text=True)
    lost = [*traces(memory, ids), b"secret", b"hidden_source"]
    stays = traces(memory, kept)
    assert all(x in content(tmp_path / "m") for x in lost)
    assert memory.clear(topic) == (12 if topic else 17)
    left = content(tmp_path / "m")
    assert not any(x in left for x in lost)
    assert all((x in left) == (topic is not None) for x in stays)
    assert memory.verify() == [] and memory.topics() == ({"a": 5} if topic else {})
    with pytest.raises(UsageError, match=f"block {ids[0]} of .* not there"):
        memory.read(ids)
    # Ids are never given twice.
    assert min(memory.write(rows(3))) > max(ids)


def test_a_reader_that_began_before_keeps_the_bytes_until_it_closes(tmp_path):
    memory = LongTermMemory.create(tmp_path / "m", FakeModel(), Words())
    ids = memory.write([text(40)], "secret", keep_text=True)
    lost = traces(memory, ids)
    reader = LongTermMemory.open(tmp_path / "m", FakeModel())
    with reader.view() as view:
        memory.clear("secret")
        assert view.topics() == {"secret": 5} and len(view.fetch(ids)) == 5
        assert any(x in content(tmp_path / "m") for x in lost)
    assert not any(x in content(tmp_path / "m") for x in lost)
    memory.write(rows(1))
    assert memory.topics() == {"default": 1}


def test_threads_write_and_clear_one_memory(tmp_path):
    with LongTermMemory.create(
        tmp_path / "m", FakeModel(memory_levels=2, memory_group=2)
    ) as memory:
        begin = threading.Barrier(4)

        def write(topic):
            begin.wait()
            for n in range(4):
                memory.write(rows(3), topic)
                if topic == "c" and n % 2:
                    assert memory.clear("c") == 6

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(write, topic) for topic in "abcd"]:
                done.result()
        assert memory.topics() == {"a": 12, "b": 12, "d": 12}
        assert memory.verify() == []
        with memory.view() as view:
            assert len(view.ids(2)) == 18


def test_a_folder_that_was_removed_meanwhile_is_no_memory(tmp_path):
    memory = filled(tmp_path / "m", {"a": 3})
    memory.close()
    shutil.rmtree(tmp_path / "m")
    for call in (lambda: memory.write(rows(1)), memory.clear, memory.compact, memory.rebuild):
        with pytest.raises(UsageError, match="is not a memory: there is no such folder"):
            call()
    assert not (tmp_path / "m").exists()
