"""Operations of HFLooped: those of a training depend on the weights that are trained."""

from typing import Any

from thinkers.models.hf_layers import layer_flops


def of_rows(model: Any, batch_size: int, length: int, steps: int, training: bool) -> int:
    """Count the operations of a forward pass, or of one and its gradients.

    A product whose weights are not trained has no gradient by them, and none at all where nothing
    before it is trained.
    """
    products, attention = layer_flops(model, batch_size, length)
    head = 2 * batch_size * length * model.config.vocab_size * model.config.dim
    num_layers = len(model.prelude), len(model.core), len(model.coda)
    once, again = products + attention, 2 * products + 3 * attention
    """Of a layer: a pass forward; a pass, and gradients by its input alone."""
    prelude, core, coda = num_layers
    forward = (prelude + steps * core + coda) * once + head
    if not training:
        return forward
    kind = model.config.trainable
    if kind == "all":
        return 3 * forward
    if kind == "core":
        return (prelude + 3 * steps * core) * once + coda * again + 2 * head
    # The first state that depends on the gate is that after the second step.
    if steps == 1:
        return forward
    return (prelude + 2 * core) * once + ((steps - 2) * core + coda) * again + 2 * head
