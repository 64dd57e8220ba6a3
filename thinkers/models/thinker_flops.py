"""Floating-point operations of a Thinker: matrix products at 2mnk."""

from typing import Any

from jaxtyping import Int
from torch import Tensor


def sectioned(model: Any, batch_size: int, length: int, steps: int, training: bool) -> int:
    """Count the operations of rows without prompts: steps of each section over all before it."""
    config, process, size = model.config, model.process, model.config.section
    sections, first = length // size, min(length, size - 1)
    total = process.project_flops(config.num_latents)
    total += config.output_steps * process.flops(batch_size, first, config.num_latents)
    if training:
        total *= 3
    if sections:
        rows, read = batch_size * sections, sections * size
        total += _thinking(model, rows, read, batch_size, size, steps, training)
    return total + _head(model, batch_size * length, steps, training)


def prompted(
    model: Any, rows: int, longest: int, room: int, steps: int, training: bool, others: int = 0
) -> int:
    """Count the operations of reading prompts and writing answers of `room` positions.

    Args:
        others: Vectors of other inputs that each row reads besides its prompt.
    """
    thinking = _thinking(model, rows, longest, rows, room, steps, training, others)
    return thinking + _head(model, rows * room, steps, training)


def live_sectioned(model: Any, steps: Int[Tensor, "b t"]) -> int:
    """Count the operations of rows without prompts, whose sections took `steps`."""
    config, process, size = model.config, model.process, model.config.section
    (b, length), first = steps.shape, min(steps.shape[1], size - 1)
    total = process.project_flops(config.num_latents)
    total += config.output_steps * process.flops(b, first, config.num_latents)
    # The steps of a section are those of the first token that is written from it.
    taken = steps[:, size - 1 :: size].flatten()
    if len(taken):
        total += _live_thinking(model, taken, length // size * size, b, size)
    return total + _head(model, b * length, 1, False)


def live_prompted(model: Any, taken: Int[Tensor, " b"], longest: int, room: int) -> int:
    """Count the operations of prompts that took these steps, and of answers of `room` positions."""
    rows = len(taken)
    return _live_thinking(model, taken, longest, rows, room) + _head(model, rows * room, 1, False)


def _live_thinking(
    model: Any, taken: Int[Tensor, " b"], read: int, texts: int, queries: int
) -> int:
    """Count the steps that rows took, their gates, and the read-outs; see `_thinking`."""
    config, process, latents = model.config, model.process, model.config.num_latents
    least, most = (int(x) for x in taken.aminmax())
    total = model.text.flops(texts, read)
    total += process.project_flops(texts * read + config.num_knowledge)
    for s in range(most):
        rows = int((taken > s).sum())
        total += process.flops(rows, latents, memory_size(config, s, read, latents))
        total += 2 * rows * config.dim
        if config.memory_steps != 0:
            total += process.project_flops(rows * latents)
    # Read out from what any row sees.
    kept = config.memory_steps
    oldest = 0 if kept is None else max(0, least - kept)
    past = most - oldest if kept != 0 else 0
    rereads = config.read_steps is None or least <= config.read_steps
    width = rereads * read + config.num_knowledge * (most > 0) + past * latents
    return total + config.output_steps * process.flops(len(taken), queries, width)


def memory_size(config: Any, s: int, read: int, latents: int) -> int:
    """Return the number of vectors in M_s."""
    if s == 0:
        return read
    rereads = config.read_steps is None or s - 1 < config.read_steps
    past = s if config.memory_steps is None else min(s, config.memory_steps)
    return rereads * read + config.num_knowledge + past * latents


def _thinking(
    model: Any,
    rows: int,
    read: int,
    texts: int,
    queries: int,
    steps: int,
    training: bool,
    others: int = 0,
) -> int:
    """Count the thinking steps and the read-outs.

    Args:
        rows: Rows that think, one per section or prompt.
        read: Tokens in the memory of a row.
        texts: Texts of that length that are mixed and projected, shared by the rows.
        queries: Output queries per row.
        others: Vectors of other inputs in the memory of a row.
    """
    config, process = model.config, model.process
    rest, read = model.text.flops(texts, read), read + others
    latents = config.num_latents + (config.add_latents if training else 0)
    thinking = 0
    for s in range(steps):
        step = process.flops(rows, latents, memory_size(config, s, read, latents))
        if training and config.halting:
            step += 2 * rows * config.dim
        if config.memory_steps != 0:
            step += process.project_flops(rows * latents)
        # A step without gradient has no backward pass, which would cost twice the forward.
        thinking += 3 * step if training and model.learns(s, steps) else step
    rest += process.project_flops(texts * read + config.num_knowledge)
    for s in _answered_steps(model, steps, training):
        rest += config.output_steps * process.flops(
            rows, queries, memory_size(config, s + 1, read, latents)
        )
    return thinking + (3 * rest if training else rest)


def _head(model: Any, positions: int, steps: int, training: bool) -> int:
    """Count the output layer, and the probes where they are computed."""
    config = model.config
    width = config.vocab_size + config.num_probes * (not training)
    forward = 2 * positions * config.dim * width * len(_answered_steps(model, steps, training))
    return 3 * forward if training else forward


def _answered_steps(model: Any, steps: int, training: bool) -> range:
    """Return the steps after which an answer is written."""
    every = training and (model.config.halting or model.config.step_loss != "last")
    return range(steps) if every else range(steps - 1, steps)
