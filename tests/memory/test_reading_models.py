"""A thinker reads a memory on disk as it reads the same blocks in tensors."""

from dataclasses import replace

import pytest
import torch

import thinkers
from thinkers.errors import UsageError
from thinkers.memory import LongTermMemory

SIZES = dict(dim=16, num_layers=1, num_heads=2, num_steps=3, num_latents=2, mixing=4)
LEVELS = dict(memory_levels=3, memory_group=2, read_level=3)


def thinker(seed=0, **own):
    task = thinkers.build_task("facts", num_sections=8)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        settings = SIZES | dict(memory="blocks", memory_section=8, index_dim=8) | own
        sizes = dict(vocab_size=task.vocab_size, max_length=task.max_length)
        return thinkers.build_model("thinker", **settings, **sizes).eval(), task


def documents(task, number):
    """The sections of a batch's documents, and its questions."""
    batch = task.batch(0, number * task.config.questions)
    return batch.sections[:number], batch


def logits(model, batch, memory):
    rows = dict(lengths=batch.lengths, prompt_lengths=batch.prompt_lengths)
    with torch.no_grad():
        return model(batch.tokens, **rows, memory=memory).logits


def reading(model, top):
    model.config = replace(model.config, memory_top=top)
    return model


@pytest.mark.parametrize("own", [{}, LEVELS], ids=["sections", "levels"])
def test_a_store_is_read_as_its_blocks_in_tensors_are(tmp_path, own):
    model, task = thinker(**own)
    sections, batch = documents(task, 2)
    stores = []
    for number, tokens in enumerate(sections):
        memory = LongTermMemory.create(tmp_path / str(number), (model, task))
        memory.write(tokens[: 8 - number], "a")
        memory.write(tokens[8 - number :], "b") if number else None
        stores.append(memory)
    rows = [stores[i] for i in batch.document.tolist()]
    for top in (None, 2, 100):
        found = logits(reading(model, top), batch, rows)
        if not own:
            # The blocks of the batch, with the latents as they are on the disk.
            with torch.no_grad():
                # Without the keys by which training changes the random latents.
                blocks = model.blocks_of(replace(batch, document_keys=None))
            blocks = replace(blocks, latents=blocks.latents.half().float())
            expected = logits(model, batch, blocks)
            assert top == 2 or torch.allclose(found, expected, atol=1e-4)
        if top is None:
            everything = found
    assert torch.allclose(found, everything, atol=1e-5)  # as many as there are is all
    empty = LongTermMemory.create(tmp_path / "empty", model)
    assert torch.equal(logits(model, batch, empty), logits(model, batch, None))
    with pytest.raises(UsageError, match="memory written by the model"):
        logits(thinker(1, **own)[0], batch, stores[0])


def test_texts_are_blocks_of_their_tokens(tmp_path):
    model, task = thinker()
    sections, _ = documents(task, 1)
    texts = [task.decode(tokens) for tokens in sections[0]]
    memory = LongTermMemory.create(tmp_path / "m", (model, task))
    by_text = memory.read(memory.write([" ".join(texts)], "text", keep_text=True))
    by_tokens = memory.read(memory.write(sections[0], "tokens"))
    assert by_text.texts == texts
    assert torch.allclose(by_text.latents, by_tokens.latents, atol=2e-3)
    again = memory.read(memory.write(sections[0], "again"))
    assert torch.equal(again.latents, by_tokens.latents)


def test_search_asks_the_index_of_the_model(tmp_path):
    model, task = thinker()
    sections, _ = documents(task, 2)
    memory = LongTermMemory.create(tmp_path / "m", model, task)
    ids = memory.write(sections.flatten(0, 1))
    latent = torch.randn(3, 2, 16)
    found = memory.search(latent, 4)
    with torch.no_grad():
        query = model.index.queries(latent)
        scores = torch.einsum("be,nme->bnm", query, memory.read(ids).keys).amax(2)
        best = scores.topk(4, 1)
    assert torch.equal(torch.tensor(ids)[best.indices], found.ids)
    assert torch.allclose(best.values * model.index.scale(), found.scores, rtol=1e-5)


def test_a_memory_in_float64_is_that_of_the_same_weights(tmp_path):
    model, task = thinker()
    sections, batch = documents(task, 1)
    wide = thinker()[0].double()
    memory = LongTermMemory.create(tmp_path / "m", wide, task)
    ids = memory.write(sections[0])
    assert memory.read(ids).latents.dtype == torch.float32
    assert torch.isfinite(logits(wide, batch, memory)).all()
    assert memory.search(torch.randn(1, 16, dtype=torch.float64)).ids.shape == (1, 4)


def test_more_blocks_than_there_are_take_no_more_room(tmp_path):
    model, task = thinker()
    sections, batch = documents(task, 1)
    with LongTermMemory.create(tmp_path / "m", (model, task)) as memory:
        memory.write(sections[0][:3])
        some = batch.rows(slice(0, 2))
        found = logits(reading(model, 10**12), some, memory)
        assert torch.equal(found, logits(reading(model, 3), some, memory))
        found = logits(reading(model, 10**12), some, memory.part(without=[2]))
        torch.testing.assert_close(
            found, logits(reading(model, 2), some, memory.part(without=[2])), atol=1e-6, rtol=0
        )


@pytest.mark.misuse
def test_a_store_is_no_memory_of_a_model(tmp_path):
    model, task = thinker()
    batch = task.batch(0, 2)
    with LongTermMemory.create(tmp_path / "m", (model, task)) as memory:
        for other in (memory.store, [memory, memory.store], "m", True, {0: memory}):
            with pytest.raises(UsageError, match="memory must be a LongTermMemory"):
                logits(model, batch, other)
