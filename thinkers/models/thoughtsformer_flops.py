"""Floating-point operations of a ThoughtsFormer: matrix products at 2mnk."""

from typing import Any

from jaxtyping import Int
from torch import Tensor

from thinkers.models.halt import Halt, check_steps_taken
from thinkers.nn.layers import attention_flops
from thinkers.nn.live_tokens import live_flops


def of_all(model: Any, batch_size: int, length: int, steps: int, training: bool) -> int:
    """Count the operations of rows whose positions all take `steps` steps."""
    config, block = model.config, model.blocks[0]
    head = model.answer_flops(batch_size, length)
    # In training, an answer of each graded step; words of a chain are read out besides.
    every = training and (config.halting or config.step_loss != "last")
    forward = head * (steps if every else 1)
    for step in range(steps):
        elements_so_far = length * (step + 1)
        keys = length + step if model.causal else elements_so_far
        recomputes = not model.causal and config.num_layers > 1
        elements = elements_so_far if recomputes else length
        forward += config.num_layers * block.flops(batch_size, elements, keys)
    if training and config.halting:
        forward += 2 * batch_size * length * config.dim * steps
    words = (steps - 1) * head if config.thoughts == "words" else 0
    # The soft word of the backward pass is one more product, whose weights get no gradient.
    return 3 * (forward + words) + 2 * words if training else forward + words


def of_live(
    model: Any, taken: Int[Tensor, "b t"], shape: tuple[int, int], steps: int, halt: Halt
) -> int:
    """Count the operations of positions that take these numbers of steps, at most `steps`."""
    check_steps_taken(taken, shape, steps)
    config, answer = model.config, model.answer_flops(1, 1)
    total = model.answer_flops(*taken.shape)
    for step in range(steps):
        live = taken > step
        number = int(live.sum())
        # A token that may halt is asked after each step: by the gate, or by its answer.
        each = 2 * config.dim if config.halting and halt != "answered" else answer
        each += answer if config.thoughts == "words" and step else 0
        total += live_flops(model.blocks[0], config.num_layers, each, live)
        total += config.num_layers * attention_flops(1, number, step, config.dim)
    return total
