"""Thinker chooses its blocks: against a definition in loops over rows, steps and blocks."""

import pytest
import torch
from thinker_definition import VOCAB, rows, thinker
from thinker_policy_definition import OUTPUT, PROCESS, READ, REFLECT, STEPS, Definition, choosing

from thinkers.errors import UsageError
from thinkers.models import Batch, build_model
from thinkers.models.thinker_policy import NONE, allowed_blocks, likeliest
from thinkers.models.thinker_policy_flops import of_all_steps, of_blocks

SHAPES = {
    "plain": {},
    "two latents": {"memory_steps": 2, "num_knowledge": 2},
    "reads twice": {"read_steps": 2, "num_layers": 1},
    "no latents": {"read_steps": 1, "memory_steps": 0, "num_knowledge": 2, "num_layers": 1},
    "mixing": {"mixing": 3, "num_input_layers": 1, "num_layers": 1, "self_attention": "none"},
}
LENGTHS, PROMPTS = torch.tensor([17, 9, 4, 15, 12]), torch.tensor([12, 1, 3, 6, 9])
shapes = pytest.mark.parametrize("shape", SHAPES)


def close(a, b):
    assert (a - b).abs().max() <= 1e-10 * b.abs().max(), (a - b).abs().max()


def padded(actions):
    return actions + [NONE] * (STEPS - len(actions))


@shapes
@torch.no_grad()
def test_prompts_choose_as_defined_together_alone_and_token_by_token(shape):
    model, tokens = choosing(SHAPES[shape]), rows(5, 17)
    given = {"prompt_lengths": PROMPTS, "policy": True}
    together = model(tokens, lengths=LENGTHS, **given)
    chosen = set()
    for i, n in enumerate(LENGTHS.tolist()):
        defined = Definition(model, tokens[i, :n], STEPS, int(PROMPTS[i]))
        assert min(defined.margins) > 1e-6, "the blocks are chosen by a hair"
        alone = model(tokens[i : i + 1, :n], prompt_lengths=PROMPTS[i : i + 1], policy=True)
        for found in (together.extra["actions"][i], alone.extra["actions"][0]):
            assert found.tolist() == padded(defined.actions[0])
        chosen |= set(defined.actions[0])
        close(together.logits[i, :n], defined.logits)
        close(alone.logits[0], defined.logits)
        taken = sum(x not in (OUTPUT, NONE) for x in defined.actions[0])
        assert (together.steps[i, PROMPTS[i] - 1 : n] == taken).all()
    assert len(chosen) >= 3
    whole, index = model(tokens, **given), torch.arange(5)
    logits, cache = model.prefill(tokens[:, :12], PROMPTS, STEPS, True, 20, halt="policy")
    for j in range(5):
        close(logits, whole.logits[index, PROMPTS + j - 1])
        assert torch.equal(cache.taken, whole.steps[index, PROMPTS + j - 1])
        logits = model.extend(tokens[index, PROMPTS + j], cache)


@shapes
@torch.no_grad()
def test_sections_choose_as_defined(shape):
    model, tokens = choosing(SHAPES[shape]), rows(3, 17, seed=4)
    together = model(tokens, policy=True)
    assert together.extra["actions"].shape == (3, 3, STEPS)
    for i in range(3):
        defined = Definition(model, tokens[i], STEPS)
        assert together.extra["actions"][i].tolist() == [padded(x) for x in defined.actions]
        close(together.logits[i], defined.logits)


@pytest.mark.parametrize("prompted", [True, False])
@torch.no_grad()
def test_rows_that_leave_while_writing_change_nothing_for_the_others(prompted):
    model, tokens = choosing(SHAPES["plain"]), rows(4, 9, seed=3)
    prompts = torch.tensor([3, 9, 5, 7]) if prompted else None
    options = dict(prompt_lengths=prompts, policy=True, return_logits=True, return_steps=True)
    stop = int(model.generate(tokens, 3, policy=True, prompt_lengths=prompts)[1, -1])
    fast, slow = (
        model.generate(tokens, 8, stop_token=stop, use_cache=cached, **options)
        for cached in (True, False)
    )
    close(fast[1], slow[1])
    assert torch.equal(fast[0], slow[0]) and torch.equal(fast[2], slow[2])
    if prompted:
        answer, steps = model.answer(tokens, prompts, 8, policy=True, return_steps=True)
        read = fast[1].abs().sum(-1) > 0
        assert torch.equal(answer[read], fast[0][:, 9:][read])
        assert torch.equal(steps[read], fast[2][read])


@torch.no_grad()
def test_without_policy_the_weights_of_the_policy_change_nothing():
    model, tokens = choosing({}), rows(3, 17)
    plain = thinker(6, num_steps=STEPS, max_steps=8).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k[:7] != "policy."})
    assert torch.equal(model(tokens).logits, plain(tokens).logits)


def test_a_new_policy_thinks_before_it_answers():
    model = build_model("thinker", vocab_size=9, dim=8, num_heads=2, max_length=9, policy=True)
    scores = model.policy.blocks(torch.randn(3, 8))
    assert torch.equal(scores, torch.tensor([0.0, 2, 0, 0, -1]).expand(3, -1))


def test_the_first_of_equal_scores_is_taken_and_blocks_without_effect_are_masked():
    scores = torch.tensor([[1.0, 2, 2, -torch.inf, 2], [-torch.inf, 0, -1, -torch.inf, 0]])
    assert likeliest(scores, 1, torch.arange(2)).tolist() == [PROCESS, PROCESS]
    scores[1, 2] = torch.nan
    assert likeliest(scores, 1, torch.arange(2)).tolist() == [PROCESS, OUTPUT]
    config, memories = choosing({}).config, torch.tensor([False, True])
    assert allowed_blocks(config, 0, memories).tolist() == [[False, True, False, False, False]] * 2
    later = [[True, True, True, has_blocks, True] for has_blocks in (False, True)]
    assert allowed_blocks(config, 1, memories).tolist() == later
    config = choosing(SHAPES["no latents"]).config
    assert not allowed_blocks(config, 1, memories)[:, REFLECT].any()


@torch.no_grad()
def test_operations_of_blocks_are_those_of_the_steps_where_all_process():
    model = choosing(SHAPES["two latents"])
    for taken in (1, 3, 6):
        actions = torch.full((2, 6), NONE)
        actions[:, :taken] = PROCESS
        if taken < 6:
            actions[:, taken] = OUTPUT
        found = of_blocks(model, actions, torch.tensor([7, 7]), torch.tensor([3, 3]))
        decisions = 2 * model.config.dim * 5 * min(taken, 5)
        whole = model.batch_flops(_questions(), taken)
        assert found.tolist() == [whole + decisions] * 2
    full = of_all_steps(model, 6, torch.tensor([7]), torch.tensor([3]))
    assert full.tolist() == [whole + decisions]
    cheap = torch.tensor([[PROCESS, READ, REFLECT, OUTPUT, NONE, NONE]])
    dear = torch.tensor([[PROCESS, PROCESS, PROCESS, OUTPUT, NONE, NONE]])
    counts = [of_blocks(model, x, torch.tensor([7]), torch.tensor([3])) for x in (cheap, dear)]
    assert counts[0] < counts[1]


def _questions():
    tokens = rows(1, 9)
    targets = torch.full((1, 9), -100)
    targets[:, 6:9] = 1
    return Batch(tokens, targets, torch.tensor([7]), torch.tensor([9]))


def test_a_policy_is_refused_where_there_is_none_and_beside_halt():
    tokens, model = rows(2, 9), thinker(0)
    lengths = torch.tensor([9, 4])
    for call in (
        lambda: model(tokens, policy=True),
        lambda: model.generate(tokens, 2, policy=True),
        lambda: model.answer(tokens, lengths, 2, policy=True),
        lambda: build_model("looped", vocab_size=VOCAB, dim=8, num_heads=2, max_length=20).answer(
            tokens, lengths, 2, policy=True
        ),
    ):
        with pytest.raises(UsageError, match="without one"):
            call()
    model = choosing({})
    with pytest.raises(UsageError, match="halt 0.5 with policy"):
        model(tokens, policy=True, halt=0.5)
    with pytest.raises(UsageError, match="policy must be True or False, got 1"):
        model.generate(tokens, 2, policy=1)
    for own in ({"halting": True}, {"backprop_steps": 2}):
        with pytest.raises(UsageError, match="policy"):
            thinker(0, policy=True, **own)
