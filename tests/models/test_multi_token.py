"""Multi-token prediction: the loss of each head, and what the further heads leave alone."""

import pytest
import torch
from model_cases import ids, tiny
from torch.nn import functional as F

from thinkers.models import Batch
from thinkers.nn.block import causal_attention


def test_a_single_head_is_the_decoder_bit_for_bit():
    plain, model, tokens = tiny("decoder"), tiny("multi_token", num_future=1), ids(3, 11)
    wanted, found = plain.state_dict(), model.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert torch.equal(plain.loss(tokens).total, model.loss(tokens).total)


def test_each_head_is_graded_on_the_token_so_far_ahead():
    model = tiny("multi_token", num_future=3).double()
    tokens, targets = ids(3, 11), ids(3, 11, seed=1)
    targets[0, :4] = -100
    lengths = torch.tensor([11, 7, 1])
    batch = Batch(tokens, targets, None, lengths)
    loss = model.loss(batch)
    x = model._run(tokens)
    table = model.rotary.table(torch.arange(11), x.dtype)
    heads = [x, *(block(x, table, causal_attention) for block in model.future)]
    names = ("next_token", "future_2", "future_3")
    total = 0.0
    for ahead, (name, head) in enumerate(zip(names, heads, strict=True)):
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


def test_further_heads_change_no_answer_and_cost_nothing_outside_of_training():
    model, plain, tokens = tiny("multi_token", num_future=2), tiny("decoder"), ids(3, 11)
    wanted = model(tokens).logits
    correct = model.loss(tokens).correct
    for parameter in model.future.parameters():
        parameter.data += 1.0
    assert torch.equal(model(tokens).logits, wanted)
    assert torch.equal(model.loss(tokens).correct, correct)
    assert torch.equal(model.generate(tokens, 5, use_cache=True)[:, :11], tokens)
    assert model.flops(3, 11) == plain.flops(3, 11)
    assert model.flops(3, 11, training=True) > plain.flops(3, 11, training=True)


def test_the_first_token_is_no_target_of_a_further_head_and_the_last_one_is():
    model = tiny("multi_token", num_future=2)
    tokens, first, last = ids(3, 11), torch.full((3, 11), -100), torch.full((3, 11), -100)
    first[:, 0], last[:, 10] = 5, 5
    alone = model.loss(Batch(tokens, first))
    assert alone.counts == {"next_token": 3, "future_2": 0} and alone.parts["future_2"] == 0
    loss = model.loss(Batch(tokens, last))
    assert loss.counts == {"next_token": 3, "future_2": 3}
    (loss.total - loss.parts["next_token"]).backward()
    for part in (model.blocks[0].heads.query, model.future[0].heads.query):
        assert part.weight.grad is not None and part.weight.grad.any()


@pytest.mark.misuse
@pytest.mark.parametrize("num_future", [0, 68, 1.5])
def test_a_number_of_heads_that_cannot_be_is_refused(num_future):
    with pytest.raises(ValueError, match=f"num_future must be .* 1 .. 67 .*got {num_future}"):
        tiny("multi_token", num_future=num_future)
