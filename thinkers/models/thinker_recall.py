"""Thinking with a long-term memory: which rows read what, and the loss of the index."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.checks import describe
from thinkers.errors import UsageError, UsageTypeError, usage_error
from thinkers.models.batch import Loss
from thinkers.models.document_blocks import ABSENT, DocumentBlocks
from thinkers.models.documents import LEAST_STEPS
from thinkers.models.memory_option import check_takes_memory
from thinkers.models.thinker_reading import Reading, Rows, StoreRows, opened
from thinkers.nn.latent_store import Memory


class BlockThinking:
    """`Thinker.think`, or the thinking with rows that halt, with a long-term memory.

    Args:
        memory: The blocks that each row, or its sections, may read.
        live: Thinks with rows that halt; None means that all take the same steps.
        top: Number of blocks that a row reads at a step; None means all.
    """

    def __init__(
        self,
        model: Any,
        memory: DocumentBlocks | StoreRows,
        live: Any = None,
        top: int | None = None,
    ):
        self.model, self.memory, self.live, self.top = model, memory, live, top
        self.reading: Reading | None = None

    @property
    def taken(self) -> Int[Tensor, " b"]:
        """The steps of each row of the last thinking, if rows halt."""
        return self.live.taken

    def __call__(
        self, inputs: list[Tensor], hidden: Tensor | None, steps: int, *options: Any
    ) -> tuple[list[Memory], Float[Tensor, "b k l c"]]:
        """Think about these rows: those of the memory, or equally many sections of each."""
        number, rows = len(inputs[0]), torch.arange(len(self.memory))
        rows = rows.to(inputs[0].device).repeat_interleave(number // max(1, len(rows)))
        think = self.live or self.model.think
        with opened(self.model, self.memory.select(rows), self.top) as reading:
            self.reading = reading
            return think(inputs, hidden, steps, *options, reading=reading)

    def select(self, rows: Rows) -> None:
        """Keep only these rows."""
        self.memory = self.memory.select(rows)

    def extra(self, steps: int, prompted: bool) -> Mapping[str, Tensor]:
        """Return what was read, by row, or by row and section."""
        if self.reading is None:
            return {}
        found, b = self.reading.extra(steps), len(self.memory)
        return found if prompted else {k: x.unflatten(0, (b, -1)) for k, x in found.items()}


def check_memory(model: Any, memory: Any, b: int, steps: int) -> DocumentBlocks | StoreRows | None:
    """Return the memory of `b` rows, or raise UsageError if it is none that they can read.

    Args:
        memory: Blocks of a batch, a store for all rows, or a list with one or None for each.
        steps: The thinking steps that are taken.

    Raises:
        UsageError: The model has no memory or did not write this one, there are fewer than
            `LEAST_STEPS` steps, or the memory is that of another number of rows.
        UsageTypeError: Something is neither a memory nor None.
    """
    if memory is None:
        return None
    check_takes_memory(model, memory)
    if steps < LEAST_STEPS:
        raise usage_error(
            f"num_steps {steps} with a memory",
            f"at least {LEAST_STEPS}: the first step reads the prompt, those after it the memory",
            "take more steps, or leave memory out",
        )
    if isinstance(memory, DocumentBlocks | StoreRows):
        found = memory
    else:
        found = _store_rows(model, memory, b)
    if len(found) != b:
        raise UsageError(f"memory must be that of {b} rows, got that of {len(found)}")
    return found


def _store_rows(model: Any, memory: Any, b: int) -> StoreRows:
    given = list(memory) if isinstance(memory, list | tuple) else [memory] * b
    stores: list[Any] = []
    which = []
    for place, store in enumerate(given):
        if store is None:
            which.append(ABSENT)
            continue
        if not (hasattr(store, "view") and hasattr(store, "check")):
            raise UsageTypeError(
                f"memory must be a LongTermMemory, or a list with one or None for each row, got "
                f"{describe(store)} at {place}"
            )
        same = [i for i, known in enumerate(stores) if known is store]
        if not same:
            store.check(model)
            stores.append(store)
        which.append(same[0] if same else len(stores) - 1)
    device = model.index.key.weight.device
    return StoreRows(stores, torch.tensor(which, dtype=torch.int64, device=device))


def block_thinking(
    model: Any, live: Any, memory: DocumentBlocks | StoreRows | None, top: int | None
) -> Any:
    """Return what thinks in place of `Thinker.think`, with rows that halt, or a memory, or both."""
    return live if memory is None else BlockThinking(model, memory, live, top)


@dataclass(frozen=True)
class Thinkings:
    """The thinking at the ends of sections and after prompts; None means `Thinker.think`."""

    sections: Any = None
    prompts: Any = None

    @classmethod
    def of(
        cls, model: Any, live: Any, memory: DocumentBlocks | StoreRows | None, top: int | None
    ) -> "Thinkings":
        """Return the thinking of a pass, with rows that halt, or a memory, or both."""
        halts = (None, None) if live is None else (live.sections, live.prompts)
        return cls(*(block_thinking(model, own, memory, top) for own in halts))

    def extra(self, steps: int, prompted: bool) -> Mapping[str, Tensor]:
        """Return `blocks` and `block_mass`: of prompts, or of the sections of rows without."""
        found = self.prompts if prompted else self.sections
        return found.extra(steps, prompted) if isinstance(found, BlockThinking) else {}

    def with_index_loss(
        self, model: Any, loss: Loss, prompted: bool, steps: int, counts: Mapping[str, int]
    ) -> Loss:
        """Add the loss of the index, of prompts or of the sections of rows without.

        Args:
            counts: The terms of this batch, or of a larger one of which it is a share.
        """
        thinking = self.prompts if prompted else self.sections
        if not isinstance(thinking, BlockThinking):
            return loss
        part = loss.total.new_zeros(())
        if thinking.reading is not None:
            by_row = thinking.reading.index_loss(steps).view(len(thinking.memory), -1)
            part = by_row.mean(1).sum() / max(1, counts["index"])
        total = loss.total + model.config.index_weight * part
        return replace(loss, total=total, parts={**loss.parts, "index": part.detach()})


NO_THINKINGS = Thinkings()
