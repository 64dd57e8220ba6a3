"""Floating-point operations of a Thinker: matrix products at 2mnk."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.models.batch import Batch, graded_targets
from thinkers.models.thinker_policy import BLOCKS, NONE, OUTPUT, PROCESS, READ, REFLECT
from thinkers.models.thinker_sizes import answer_room


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


def of_blocks(
    model: Any,
    actions: Int[Tensor, "b k"],
    lengths: Int[Tensor, " b"],
    rooms: Int[Tensor, " b"],
) -> Int[Tensor, " b"]:
    """Count for each row by itself the blocks that it chose, and its answer.

    Args:
        actions: Numbers of blocks, in the order of `BLOCKS`; NONE after OUTPUT.
        lengths: Tokens of the prompts.
        rooms: Positions of the answers.
    """
    config, process, latents = model.config, model.process, model.config.num_latents

    @cache
    def steps_of(length: int) -> Tensor:
        """Return the operations of each block at each step, (k, 5)."""
        found = torch.zeros(actions.shape[1], len(BLOCKS), dtype=torch.int64)
        for s in range(actions.shape[1]):
            decision = 2 * config.dim * len(BLOCKS) if s else 0
            written = process.project_flops(latents) if config.memory_steps != 0 else 0
            past = s if config.memory_steps is None else min(s, config.memory_steps)
            whole = memory_size(config, s, length, latents)
            for block, read in ((READ, length), (PROCESS, whole), (REFLECT, past * latents)):
                found[s, block] = decision + process.flops(1, latents, read) + written
            found[s, OUTPUT] = decision
        return found

    @cache
    def rest_of(length: int, room: int, taken: int) -> int:
        """Return the operations of reading the prompt and of writing the answer."""
        total = model.text.flops(1, length) + process.project_flops(length + config.num_knowledge)
        read = memory_size(config, taken, length, latents)
        total += config.output_steps * process.flops(1, room, read)
        return total + 2 * room * config.dim * config.vocab_size

    taken = ((actions != OUTPUT) & (actions != NONE)).sum(1)
    rows = zip(lengths.tolist(), rooms.tolist(), taken.tolist(), strict=True)
    rest = torch.tensor([rest_of(*row) for row in rows])
    by_step = torch.stack([steps_of(length) for length in lengths.tolist()])
    chosen = by_step.gather(2, actions.cpu().clamp(min=0)[..., None])[..., 0]
    return rest + chosen.where(actions.cpu() != NONE, 0).sum(1)


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
    thinking = 0
    for s in range(steps):
        step = process.flops(rows, latents, memory_size(config, s, read, latents))
        if training and config.halting:
            step += 2 * rows * config.dim
        if config.memory_steps != 0:
            step += process.project_flops(rows * latents)
        # A step without gradient has no backward pass, which would cost twice the forward.
        thinking += 3 * step if training and model.learns(s, steps) else step
    rest = model.text.flops(texts, read)
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


def earlier_answers(model: Any, batch: Batch) -> int:
    """Count the answers after all steps but the last, and their gradients, where the loss of the
    model has none: a policy learns from whether they are right."""
    config = model.config
    if config.step_loss != "last":
        return 0
    prompts = batch.prompt_lengths
    assert prompts is not None
    read, room = int(prompts.max()), answer_room(graded_targets(batch), prompts)
    written = 2 * len(batch) * room * config.dim * config.vocab_size * (config.num_steps - 1)
    for s in range(1, config.num_steps):
        memory = memory_size(config, s, read, config.num_latents)
        written += config.output_steps * model.process.flops(len(batch), room, memory)
    return 3 * written


def _answered_steps(model: Any, steps: int, training: bool) -> range:
    """Return the steps after which an answer is written."""
    every = training and (model.config.halting or model.config.step_loss != "last")
    return range(steps) if every else range(steps - 1, steps)
