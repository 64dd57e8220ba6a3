"""Floating-point operations of answers under a policy: matrix products at 2mnk."""

from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.models.batch import Batch, graded_targets
from thinkers.models.thinker_flops import memory_size
from thinkers.models.thinker_memory_flops import of_choice
from thinkers.models.thinker_policy import BLOCKS, NONE, OUTPUT, PROCESS, READ, RECALL, REFLECT
from thinkers.models.thinker_sizes import answer_room

WHOLE = len(BLOCKS)
"""The step of a model without a policy: PROCESS, and blocks of the memory after the first step."""


def of_blocks(
    model: Any,
    actions: Int[Tensor, "b k"],
    lengths: Int[Tensor, " b"],
    rooms: Int[Tensor, " b"],
    known: Int[Tensor, "b 2"] | None = None,
) -> Int[Tensor, " b"]:
    """Count for each row by itself the blocks that it chose, and its answer.

    RECALL costs the question to the index, its comparison with all keys, and the blocks that are
    read. Compression is not counted: it is done once, before anything is asked.

    Args:
        actions: Numbers of blocks, in the order of `BLOCKS`; NONE after OUTPUT.
        lengths: Tokens of the prompts.
        rooms: Positions of the answers.
        known: Numbers of blocks and of their latents in the long-term memory of each row, from
            `DocumentBlocks.counts`; None means none.
    """
    steps_of, rest_of = (
        cache(partial(_steps, model, actions.shape[1])),
        cache(partial(_rest, model)),
    )
    actions = actions.cpu()
    known = lengths.new_zeros(len(lengths), 2) if known is None else known.cpu()
    recalls = (actions == RECALL) | ((actions == WHOLE) & (torch.arange(actions.shape[1]) > 0))
    taken = ((actions != OUTPUT) & (actions != NONE)).sum(1)
    read = known * recalls.any(1, keepdim=True)
    given = torch.stack([lengths, rooms, taken, *read.unbind(1)], 1)
    rest = torch.tensor([rest_of(*row) for row in given.tolist()])
    given = torch.stack([lengths, *known.unbind(1)], 1)
    by_step = torch.stack([steps_of(*row) for row in given.tolist()])
    chosen = by_step.gather(2, actions.clamp(min=0)[..., None])[..., 0]
    return rest + chosen.where(actions != NONE, 0).sum(1)


def of_all_steps(
    model: Any,
    steps: int,
    lengths: Int[Tensor, " b"],
    rooms: Int[Tensor, " b"],
    known: Int[Tensor, "b 2"] | None = None,
) -> Int[Tensor, " b"]:
    """Count for each row by itself an answer after all steps of the model without a policy, and the
    decisions for them; see `of_blocks`."""
    actions = torch.full((len(lengths), steps), WHOLE)
    return of_blocks(model, actions, lengths, rooms, known)


def _steps(
    model: Any, number: int, length: int, blocks: int, latents_known: int
) -> Int[Tensor, "k 6"]:
    """Return the operations of each block at each step, and of WHOLE.

    Args:
        number: Number of steps.
        length: Tokens of the prompt.
        blocks, latents_known: Blocks in the long-term memory, and their latents.
    """
    config, process, latents = model.config, model.process, model.config.num_latents
    choice, _, vectors = of_choice(model, blocks, latents_known)
    found = torch.zeros(number, len(BLOCKS) + 1, dtype=torch.int64)
    for s in range(number):
        decision = 2 * config.dim * len(BLOCKS) if s else 0
        written = process.project_flops(latents) if config.memory_steps != 0 else 0
        past = s if config.memory_steps is None else min(s, config.memory_steps)
        whole = memory_size(config, s, length, latents)
        for block, own, recalls in (
            (READ, length, False),
            (PROCESS, whole, False),
            (REFLECT, past * latents, False),
            (RECALL, past * latents, s > 0),
            (WHOLE, whole, s > 0),
        ):
            step = process.flops(1, latents, own + vectors * recalls) + choice * recalls
            found[s, block] = decision + step + written
        found[s, OUTPUT] = decision
    return found


def _rest(model: Any, length: int, room: int, taken: int, blocks: int, latents_known: int) -> int:
    """Return the operations of reading the prompt and blocks of the memory, and of the answer."""
    config, process = model.config, model.process
    total = model.text.flops(1, length) + process.project_flops(length + config.num_knowledge)
    total += of_choice(model, blocks, latents_known)[1]
    read = memory_size(config, taken, length, config.num_latents)
    total += config.output_steps * process.flops(1, room, read)
    return int(total + 2 * room * config.dim * config.vocab_size)


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
