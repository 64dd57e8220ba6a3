"""Losses after several thinking steps: which answer each step must give, and with which weight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.checks import added, check_choices, check_int
from thinkers.errors import UsageError, usage_error
from thinkers.models import base
from thinkers.models.batch import IGNORED, Batch, Loss, graded_last, next_token_loss

StepLoss = Literal["last", "every", "due", "wait", "early"]


@dataclass(frozen=True, kw_only=True)
class StepLossConfig(base.Config):
    """Settings of a model that can be graded after every thinking step."""

    step_loss: StepLoss = added("last")
    """Grade a target after the last step alone, after every step, or after every step from the one
    on that it is due (`Batch.due`); wait: and before that step demand `wait_token` instead; early:
    and before it demand the answers of `Batch.early`."""
    wait_token: int | None = added(None)
    """The answer "not yet" of step_loss wait; None follows the task."""
    halting: bool = added(False)
    """Learn when each token is done, so that calls with `halt` stop there. Then a target is graded
    from the step on that its answer can be known, its due step if it has one, in both last and
    due; in wait `wait_token` is demanded before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        if self.halting and self.step_loss in ("every", "early"):
            raise UsageError(
                "step_loss must be last, due or wait with halting, which grades a token from the "
                f"step on that its answer can be known, got {self.step_loss}"
            )
        if self.step_loss != "wait":
            self.refuse_unused(("wait_token",), f"step_loss is {self.step_loss}")
        elif self.vocab_size is not None:
            # Until the sizes are resolved, wait_token may be None too: both follow the task.
            if self.wait_token is None:
                raise UsageError(
                    "wait_token must be the answer of a target that is not due, since step_loss is "
                    "wait, got None; set it, or choose a task that has one, such as links"
                )
            check_int("wait_token", self.wait_token, 0, self.vocab_size - 1, "vocab_size")


def check_has_early(kind: StepLoss, due: Tensor | None, early: Tensor | None) -> None:
    """Raise UsageError if this loss needs answers that are right before the due step of a target
    and has none."""
    if kind == "early" and due is not None and early is None:
        raise usage_error(
            "step_loss early with due steps and no early answers",
            "a task that knows what is right before an answer is due, such as mixed",
            "choose another step_loss, such as due",
        )


def graded_steps(
    kind: Literal["every", "due", "wait", "early"],
    targets: Int[Tensor, "b t"],
    due: Int[Tensor, "b t"] | None,
    steps: int,
    wait_token: int | None = None,
    step_weights: Sequence[float] = (),
    early: Int[Tensor, "b t e"] | None = None,
) -> tuple[Int[Tensor, "b k t"], Float[Tensor, "#b k #t"]]:
    """Return the target of each position after each graded step, and its weight.

    The weights of a position add up to 1, steps that are not graded included. With n the number of
    steps and d the due step, a target is graded

        every   after every step, by `step_weights` (equal if there are none)
        due     after the steps min(d, n) .. n, equally
        wait    after every step, equally; before step d the right answer is `wait_token`
        early   after every step, equally; before step d the right answer is that of `early`, and
                a step without one is not graded

    Args:
        due: None means that every target is due after the first step.
        step_weights: Weights of the steps; the last one is repeated.
    """
    number = torch.arange(1, steps + 1, device=targets.device)[:, None]
    wide = targets[:, None].expand(-1, steps, -1)
    first = torch.ones_like(targets)[:, None] if due is None else due[:, None]
    if kind == "every":
        given = step_weights or (1.0,)
        weights = [given[min(i, len(given) - 1)] for i in range(steps)]
        shares = torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)
        return wide, shares[None, :, None].to(targets.device)
    if kind == "wait":
        # A target that is due after step n has no step at which it can be known: it waits.
        waits = (number < first) & (wide != IGNORED)
        assert wait_token is not None
        return wide.masked_fill(waits, wait_token), (number[None] > 0).double() / steps
    if kind == "early":
        equal = (number[None] > 0).double() / steps
        if due is None:
            return wide, equal
        check_has_early(kind, due, early)
        assert early is not None
        known = early[..., :steps].transpose(1, 2)
        known = F.pad(known, (0, 0, 0, steps - known.shape[1]), value=IGNORED)
        return known.where((number < first) & (wide != IGNORED), wide), equal
    first = first.clamp(max=steps)
    return wide, (number >= first).double() / (steps + 1 - first)


def loss_of_states(
    model: Any,
    states: Float[Tensor, "b k t c"],
    batch: Batch,
    own: Mapping[str, int],
    count: int,
) -> Loss:
    """Compute the loss of a model by its settings `step_loss`.

    Args:
        states: The state after each graded step: after the last alone where `step_loss` is last.
        batch: The targets of these positions, and when they are due.
        own: The number of terms of each part of the loss of these rows.
        count: The graded tokens of the batch, or of a larger one of which these rows are a share.
    """
    config, logits, targets = model.config, model.read_out(states), batch.targets
    if config.step_loss == "last":
        total = next_token_loss(logits[:, -1], targets, count)
    else:
        weights = getattr(config, "step_weights", ())
        steps = states.shape[1]
        kind, wait = config.step_loss, config.wait_token
        graded = graded_steps(kind, targets, batch.due, steps, wait, weights, batch.early)
        total = step_loss(logits, *graded, count)
    last = graded_last(logits[:, -1], targets)
    return Loss(total, {"next_token": total.detach()}, own, *last)


def step_loss(
    logits: Float[Tensor, "b k t v"],
    targets: Int[Tensor, "b k t"],
    weights: Float[Tensor, "#b k #t"],
    count: int,
) -> Float[Tensor, ""]:
    """Sum the weighted cross-entropies of all steps, in nats, and divide by `count`.

    Args:
        targets: -100 where a position is not graded; weights: its share of each step.
        count: The graded tokens of the batch, or of a larger one of which these rows are a share.
    """
    # Half precision has too few bits for a sum over many tokens, as in next_token_loss.
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    losses = F.cross_entropy(
        logits.flatten(0, 2), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return (losses.view_as(targets) * weights.to(losses.dtype)).sum() / max(1, count)
