"""Optimisers: the parameter groups of AdamW and Muon, and the learning-rate schedule."""

import math
from collections.abc import Sequence

from torch import Tensor, nn, optim

from thinkers.config.training import Training
from thinkers.errors import DamagedError
from thinkers.models import Model
from thinkers.training.sharding import divided

LR_RATIO = "lr_ratio"
"""In a group of parameters: its learning rate, as a multiple of that of the update."""


def build(
    model: nn.Module, settings: Training, policy_lr: float | None = None
) -> list[optim.Optimizer]:
    """Build AdamW for all parameters, or Muon for hidden matrices and AdamW for the rest.

    AdamW: Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101; norms, biases and
    embeddings have no weight decay. Muon: Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon, its updates scaled to the size of AdamW's (Liu et
    al. 2025, https://arxiv.org/abs/2502.16982), so that one learning rate can serve both. Matrices
    are distinguished by their use, never by their shapes: the weights of `nn.Embedding` embed, and
    `Model.output_weights` write logits, however large the vocabulary is.

    Args:
        policy_lr: Learning rate of the weights by which `model.policy` chooses, which get an AdamW
            of their own without decay; None treats them like all others.
    """
    chosen_by = [] if policy_lr is None else [*model.policy.blocks.parameters()]  # type: ignore
    chooses = {*chosen_by}
    learned = [p for p in model.parameters() if p.requires_grad and p not in chooses]
    tables = {layer.weight for layer in model.modules() if isinstance(layer, nn.Embedding)}
    hidden = _hidden(model) & {*learned} if settings.optimizer == "muon" else set()
    hidden -= tables
    others = [p for p in learned if p not in hidden]
    decayed = [p for p in others if p.ndim >= 2 and p not in tables]
    rest = [p for p in others if p.ndim < 2 or p in tables]
    groups = [(decayed, settings.weight_decay), (rest, 0.0)]
    adamw = optim.AdamW(
        [{"params": p, "weight_decay": decay} for p, decay in groups if p],
        lr=settings.lr,
        betas=settings.betas,
        fused=True,
    )
    own = []
    if policy_lr is not None:
        group = {"params": chosen_by, "weight_decay": 0.0, LR_RATIO: policy_lr / settings.lr}
        own = [optim.AdamW([group], lr=policy_lr, betas=settings.betas, fused=True)]
    if not hidden:
        return [adamw, *own]
    matrices = [p for p in learned if p in hidden]
    rate = settings.muon_lr or settings.lr
    muon = optim.Muon(
        [{"params": matrices, LR_RATIO: rate / settings.lr}],
        rate,
        settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon, *own]


def learning_rate(update: int, settings: Training) -> float:
    """Return the learning rate of an update: linear warm-up, then the schedule of the settings."""
    if update < settings.warmup_updates:
        return settings.lr * (update + 1) / settings.warmup_updates
    span = max(1, settings.num_updates - settings.warmup_updates)
    done = min(1.0, (update - settings.warmup_updates) / span)
    shape = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }[settings.schedule]
    return settings.lr * (settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * shape)


def step(optimizers: Sequence[optim.Optimizer], lr: float) -> None:
    """Make one optimiser step at this learning rate, then clear the gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get(LR_RATIO, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def state_dict(optimizers: Sequence[optim.Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """Return the optimisers' tensors as {"<parameter>/<name>": tensor}, which safetensors holds."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[p]}/{key}": value
        for optimizer in optimizers
        for p, tensors in optimizer.state.items()
        for key, value in tensors.items()
    }


def load_state_dict(
    optimizers: Sequence[optim.Optimizer], model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Load the tensors that `state_dict` returned.

    Raises:
        DamagedError: One belongs to no parameter that is trained, or has another shape.
    """
    owners = {p: x for x in optimizers for group in x.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters.get(owner)
        if parameter not in owners or value.shape not in (parameter.shape, ()):  # type: ignore
            raise DamagedError(
                f"the state of the optimiser must be of the shape of a parameter, "
                f"got {name} of {list(value.shape)}"
            )
        assert parameter is not None
        own = value.to(parameter.device, copy=True)
        owners[parameter].state[parameter][key] = divided(own, parameter) if own.ndim else own


def _hidden(model: nn.Module) -> set[Tensor]:
    """Return the weights of linear layers, except those that write logits."""
    if isinstance(model, Model):
        return model.linear_weights() - model.output_weights()
    return {layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)}
