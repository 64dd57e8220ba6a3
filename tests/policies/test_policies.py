"""Roll-outs, rewards and the loss of a policy, against loops in Python."""

import math

import pytest
import torch
from training_cases import make

from thinkers.config.experiment import build
from thinkers.config.reinforce import Reinforce
from thinkers.errors import NonFiniteError, UsageError
from thinkers.models.batch import IGNORED, Batch
from thinkers.models.thinker_policy import NONE, OUTPUT, PROCESS, READ, RECALL
from thinkers.models.thinker_policy_flops import of_all_steps
from thinkers.policies.loss import PolicyLoss, advantages, chosen_scores, rewards, update_flops
from thinkers.policies.rollout import Drawn, Rollout, question_room, repeated, roll_out
from thinkers.tasks import TASKS

STEPS = 4
SETTINGS = Reinforce(num_updates=30, supervised_updates=2, policy_updates=1, group_size=4)


def built(**own):
    task = TASKS["mixed"].Config(max_swaps=3)
    torch.manual_seed(1)
    config = make("thinker", task, num_latents=3, num_steps=STEPS, max_steps=6, policy=True, **own)
    found, model = build(config)
    with torch.no_grad():
        model.policy.blocks.linear.weight.normal_()
        model.policy.blocks.linear.bias.zero_()
    return found, model.double()


def outcome(right, cost):
    """A roll-out of these answers, right or wrong, at these shares of the full cost."""
    n, cost = len(right), torch.as_tensor(cost)
    logits = torch.zeros(n, 1, 1, 2)
    logits[torch.arange(n), 0, 0, torch.tensor([1 if x else 0 for x in right])] = 1.0
    targets, actions = torch.ones(n, 1, dtype=torch.int64), torch.zeros(n, 1, dtype=torch.int64)
    return Rollout(logits, targets, actions, [], cost, torch.full((n,), 10))


def test_rewards_are_of_right_answers_alone_and_fall_with_their_cost():
    found = outcome([True, True, False], [2, 10, 2])
    settings = Reinforce(num_updates=30, cost_weight=0.5)
    assert rewards(found, settings, 0).tolist() == [1, 1, 0]
    assert rewards(found, settings, 5).tolist() == [1 - 0.25 * 0.2, 1 - 0.25, 0]
    for update in (10, 29):
        assert rewards(found, settings, update).tolist() == [0.9, 0.5, 0]
    free = Reinforce(cost_weight=0.0)
    assert rewards(found, free, 29).tolist() == [1, 1, 0]
    quotient = Reinforce(reward="quotient")
    assert rewards(found, quotient, 0).tolist() == [5, 1, 0]


def test_a_reward_that_is_not_finite_names_its_update_and_roll_out():
    found = outcome([False, True], [1, 0])
    with pytest.raises(NonFiniteError, match="update 8: the reward of roll-out 1 is inf"):
        rewards(found, Reinforce(reward="quotient"), 7)


def test_the_baseline_leaves_out_the_roll_out_itself():
    reward = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    found = advantages(reward, 4)
    for i in range(8):
        group = range(i // 4 * 4, i // 4 * 4 + 4)
        others = [float(reward[j]) for j in group if j != i]
        assert found[i] == pytest.approx(float(reward[i]) - sum(others) / 3)
    assert (found[4:] == 0).all()


def test_log_probabilities_and_entropies_are_those_of_a_loop():
    task, model = built()
    batch = task.batch(3, 8)
    found = roll_out(model, batch, Drawn(batch.keys))
    with torch.no_grad():
        total, entropy = chosen_scores(model, found)
    for row in range(8):
        log, uncertain = 0.0, 0.0
        for decision in found.decisions:
            place = (decision.rows == row).nonzero()
            if not len(place):
                continue
            z = decision.states[place[0, 0]].detach()
            linear = model.policy.blocks.linear
            scores = (linear.weight @ z + linear.bias).detach().tolist()
            allowed = decision.allowed[place[0, 0]]
            weights = [math.exp(x) * bool(a) for x, a in zip(scores, allowed, strict=True)]
            chances = [w / sum(weights) for w in weights]
            log += math.log(chances[int(decision.chosen[place[0, 0]])])
            uncertain -= sum(p * math.log(p) for p in chances if p)
        assert float(total[row]) == pytest.approx(log)
        assert float(entropy[row]) == pytest.approx(uncertain)


def test_blocks_are_drawn_with_the_probabilities_of_the_policy():
    scores = torch.tensor([[0.0, 1.0, 0.0, -torch.inf, -1.0]]).expand(20_000, -1)
    keys, rows = torch.arange(20_000), torch.arange(20_000)
    drawn = Drawn(keys)(scores, 1, rows)
    share = torch.bincount(drawn, minlength=5) / 20_000
    assert (share - scores[0].softmax(0)).abs().max() < 0.015 and share[RECALL] == 0
    uniform = torch.bincount(Drawn(keys, 1.0)(scores, 1, rows), minlength=5) / 20_000
    assert (uniform - torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0])).abs().max() < 0.015
    # A row draws the same in any batch, and other numbers at another step.
    assert torch.equal(Drawn(keys)(scores[:9], 1, rows[:9] + 5), drawn[5:14])
    assert not torch.equal(Drawn(keys)(scores, 2, rows), drawn)


def test_roll_outs_of_a_question_differ_and_do_not_depend_on_other_rows():
    task, model = built()
    batch = task.batch(3, 6)
    many = repeated(batch, 4)
    found = roll_out(model, many, Drawn(many.keys))
    assert len(found.actions.unique(dim=0)) > 4 and {PROCESS, READ} <= set(
        found.actions.flatten().tolist()
    )
    assert found.actions.min() == NONE
    alone = repeated(batch.rows(torch.tensor([2])), 4)
    assert torch.equal(roll_out(model, alone, Drawn(alone.keys)).actions, found.actions[8:12])
    for row in found.actions.tolist():
        assert row[0] == PROCESS
        end = row.index(OUTPUT) if OUTPUT in row else len(row)
        assert all(x == NONE for x in row[end + 1 :]) and NONE not in row[:end]


def test_supervised_updates_train_the_model_and_policy_updates_the_choice_alone():
    task, model = built()
    batch = task.batch(0, 8)
    counts = model.counts(batch)
    chooses = {f"policy.blocks.linear.{x}" for x in ("weight", "bias")}
    for update, own in ((1, False), (2, True)):
        model.zero_grad()
        loss = PolicyLoss(model, SETTINGS, 8, lambda update=update: update)(batch, None, counts)
        loss.total.backward()
        moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert (moved == chooses) if own else (moved and not moved & chooses)
        names = {"policy", "reward", "saved", "entropy"} if own else {"next_token", "right"}
        assert set(loss.parts) == names
        assert own or "policy.right.linear.weight" in moved


def test_micro_batches_add_up_to_the_whole_in_both_kinds_of_updates():
    task, model = built()
    batch = task.batch(0, 8)
    counts = model.counts(batch)
    for update in (0, 2):
        module = PolicyLoss(model, SETTINGS, 8, lambda update=update: update)
        whole = module(batch, None, counts)
        parts = [module(batch.rows(slice(i, i + 4)), None, counts) for i in (0, 4)]
        for name in whole.parts:
            total = sum(float(x.parts[name]) for x in parts)
            assert float(whole.parts[name]) == pytest.approx(total)
        assert float(whole.total.detach()) == pytest.approx(
            sum(float(x.total.detach()) for x in parts)
        )


def test_losses_are_those_of_loops_over_rows_and_decisions():
    task, model = built()
    batch = task.batch(0, 6)
    with torch.no_grad():
        loss = PolicyLoss(model, SETTINGS, 6, lambda: 0)(batch, None, model.counts(batch))
        found = roll_out(model, batch, Drawn(batch.keys, SETTINGS.explore), learns=True)
        answers, estimates = 0.0, [[] for _ in range(6)]
        for row in range(6):
            target = int(found.targets[row, 0])
            answers -= float(found.logits[row, -1, 0].log_softmax(-1)[target]) / 6
        for decision in found.decisions:
            for row, z in zip(decision.rows.tolist(), decision.states, strict=True):
                chance = float(model.policy.right(z)[0].sigmoid())
                right = bool(found.is_right[row, decision.step - 1])
                estimates[row].append(-math.log(chance if right else 1 - chance))
        right = sum(sum(x) / len(x) for x in estimates) / 6
        assert float(loss.total) == pytest.approx(answers + right)

        many = repeated(batch, 4)
        loss = PolicyLoss(model, SETTINGS, 6, lambda: 2)(batch, None, {})
        found = roll_out(model, many, Drawn(many.keys))
        reward = rewards(found, SETTINGS, 2).tolist()
        logs, entropies = (x.tolist() for x in chosen_scores(model, found))
        total = 0.0
        for i in range(24):
            group = [reward[j] for j in range(i // 4 * 4, i // 4 * 4 + 4)]
            gained = reward[i] - (sum(group) - reward[i]) / 3
            total -= (gained * logs[i] + SETTINGS.entropy * entropies[i]) / 24
        assert float(loss.total) == pytest.approx(total)


def test_operations_of_an_update_are_those_of_its_kind():
    batch = built()[0].batch(0, 8)
    graded = {kind: built(step_loss=kind)[1] for kind in ("last", "early")}
    # Answers after each step are read in both: a policy learns from whether they are right.
    every = graded["early"].batch_flops(batch, training=True)
    assert every > graded["last"].batch_flops(batch, training=True)
    for model in graded.values():
        assert update_flops(model, SETTINGS, 0, batch) == every
        assert update_flops(model, SETTINGS, 2, batch) == 4 * model.batch_flops(batch)


def test_positions_of_answers_reach_to_their_last_target_as_when_they_are_evaluated():
    task = TASKS["lookup"].Config(num_keys=4, max_hops=3)
    torch.manual_seed(1)
    found, model = build(make("thinker", task, policy=True, num_steps=STEPS, max_steps=STEPS))
    batch = found.batch(0, 9)
    rooms = batch.lengths - batch.prompt_lengths + 1
    assert (rooms > (batch.targets != IGNORED).sum(1)).all()
    rolled = roll_out(model.double().eval(), batch)
    full = of_all_steps(model, STEPS, batch.prompt_lengths, rooms)
    assert torch.equal(rolled.full_flops, full)


def test_targets_beyond_the_end_of_a_row_are_not_learned():
    _, model = built()
    tokens, prompts = torch.ones(3, 9, dtype=torch.int64), torch.tensor([4, 4, 4])
    targets, lengths = torch.full((3, 9), 2), torch.tensor([9, 7, 8])
    targets[:, :3] = IGNORED
    beyond, losses = torch.arange(9) >= lengths[:, None], []
    for update in (0, 2):
        for given in (targets, targets.masked_fill(beyond, IGNORED)):
            batch = Batch(tokens, given, prompts, lengths, torch.arange(3))
            module = PolicyLoss(model, SETTINGS, 3, lambda update=update: update)
            losses.append(module(batch, None, {"next_token": 12}).total.item())
    assert losses[0] == losses[1] and losses[2] == losses[3]


def test_a_policy_learns_to_stop_where_stopping_is_as_good():
    task, model = built()
    settings = Reinforce(num_updates=60, supervised_updates=1, policy_updates=60, cost_weight=1.0)
    batch = task.batch(0, 16)
    # Every answer is right at once: the targets are what the model writes after one step.
    first = model(
        batch.tokens, num_steps=1, lengths=batch.lengths, prompt_lengths=batch.prompt_lengths
    )
    index = torch.arange(16), batch.lengths - 1
    targets = torch.full_like(batch.targets, -100)
    targets[index] = first.logits[index].argmax(-1)
    batch = Batch(batch.tokens, targets, batch.prompt_lengths, batch.lengths, batch.keys)
    optimizer = torch.optim.Adam(model.policy.blocks.parameters(), lr=0.2)
    before = roll_out(model, batch).flops.double().mean()
    for update in range(1, 60):
        loss = PolicyLoss(model, settings, 16, lambda update=update: update)(batch, None, {})
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert roll_out(model, batch).flops.double().mean() < before


def test_rows_that_are_no_questions_are_refused():
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(UsageError, match="questions with answers"):
        question_room(Batch(tokens, tokens))
    _, model = built()
    prompts = torch.tensor([4, 4])
    for call in (
        lambda: repeated(Batch(tokens, tokens), 2),
        lambda: PolicyLoss(model, SETTINGS, 2, lambda: 0)(Batch(tokens, tokens, prompts), None, {}),
        lambda: PolicyLoss(model, SETTINGS, 2, lambda: 2)(Batch(tokens, tokens, prompts), None, {}),
    ):
        with pytest.raises(UsageError, match="keys of the batch"):
            call()


@pytest.mark.parametrize(
    "own, message",
    [
        ({"group_size": 1}, "group_size must be an integer in 2 .. 1000, got 1"),
        ({"group_size": 10**9}, "group_size must be an integer in 2 .. 1000, got 1000000000"),
        ({"cost_weight": 1.5}, "cost_weight must be in 0 .. 1, got 1.5"),
        ({"explore": -0.1}, "explore must be in 0 .. 1, got -0.1"),
        ({"lr": 0.0}, "lr must be above 0 and finite, got 0.0"),
        ({"entropy": float("inf")}, "entropy must be at least 0 and finite, got inf"),
        ({"reward": "more"}, "reward must be"),
        ({"num_updates": 0}, "num_updates must be an integer at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(own, message):
    with pytest.raises(UsageError, match=message):
        Reinforce(**own)
