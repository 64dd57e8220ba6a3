"""Accuracy by step and position, against a pass for each number of steps."""

import pytest
import torch
from model_cases import ids, tiny

from thinkers import Batch
from thinkers.errors import UsageError
from thinkers.evaluation.by_step import accuracy_by_step


def some_batch(rows):
    tokens = ids(rows, 6)
    targets = tokens.flip(1).masked_fill(torch.arange(6) == 2, -100)
    return Batch(tokens, targets, lengths=torch.full((rows,), 6))


@pytest.mark.parametrize("name", ["looped", "thoughtsformer", "decoder"])
def test_each_row_of_the_table_is_a_pass_of_so_many_steps(name):
    model = tiny(name, {"num_steps": 3} if name != "decoder" else {}).double()
    batch = some_batch(130)  # more than fit into one pass
    found = accuracy_by_step(model, [batch.rows(slice(0, 7)), batch.rows(slice(7, 130))])
    assert len(found) == (3 if name != "decoder" else 1)
    for step, shares in enumerate(found, 1):
        with torch.no_grad():
            answers = model.eval()(batch.tokens, num_steps=step).logits.argmax(-1)
        wanted = (answers == batch.targets).double().mean(0)
        graded = batch.targets[0] != -100
        torch.testing.assert_close(shares.double()[graded], wanted[graded], rtol=1e-6, atol=0)
        assert shares.isnan().tolist() == [not x for x in graded.tolist()]


def test_prompts_are_read_as_prompts():
    model = tiny("thinker", {"num_steps": 2}).double()
    batch = some_batch(40)
    prompted = Batch(batch.tokens, batch.targets, batch.lengths - 2, batch.lengths)
    found = accuracy_by_step(model, [prompted])
    for step, shares in enumerate(found, 1):
        lengths = dict(lengths=prompted.lengths, prompt_lengths=prompted.prompt_lengths)
        with torch.no_grad():
            answers = model.eval()(batch.tokens, num_steps=step, **lengths).logits.argmax(-1)
        wanted = (answers == batch.targets).double().mean(0)
        assert shares.double()[3:].tolist() == pytest.approx(wanted[3:].tolist())
    assert not torch.equal(accuracy_by_step(model, [batch])[:, 3:], found[:, 3:])


def test_no_batches_have_no_accuracy():
    with pytest.raises(UsageError, match="batches must hold at least one batch, got none"):
        accuracy_by_step(tiny("looped"), [])
