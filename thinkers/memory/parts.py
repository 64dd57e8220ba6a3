"""Parts of a memory that are read in its place: some topics, or all but some blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.memory.blocks import Blocks
from thinkers.memory.store import Found
from thinkers.memory.topics import check_names, find_topic
from thinkers.models.document_blocks import ABSENT


class Readable(Protocol):
    """A memory that a model can read: a `LongTermMemory`, or a part or a snapshot of one."""

    def check(self, model: Any) -> None:
        """Raise UsageError unless this is a memory of the model."""

    def view(self) -> Any:
        """Begin a snapshot, a context manager."""


@dataclass(frozen=True)
class MemoryPart:
    """A part of a memory, which a model reads as if it were all; see `LongTermMemory.part`.

    Args:
        topics: The topics that are read; None means all.
        without: Ids of blocks that are not read.
    """

    memory: Readable
    topics: Sequence[str] | None = None
    without: Sequence[int] = ()

    def check(self, model: Any) -> None:
        """Raise UsageError unless this is a memory of the model."""
        self.memory.check(model)

    @contextmanager
    def view(self) -> Iterator["PartView"]:
        """Begin a snapshot; raise UsageError if there is no such topic."""
        with self.memory.view() as view:
            if self.topics is not None:
                for name in check_names(self.topics):
                    find_topic(view.topics(), name, "the memory")
            yield PartView(view, self.topics, self.without)


@dataclass(frozen=True)
class PartView:
    """A snapshot of a part of a memory."""

    whole: Any
    names: Sequence[str] | None
    without: Sequence[int]

    def search(
        self,
        queries: Float[Tensor, "b d"],
        k: int,
        level: int = 1,
        topics: Sequence[str] | None = None,
    ) -> Found:
        """Return the k blocks of this part whose keys match each query best."""
        names = self.names if topics is None else topics
        # As many more as could be left out; each row keeps its order, and its own k.
        found = self.whole.search(queries, k + len(self.without), level, names)
        out = torch.isin(found.ids, torch.tensor(self.without, device=found.ids.device))
        order = out.sort(dim=1, stable=True).indices[:, :k]
        ids = found.ids.masked_fill(out, ABSENT).gather(1, order)
        scores = found.scores.masked_fill(out, -torch.inf).gather(1, order)
        return Found(ids, scores)

    def ids(self, level: int = 1, topics: Sequence[str] | None = None) -> Int[Tensor, " n"]:
        """Return the ids of a level, ascending."""
        ids = self.whole.ids(level, self.names if topics is None else topics)
        return ids[~torch.isin(ids, torch.tensor(self.without))]

    def fetch(self, ids: Sequence[int] | Int[Tensor, " n"]) -> Blocks:
        """Return these blocks."""
        return self.whole.fetch(ids)

    def topics(self) -> dict[str, int]:
        """Return the number of sections of each topic of this part."""
        counts = self.whole.topics()
        return {x: n for x, n in counts.items() if self.names is None or x in self.names}

    def __len__(self) -> int:
        """Return the number of sections of the topics."""
        return sum(self.topics().values())


@dataclass(frozen=True)
class Snapshot:
    """A memory whose views are all of one snapshot, for calls that belong together."""

    memory: Readable
    open_view: Any

    def check(self, model: Any) -> None:
        """Raise UsageError unless this is a memory of the model."""
        self.memory.check(model)

    @contextmanager
    def view(self) -> Iterator[Any]:
        """Yield the snapshot, which stays open."""
        yield self.open_view


@contextmanager
def snapshot(memory: Readable) -> Iterator[Snapshot]:
    """Begin a snapshot that stands for the memory: what is written meanwhile is not seen."""
    with memory.view() as view:
        yield Snapshot(memory, view)
