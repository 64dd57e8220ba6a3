"""Halting of a Thinker: each boundary stops thinking by itself.

A boundary is what text is written from: a row's prompt, or the end of one of its sections.

    g^k = sigmoid(w . mean of latent_k + b)                 the gate of a boundary after step k
    n   = min {k >= 1 : g^k > halt, or k = num_steps}       the steps that it takes
    logits = E output(queries, M_n)                         of every token written from it

Boundaries that have halted leave the batch of later steps. In training, need is the largest of the
targets written from a boundary, and n follows as in `thinkers.models.halting_model`. Boundaries
from which no target is written are not trained, and those beyond the end of a row do not think.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.models.batch import IGNORED, Batch, Loss, graded_last
from thinkers.models.halt import Halt
from thinkers.models.halting_model import (
    at_step,
    first_lasting,
    gate_loss,
    needed_loss,
    steps_in_training,
)
from thinkers.nn.latent_store import Memory

Parts = list[Float[Tensor, "b h m d"]]
"""Keys and values of every layer, from `Process.project`."""


class RowMemory:
    """Memory of rows: input, knowledge and the latents of each step, as keys and values.

    Args:
        hidden: True where an input is padding.
    """

    def __init__(self, model: Any, inputs: Parts, hidden: Bool[Tensor, "b m"] | None):
        self.config, self.inputs, self.hidden = model.config, inputs, hidden
        self.knowledge: Parts = []
        self.latents: list[Parts] = []
        if self.config.num_knowledge:
            slots = torch.arange(self.config.num_knowledge, device=inputs[0].device)
            known = model.process.project(model.knowledge(slots[None]))
            self.knowledge = [x.expand(len(inputs[0]), -1, -1, -1) for x in known]

    def select(self, rows: Tensor | slice) -> "RowMemory":
        """Return the memory of these rows alone."""
        chosen = copy(self)
        chosen.inputs = [x[rows] for x in self.inputs]
        chosen.hidden = None if self.hidden is None else self.hidden[rows]
        chosen.knowledge = [x[rows] for x in self.knowledge]
        chosen.latents = [[x[rows] for x in parts] for parts in self.latents]
        return chosen

    def before(self, step: int) -> Memory:
        """Return M_step, the memory of a step, from 0, that all rows take."""
        taken = torch.full((len(self.inputs[0]),), step, device=self.inputs[0].device)
        return self._read(taken, step, step)

    def after(self, taken: Int[Tensor, " b"]) -> Memory:
        """Return M_n of each row, n = `taken`; what one row does not see is hidden from it."""
        least, most = torch.stack(taken.aminmax()).tolist()
        return self._read(taken, least, most)

    def _read(self, taken: Int[Tensor, " b"], least: int, most: int) -> Memory:
        """Return M_n of each row, n = `taken`, of which `least` and `most` are the extremes."""
        pieces: list[Parts] = []
        seen: list[Bool[Tensor, "b m"]] = []

        def add(parts: Parts, rows: Bool[Tensor, " b"]) -> None:
            pieces.append(parts)
            seen.append(rows[:, None].expand(-1, parts[0].shape[2]))

        limit, kept = self.config.read_steps, self.config.memory_steps
        if limit is None or least <= limit:
            rereads = torch.ones_like(taken, dtype=torch.bool) if limit is None else taken <= limit
            add(self.inputs, rereads | (taken == 0))
            seen[0] = seen[0] if self.hidden is None else seen[0] & ~self.hidden
        if self.knowledge and most:
            add(self.knowledge, taken > 0)
        first = 0 if kept is None else max(0, least - kept)
        for step, parts in enumerate(self.latents[first:most], first):
            add(parts, (taken > step) & (True if kept is None else taken - kept <= step))
        joined = [torch.cat(same, 2) for same in zip(*pieces, strict=True)]
        visible = torch.cat(seen, 1)
        mask = joined[0].new_zeros(visible.shape).masked_fill(~visible, -torch.inf)
        needs_mask = self.hidden is not None or least < most
        return Memory(joined[::2], joined[1::2], mask[:, None, None] if needs_mask else None)


class LiveThinking:
    """`Thinker.think` with rows that halt; the steps of each are found in `taken`.

    Args:
        thinks: True for rows that think at all; None means all.
    """

    def __init__(self, model: Any, halt: Halt, thinks: Bool[Tensor, " b"] | None = None):
        self.model, self.halt, self.thinks = model, halt, thinks
        self.taken = torch.zeros(0, dtype=torch.int64)

    def __call__(
        self,
        inputs: Parts,
        hidden: Bool[Tensor, "b m"] | None,
        steps: int,
        keep_states: bool = False,
        keys: Tensor | None = None,
        reading: Any = None,
    ) -> tuple[list[Memory], Float[Tensor, "b k l c"]]:
        """Return what `Thinker.think` does; a row that has halted keeps its memory and latents."""
        assert keys is None, "noise is for training, where nothing halts"
        model, b = self.model, len(inputs[0])
        whole, latent = RowMemory(model, inputs, hidden), model.first_latents(b, None)
        taken = torch.zeros(b, dtype=torch.int64, device=latent.device)
        rows, own = torch.arange(b, device=latent.device), whole.select(slice(None))
        if self.thinks is not None:
            rows, own = rows[self.thinks], whole.select(self.thinks)
        self.begin(rows, b, steps, reading)
        memories, latents = [], []
        for step in range(steps):
            if not len(rows):
                break
            old = latent[rows]
            new = model.process(old, self.memory(own, step, old, rows, reading))
            latent = model.thought_hook(latent.index_put((rows,), new), step)
            new, taken = latent[rows], taken.index_fill(0, rows, step + 1)
            if model.config.memory_steps != 0:
                parts = model.process.project(new)
                own.latents.append(parts)
                whole.latents.append([spread(x, rows, b) for x in parts])
            if keep_states:
                memories.append(whole.after(taken))
                latents.append(latent)
            goes_on = self.goes_on(new, step + 1, rows)
            left = rows[goes_on]
            if len(left) < len(rows):
                rows, own = left, own.select(goes_on)
        self.taken = taken
        number = steps if keep_states else 1
        memories = memories or [whole.after(taken)]
        latents = latents or [latent]
        memories += memories[-1:] * (number - len(memories))
        return memories, torch.stack(latents + latents[-1:] * (number - len(latents)), 1)

    def begin(self, rows: Int[Tensor, " r"], b: int, steps: int, reading: Any) -> None:
        """Begin to think about these rows of a batch of `b`, for at most `steps` steps.

        Args:
            reading: Reads their long-term memory; None without one.
        """

    def memory(
        self,
        own: RowMemory,
        step: int,
        latent: Float[Tensor, "r l c"],
        rows: Int[Tensor, " r"],
        reading: Any,
    ) -> Memory:
        """Return what the rows that still think read in a step, from 0, from these latents: after
        the first, blocks of a long-term memory too."""
        memory = own.before(step)
        return reading.join(memory, latent, step, rows) if reading is not None and step else memory

    def goes_on(
        self, latent: Float[Tensor, "r l c"], step: int, rows: Int[Tensor, " r"]
    ) -> Bool[Tensor, " r"]:
        """Return True for rows that take more steps than the first `step`, after which they have
        these latents."""
        return ~self.model.is_done(latent.mean(1, keepdim=True), self.halt)[:, 0]


def spread(x: Float[Tensor, "r h m d"], rows: Int[Tensor, " r"], b: int) -> Tensor:
    """Return `x` as rows of a batch of `b`, zeros elsewhere."""
    return x if len(rows) == b else x.new_zeros(b, *x.shape[1:]).index_put((rows,), x)


@dataclass(frozen=True)
class Boundaries:
    """The boundaries of rows: 0 their prompts, 1, 2, .. the ends of their sections.

    Args:
        of: The boundary of each position; `number` for one that is written from none.
        number: Boundaries of a row.
    """

    of: Int[Tensor, "b t"]
    number: int

    @classmethod
    def of_rows(cls, batch: Batch, section: int) -> "Boundaries":
        """Return the boundaries of whole rows with sections of this number of tokens."""
        t = batch.tokens.shape[1]
        columns = torch.arange(t, device=batch.tokens.device)
        number = 1 + t // section
        of = (columns + 1) // section
        of = of.where(of > 0, number).expand(len(batch), -1)
        if batch.prompt_lengths is not None:
            of = of.where(columns < batch.prompt_lengths[:, None] - 1, 0)
        return cls(of, number)

    def largest(self, x: Int[Tensor, "b t"], least: int) -> Int[Tensor, "b n"]:
        """Return the largest number at the positions of each boundary, at least `least`."""
        found = x.new_full((len(x), self.number + 1), least)
        return found.scatter_reduce(1, self.of, x, "amax")[:, :-1]

    def spread(self, x: Int[Tensor, "b n"], other: int) -> Int[Tensor, "b t"]:
        """Return the number of its boundary at each position, `other` without one."""
        return F.pad(x, (0, 1), value=other).gather(1, self.of)

    def are_graded(self, targets: Int[Tensor, "b t"]) -> Bool[Tensor, "b n"]:
        """Return True for boundaries that targets are written from."""
        return self.largest((targets != IGNORED).long(), 0) > 0


def gates_of(
    model: Any,
    of_sections: Float[Tensor, "b s k l c"] | None,
    of_prompts: Float[Tensor, "b k l c"] | None,
    like: Float[Tensor, "b k t c"],
) -> Float[Tensor, "b k n"]:
    """Return the gates before their sigmoid, 0 for prompts of rows that have none."""
    found = [like.new_zeros(*like.shape[:2], 1)]
    if of_prompts is not None:
        found = [model.gate(of_prompts.mean(2))]
    if of_sections is not None:
        found.append(model.gate(of_sections.mean(3))[..., 0].mT)
    return torch.cat(found, 2)


def boundary_loss(
    model: Any,
    states: Float[Tensor, "b k t c"],
    batch: Batch,
    boundaries: Boundaries,
    gates: Float[Tensor, "b k n"],
    keys: Int[Tensor, " b"] | None,
    own: Mapping[str, int],
    counts: Mapping[str, int],
) -> Loss:
    """Compute the loss of targets after the steps of their boundary, and train the gate.

    Args:
        keys: One key per row, from which further steps are drawn; None adds none.
        own: The number of terms of each part of the loss of these rows.
        counts: The same of the batch, or of a larger one of which these rows are a share.
    """
    logits, steps, targets, due = model.read_out(states), states.shape[1], batch.targets, batch.due
    need = first_lasting(logits.detach(), targets) if due is None else due.clamp(min=1)
    needs = boundaries.largest(need.where(targets != IGNORED, 1), 1)
    takes = steps_in_training(needs, keys, steps)
    need, taken = boundaries.spread(needs, 1), boundaries.spread(takes, 1)
    wait = model.config.wait_token
    total = needed_loss(logits, targets, need, taken, counts["next_token"], wait)
    halt = gate_loss(gates, needs, takes, boundaries.are_graded(targets), counts["halt"])
    parts = {"next_token": total.detach(), "halt": halt.detach()}
    return Loss(total + halt, parts, own, *graded_last(at_step(logits, taken), targets))
