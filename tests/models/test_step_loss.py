"""Targets graded after several thinking steps, against loops over steps and positions."""

import dataclasses

import pytest
import torch
from model_cases import ids, tiny
from torch.nn import functional as F

from thinkers import Batch, collate
from thinkers.errors import UsageError

STEPPING = ("looped", "thoughtsformer", "thinker")
WAIT, STEPS, T = 2, 5, 9


def rows_with_due(model) -> Batch:
    """Return ragged rows, of which some targets are due at once, some late and some too late."""
    tokens = ids(3, T)
    targets = tokens.flip(1).masked_fill(torch.arange(T) % 4 == 1, -100)
    due = (torch.arange(T) + torch.arange(3)[:, None]) % 7 + 1
    # For 4 of 5 steps; some steps have no answer.
    early = (tokens[..., None] + torch.arange(4)) % 5
    early = early.masked_fill(torch.arange(4) == due[..., None] % 3, -100)
    return Batch(tokens, targets, lengths=torch.tensor([T, 4, 7]), due=due, early=early)


def loss_by_hand(model, batch, kind):
    """Average the graded steps of each target, then the targets."""
    states = model(batch.tokens, lengths=batch.lengths, num_steps=STEPS, keep_states=True).states
    logits, losses = model.read_out(states), []
    for row in range(3):
        for place in range(int(batch.lengths[row])):
            target, due = int(batch.targets[row, place]), int(batch.due[row, place])
            if target == -100:
                continue
            graded = []
            for step in range(1, STEPS + 1):
                wanted = target
                if kind == "last" and step < STEPS:
                    continue
                if kind == "due" and step < min(due, STEPS):
                    continue
                if kind == "wait" and step < due:
                    wanted = WAIT
                if kind == "early" and step < due:
                    wanted = int(batch.early[row, place, step - 1]) if step <= 4 else -100
                if wanted == -100:
                    graded.append(torch.zeros((), dtype=torch.float64))
                    continue
                found = logits[row, step - 1, place]
                graded.append(F.cross_entropy(found[None], torch.tensor([wanted])))
            losses.append(sum(graded) / len(graded))
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("name", STEPPING)
@pytest.mark.parametrize("kind", ["last", "every", "due", "wait", "early"])
def test_each_target_is_graded_after_the_steps_of_its_kind(name, kind):
    own = {"step_loss": kind, "num_steps": STEPS, "max_steps": 8}
    model = tiny(name, own | ({"wait_token": WAIT} if kind == "wait" else {})).double()
    batch = rows_with_due(model)
    loss = model.loss(batch)
    wanted, count = loss_by_hand(model, batch, kind)
    torch.testing.assert_close(loss.total, wanted, rtol=1e-12, atol=1e-12)
    assert loss.counts == {"next_token": count} == model.counts(batch)


@pytest.mark.parametrize("name", STEPPING)
def test_a_batch_without_due_steps_is_due_at_once(name):
    batch = rows_with_due(tiny(name))
    undated = Batch(batch.tokens, batch.targets, lengths=batch.lengths)
    torch.manual_seed(0)
    due = tiny(name, {"step_loss": "due"})
    torch.manual_seed(0)
    every = tiny(name, {"step_loss": "every"})
    every.load_state_dict(due.state_dict())
    torch.testing.assert_close(due.loss(undated).total, every.loss(undated).total)


def test_answers_after_prompts_are_graded_by_their_own_due_steps():
    model = tiny("thinker", {"step_loss": "due", "num_steps": STEPS, "max_steps": 8}).double()
    tokens, prompts = ids(2, T), torch.tensor([4, 6])
    places = torch.arange(T)
    targets = tokens.flip(1).masked_fill(places < prompts[:, None] - 1, -100)
    due = (places + torch.tensor([[0], [3]])) % 6 + 1
    batch = Batch(tokens, targets, prompts, torch.tensor([T, 8]), due=due)
    thought = model(tokens, lengths=batch.lengths, prompt_lengths=prompts, keep_states=True)
    logits, losses = model.read_out(thought.states), []
    for row in range(2):
        for place in range(int(prompts[row]) - 1, int(batch.lengths[row])):
            first = min(int(due[row, place]), STEPS)
            found = logits[row, first - 1 :, place]
            losses.append(F.cross_entropy(found, targets[row, place].expand(len(found))))
    torch.testing.assert_close(model.loss(batch).total, sum(losses) / len(losses))


@pytest.mark.misuse
def test_padding_has_no_due_step_and_real_tokens_have_one():
    model = tiny("looped", {"step_loss": "due"})
    batch = rows_with_due(model)
    loss = model.loss(batch).total
    beyond = torch.arange(T) >= batch.lengths[:, None]
    cleared = Batch(batch.tokens, batch.targets, lengths=batch.lengths)
    for value in (0, 99):
        due = batch.due.masked_fill(beyond, value)
        own = Batch(cleared.tokens, cleared.targets, lengths=cleared.lengths, due=due)
        assert torch.equal(model.loss(own).total, loss)
    wrong = batch.due.clone()
    wrong[1, 3] = 0
    for due, message in (
        (wrong, "due must be at least 1 at every real token, got 0 at row 1, position 3"),
        (wrong[:, :4], r"due must have the shape of tokens \[3, 9\], got \[3, 4\]"),
        (wrong.float(), "due must be an int64 tensor"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            model.loss(Batch(batch.tokens, batch.targets, lengths=batch.lengths, due=due))


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"step_loss": "wait"}, "wait_token must be the answer of a target that is not due"),
        ({"step_loss": "wait", "wait_token": 99}, "wait_token must be an integer in 0 .."),
        ({"wait_token": 1}, "wait_token must be None, its default, where step_loss is last"),
        ({"step_loss": "due", "wait_token": 1}, "wait_token must be None"),
        ({"step_loss": "due", "backprop_steps": 1}, "backprop_steps must be None where step_loss"),
        ({"step_loss": "late"}, "step_loss must be one of"),
    ],
)
def test_settings_of_step_losses_that_do_not_fit_are_refused(own, message):
    with pytest.raises(UsageError, match=message):
        tiny("looped", own)


@pytest.mark.unchecked
def test_early_answers_that_do_not_fit_are_refused():
    model = tiny("looped", step_loss="early", num_steps=3)
    batch = rows_with_due(model)
    for own, message in (
        ({"early": None}, "no early answers"),
        ({"due": None}, "due must be set beside early"),
        ({"early": batch.early[:, :4]}, r"early must have the shape \[3, 9, 'k'\]"),
        ({"early": batch.early + 99}, "got .* at row 0, position 0, step 1"),
    ):
        with pytest.raises(UsageError, match=message):
            model.loss(dataclasses.replace(batch, **own))
    with pytest.raises(TypeError, match="early must be an int64 tensor, got float32"):
        model.loss(dataclasses.replace(batch, early=batch.early.float()))
    with pytest.raises(UsageError, match="with halting"):
        tiny("looped", step_loss="early", halting=True)


def test_early_answers_are_collated_to_the_widest():
    model = tiny("looped", step_loss="early", num_steps=3)
    batch = rows_with_due(model)
    short = dataclasses.replace(batch.rows(slice(0, 1)), early=batch.early[:1, :, :2])
    joined = collate([short, batch])
    assert joined.early.shape == (4, T, 4) and (joined.early[0, :, 2:] == -100).all()
    assert torch.equal(joined.early[1:], batch.early)
    assert torch.equal(joined.rows(torch.tensor([2])).early[0], batch.early[1])
