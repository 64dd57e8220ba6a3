"""Loss of a policy and of its model: leave-one-out REINFORCE, and answers under drawn blocks.

Policy updates (weights of the model as they are; G roll-outs i of each question, which read
documents as in inference):

    R_i  = g_i (1 - w C_i / C_max), or with reward quotient g_i C_max / C_i
    A_i  = R_i - mean of R_j over the others
    loss = -mean_i (A_i sum_s log pi_s(a_s)) - entropy mean_i sum_s H(pi_s)

g is 1 for a right answer and 0 for others, C counts operations, C_max those of `max_steps` steps
without a policy and the same answer: PROCESS, which reads a long-term memory too if there is one. w
rises from 0 to `cost_weight` during the first third. While w C_i is below C_max, a right answer
earns more than a wrong one. The baseline is that of RLOO (Kool et al. 2019,
https://openreview.net/forum?id=r1lgTGL5DE).

Supervised updates, under blocks that are drawn from the policy, some of them uniformly:

    loss = cross-entropy of the answer at OUTPUT + cross-entropy of right_s with "right if answered
    now", mean over the decisions of a row + the loss of the index in steps that RECALL

The second part puts into the latents what the policy has to know: whether thinking is done.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.config.reinforce import Reinforce
from thinkers.errors import NonFiniteError
from thinkers.models.batch import Batch, Loss, as_batch, correct_predictions, next_token_loss
from thinkers.models.thinker_policy_flops import earlier_answers
from thinkers.policies.rollout import Drawn, Rollout, keys_of, repeated, roll_out


class PolicyLoss(nn.Module):
    """The loss of a model with a policy.

    Args:
        rows: The rows of an update, over all micro-batches.
        update: Returns the number of the update, from 0, which decides of which kind it is.
    """

    def __init__(self, model: Any, settings: Reinforce, rows: int, update: Callable[[], int]):
        super().__init__()
        self.model, self.settings, self.rows, self.update = model, settings, rows, update

    def forward(self, batch: Batch, num_steps: int | None, counts: Mapping[str, int]) -> Loss:
        batch = as_batch(batch, self.model)
        if self.settings.is_supervised(self.update()):
            return self._supervised(batch, counts)
        return self._reinforced(batch)

    def _supervised(self, batch: Batch, counts: Mapping[str, int]) -> Loss:
        choose = Drawn(keys_of(batch), self.settings.explore)
        found = roll_out(self.model, batch, choose, learns=True)
        logits = found.logits[:, -1]
        answered = next_token_loss(logits, found.targets, counts["next_token"])
        right = self._right_losses(found).sum() / self.rows
        total, parts = answered + right, {"next_token": answered.detach(), "right": right.detach()}
        if found.index is not None:
            index = found.index.sum() / max(1, counts["index"])
            total = total + self.model.config.index_weight * index
            parts["index"] = index.detach()
        correct = correct_predictions(logits.detach(), found.targets)
        return Loss(total, parts, dict(counts), *correct)

    def _right_losses(self, found: Rollout) -> Float[Tensor, " b"]:
        """Return the cross-entropy of the estimates of each row that it would be right now."""
        is_right = found.is_right
        # Half precision has too few bits of mantissa for sums.
        dtype = torch.promote_types(found.logits.dtype, torch.float32)
        total = found.logits.new_zeros(len(is_right), dtype=dtype)
        number = torch.zeros_like(total)
        for decision in found.decisions:
            estimate = self.model.policy.right(decision.states)[:, 0].to(dtype)
            now = is_right[decision.rows, decision.step - 1].to(dtype)
            loss = F.binary_cross_entropy_with_logits(estimate, now, reduction="none")
            total = total.index_add(0, decision.rows, loss)
            number = number.index_add(0, decision.rows, torch.ones_like(loss))
        return total / number.clamp(min=1)

    def _reinforced(self, batch: Batch) -> Loss:
        settings, model = self.settings, self.model
        many = as_in_inference(repeated(batch, settings.group_size))
        with torch.no_grad():
            found = roll_out(model, many, Drawn(keys_of(many)))
        is_right = found.is_right[:, -1]
        reward = rewards(found, settings, self.update())
        gained = advantages(reward, settings.group_size)
        chosen, entropy = chosen_scores(model, found)
        share = len(batch) / self.rows
        policy = -(gained * chosen).mean() * share - settings.entropy * entropy.mean() * share
        saved = 1 - (found.flops.double() / found.full_flops.double()).mean()
        groups = is_right.view(len(batch), -1)
        values = {
            "policy": policy.detach(),
            "reward": reward.mean() * share,
            "saved": saved.to(reward.device) * share,
            "entropy": entropy.detach().mean() * share,
        }
        parts = {name: value.to(policy.dtype) for name, value in values.items()}
        return Loss(policy, parts, {}, groups.double().mean(1) >= 0.5, None)


def as_in_inference(batch: Batch) -> Batch:
    """Return questions whose documents are read without what is drawn for training."""
    return replace(batch, document_keys=None, document_levels=None)


def rewards(found: Rollout, settings: Reinforce, update: int) -> Float[Tensor, " b"]:
    """Return the reward of each roll-out: see the module.

    Raises:
        NonFiniteError: One is infinite or not a number.
    """
    goal = found.is_right[:, -1].double()
    cost = (found.flops.double() / found.full_flops.double()).to(goal.device)
    if settings.reward == "quotient":
        reward = goal / cost
    else:
        reward = goal * (1 - settings.cost_weight_at(update) * cost)
    if not bool(reward.isfinite().all()):
        row = int((~reward.isfinite()).nonzero()[0, 0])
        raise NonFiniteError(
            f"update {update + 1}: the reward of roll-out {row} is {float(reward[row])}; the "
            "weights are as before"
        )
    return reward


def advantages(reward: Float[Tensor, " b"], group_size: int) -> Float[Tensor, " b"]:
    """Return each reward minus the mean of the others of its group."""
    groups = reward.view(-1, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def chosen_scores(model: Any, found: Rollout) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return for each row the log-probability of its blocks, and the entropy of its choices."""
    total = torch.zeros(len(found.actions), dtype=torch.float64, device=found.actions.device)
    entropy = torch.zeros_like(total)
    for decision in found.decisions:
        scores = model.policy.blocks(decision.states.detach())
        scores = scores.masked_fill(~decision.allowed, -torch.inf)
        logs = scores.double().log_softmax(1)
        total = total.index_add(0, decision.rows, logs.gather(1, decision.chosen[:, None])[:, 0])
        terms = (logs.exp() * logs.masked_fill(~decision.allowed, 0.0)).sum(1)
        entropy = entropy.index_add(0, decision.rows, -terms)
    return total, entropy


def update_flops(model: Any, settings: Reinforce, update: int, batch: Batch) -> int:
    """Count the operations of an update, as if each row took all steps, and read in each."""
    if settings.is_supervised(update):
        return model.batch_flops(batch, training=True) + earlier_answers(model, batch)
    # Documents are compressed once for all roll-outs.
    copies = torch.arange(len(batch)).repeat_interleave(settings.group_size)
    return model.batch_flops(as_in_inference(batch.rows(copies)))
