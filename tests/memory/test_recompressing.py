"""A memory is compressed anew for other weights: the texts are the same, all or nothing."""

import pytest
import torch
from memory_cases import FakeModel, Words, rows, text

from thinkers.errors import UsageError
from thinkers.memory import LongTermMemory

NEW = dict(seed=1, memory_levels=3, memory_group=2, dim=24)


def written(folder, model, order=("a", "b", "a")):
    memory = LongTermMemory.create(folder, model, Words())
    for seed, topic in enumerate(order):
        texts = [text(19, seed), text(9, 9 - seed)]
        memory.write(texts, topic, sources=[f"x{seed}", "y"], keep_text=True)
    return memory


def everything(memory):
    """Blocks of all levels by topic, sorted by id, without their ids."""
    found = []
    with memory.view() as view:
        for level in range(1, view.meta.levels + 1):
            ids = view.ids(level)
            blocks = view.fetch(ids)
            for topic in view.topics():
                mine = [
                    i
                    for i in range(len(ids))
                    if blocks.topics[i] == topic and blocks.levels[i] == level
                ]
                found.append((topic, blocks.select(mine)))
    return found


@pytest.mark.parametrize("chunk", [2, 1000])
@pytest.mark.parametrize("is_ordered", [False, True])
def test_the_result_is_what_the_other_model_would_have_written(
    tmp_path, monkeypatch, is_ordered, chunk
):
    monkeypatch.setattr("thinkers.memory.recompressing.CHUNK", chunk)
    new = NEW | {"memory_conditioned": is_ordered}
    written(tmp_path / "m", FakeModel()).close()
    before = LongTermMemory.open(tmp_path / "m").topics()
    anew = LongTermMemory.recompress(tmp_path / "m", FakeModel(**new), Words())
    assert anew.topics() == before and anew.verify() == []
    expected = everything(written(tmp_path / "n", FakeModel(**new)))
    for (topic, ours), (other, theirs) in zip(everything(anew), expected, strict=True):
        assert topic == other and torch.equal(ours.latents, theirs.latents)
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.spans, theirs.spans)
        assert ours.texts == theirs.texts and ours.sources == theirs.sources
        assert torch.equal(ours.lines, theirs.lines) and len(ours) == len(theirs)
    assert anew.search(torch.randn(1, 24), 3).ids.shape == (1, 3)


def test_old_blocks_are_gone_and_ids_are_new(tmp_path):
    memory = written(tmp_path / "m", FakeModel())
    old = memory.read([1]).latents.half().numpy().tobytes()
    last = max(memory.write(rows(1)[:, :3], "a", keep_text=True))
    memory.close()
    anew = LongTermMemory.recompress(tmp_path / "m", FakeModel(seed=1), Words())
    with anew.view() as view:
        assert view.ids().min() > last
    anew.close()
    assert old not in (tmp_path / "m" / "memory.db").read_bytes()


def test_longer_and_shorter_sections(tmp_path):
    for size, number in ((3, 22), (8, 10), (16, 10)):
        folder = tmp_path / str(size)
        written(folder, FakeModel(), ("a", "a")).close()
        anew = LongTermMemory.recompress(folder, FakeModel(memory_section=size, seed=1), Words())
        with anew.view() as view:
            blocks = view.fetch(view.ids())
        words = " ".join(blocks.texts)
        assert words == " ".join([text(19), text(9, 9), text(19, 1), text(9, 8)])
        assert len(blocks) == number
        assert blocks.spans[-1].tolist()[1] == 9


def test_another_vocabulary_reads_the_texts(tmp_path):
    class Shifted(Words):
        """Each word has the token below."""

        def encode(self, text):
            return [0, *(1 + (x - 2) % 39 for x in super().encode(text)[1:])]

        def decode(self, tokens):
            return super().decode([1 + int(x) % 39 for x in tokens if x])

    written(tmp_path / "m", FakeModel(), ("a",)).close()
    anew = LongTermMemory.recompress(tmp_path / "m", FakeModel(seed=1), Shifted())
    blocks = anew.read([6, 7, 8])
    assert " ".join(blocks.texts) == text(19)
    assert blocks.tokens[0].tolist() == Shifted().encode(text(19))[1:9]
    anew.close()
    with pytest.raises(UsageError, match="without its task"):
        LongTermMemory.recompress(tmp_path / "m", FakeModel(seed=2))


def test_blocks_without_a_text_are_counted_and_nothing_changes(tmp_path):
    memory = written(tmp_path / "m", FakeModel())
    memory.write([text(30)], "c")
    memory.close()
    with pytest.raises(UsageError, match="4 of 19 blocks, whose text was not kept") as refused:
        LongTermMemory.recompress(tmp_path / "m", FakeModel(seed=1), Words())
    assert refused.value.exit_code == 2
    memory = LongTermMemory.open(tmp_path / "m", FakeModel(), Words())
    assert len(memory) == 19 and memory.verify() == []
    memory.write([text(1)])  # the lock was left


def test_a_failure_in_between_changes_nothing(tmp_path, monkeypatch):
    class Failing(FakeModel):
        left = 2

        def compress(self, sections, lengths):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("out of memory")
            return super().compress(sections, lengths)

    monkeypatch.setattr("thinkers.memory.recompressing.CHUNK", 4)
    written(tmp_path / "m", FakeModel()).close()
    with pytest.raises(RuntimeError):
        LongTermMemory.recompress(tmp_path / "m", Failing(seed=1), Words())
    memory = LongTermMemory.open(tmp_path / "m", FakeModel(), Words())
    assert len(memory) == 15 and memory.verify() == []
