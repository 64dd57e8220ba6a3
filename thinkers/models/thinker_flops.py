"""Floating-point operations of a Thinker: matrix products at 2mnk."""

from typing import Any


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


def prompted(model: Any, rows: int, longest: int, room: int, steps: int, training: bool) -> int:
    """Count the operations of reading prompts and writing answers of `room` positions."""
    thinking = _thinking(model, rows, longest, rows, room, steps, training)
    return thinking + _head(model, rows * room, steps, training)


def _thinking(
    model: Any, rows: int, read: int, texts: int, queries: int, steps: int, training: bool
) -> int:
    """Count the thinking steps and the read-outs.

    Args:
        rows: Rows that think, one per section or prompt.
        read: Tokens in the memory of a row.
        texts: Texts of that length that are mixed and projected, shared by the rows.
        queries: Output queries per row.
    """
    config, process = model.config, model.process
    latents = config.num_latents + (config.add_latents if training else 0)

    def memory(s: int) -> int:
        """Return the number of vectors in M_s."""
        if s == 0:
            return read
        rereads = config.read_steps is None or s - 1 < config.read_steps
        past = s if config.memory_steps is None else min(s, config.memory_steps)
        return rereads * read + config.num_knowledge + past * latents

    thinking = 0
    for s in range(steps):
        step = process.flops(rows, latents, memory(s))
        if config.memory_steps != 0:
            step += process.project_flops(rows * latents)
        # A step without gradient has no backward pass, which would cost twice the forward.
        thinking += 3 * step if training and model.learns(s, steps) else step
    rest = model.text.flops(texts, read)
    rest += process.project_flops(texts * read + config.num_knowledge)
    for s in _answered_steps(model, steps, training):
        rest += config.output_steps * process.flops(rows, queries, memory(s + 1))
    return thinking + (3 * rest if training else rest)


def _head(model: Any, positions: int, steps: int, training: bool) -> int:
    """Count the output layer, and the probes where they are computed."""
    config = model.config
    width = config.vocab_size + config.num_probes * (not training)
    forward = 2 * positions * config.dim * width * len(_answered_steps(model, steps, training))
    return 3 * forward if training else forward


def _answered_steps(model: Any, steps: int, training: bool) -> range:
    """Return the steps after which an answer is written."""
    every = training and model.config.step_loss != "last"
    return range(steps) if every else range(steps - 1, steps)
