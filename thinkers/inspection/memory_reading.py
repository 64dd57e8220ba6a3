"""Reading of a long-term memory: the blocks that a model reads at each step, and `ask`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.checks import check_int
from thinkers.evaluation.generate import answered, steps_for
from thinkers.inspection.results import Asked, ReadBlock
from thinkers.memory.blocks import UNKNOWN, Blocks
from thinkers.memory.parts import Readable, snapshot
from thinkers.models.base import Model, Thought
from thinkers.models.document_blocks import ABSENT
from thinkers.models.generation import eval_mode
from thinkers.models.halt import Halt, check_halt, halt_option, with_policy
from thinkers.models.memory_option import check_takes_memory, memory_option, memory_top
from thinkers.models.positions import option
from thinkers.runs.result import RunLike, open_with_task
from thinkers.tasks import Task

LONGEST_TEXT = 1000
"""Characters of a block's text that are shown: one of a high level may be that of a book."""


def ask(
    run: RunLike,
    prompt: str,
    memory: Readable,
    num_steps: int | None = None,
    *,
    top: int | None = None,
    halt: Halt = None,
    policy: bool = False,
) -> Asked:
    """Answer a prompt from a memory; return the answer and the blocks that were read for it.

    Args:
        run: A run, its folder, or (model, task).
        memory: A `LongTermMemory` of this model, or a part of one.
        num_steps: Thinking steps; None means those of `answer`.
        top: Number of blocks that are read at a step; None means the model's `memory_top`.
        halt, policy: As in `answer`.

    Raises:
        UsageError: As in `answer`, or `top` is below 1.
    """
    model, task = open_with_task(run)
    check_takes_memory(model, memory)
    halt, read = check_halt(model, with_policy(halt, policy)), task.read_prompt(prompt)
    with reading_top(model, top), snapshot(memory) as now:
        text, found = answered(model, task, prompt, num_steps, halt, (), now)
        length = None if read.longest is None else found.prompt_length
        row = found.row if length is None else found.row[:length]
        steps = model.check_steps(steps_for(model, read, num_steps))
        thought = think(model, task, row, length, steps, halt, now)
        with now.view() as view:
            return Asked(prompt, text, read_blocks(model, reads(model, thought), view))


@contextmanager
def reading_top(model: Any, top: int | None) -> Iterator[None]:
    """Let a model read `top` blocks at a step inside the block; None changes nothing."""
    with memory_top(model, model.config.memory_top if top is None else check_int("top", top, 1)):
        yield


def think(
    model: Model,
    task: Task,
    row: Sequence[int],
    prompt_length: int | None,
    num_steps: int,
    halt: Halt = None,
    memory: Any = None,
) -> Thought:
    """Return the forward pass of one row, with the states of all steps."""
    device = next(model.parameters()).device
    tokens = torch.tensor([list(row)], device=device)
    lengths = None if prompt_length is None else torch.full_like(tokens[:, 0], prompt_length)
    with eval_mode(model):
        found: Thought = model(
            tokens,
            num_steps=num_steps,
            prompt_lengths=lengths,
            keep_states=True,
            **option(task.positions),
            **halt_option(halt),
            **memory_option(memory),
        )
    return found


@dataclass(frozen=True)
class Read:
    """The blocks that one row read at a step; see `ReadBlock` for the place.

    Args:
        query: The query of the index, from the latents after the step before.
    """

    section: int | None
    step: int
    ids: Int[Tensor, " n"]
    mass: Float[Tensor, " n"]
    query: Float[Tensor, " d"]

    def scores(self, model: Any, blocks: Blocks) -> Float[Tensor, " n"]:
        """Return the scores of these blocks: those of their best latents, times tau.

        Args:
            blocks: Blocks in the order of their ids, these among them.
        """
        rows = torch.searchsorted(blocks.ids, self.ids)
        keys, sizes = blocks.keys[rows], blocks.sizes[rows]
        hidden = torch.arange(keys.shape[1]) >= sizes[:, None]
        return (keys @ self.query).masked_fill(hidden, -torch.inf).amax(1) * model.block_scale()


def reads(model: Any, thought: Thought) -> list[Read]:
    """Return the blocks that a row read, by section and step.

    Args:
        thought: A pass with the states of all steps, so that it holds the latents of each.
    """
    if "blocks" not in thought.extra:
        return []
    ids, mass, latents = (thought.extra[name][0] for name in ("blocks", "block_mass", "latents"))
    is_text, found = ids.ndim == 3, []
    if not is_text:
        ids, mass, latents = ids[None], mass[None], latents[None]
    for section in range(len(ids)):
        for step in range(1, ids.shape[1]):
            is_read = ids[section, step] != ABSENT
            if is_read.any():
                query = model.block_query(latents[section, step - 1][None])[0].float()
                rows = ids[section, step, is_read], mass[section, step, is_read].float(), query
                place = section + 1 if is_text else None, step + 1
                found.append(Read(*place, *(x.detach().cpu() for x in rows)))
    return found


def read_blocks(model: Any, found: Sequence[Read], view: Any) -> tuple[ReadBlock, ...]:
    """Return the blocks that were read, by section, step and score, the best first.

    Args:
        view: The snapshot that was read.
    """
    blocks = blocks_of(found, view)
    every = blocks.ids.tolist()
    shown = []
    for read in found:
        scores = read.scores(model, blocks)
        for place in scores.sort(descending=True, stable=True).indices.tolist():
            row = every.index(int(read.ids[place]))
            numbers = float(scores[place]), float(read.mass[place])
            shown.append(_read_block(blocks, row, view, read, *numbers))
    return tuple(shown)


def blocks_of(found: Sequence[Read], view: Any) -> Blocks:
    """Return all blocks that were read, in the order of their ids."""
    ids = sorted({id for read in found for id in read.ids.tolist()})
    blocks: Blocks = view.fetch(ids)
    return blocks


def _read_block(
    blocks: Blocks, row: int, view: Any, read: Read, score: float, mass: float
) -> ReadBlock:
    first, last = blocks.lines[row].tolist()
    return ReadBlock(
        step=read.step,
        section=read.section,
        id=int(blocks.ids[row]),
        level=int(blocks.levels[row]),
        topic=blocks.topics[row],
        source=blocks.sources[row],
        lines=None if UNKNOWN in (first, last) else (first, last),
        score=score,
        mass=mass,
        text=text_of(blocks, row, view),
    )


def text_of(blocks: Blocks, row: int, view: Any) -> str | None:
    """Return the text of a block, for one of a higher level that of its sections; None if it was
    not kept. A long one is cut off."""
    text, children = blocks.texts[row], blocks.children[row]
    if text is None and children:
        below = view.fetch(children)
        parts = [text_of(below, i, view) for i in range(len(below))]
        text = None if None in parts else "\n".join(x for x in parts if x is not None)
    if text is None or len(text) <= LONGEST_TEXT:
        return text
    return text[: LONGEST_TEXT - 1] + "…"
