"""Fillers and further heads of the decoder, against the plain one and against loops."""

import pytest
import torch
from model_cases import ids, tiny
from torch.nn import functional as F

from thinkers.models import Batch


def parameters(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def test_without_options_the_decoder_is_the_plain_one_bit_for_bit():
    plain, given = tiny("decoder"), tiny("decoder", num_fillers=0, num_future=1)
    wanted, found = parameters(plain), parameters(given)
    assert wanted.keys() == found.keys()
    assert not [name for name in wanted if "filler" in name or "future" in name]
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    tokens = ids(3, 11)
    assert torch.equal(plain.loss(tokens).total, given.loss(tokens).total)


@pytest.mark.parametrize("num_fillers", [1, 3])
def test_fillers_are_a_plain_decoder_over_tokens_that_were_put_in_between(num_fillers):
    model = tiny("decoder", num_fillers=num_fillers).double()
    vocab_size = model.config.vocab_size
    plain = tiny("decoder", vocab_size=vocab_size + num_fillers, max_length=300).double()
    weights = parameters(model)
    fillers = weights.pop("fillers")
    weights["embedding.weight"] = torch.cat([weights["embedding.weight"], fillers])
    plain.load_state_dict(weights)
    tokens = ids(3, 11)
    between = torch.arange(vocab_size, vocab_size + num_fillers).expand(3, 11, -1)
    longer = torch.cat([tokens[:, :, None], between], 2).flatten(1)
    wanted = plain(longer).logits[:, num_fillers :: num_fillers + 1, :vocab_size]
    torch.testing.assert_close(model(tokens).logits, wanted, rtol=0, atol=1e-12)


def test_fillers_cost_what_a_row_of_their_length_costs():
    model, plain = tiny("decoder", num_fillers=2), tiny("decoder")
    head = 2 * 32 * 13
    assert model.flops(3, 7) == plain.flops(3, 21) - 3 * 14 * head


@pytest.mark.parametrize("fillers", [0, 2])
def test_the_loss_of_further_heads_is_that_of_tokens_further_on(fillers):
    model = tiny("decoder", num_future=3, num_fillers=fillers).double()
    tokens, targets = ids(3, 11), ids(3, 11, seed=1)
    targets[0, :4] = -100
    lengths = torch.tensor([11, 7, 1])
    batch = Batch(tokens, targets, None, lengths)
    loss = model.loss(batch)
    x = model._run(tokens)
    table = model.rotary.table(torch.arange(11), x.dtype)
    heads = [x, model.future[0](x, table), model.future[1](x, table)]
    total = 0.0
    for ahead, (name, head) in enumerate(
        zip(("next_token", "future_2", "future_3"), heads, strict=True)
    ):
        terms = []
        for row in range(3):
            for i in range(int(lengths[row]) - ahead):
                wanted = targets[row, i + ahead]
                if wanted != -100:
                    logits = F.linear(model.norm(head[row, i]), model.embedding.weight)
                    terms.append(-logits.log_softmax(-1)[wanted])
        assert loss.counts[name] == model.counts(batch)[name] == len(terms)
        mean = torch.stack(terms).mean()
        torch.testing.assert_close(loss.parts[name], mean)
        total = total + mean
    torch.testing.assert_close(loss.total, total)


def test_further_heads_train_the_layers_beneath_and_touch_no_answer():
    model, plain = tiny("decoder", num_future=2), tiny("decoder")
    tokens = ids(3, 11)
    wanted = model(tokens).logits
    correct = model.loss(tokens).correct
    for parameter in model.future.parameters():
        parameter.data += 1.0
    assert torch.equal(model(tokens).logits, wanted)
    assert torch.equal(model.loss(tokens).correct, correct)
    assert torch.equal(model.generate(tokens, 5, use_cache=True)[:, :11], tokens)
    assert model.flops(3, 11) == plain.flops(3, 11)
    assert model.flops(3, 11, training=True) > plain.flops(3, 11, training=True)


def test_a_first_token_is_no_further_one_and_a_last_token_trains_the_head_before_it():
    model = tiny("decoder", num_future=2)
    tokens, first, last = ids(3, 11), torch.full((3, 11), -100), torch.full((3, 11), -100)
    first[:, 0], last[:, 10] = 5, 5
    alone = model.loss(Batch(tokens, first))
    assert alone.counts == {"next_token": 3, "future_2": 0} and alone.parts["future_2"] == 0
    loss = model.loss(Batch(tokens, last))
    assert loss.counts == {"next_token": 3, "future_2": 3}
    (loss.total - model.loss(Batch(tokens, last), counts=None).parts["next_token"]).backward()
    for part in (model.blocks[0].heads.query, model.future[0].heads.query):
        assert part.weight.grad is not None and part.weight.grad.any()


@pytest.mark.parametrize(
    "own, words",
    [
        ({"num_fillers": -1}, ("num_fillers", "-1")),
        ({"num_fillers": 1.5}, ("num_fillers", "1.5")),
        ({"num_future": 0}, ("num_future", "0")),
        ({"num_future": 68}, ("num_future", "68", "max_length")),
    ],
)
def test_what_cannot_be_is_refused(own, words):
    with pytest.raises(ValueError) as caught:
        tiny("decoder", own)
    assert all(word in str(caught.value) for word in words)


def test_a_long_text_with_fillers_goes_on_where_it_was():
    """Rows of unequal length, written through every slot of the cache."""
    model = tiny("decoder", num_fillers=2, num_kv_heads=2).double()
    tokens, lengths = ids(4, 9), torch.tensor([9, 1, 5, 3])
    out, logits = model.generate(tokens, 40, prompt_lengths=lengths, return_logits=True)
    for row, n in enumerate(lengths.tolist()):
        alone = out[row : row + 1, 9 - n :]
        wanted = model(alone).logits[0, n - 1 : n + 39]
        torch.testing.assert_close(logits[row], wanted, rtol=0, atol=1e-10)
