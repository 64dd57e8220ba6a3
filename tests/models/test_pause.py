"""Pause, against a decoder that reads other tokens where the fillers stand."""

import pytest
import torch
from model_cases import ids, tiny


def decoder_of(model, num_fillers):
    """Return a decoder with the same weights, whose last tokens are the fillers of `model`."""
    vocab_size = model.config.vocab_size
    settings = {"vocab_size": vocab_size + num_fillers, "max_length": 300}
    plain = tiny("decoder", num_kv_heads=model.config.num_kv_heads, **settings).double()
    weights = dict(model.state_dict())
    fillers = weights.pop("fillers")
    rows = [fillers[min(i, len(fillers) - 1)] for i in range(num_fillers)]
    weights["embedding.weight"] = torch.stack([*weights["embedding.weight"], *rows])
    plain.load_state_dict(weights)
    return plain


@torch.no_grad()
@pytest.mark.parametrize("learned, num_steps", [(1, 1), (3, 3), (3, 1), (2, 4)])
def test_fillers_are_further_tokens_of_a_decoder(learned, num_steps):
    """Fewer than learned are the first ones; beyond those learned, the last one is repeated."""
    model = tiny("pause", num_steps=learned).double()
    tokens, vocab_size = ids(3, 11), model.config.vocab_size
    plain = decoder_of(model, num_steps)
    between = torch.arange(vocab_size, vocab_size + num_steps).expand(3, 11, -1)
    longer = torch.cat([tokens[:, :, None], between], 2).flatten(1)
    wanted = plain(longer).logits[:, num_steps :: num_steps + 1, :vocab_size]
    found = model(tokens, num_steps=num_steps).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_without_fillers_it_is_the_decoder_bit_for_bit():
    model, tokens = tiny("pause"), ids(3, 11)
    plain = tiny("decoder")
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "fillers"})
    assert torch.equal(model(tokens, num_steps=0).logits, plain(tokens).logits)
    assert model.flops(3, 11, 0) == plain.flops(3, 11)
    found = model.generate(tokens, 9, 0, return_logits=True)
    assert torch.equal(found[1], plain.generate(tokens, 9, return_logits=True)[1])


@torch.no_grad()
def test_fillers_that_were_never_learned_hold_nothing():
    model = tiny("pause", num_steps=0).double()
    other = tiny("pause", num_steps=1).double()
    other.load_state_dict({**model.state_dict(), "fillers": torch.zeros(1, 32).double()})
    assert "fillers" not in model.state_dict()
    tokens = ids(3, 11)
    assert torch.equal(model(tokens, num_steps=3).logits, other(tokens, num_steps=3).logits)


def test_fillers_cost_what_a_row_of_their_length_costs():
    model, plain = tiny("pause", num_steps=2), tiny("decoder")
    head = 2 * 32 * 13
    assert model.flops(3, 7) == plain.flops(3, 21) - 3 * 14 * head


def test_the_states_are_those_of_the_fillers():
    model, tokens = tiny("pause"), ids(3, 11)
    assert model(tokens, num_steps=4, keep_states=True).states.shape == (3, 4, 11, 32)
    whole = model(tokens, num_steps=2, keep_states=True)
    less = model(tokens, num_steps=1, keep_states=True)
    assert whole.states.shape == (3, 2, 11, 32)
    # A later filler changes nothing before the next token.
    torch.testing.assert_close(whole.states[:, :1, 0], less.states[:, :, 0])
    assert model(tokens, num_steps=0, keep_states=True).states.shape == (3, 1, 11, 32)


@torch.no_grad()
def test_a_long_text_is_continued_through_every_slot_of_the_cache():
    model = tiny("pause", num_kv_heads=2).double()
    tokens, lengths = ids(4, 9), torch.tensor([9, 1, 5, 3])
    out, logits = model.generate(tokens, 40, prompt_lengths=lengths, return_logits=True)
    for row, n in enumerate(lengths.tolist()):
        alone = out[row : row + 1, 9 - n :]
        wanted = model(alone).logits[0, n - 1 : n + 39]
        torch.testing.assert_close(logits[row], wanted, rtol=0, atol=1e-10)


@pytest.mark.misuse
@pytest.mark.parametrize("steps", [-1, 1.5])
def test_a_number_of_fillers_that_cannot_be_is_refused(steps):
    with pytest.raises(ValueError, match=f"num_steps must be .*got {steps}"):
        tiny("pause", num_steps=steps)
