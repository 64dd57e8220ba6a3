"""Writers of new tokens: with a cache, and by whole rows as a reference."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.models.extra_inputs import Extra, extra_of_rows, extra_option
from thinkers.models.halt import Halt, HaltingCache, full_steps, halt_option
from thinkers.models.memory_option import memory_of_rows, memory_option
from thinkers.models.positions import Places, Positions, option


class Cached:
    """Decoding with a cache: each token is computed once."""

    def __init__(
        self,
        model: Any,
        rows: Tensor,
        lengths: Tensor,
        steps: int,
        prompted: bool,
        room: int,
        positions: Positions | None = None,
        halt: Halt = None,
        memory: Any = None,
        extra: Extra = None,
    ):
        self.model, self.steps = model, steps
        self.next: Any = None
        self.cache: Any = None
        self.places = None if positions is None else Places(model, positions, rows, lengths, room)
        if room:
            places = None if self.places is None else self.places.whole()
            self.next, self.cache = model.prefill(
                rows,
                lengths,
                steps,
                prompted,
                rows.shape[1] + room,
                **option(places),
                **halt_option(halt),
                **memory_option(memory),
                **extra_option(extra),
            )
        self.pending: Tensor | None = None

    def logits(self) -> Float[Tensor, "b v"]:
        """Return the logits of the next token of each row."""
        if self.pending is not None:
            newest = None if self.places is None else self.places.newest()
            self.next = self.model.extend(self.pending, self.cache, **option(newest))
            self.pending = None
        return self.next

    def taken(self) -> Int[Tensor, " b"]:
        """Return the thinking steps that these logits took."""
        if isinstance(self.cache, HaltingCache):
            return self.cache.taken
        return torch.full((len(self.next),), self.steps, device=self.next.device)

    def write(self, tokens: Int[Tensor, " b"]) -> None:
        """Append a token to each row."""
        self.pending = tokens
        if self.places is not None:
            self.places.write(tokens)

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep only these rows."""
        self.cache.select(rows)
        if self.places is not None:
            self.places.select(rows)


class Recomputed:
    """Decoding without a cache: whole rows are computed for every token, as a reference."""

    def __init__(
        self,
        model: Any,
        rows: Tensor,
        lengths: Tensor,
        steps: int,
        prompted: bool,
        room: int,
        positions: Positions | None = None,
        halt: Halt = None,
        memory: Any = None,
        extra: Extra = None,
    ):
        self.model, self.steps, self.lengths = model, steps, lengths
        self.memory, self.extra = memory, extra
        self.halt, self.newest = halt, lengths
        self.positions = positions
        self.prompts = lengths if prompted else None
        self.rows = torch.cat([rows, rows.new_zeros(len(rows), room)], 1)

    def logits(self) -> Float[Tensor, "b v"]:
        """Return the logits of the next token of each row."""
        longest = int(self.lengths.max())
        thought = self.model(
            self.rows[:, :longest],
            num_steps=self.steps,
            lengths=self.lengths,
            prompt_lengths=self.prompts,
            **option(self.positions),
            **halt_option(self.halt),
            **memory_option(self.memory),
            **extra_option(self.extra),
        )
        last = torch.arange(len(self.rows)), self.lengths - 1
        self.newest = full_steps(self.lengths, self.steps)
        if self.halt is not None:
            self.newest = thought.steps[last]
        return thought.logits[last]

    def taken(self) -> Int[Tensor, " b"]:
        """Return the thinking steps that these logits took."""
        return self.newest

    def write(self, tokens: Int[Tensor, " b"]) -> None:
        """Append a token to each row."""
        self.rows[torch.arange(len(self.rows)), self.lengths] = tokens
        self.lengths = self.lengths + 1

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep only these rows."""
        self.rows, self.lengths = self.rows[rows], self.lengths[rows]
        self.prompts = None if self.prompts is None else self.prompts[rows]
        self.memory = memory_of_rows(self.memory, rows)
        self.extra = extra_of_rows(self.extra, rows)
