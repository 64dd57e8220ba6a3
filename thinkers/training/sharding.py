"""Sharded training: each rank holds a part of every weight, gradient and optimiser state (FSDP2).

Zhao et al. 2023, https://arxiv.org/abs/2304.11277, by torch's `fully_shard`. The weights of a shard
unit are gathered while it computes. Scores and checkpoints are of the whole model, which is
gathered for them: a checkpoint is the same as that of one process, and any number of ranks resumes
it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from thinkers.config.training import Training
from thinkers.errors import usage_error
from thinkers.models.base import Model
from thinkers.process_state import keep_process_state


def check_sharding(settings: Training) -> None:
    """Raise a UsageError unless a run of these settings can be sharded, if they ask for it."""
    if settings.sharding == "none":
        return
    if settings.optimizer != "adamw":
        raise usage_error(
            f"--training.sharding {settings.sharding} with --training.optimizer "
            f"{settings.optimizer}",
            "adamw: Muon needs whole matrices",
            "leave one of them out",
        )
    if settings.compile:
        raise usage_error(
            f"--training.sharding {settings.sharding} with --training.compile",
            "one of them",
            "leave one of them out",
        )


def shard(model: Model) -> None:
    """Divide the weights of a model among the ranks, in place."""
    for unit in model.shard_units:
        fully_shard(unit)
    fully_shard(model)
    register_fsdp_forward_method(model, "loss")


def is_sharded(module: Any) -> bool:
    """Return True for a module that `shard` has divided."""
    return isinstance(module, FSDPModule)


def gathered(x: Tensor) -> Tensor:
    """Return a whole tensor, on every rank; all ranks call this together."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def divided(x: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, divided as `like` is."""
    if not isinstance(like, DTensor):
        return x
    # Every rank has the whole tensor: nothing is sent.
    return distribute_tensor(
        x.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def load_weights(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Load whole weights into a model, which may be sharded."""
    if not is_sharded(model):
        model.load_state_dict(weights)
        return
    with torch.no_grad():
        for name, own in model.state_dict().items():
            own.copy_(divided(weights[name], own))


def whole(model: Model) -> Model:
    """Return a model with whole weights: a copy of one that is sharded, on every rank."""
    if not is_sharded(model):
        return model
    return with_weights(model, {name: gathered(x) for name, x in model.state_dict().items()})


def with_weights(model: Model, weights: Mapping[str, Tensor]) -> Model:
    """Return a model of this kind with these whole weights, which is not sharded."""
    like = next(iter(weights.values()))
    with keep_process_state():  # its first weights are drawn, and then replaced
        twin = type(model)(model.config)
    twin.to(like.device, like.dtype).load_state_dict(weights)
    return twin
