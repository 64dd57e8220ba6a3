"""RECALL of a Thinker with policy and memory: against a definition in loops over rows and steps."""

from dataclasses import replace

import pytest
import torch
from thinker_definition import rows
from thinker_memory_definition import DOCUMENT, LENGTHS, PROMPTS, batch_of, documents
from thinker_policy_definition import (
    OUTPUT,
    PROCESS,
    READ,
    RECALL,
    STEPS,
    Chosen,
    Definition,
    choosing,
)

from thinkers.inspection.inspect import block_names
from thinkers.models.documents import SHAPES as DOCUMENTS
from thinkers.models.thinker_policy import NONE
from thinkers.models.thinker_policy_flops import of_all_steps, of_blocks
from thinkers.policies.rollout import roll_out
from thinkers.testing.memory import ListedBlocks

SHAPES = {
    "plain": {},
    "two latents": {"memory_steps": 2, "num_knowledge": 2, "num_layers": 1},
    "no latents": {"read_steps": 1, "memory_steps": 0, "num_knowledge": 2, "num_layers": 1},
    "level 2": {"memory_levels": 2, "read_level": 2, "mixing": 3, "num_layers": 1},
}
shapes = pytest.mark.parametrize("shape", SHAPES)
tops = pytest.mark.parametrize("top", [None, 2])


def recalling(shape, top=None, seed=10):
    own = dict(memory="blocks", memory_section=6, memory_top=top, **SHAPES[shape])
    return choosing(own, seed, batch_of())


def close(a, b):
    assert (a - b).abs().max() <= 1e-10 * b.abs().max(), (a - b).abs().max()


def padded(actions):
    return actions + [NONE] * (STEPS - len(actions))


def read(thought, row):
    """The blocks that a row, or a section of one, read at each step."""
    return [sorted(x for x in ids if x >= 0) for ids in thought.extra["blocks"][row].tolist()]


def check_read(found, recalled):
    assert found == [sorted(ids) for ids in recalled] + [[]] * (STEPS - len(recalled))


@shapes
@tops
@torch.no_grad()
def test_prompts_recall_as_defined_together_alone_and_token_by_token(shape, top):
    model, batch = recalling(shape, top), batch_of()
    blocks, defined = model.blocks_of(batch), documents(model, batch)
    given = {"prompt_lengths": PROMPTS, "policy": True, "memory": blocks}
    together = model(batch.tokens, lengths=LENGTHS, **given)
    chosen = []
    for i, n in enumerate(LENGTHS.tolist()):
        row, prompt = batch.tokens[i, :n], int(PROMPTS[i])
        expected = Definition(model, row, STEPS, prompt, defined[DOCUMENT[i]], top)
        assert min(expected.margins) > 1e-6, "blocks are chosen by a hair"
        index = torch.tensor([i])
        own = {"prompt_lengths": PROMPTS[index], "memory": blocks.select(index), "policy": True}
        alone = model(row[None], **own)
        for found, place in ((together, i), (alone, 0)):
            assert found.extra["actions"][place].tolist() == padded(expected.actions[0])
            close(found.logits[place, prompt - 1 : n], expected.logits[prompt - 1 :])
            check_read(read(found, place), expected.recalled[0])
        chosen += expected.actions[0]
    assert RECALL in chosen and len(set(chosen)) >= 3
    whole, index = model(batch.tokens, **given), torch.arange(5)
    options = {"halt": "policy", "memory": blocks}
    logits, cache = model.prefill(batch.tokens[:, :6], PROMPTS, STEPS, True, 20, **options)
    for j in range(3):
        close(logits, whole.logits[index, PROMPTS + j - 1])
        logits = model.extend(batch.tokens[index, PROMPTS + j], cache)


@shapes
@torch.no_grad()
def test_sections_recall_as_defined(shape):
    model, batch = recalling(shape, 2), batch_of()
    tokens, documented = rows(5, 17, seed=4), documents(model, batch)
    together = model(tokens, policy=True, memory=model.blocks_of(batch))
    for i, number in enumerate(DOCUMENT.tolist()):
        expected = Definition(model, tokens[i], STEPS, None, documented[number], 2)
        assert together.extra["actions"][i].tolist() == [padded(x) for x in expected.actions]
        close(together.logits[i], expected.logits)
        for found, recalled in zip(together.extra["blocks"][i], expected.recalled, strict=True):
            ids = [sorted(x for x in step if x >= 0) for step in found.tolist()]
            check_read(ids, recalled)


@shapes
@torch.no_grad()
def test_the_index_learns_from_what_was_recalled(shape):
    model, batch = recalling(shape), batch_of()
    defined = documents(model, batch)
    found = roll_out(model, batch, learns=True).index
    expected = []
    for i, number in enumerate(DOCUMENT.tolist()):
        row, prompt = batch.tokens[i : i + 1], int(PROMPTS[i])
        thought = Chosen(model, row[:, :prompt], STEPS, None, defined[number])
        expected.append(sum(thought.losses) / (STEPS - 1))
    assert max(expected) > 1e-4
    close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("prompted", [True, False])
@torch.no_grad()
def test_rows_that_leave_while_writing_recall_what_is_theirs(prompted):
    model, batch = recalling("plain", 2), batch_of()
    prompts = PROMPTS if prompted else None
    tokens = rows(5, 6, seed=3)
    options = dict(memory=model.blocks_of(batch), prompt_lengths=prompts, policy=True)
    stop = int(model.generate(tokens, 3, **options)[1, -1])
    fast, slow = (
        model.generate(tokens, 8, stop_token=stop, use_cache=cached, return_logits=True, **options)
        for cached in (True, False)
    )
    assert torch.equal(fast[0], slow[0])
    close(fast[1], slow[1])


@torch.no_grad()
def test_a_store_is_recalled_as_the_same_blocks_in_tensors():
    batch = batch_of()
    for top in (None, 2):
        model = recalling("level 2", top)
        blocks = model.blocks_of(batch)
        stores = [ListedBlocks(blocks, number) for number in range(3)]
        given = {"lengths": LENGTHS, "prompt_lengths": PROMPTS, "policy": True}
        expected = model(batch.tokens, memory=blocks, **given)
        assert (expected.extra["actions"] == RECALL).any()
        listed = [None if number == 2 else stores[number] for number in DOCUMENT.tolist()]
        for memory in (listed, [stores[number] for number in DOCUMENT.tolist()]):
            found = model(batch.tokens, memory=memory, **given)
            assert torch.equal(found.extra["actions"], expected.extra["actions"])
            close(found.logits, expected.logits)
    found = model(batch.tokens, memory=[stores[2]] * 5, **given)
    assert torch.equal(found.logits, model(batch.tokens, **given).logits)


@torch.no_grad()
def test_nothing_is_recalled_without_a_memory_or_from_an_empty_one():
    model, batch = recalling("plain"), batch_of()
    model.policy.blocks.linear.bias[RECALL] += 100
    given = {"lengths": LENGTHS, "prompt_lengths": PROMPTS, "policy": True}
    blocks = model.blocks_of(batch)
    always = model(batch.tokens, memory=blocks, **given).extra["actions"]
    for row, number in zip(always.tolist(), DOCUMENT.tolist(), strict=True):
        assert row[0] == PROCESS
        assert (RECALL in row) == (number != 2)
        assert number == 2 or set(row[1:]) == {RECALL}
    without = model(batch.tokens, **given)
    assert not (without.extra["actions"] == RECALL).any()
    hidden = replace(blocks, hidden=torch.ones_like(blocks.hidden))
    for empty in (hidden, blocks.select(torch.full((5,), 3)), [None] * 5):
        found = model(batch.tokens, memory=empty, **given)
        assert torch.equal(found.extra["actions"], without.extra["actions"])
        assert torch.equal(found.logits, without.logits)


@torch.no_grad()
def test_recall_alone_reads_blocks():
    """Forced blocks other than RECALL give what they give without a memory."""
    model, batch = recalling("plain"), batch_of()
    for block in (READ, PROCESS):
        model.policy.blocks.linear.weight.zero_()
        model.policy.blocks.linear.bias.zero_()
        model.policy.blocks.linear.bias[block] = 1
        given = {"lengths": LENGTHS, "prompt_lengths": PROMPTS, "policy": True}
        found = model(batch.tokens, memory=model.blocks_of(batch), **given)
        assert torch.equal(found.logits, model(batch.tokens, **given).logits)


def test_a_new_policy_of_a_model_with_a_memory_recalls():
    model = recalling("plain")
    model.policy.reset()
    scores = model.policy.blocks(torch.randn(3, 26).double())
    assert torch.equal(scores, torch.tensor([0.0, 2, 0, 4, -1]).double().expand(3, -1))


@tops
@torch.no_grad()
def test_operations_of_recall_are_those_of_the_index_and_of_the_blocks_that_are_read(top):
    model = recalling("plain", top)
    config, process, n, width = model.config, model.process, 9, 2
    read = (n if top is None else top) * width
    index = 2 * config.index_dim * (config.dim + n * width)
    projected = process.project_flops(read)
    sizes = torch.tensor([6]), torch.tensor([3]), torch.tensor([[n, n * width]])
    counts = {
        block: int(of_blocks(model, torch.tensor([[PROCESS, block, OUTPUT, NONE]]), *sizes))
        for block in (PROCESS, READ, RECALL)
    }
    latents = config.num_latents
    step = {RECALL: latents + read, READ: 6, PROCESS: 6 + latents}
    extra = {RECALL: index + projected, READ: 0, PROCESS: 0}
    for block in counts:
        expected = process.flops(1, latents, step[block]) - process.flops(1, latents, 6)
        assert counts[block] - counts[READ] == expected + extra[block]
    # All steps are those of a model without a policy, but for the decisions and the compression.
    batch = batch_of()
    one = replace(batch.rows(torch.tensor([0])), lengths=torch.tensor([8]))
    targets = one.targets.masked_fill(torch.arange(9) >= 8, -100)
    one = replace(one, targets=targets)
    compression = model.batch_flops(one, 2) - model.batch_flops(
        replace(one, **dict.fromkeys(DOCUMENTS)), 2
    )
    compression -= index + projected + 4 * read * latents * config.dim * config.num_layers
    whole = model.batch_flops(one, 4) - compression + 3 * 2 * config.dim * 5
    assert int(of_all_steps(model, 4, *sizes)) == whole
    assert int(of_all_steps(model, 1, *sizes)) == int(of_all_steps(model, 1, *sizes[:2]))


@torch.no_grad()
def test_what_was_recalled_is_named():
    model, batch = recalling("plain"), batch_of()
    model.policy.blocks.linear.bias[RECALL] += 100
    found = model(batch.tokens[:1], policy=True, memory=model.blocks_of(batch.rows(slice(0, 1))))
    assert block_names(found.extra["actions"]) == (("process", *["recall"] * 5),)
