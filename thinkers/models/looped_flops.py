"""Operations of Looped, with and without tokens that halt."""

from typing import Any

from jaxtyping import Int
from torch import Tensor

from thinkers.models.halt import Halt, check_steps_taken
from thinkers.nn.live_tokens import live_flops


def of_all(model: Any, batch_size: int, length: int, steps: int, training: bool) -> int:
    """Count the operations of a pass in which no token halts, or with its gradients."""
    config, rows = model.config, batch_size * length
    layer = model.core[0].flops(batch_size, length, length)
    step = len(model.core) * layer + rows * _of_injection(model)
    once, answer = len(model.prelude) * layer, of_answer(model, batch_size, length)
    if not training:
        return once + answer + steps * step
    answers = steps if config.halting or config.step_loss != "last" else 1
    learned = min(steps, config.backprop_steps or steps)
    gates = 2 * rows * config.dim * steps if config.halting else 0
    return 3 * (once + answers * answer + gates) + (steps + 2 * learned) * step


def of_live(
    model: Any, taken: Int[Tensor, "b t"], shape: tuple[int, int], steps: int, halt: Halt
) -> int:
    """Count the operations of tokens that take these numbers of steps, at most `steps`."""
    check_steps_taken(taken, shape, steps)
    config, block = model.config, model.core[0]
    # A token that may halt is asked after each step: by the gate, or by its answer.
    by_gate = config.halting and halt != "answered"
    each = _of_injection(model) + 2 * config.dim * (1 if by_gate else config.vocab_size)
    live = (live_flops(block, len(model.core), each, taken > step) for step in range(steps))
    once = len(model.prelude) * block.flops(*shape, shape[1])
    return once + of_answer(model, *shape) + sum(live)


def of_answer(model: Any, batch_size: int, length: int) -> int:
    """Count the operations that turn the states of one step into logits."""
    head = 2 * batch_size * length * model.config.dim * model.config.vocab_size
    return len(model.coda) * model.core[0].flops(batch_size, length, length) + head


def _of_injection(model: Any) -> int:
    """Count the operations with which a token's input enters a step."""
    return 2 * 2 * model.config.dim**2 if model.config.injection == "concat" else 0
