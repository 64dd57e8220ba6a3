"""Probes of the plans of a DeepSight: how much of the future they hold.

Used by benchmarks/planning_collapse.py and by the tests; nothing here runs by itself.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thinkers.models.batch import real_positions
from thinkers.models.deepsight_loss import PlanLoss, disaffinity


@torch.no_grad()
def foresight(model: Any, batches: Iterable[Any]) -> dict[str, float]:
    """How much of the future the plans of a DeepSight hold, on text that it was not trained on.

    A planning loss says little by itself: the mean embedding, the position and what was read so
    far predict most of a target. So a linear predictor from these alone is fitted to the first
    half of the batches, and measured on the second half beside the plan itself.

    Returns:
        plan: The planning loss; plan_known: that of the linear predictor, both as shares of the
        loss of the mean target; future_known: the R^2 of the weighted sum of the next tokens'
        embeddings, predicted by it; future_beyond: what share of its error the plan takes away;
        gain_encoder, gain_target: mean sizes of the learned gains (1 where there are none).
    """
    if not isinstance(model.plan_loss, PlanLoss):
        raise ValueError("plan_loss must be of embeddings to be measured by foresight")
    seen = [observe(model, batch) for batch in batches]
    if len(seen) < 2:
        raise ValueError(f"batches must be at least 2, to fit and to measure, got {len(seen)}")
    half = len(seen) // 2
    fit, rest = (
        {name: torch.cat([s[name] for s in part]).double() for name in seen[0]}
        for part in (seen[:half], seen[half:])
    )
    everything = [torch.cat([x["known"], x["plan"]], -1) for x in (fit, rest)]
    target = predict(fit["known"], fit["target"], rest["known"])
    known = error(predict(fit["known"], fit["future"], rest["known"]), rest["future"])
    beyond = error(predict(everything[0], fit["future"], everything[1]), rest["future"])
    kind, mean = model.plan_loss.kind, fit["target"].mean(0, keepdim=True)
    constant = disaffinity(kind, mean.expand_as(rest["target"]), rest["target"]).mean()
    return {
        "plan": float(disaffinity(kind, rest["normed"], rest["target"]).mean() / constant),
        "plan_known": float(disaffinity(kind, target, rest["target"]).mean() / constant),
        "future_known": float(1 - known / error(fit["future"].mean(0), rest["future"])),
        "future_beyond": float(1 - beyond / known),
        "gain_encoder": gain(model.plan_loss.encoder_norm),
        "gain_target": gain(model.plan_loss.after_norm or model.plan_loss.before_norm),
    }


def observe(model: Any, batch: Any) -> dict[str, Float[Tensor, "n c"]]:
    """Plans, targets, futures and what is known without planning, where a horizon is whole."""
    loss: PlanLoss = model.plan_loss
    t = batch.tokens.shape[1]
    real = real_positions(batch.tokens, batch.lengths)
    whole, n = real[:, loss.horizon :], t - loss.horizon
    embedded, plan, _ = model.run(batch.tokens.where(real, 0))
    embedded = model.plan_inputs(embedded)
    number = torch.arange(1, n + 1, device=plan.device)
    exist = torch.full_like(number, loss.horizon).expand(len(plan), n)
    present = embedded[:, :n].cumsum(1) / number[:, None]
    place = torch.stack([number / t, 1 / number, torch.ones_like(number)], -1)
    return {
        "plan": plan[:, :n][whole],
        "normed": loss.encoder_norm(plan[:, :n])[whole],
        "target": loss.target(embedded, real)[:, :n][whole],
        "future": loss.future(model.embedding(batch.tokens), n, exist)[whole],
        "known": torch.cat([present, place.expand(len(plan), -1, -1).to(present)], -1)[whole],
    }


def predict(
    x: Float[Tensor, "n c"], y: Float[Tensor, "n d"], new: Float[Tensor, "m c"]
) -> Float[Tensor, "m d"]:
    """The linear prediction for new x, fitted to (x, y); columns that add nothing do no harm."""
    scale = x.square().mean(0).sqrt().clamp(min=1e-30)
    x, new = x / scale, new / scale
    ridge = 1e-6 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return new @ torch.linalg.solve(x.T @ x + ridge, x.T @ y)


def error(found: Float[Tensor, "#n c"], wanted: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """The sum of squares."""
    return (found - wanted).square().sum()


def gain(norm: nn.LayerNorm | None) -> float:
    """The mean size of a norm's gain, 1 without one."""
    if norm is None or norm.weight is None:
        return 1.0
    return float(norm.weight.abs().mean())
