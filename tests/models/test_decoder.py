"""The decoder, against its equations; the block that it shares with other models, by loops."""

import pytest
import torch
from equations import block_by_hand, normed, vary
from model_cases import ids, tiny

from thinkers.nn.layers import initialize


@torch.no_grad()
@pytest.mark.parametrize("positions", [None, [0, 1, 2, 0, 1, 2, 3], [5, 0, 9, 2, 2, 0, 7]])
@pytest.mark.parametrize("window", [None, 1, 2])
@pytest.mark.parametrize("groups", [None, 1])
def test_decoder_is_its_equations(groups, window, positions):
    model, tokens = vary(tiny("decoder", num_kv_heads=groups, window=window).double()), ids(7)
    x = model.embedding.weight[tokens]
    for block in model.blocks:
        x = block_by_hand(block, x, positions, window)
    wanted = normed(model.norm, x) @ model.embedding.weight.T
    places = None if positions is None else torch.tensor([positions])
    found = model(tokens[None], positions=places).logits[0]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_decoder_takes_one_step():
    model = tiny("decoder")
    assert model.step_counts == (1,) and model.check_steps(None) == model.check_steps(1) == 1


def test_dropout_acts_in_training_alone():
    model, tokens = tiny("decoder", dropout=0.5), ids(2, 7)
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    assert torch.equal(model(tokens).logits, tiny("decoder")(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)


def test_weights_start_at_the_size_that_keeps_signals_even():
    model = tiny("decoder", dim=128, hidden=96, num_heads=4, num_layers=3)
    block = model.blocks[1]
    stds = {
        block.heads.query: 128**-0.5,
        block.heads.output: 128**-0.5 / 6**0.5,
        block.feed_forward.gate_up: 128**-0.5,
        block.feed_forward.down: 96**-0.5 / 6**0.5,
        model.embedding: 0.02,
    }
    for part, wanted in stds.items():
        assert float(part.weight.detach().std()) == pytest.approx(wanted, rel=0.05)
    linear = torch.nn.Sequential(torch.nn.Linear(3, 5))
    initialize(linear, 1)
    assert not linear[0].bias.any()
