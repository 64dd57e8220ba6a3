"""Tracing: recorded attention, masks, and replaced thoughts."""

import pytest
import torch
from model_cases import CASES, NAMES, ids, thinks, tiny
from torch.nn import functional as F

from thinkers.nn.tracing import attention_weights, current_record, record_attention

T, P = 19, 11


def traced(name, own, num_steps, prompt_length):
    """Return (model, its outputs untraced, its outputs traced, its attention)."""
    model, tokens = tiny(name, own), ids(1, T)
    lengths = None if prompt_length is None else torch.tensor([prompt_length])
    with torch.no_grad():
        alone = model(tokens, num_steps=num_steps, prompt_lengths=lengths, keep_states=True)
        with record_attention() as record:
            seen = model(tokens, num_steps=num_steps, prompt_lengths=lengths, keep_states=True)
    return model, alone, seen, model.attention(record, T, num_steps, prompt_length)


@pytest.mark.parametrize(("name", "own"), CASES)
@pytest.mark.parametrize("prompt_length", [None, P])
def test_recording_changes_no_output_and_weights_add_up_to_one(name, own, prompt_length):
    num_steps = tiny(name, own).step_counts[-1]
    model, alone, seen, attention = traced(name, own, num_steps, prompt_length)
    assert torch.equal(alone.logits, seen.logits)
    assert torch.equal(alone.states, seen.states)
    assert bool(attention) is model.causal
    for weights in attention.values():
        assert weights.shape[:2] == (max(1, num_steps), T) and bool((weights >= 0).all())
    if attention:
        groups = 2.0 if name == "deepsight" else 1.0  # words, and plans besides
        total = sum(weights.sum(-1) for weights in attention.values())
        first = {None: 15, P: P - 1}[prompt_length] if name == "thinker" else 0
        first = own.get("section", first + 1) - 1 if not prompt_length else first
        torch.testing.assert_close(total[:, first:], torch.full_like(total[:, first:], groups))
        assert bool((total[:, :first] == 0).all())
    assert current_record() is None


@pytest.mark.parametrize("name", NAMES)
def test_words_have_weight_where_the_mask_is_true(name):
    num_steps = tiny(name).step_counts[-1]
    model, _, _, attention = traced(name, {}, num_steps, None)
    mask = model.mask(T, num_steps)
    size = len(mask) // T  # elements of each token, the first of which is the token itself
    assert torch.equal(attention["words"] > 0, mask[::size, ::size].expand(num_steps, -1, -1))


def test_later_thoughts_have_no_weight():
    own = traced("thoughtsformer", {}, 4, None)[3]["own thoughts"]
    latents = traced("thinker", {}, 4, P)[3]["latents by step"]
    for step in range(4):
        assert own[step, :, :step].gt(0).all() and not own[step, :, step:].any()
        read = latents[step, P - 1 :]
        assert read[:, : step + 1].gt(0).all() and not read[:, step + 1 :].any()


@pytest.mark.parametrize("kind", ["causal", "boolean", "added", "grouped"])
def test_weights_are_those_of_scaled_dot_product_attention(kind):
    torch.manual_seed(0)
    q, k = torch.randn(2, 6, 7, 5, dtype=torch.float64), torch.randn(2, 6, 7, 5).double()
    k = k[:, :2] if kind == "grouped" else k
    mask = None
    if kind in ("boolean", "added"):
        mask = torch.rand(2, 1, 7, 7) < 0.6
        mask |= torch.eye(7, dtype=torch.bool)
    if kind == "added":
        mask = torch.zeros(mask.shape).double().masked_fill(~mask, -torch.inf)
    causal = kind in ("causal", "grouped")
    v = torch.eye(7).double().expand(2, k.shape[1], 7, 7)
    expected = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(attention_weights(q, k, mask, causal), expected)


THINKING = [c for c in CASES if thinks(tiny(*c.values))]


@pytest.mark.parametrize(("name", "own"), THINKING)
def test_replacing_thoughts_by_themselves_is_neutral_and_by_zeros_is_not(name, own):
    model, tokens = tiny(name, own), ids(3, T)
    steps = []

    def same(thought, step):
        steps.append(step)
        return thought

    with torch.no_grad():
        alone = model(tokens, num_steps=4).logits
        with model.replace_thoughts(same):
            assert torch.equal(model(tokens, num_steps=4).logits, alone)
        assert steps and steps == list(range(len(steps)))
        with model.replace_thoughts(lambda thought, step: torch.zeros_like(thought)):
            assert not torch.equal(model(tokens, num_steps=4).logits, alone)
        assert torch.equal(model(tokens, num_steps=4).logits, alone)


@pytest.mark.parametrize(("name", "own"), [c for c in THINKING if c.values[1].get("causal", True)])
def test_thoughts_are_replaced_in_generation_with_and_without_a_cache(name, own):
    model, tokens = tiny(name, own), ids(2, 7)
    if not model.causal:
        pytest.skip("cannot generate")
    lengths = torch.tensor([7, 7])
    with model.replace_thoughts(lambda thought, step: -thought):
        cached, anew = (
            model.generate(tokens, 3, 3, lengths, use_cache=c, return_logits=True)[1]
            for c in (True, False)
        )
    plain = model.generate(tokens, 3, 3, lengths, return_logits=True)[1]
    torch.testing.assert_close(cached, anew, rtol=0, atol=1e-5 * float(anew.abs().max()))
    assert not torch.allclose(cached, plain, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if not thinks(tiny(name))])
def test_a_model_without_steps_never_calls_the_hook(name):
    model = tiny(name)

    def refuse(thought, step):
        raise AssertionError("thought_hook was called")

    with model.replace_thoughts(refuse), torch.no_grad():
        model(ids(1, T))


def test_an_error_inside_the_block_ends_replacement_and_recording():
    model = tiny("looped")
    with pytest.raises(ZeroDivisionError), model.replace_thoughts(lambda x, step: 0 * x):
        raise ZeroDivisionError
    assert model._replacement is None
    with pytest.raises(ZeroDivisionError), record_attention():
        raise ZeroDivisionError
    assert current_record() is None


def reads(model, tokens, num_steps):
    """Return (t, t): True where the logits of a row's position depend on a column's token."""
    with torch.no_grad():
        before = model(tokens, num_steps=num_steps).logits[0]
        found = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.bool)
        for j in range(tokens.shape[1]):
            other = tokens.clone()
            other[0, j] = (other[0, j] + 1) % model.config.vocab_size
            found[:, j] = (model(other, num_steps=num_steps).logits[0] != before).any(-1)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_is_true_where_logits_depend_on_a_token(name):
    model = tiny(name, {"section": 5} if name == "thinker" else {})
    found, mask = reads(model, ids(1, 13), None), model.mask(13)
    size = len(mask) // 13  # elements of each token, the first of which is the token itself
    mask = mask[::size, ::size]
    if name == "thinker":  # a section also reads its own earlier tokens
        offsets = torch.arange(1, 14)
        own = (offsets[:, None] // 5 == offsets // 5) & (offsets[:, None] >= offsets)
        mask = mask | own
        own = offsets[:, None] // 5 * 5 == offsets  # the token in the first query of a section
        mask |= own
    assert torch.equal(found, mask)


def test_masks_of_chains_and_of_reasoning_tokens_have_a_row_for_every_element():
    chains = tiny("thoughtsformer").mask(3, 2)
    assert chains.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [1, 0, 1, 0, 1, 1],
    ]
    assert bool(tiny("thoughtsformer", {"causal": False}).mask(3, 2).all())
    hidden = tiny("reasoning_tokens", {"mode": "mask", "window": 1}).mask(3, 1)
    assert hidden.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 1],
    ]
