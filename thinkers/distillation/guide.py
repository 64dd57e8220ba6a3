"""A finished model that guides another one: its weights, its divergence and its operations.

    loss = loss of the task + weight KL(guide || model)

p is the distribution of the guide at a graded position after its own number of steps, q that of the
model after its last step; KL = sum_v p_v (log p_v - log q_v), in nats, is summed over the graded
positions and divided by their number, as the cross-entropy of the task is. The weight falls
linearly to 0 over a share of the updates, and the guide is not run after that. It does not learn,
drops nothing out and draws no noise.

Distillation by softened targets is that of Hinton et al. 2015 (https://arxiv.org/abs/1503.02531),
here at temperature 1; the decay is that of kickstarting (Schmitt et al. 2018,
https://arxiv.org/abs/1803.03835).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import first_not_finite
from thinkers.config.grow import Grow
from thinkers.errors import NonFiniteError, usage_error
from thinkers.models.base import Model
from thinkers.models.batch import IGNORED, Batch, Loss, as_batch
from thinkers.models.memory_option import has_memory
from thinkers.runs.result import load, weights_digest
from thinkers.tasks import Task


def load_guide(settings: Grow, task: Task, model: Model) -> Model:
    """Load the model that guides `model`, in evaluation mode, with its device and dtype.

    Raises:
        UsageError: It reads documents, or other tokens or shorter rows than `model` is trained on.
        NonFiniteError: A weight of it is infinite or not a number.
        DataError: The folder holds no model.
    """
    guide, folder = load(settings.guide), settings.guide
    if has_memory(guide):
        raise usage_error(
            f"the guide {folder}, a {guide.name} with memory {guide.config.memory}",
            "a model that answers from its prompt alone",
            "choose another run, or train a model without --model.memory",
        )
    if guide.config.vocab_size != model.config.vocab_size:
        raise usage_error(
            f"the guide {folder} with {guide.config.vocab_size} tokens, and a model with "
            f"{model.config.vocab_size}",
            "the same vocabulary in both",
            "choose a run on the same task, and leave --model.vocab_size out",
        )
    longest = task.max_length
    if guide.config.max_length is not None and guide.config.max_length < longest:
        raise usage_error(
            f"the guide {folder}, which reads {guide.config.max_length} tokens",
            f"at least {longest}, the longest row of the task",
            "leave the settings of the task as they were",
        )
    if (bad := first_not_finite(guide.state_dict())) is not None:
        raise NonFiniteError(f"{bad} of the guide {folder} is not finite; nothing is trained")
    like = next(model.parameters())
    return guide.to(like.device, like.dtype).requires_grad_(False)


def guide_weights(settings: Grow | None, record: Mapping[str, Any]) -> dict[str, str]:
    """Return what the record of a run keeps of the guide's weights: their digest.

    Raises:
        UsageError: There are none, or others than those that the run was guided by.
    """
    if settings is None:
        return {}
    digest = weights_digest(settings.guide)
    if digest is None:
        raise usage_error(
            f"{settings.guide}, which holds no model",
            "the model that guides the run, until its last update",
            "put it back, or grow a new run from another one",
        )
    if record.get("guide_weights", digest) != digest:
        raise usage_error(
            f"{settings.guide}, whose weights have changed since the run was first guided by them",
            "the same weights: with others the run would be another one",
            "put them back, or grow a new run from these",
        )
    return {"guide_weights": digest}


class GuidedLoss(nn.Module):
    """The loss of a model, and its weighted divergence from a guide.

    Args:
        weight: Returns the weight of this update; at 0 the guide is not run.
    """

    def __init__(self, model: Model, guide: Model, weight: Callable[[], float]):
        super().__init__()
        self.model, self.weight = model, weight
        # No part of this module: data parallelism would average it, and sharding divide it.
        self._guide = (guide,)

    def forward(self, batch: Batch, num_steps: int | None, counts: Mapping[str, int]) -> Loss:
        loss = self.model.loss(batch, num_steps=num_steps, counts=counts)
        weight = self.weight()
        if not weight:
            return loss.without_logits()
        apart = divergence(loss, self._guided(batch), self.model.name) / max(
            1, counts["next_token"]
        )
        parts = {**loss.parts, "guide": apart.detach()}
        return replace(loss, total=loss.total + weight * apart, parts=parts).without_logits()

    def _guided(self, batch: Batch) -> Float[Tensor, "n v"]:
        """Return the guide's logits at the graded positions, in the order of the batch."""
        (guide,) = self._guide
        with torch.no_grad():
            logits, targets = guide.graded_logits(as_batch(batch, guide))
        return logits[targets != IGNORED]


def divergence(loss: Loss, guided: Float[Tensor, "n v"], name: str) -> Float[Tensor, ""]:
    """Sum the divergences KL(guide || model) of the graded positions, in nats.

    Args:
        loss: The loss of the model, with its logits.
        guided: The guide's logits at the graded positions, in the order of the batch.
        name: The model's, for the error.

    Raises:
        UsageError: The loss has no logits.
    """
    if loss.logits is None or loss.targets is None:
        raise usage_error(
            f"grow for {name}, whose loss holds no logits",
            "a model that fills in Loss.logits and Loss.targets",
            "let its loss end with *graded_last(logits, targets) of thinkers.models.batch",
        )
    own = loss.logits[loss.targets != IGNORED]
    # Half precision has too few bits for a sum over many tokens, as in next_token_loss.
    own, guided = (x.float() if x.dtype.itemsize < 4 else x for x in (own, guided))
    found, wanted = own.log_softmax(-1), guided.log_softmax(-1)
    return F.kl_div(found, wanted, reduction="sum", log_target=True)


def guide_flops(guide: Model, batch: Batch) -> int:
    """Count the operations of the guide on these rows."""
    return guide.batch_flops(batch)
