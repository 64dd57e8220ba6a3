"""Register states of other rows: the cache of answers against whole rows computed at once."""

import pytest
import torch

from thinkers.errors import UsageError
from thinkers.evaluation.register_swap import answer_with_registers, swap_registers
from thinkers.models import build_model
from thinkers.models.generation import ids_below
from thinkers.tasks import build_task
from thinkers.tasks.answers import true_answers
from thinkers.tasks.number_tokens import VOCAB_SIZE

TINY = dict(dim=16, num_layers=1, num_heads=2, max_length=40)


def task_and_model(name="looped", **own):
    task = build_task("multiply", registers="graded", min_digits=2)
    torch.manual_seed(0)
    model = build_model(name, vocab_size=task.vocab_size, **(TINY | own)).double()
    return task, model.eval()


def whole_rows(model, task, batch, others):
    """The answers by forward passes of whole rows, whose register states are set in each block."""
    count = len(task.registers) - 1
    first = int(batch.prompt_lengths[0]) - 1 - count
    blocks = [*model.prelude, *model.core]
    recorded, calls = [], []

    def record(module, given, found):
        recorded.append(found[:, first : first + count].clone())

    def replace(module, given, found):
        found = found.clone()
        found[:, first : first + count] = recorded[len(calls)][others]
        calls.append(0)
        return found

    rows = batch.tokens[:, : int(batch.prompt_lengths[0])]
    hooks = [block.register_forward_hook(record) for block in blocks]
    model(rows)
    [hook.remove() for hook in hooks]
    hooks = [block.register_forward_hook(replace) for block in blocks]
    for _ in range(task.max_answer_length()):
        calls.clear()
        logits = model(rows).logits[:, -1, :VOCAB_SIZE]
        rows = torch.cat([rows, logits.argmax(-1, keepdim=True)], 1)
    [hook.remove() for hook in hooks]
    return rows[:, int(batch.prompt_lengths[0]) :]


@torch.no_grad()
def test_registers_of_other_rows_are_read_instead_of_the_own():
    task, model = task_and_model(num_steps=3, num_coda_layers=0)
    batch = task.batch(0, 40, "test")
    others = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    found = answer_with_registers(model, task, batch, others)
    assert found.equal(whole_rows(model, task, batch, others))
    own = answer_with_registers(model, task, batch, torch.arange(40))
    p = int(batch.prompt_lengths[0])
    with ids_below(task.num_output_tokens):
        usual = model.answer(batch.tokens[:, :p], batch.prompt_lengths, found.shape[1])
    assert own.equal(usual)
    assert not own.equal(found)


def test_shares_of_digits_that_follow(monkeypatch):
    task, model = task_and_model("decoder")
    batch = task.batch(0, 30, "test")
    swap = swap_registers(model, task, batch)
    assert len(swap.followed) == len(swap.kept) == 4 and 0 <= swap.other <= 1
    place = "thinkers.evaluation.register_swap.answer_with_registers"

    def answers(shift):
        return true_answers(batch, 5).roll(-shift, 0)

    monkeypatch.setattr(place, lambda *given: answers(1))
    swap = swap_registers(model, task, batch)
    assert (swap.other, swap.followed, swap.kept) == (1.0, [1.0] * 4, [0.0] * 4) and swap.own < 0.2
    monkeypatch.setattr(place, lambda *given: answers(0))
    swap = swap_registers(model, task, batch)
    assert (swap.own, swap.followed, swap.kept) == (1.0, [0.0] * 4, [1.0] * 4)


def test_rows_without_registers_at_one_place_are_refused():
    task, model = task_and_model()
    others = torch.arange(20)
    with pytest.raises(UsageError, match="a task without registers"):
        plain = build_task("multiply")
        answer_with_registers(model, plain, plain.batch(0, 20), others)
    wide = build_task("multiply", registers="free")
    with pytest.raises(UsageError, match=r"prompts of 12 \.\. 14 tokens"):
        answer_with_registers(model, wide, wide.batch(0, 20), others)
    _, thinker = task_and_model("thinker", num_steps=2)
    with pytest.raises(UsageError, match="a cache of type"):
        answer_with_registers(thinker, task, task.batch(0, 20), others)
