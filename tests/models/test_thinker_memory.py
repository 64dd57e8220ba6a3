"""Long-term memory of a Thinker: against a definition in loops over sections, rows and steps."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from thinker_definition import VOCAB, thinker
from thinker_memory_definition import (
    DOCUMENT,
    LENGTHS,
    PROMPTS,
    SIZES,
    Thought,
    batch_of,
    defined_block,
    defined_logits,
    documents,
)

from thinkers.errors import UsageError
from thinkers.models import thinker_memory
from thinkers.models.thinker_reading import padded

STEPS = 3
SHAPES = {
    "plain": {},
    "mixing": {"mixing": 3, "num_layers": 1, "block_latents": 3},
    "levels": {"memory_levels": 3, "read_level": 3, "memory_group": 2, "num_layers": 1},
    "level 2": {"memory_levels": 2, "read_level": 2, "num_knowledge": 2, "compress_steps": 1},
    "few latents": {"memory_steps": 1, "read_steps": 1, "num_layers": 1, "block_latents": 1},
    "in order": {"memory_conditioned": True, "mixing": 2, "memory_levels": 2, "read_level": 2},
}
shapes = pytest.mark.parametrize("shape", SHAPES)


def model_of(shape, **own):
    return thinker(7, memory="blocks", memory_section=6, **SHAPES[shape] | own).eval()


def close(a, b):
    assert (a - b).abs().max() <= 1e-10 * b.abs().max(), (a - b).abs().max()


@shapes
@torch.no_grad()
def test_documents_are_compressed_as_defined_with_and_without_random_keys(shape):
    model = model_of(shape)
    for keys in (None, torch.tensor([5, 6, 7])):
        batch = batch_of(keys)
        if keys is not None:
            levels = torch.arange(3) % model.config.read_level + 1
            batch = replace(batch, document_levels=levels)
        blocks = model.blocks_of(batch)
        for i, defined in enumerate(documents(model, batch)):
            assert (blocks.ids[i] >= 0).sum() == len(defined)
            for j, block in enumerate(defined):
                shown = ~blocks.hidden[i, j]
                assert shown.sum() == len(block)
                close(blocks.latents[i, j, shown], block)
            held = [set(range(*span)) for span in blocks.spans[i, : len(defined)].tolist()]
            assert sorted(place for x in held for place in x) == list(range(len(SIZES[i])))


@shapes
@pytest.mark.parametrize("top", [None, 2])
@torch.no_grad()
def test_rows_read_blocks_as_defined_together_and_alone(shape, top):
    model, batch = model_of(shape, memory_top=top), batch_of()
    blocks, defined = model.blocks_of(batch), documents(model, batch)
    given = {"lengths": LENGTHS, "prompt_lengths": PROMPTS}
    together = model(batch.tokens, memory=blocks, **given)
    for i, n in enumerate(LENGTHS.tolist()):
        row, prompt = batch.tokens[i, :n], int(PROMPTS[i])
        thought = Thought(model, row[None, :prompt], STEPS, defined[DOCUMENT[i]], top)
        assert all(x > 1e-4 for x in thought.margins), "blocks are chosen by a hair"
        expected = defined_logits(model, row, prompt, thought)[0]
        close(together.logits[i, prompt - 1 : n], expected)
        index = torch.tensor([i])
        alone = model(row[None], prompt_lengths=PROMPTS[index], memory=blocks.select(index))
        close(alone.logits[0, prompt - 1 :], expected)
        for step, (chosen, mass) in enumerate(zip(thought.read, thought.mass, strict=True)):
            found = together.extra["blocks"][i, step].tolist()
            weights = together.extra["block_mass"][i, step]
            assert sorted(x for x in found if x >= 0) == sorted(chosen)
            for number, expected_mass in zip(chosen, mass, strict=True):
                close(weights[found.index(number)], expected_mass)
            assert not weights[torch.tensor(found) < 0].any()


@shapes
def test_the_loss_of_the_index_is_that_of_the_definition(shape):
    model, batch = model_of(shape), batch_of()
    loss = model.loss(batch)
    total = 0.0
    with torch.no_grad():
        defined = documents(model, batch)
        for i, prompt in enumerate(PROMPTS.tolist()):
            blocks = defined[DOCUMENT[i]]
            if blocks:
                thought = Thought(model, batch.tokens[i : i + 1, :prompt], STEPS, blocks)
                total += sum(thought.losses) / (STEPS - 1)
    assert loss.counts["index"] == 4
    assert float(loss.parts["index"]) == pytest.approx(total / 4, rel=1e-9)
    added = loss.parts["next_token"] + model.config.index_weight * loss.parts["index"]
    assert float(loss.total.detach()) == pytest.approx(float(added), rel=1e-12)


def test_cached_answers_equal_whole_rows_and_rows_may_leave():
    model, batch = model_of("level 2", memory_top=2), batch_of()
    blocks = model.blocks_of(batch)
    left = torch.zeros(5, 6, dtype=torch.int64)
    for i, n in enumerate(PROMPTS.tolist()):
        left[i, 6 - n :] = batch.tokens[i, :n]
    given = {"prompt_lengths": PROMPTS, "memory": blocks, "stop_token": 3, "return_logits": True}
    fast, logits = model.generate(left, 9, **given)
    slow, expected = model.generate(left, 9, use_cache=False, **given)
    assert torch.equal(fast, slow)
    close(logits, expected)


def test_the_number_of_levels_and_what_is_read_must_fit():
    for own, message in (
        ({"read_level": 2}, "read_level must be at most 1"),
        ({"memory_group": 3}, "memory_group must be even"),
        ({"max_steps": 1, "num_steps": 1}, "max_steps must be at least 2"),
        ({"memory_top": 0}, "memory_top must be an integer at least 1"),
        ({"max_inputs": 5}, "max_inputs must be at least 6"),
        ({"index_weight": float("nan")}, "index_weight"),
    ):
        with pytest.raises(UsageError, match=message):
            thinker(memory="blocks", **({"memory_section": 6} | own))
    with pytest.raises(UsageError, match="memory_section must be 16"):
        thinker(memory_section=8)
    with pytest.raises(UsageError, match="memory_conditioned must be False"):
        thinker(memory_conditioned=True)


def test_sections_that_the_model_cannot_read_are_refused():
    model, batch = model_of("plain"), batch_of()
    assert batch.sections is not None
    with pytest.raises(UsageError, match="memory_section"):
        model.compress(torch.zeros(2, 7, dtype=torch.int64))
    with pytest.raises(UsageError, match="sections"):
        model.compress(torch.full((2, 6), VOCAB))
    with pytest.raises(UsageError, match="lengths"):
        model.compress(torch.zeros(2, 6, dtype=torch.int64), torch.tensor([1, 0]))
    with pytest.raises(UsageError, match="section_lengths must be set"):
        model.blocks_of(replace(batch, section_lengths=None))
    with pytest.raises(UsageError, match="document_levels must be in 1 .. 1"):
        model.blocks_of(replace(batch, document_levels=torch.tensor([1, 2, 1])))
    before = torch.zeros(2, 2, 26).double()
    with pytest.raises(
        UsageError, match="blocks before sections, for a model that compresses each"
    ):
        model.compress(torch.zeros(2, 6, dtype=torch.int64), before=before)
    ordered = model_of("in order")
    for wrong in (before[:1], before[:, :1], before[..., :3]):
        with pytest.raises(UsageError, match=r"before must have shape \[2, 2, 26\], got"):
            ordered.compress(torch.zeros(2, 6, dtype=torch.int64), before=wrong)
    with pytest.raises(UsageError, match=r"(?s)a memory for thinker without one"):
        thinker().compress(batch.sections[0])


@torch.no_grad()
def test_a_store_compresses_sections_with_the_block_before_as_documents_do():
    model, batch = model_of("in order", read_level=1), batch_of()
    blocks = model.blocks_of(batch)
    for number, sizes in enumerate(SIZES):
        before = None
        for place, size in enumerate(sizes):
            tokens, length = batch.sections[number, place][None], torch.tensor([size])
            found = model.compress(tokens, length, before)
            close(found[0], blocks.latents[number, place])
            if place:
                assert not torch.allclose(found, model.compress(tokens, length))
            before = found


@pytest.mark.parametrize("is_ordered", [False, True])
def test_gradients_stop_at_the_block_before_with_and_without_a_graph(is_ordered):
    model = model_of("in order", read_level=1, memory_conditioned=is_ordered)
    batch = batch_of(torch.tensor([5, 6, 7]))
    weights = [model.compressor.signals.weight, *model.process.parameters()]
    weights += [*model.text.parameters(), model.latents.weight]
    with torch.no_grad():
        defined = documents(model, batch)
    total = 0.0
    for i, sizes in enumerate(SIZES):
        for j, size in enumerate(sizes):
            before = defined[i][j - 1] if j and is_ordered else None
            tokens, key = batch.sections[i, j, :size], batch.document_keys[i]
            block = defined_block(model, tokens, key, before)
            total = total + (block * _weights(i, j, block)).sum()
    options = {"allow_unused": True, "materialize_grads": True}
    expected = torch.autograd.grad(total, weights, **options)
    for most in (64, 2):
        with mock.patch.object(thinker_memory, "REPLAYED_SECTIONS", most):
            found = model.blocks_of(batch).latents
            shares = [
                (found[i, j] * _weights(i, j, found)).sum()
                for i, sizes in enumerate(SIZES)
                for j in range(len(sizes))
            ]
            gradients = torch.autograd.grad(sum(shares), weights, **options)
        for one, other in zip(gradients, expected, strict=True):
            assert (one - other).abs().max() <= 1e-12 * max(1.0, float(other.abs().max()))


def _weights(i, j, like):
    draws = torch.Generator().manual_seed(10 * i + j)
    return torch.randn(like.shape[-2:], generator=draws, dtype=like.dtype)


def test_blocks_of_lower_levels_are_hidden_behind_their_own_latents():
    read = SimpleNamespace(latents=torch.randn(3, 4, 5), sizes=[4, 2, 1])
    latents, hidden = padded(read, torch.zeros(1, 1, 6, 5))
    assert hidden.tolist() == [[i >= size for i in range(6)] for size in read.sizes]
    assert torch.equal(latents[:, :4], read.latents) and not latents[:, 4:].any()


def test_the_fingerprint_is_that_of_what_blocks_depend_on():
    model = model_of("level 2")
    before = model.memory_fingerprint()
    assert before == model_of("level 2").memory_fingerprint()
    with torch.no_grad():
        model.queries.weight[0, 0] += 1
        assert model.memory_fingerprint() == before
        model.index.key.weight[0, 0] += 1
    assert model.memory_fingerprint() != before
    for own in ({"block_latents": 4}, {"memory_conditioned": True}):
        assert model_of("level 2", **own).memory_fingerprint() != before
    assert model_of("level 2", memory_top=3).memory_fingerprint() == before
