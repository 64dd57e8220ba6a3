"""Weights of a checkpoint that no forward pass reads: saved with a model, but no parameters."""

from jaxtyping import Float
from torch import Tensor, nn

PREFIX = "unread_weights."


def keep_unread(model: nn.Module, name: str, weight: Float[Tensor, "..."]) -> None:
    """Store this weight as a buffer of the model."""
    if PREFIX[:-1] not in model._modules:
        model.add_module(PREFIX[:-1], nn.Module())
    home = model.get_submodule(PREFIX[:-1])
    home.register_buffer(name.replace(".", "/"), weight.detach().clone())


def unread(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that `keep_unread` stored, by name."""
    return {
        name.removeprefix(PREFIX).replace("/", "."): weight
        for name, weight in model.named_buffers()
        if name.startswith(PREFIX)
    }
