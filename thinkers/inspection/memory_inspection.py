"""Blocks of a long-term memory that an answer rests on, and the answer without each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.evaluation.generate import answer_text, fit_prompt, respond
from thinkers.inspection.memory_reading import (
    Read,
    blocks_of,
    read_blocks,
    reads,
    think,
)
from thinkers.inspection.results import (
    MemoryReading,
    ReadBlock,
    ReadStep,
    Without,
    label,
    token_with_text,
)
from thinkers.memory import LongTermMemory
from thinkers.memory.parts import MemoryPart, Snapshot
from thinkers.memory.sqlite import SqliteStore
from thinkers.models.base import Model, Thought
from thinkers.models.halt import Halt
from thinkers.models.memory_option import memory_top
from thinkers.models.tools import Tool
from thinkers.tasks import Task

MOST_COMPARED = 2000
"""Blocks of a memory that are all read, to compare with those that the index chose."""
MOST_LEFT_OUT = 24
"""Blocks that are left out in turn, to see how the answer changes."""


@dataclass(frozen=True)
class Question:
    """A prompt that is inspected, and the answer of the model.

    Args:
        tokens: The prompt and its answer, except the last token; for open-ended text the text.
        prompt_length: Tokens of the prompt; None for open-ended text.
        answer: The text of the answer; None for open-ended text.
        written: The tokens of the answer that come after the prompt, without the end token.
    """

    model: Model
    task: Task
    prompt: str
    num_steps: int
    halt: Halt
    tools: Sequence[Tool]
    tokens: list[int]
    prompt_length: int | None = None
    answer: str | None = None
    written: Sequence[int] = ()

    def think(self, memory: Any) -> Thought:
        """Return the forward pass of the tokens."""
        length = self.prompt_length
        return think(self.model, self.task, self.tokens, length, self.num_steps, self.halt, memory)

    def answer_from(self, memory: Any) -> str:
        """Return the answer; of open-ended text the next token."""
        if self.prompt_length is None:
            best = int(self.chances(memory)[-1].argmax())
            return label(self.task, best, token_with_text(self.task, self.tokens))
        read, room = fit_prompt(self.model, self.task, self.prompt)
        found = respond(
            self.model, self.task, read, room, self.num_steps, self.halt, self.tools, memory
        )
        return answer_text(self.task, self.prompt, read.begun, found.answer)

    def chances(self, memory: Any) -> Float[Tensor, "t v"]:
        """Return the probabilities of the next token at each position."""
        logits = self.think(memory).logits[0, :, : self.task.num_output_tokens]
        return logits.double().softmax(-1)

    def targets(self, memory: Any) -> Int[Tensor, " n"]:
        """Return the tokens of the answer; of open-ended text the next token."""
        if self.prompt_length is None:
            return self.chances(memory)[-1:].argmax(-1).cpu()
        return torch.tensor(self.written, dtype=torch.int64)

    def chance(self, targets: Int[Tensor, " n"], memory: Any) -> float | None:
        """Return the probability of an answer; None if it is not after the prompt."""
        if not len(targets):
            return None
        start = len(self.tokens) - 1 if self.prompt_length is None else self.prompt_length - 1
        chances = self.chances(memory)[start : start + len(targets)].cpu()
        return float(chances.gather(1, targets[:, None]).prod())


def inspect_reading(question: Question, thought: Thought, memory: Snapshot) -> MemoryReading:
    """Return what was read from a memory, and the answers without it.

    Args:
        thought: The pass of the question with the memory.
        memory: The snapshot that it read.
    """
    model: Any = question.model
    found = reads(model, thought)
    with memory.view() as view:
        blocks = read_blocks(model, found, view)
        size = len(view.ids(model.config.read_level))
        shares = covered(question, memory, found) if size <= MOST_COMPARED else {}
    by_mass = sorted(blocks, key=lambda x: -x.mass)
    left_out = list(dict.fromkeys(block.id for block in by_mass))[:MOST_LEFT_OUT]
    targets = question.targets(memory)

    def without(id: int | None) -> Without:
        part = None if id is None else MemoryPart(memory, None, (id,))
        return Without(id, question.answer_from(part), question.chance(targets, part))

    return MemoryReading(
        *named(memory.memory),
        size=size,
        blocks=blocks,
        steps=_steps(blocks, shares),
        answer=question.answer_from(memory) if question.answer is None else question.answer,
        chance=question.chance(targets, memory),
        without=tuple(without(id) for id in left_out),
        alone=without(None),
    )


def named(memory: Any) -> tuple[str, tuple[str, ...] | None]:
    """Return the folder of a memory, "" without one, and the topics of a part; None means all."""
    topics = None
    while isinstance(memory, MemoryPart):
        topics = topics if memory.topics is None else tuple(memory.topics)
        memory = memory.memory
    is_folder = isinstance(memory, LongTermMemory) and isinstance(memory.store, SqliteStore)
    return str(memory.store.folder) if is_folder else "", topics


Place = tuple[int | None, int]
"""Section and step of `ReadBlock`."""


def _steps(blocks: Sequence[ReadBlock], shares: Mapping[Place, float]) -> tuple[ReadStep, ...]:
    masses: dict[Place, float] = {}
    for x in blocks:
        masses[x.section, x.step] = masses.get((x.section, x.step), 0.0) + x.mass
    return tuple(
        ReadStep(step, section, mass, shares.get((section, step)))
        for (section, step), mass in masses.items()
    )


def covered(question: Question, memory: Snapshot, found: Sequence[Read]) -> dict[Place, float]:
    """Return the share of the attention on blocks that the best by their scores get.

    That is in a pass that reads all blocks, as in training; as many are the best as were read.
    """
    model: Any = question.model
    with memory_top(model, None), memory.view() as view:
        every = reads(model, question.think(memory))
        blocks = blocks_of(every, view)
    numbers = {(x.section, x.step): len(x.ids) for x in found}
    shares = {}
    for read in every:
        best = read.scores(model, blocks).sort(descending=True, stable=True).indices
        best = best[: numbers.get((read.section, read.step), 0)]
        total = float(read.mass.sum())
        if total and len(best):
            shares[read.section, read.step] = float(read.mass[best].sum()) / total
    return shares
