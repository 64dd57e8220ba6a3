"""Policies on questions about documents: what they recall, what that costs, and what is learned."""

from dataclasses import replace

import pytest
import torch
from training_cases import make

from thinkers.config.experiment import build
from thinkers.config.reinforce import Reinforce
from thinkers.models.documents import SHAPES
from thinkers.models.thinker_policy import RECALL
from thinkers.policies.loss import PolicyLoss, as_in_inference, update_flops
from thinkers.policies.rollout import Drawn, repeated, roll_out
from thinkers.tasks import TASKS

SETTINGS = Reinforce(num_updates=30, supervised_updates=2, policy_updates=1, group_size=4)
POLICY, SUPERVISED = 2, 0


def built(**own):
    task = TASKS["facts"].Config(num_sections=4, questions=3)
    torch.manual_seed(1)
    sizes = dict(num_latents=2, num_steps=4, mixing=3, memory="blocks", memory_section=8)
    config = make("thinker", task, policy=True, memory_top=2, tie_head=False, **sizes | own)
    found, model = build(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # far from the start, where all blocks are alike
        model.policy.blocks.linear.weight.normal_(std=0.05)
        model.policy.blocks.linear.bias.zero_()
    return found, model.double()


def gradients(model, update, batch):
    model.zero_grad()
    counts = model.counts(batch)
    loss = PolicyLoss(model, SETTINGS, len(batch), lambda: update)(batch, None, counts)
    loss.total.backward()
    return loss, {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_supervised_updates_train_index_and_compression_and_policy_updates_the_choice_alone():
    task, model = built()
    batch = task.batch(0, 9)
    loss, moved = gradients(model, SUPERVISED, batch)
    assert {"index.query.weight", "index.key.weight", "compressor.signals.weight"} <= moved
    assert set(loss.parts) == {"next_token", "right", "index"} and loss.parts["index"] > 0
    found = roll_out(model, batch, Drawn(batch.keys, SETTINGS.explore), learns=True)
    assert float(loss.parts["index"]) == pytest.approx(float(found.index.detach().sum()) / 9)
    own = model.config.index_weight * loss.parts["index"]
    expected = loss.parts["next_token"] + loss.parts["right"] + own
    assert float(loss.total.detach()) == pytest.approx(float(expected))
    with torch.no_grad():  # as in inference, whatever the keys of training
        policy = [
            PolicyLoss(model, SETTINGS, 9, lambda: POLICY)(x, None, {}).total
            for x in (batch, as_in_inference(batch))
        ]
    assert policy[0] == policy[1]
    loss, moved = gradients(model, POLICY, batch)
    assert moved == {f"policy.blocks.linear.{x}" for x in ("weight", "bias")}
    assert "index" not in loss.parts


def test_micro_batches_add_up_to_the_whole():
    task, model = built()
    batch = task.batch(0, 8)
    counts = model.counts(batch)
    assert counts["index"] == 8
    for update in (SUPERVISED, POLICY):
        module = PolicyLoss(model, SETTINGS, 8, lambda update=update: update)
        whole = module(batch, None, counts)
        parts = [module(batch.rows(slice(i, i + 4)), None, counts) for i in (0, 4)]
        for name in whole.parts:
            total = sum(float(x.parts[name]) for x in parts)
            assert float(whole.parts[name]) == pytest.approx(total)


def test_roll_outs_of_a_question_share_its_document_and_do_not_depend_on_other_rows():
    task, model = built()
    batch = task.batch(3, 6)
    many = repeated(batch, 4)
    assert len(many.sections) == 2
    found = roll_out(model, many, Drawn(many.keys))
    assert (found.actions == RECALL).any() and len(found.actions.unique(dim=0)) > 4
    alone = repeated(batch.rows(torch.tensor([5])), 4)
    single = roll_out(model, alone, Drawn(alone.keys))
    assert torch.equal(single.actions, found.actions[20:])
    assert torch.equal(single.flops, found.flops[20:])
    assert torch.allclose(single.logits, found.logits[20:], rtol=0, atol=1e-10)


def test_recalling_costs_more_and_never_more_than_all_steps_without_a_policy():
    task, model = built()
    batch = task.batch(3, 6)
    many = repeated(batch, 8)
    for top in (2, 30, None):
        model.config = replace(model.config, memory_top=top)
        found = roll_out(model, many, Drawn(many.keys))
        assert (found.flops < found.full_flops).all()
        without = roll_out(model, repeated(_without_documents(batch), 8), Drawn(many.keys))
        assert (without.full_flops < found.full_flops).all()
        assert not (without.actions == RECALL).any()


def test_documents_are_compressed_once_in_the_operations_of_a_policy_update():
    task, model = built()
    batch = task.batch(0, 6)
    read = model.batch_flops(batch) - model.batch_flops(_without_documents(batch))
    whole = update_flops(model, SETTINGS, POLICY, batch)
    assert model.batch_flops(batch) < whole < 4 * model.batch_flops(batch) - read
    assert update_flops(model, SETTINGS, SUPERVISED, batch) > 3 * model.batch_flops(batch)


def _without_documents(batch):
    return replace(batch, **dict.fromkeys(SHAPES))
