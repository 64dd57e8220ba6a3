"""Weights that no forward reads: kept and saved with a model, and none of its parameters."""

from jaxtyping import Float
from torch import Tensor, nn

PREFIX = "unread_weights."


def keep_unread(model: nn.Module, name: str, weight: Float[Tensor, "..."]) -> None:
    """Keep this weight as a buffer of the model."""
    if PREFIX[:-1] not in model._modules:
        model.add_module(PREFIX[:-1], nn.Module())
    home = model.get_submodule(PREFIX[:-1])
    home.register_buffer(name.replace(".", "/"), weight.detach().clone())


def unread(model: nn.Module) -> dict[str, Tensor]:
    """The weights that were kept so, by name."""
    return {
        name.removeprefix(PREFIX).replace("/", "."): weight
        for name, weight in model.named_buffers()
        if name.startswith(PREFIX)
    }
