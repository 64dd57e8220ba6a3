"""The interface of stores: the methods that a memory calls, and what they return."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from thinkers.memory.blocks import Blocks
from thinkers.memory.rows import Meta


@dataclass(frozen=True)
class Found:
    """The blocks of highest scores for each query, the best first, the lower id first at ties.

    Beyond the blocks that there are, ids are `ABSENT` (-1) and scores -inf.
    """

    ids: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]


@dataclass(frozen=True)
class Fault:
    """A part of a store that is not as it was written.

    Args:
        place: The file, or the part of it, such as "block 7".
    """

    place: str
    found: str

    def __str__(self) -> str:
        return f"{self.place}: {self.found}"


class View(Protocol):
    """A snapshot of a store, and a context manager that ends it.

    A level means its blocks and, where a group of blocks below it is not whole, those blocks.
    """

    meta: Meta

    def search(
        self,
        queries: Float[Tensor, "b d"],
        k: int,
        level: int = 1,
        topics: Sequence[str] | None = None,
    ) -> Found:
        """Do as `Store.search`."""

    def ids(self, level: int = 1, topics: Sequence[str] | None = None) -> Int[Tensor, " n"]:
        """Return the ids of a level, ascending."""

    def fetch(self, ids: Sequence[int] | Int[Tensor, " n"]) -> Blocks:
        """Do as `Store.fetch`."""

    def topics(self) -> dict[str, int]:
        """Do as `Store.topics`."""

    def ungrouped(self, topic: str) -> list[list[int]]:
        """Return for each level but the last the ids of a topic that are in no group."""

    def __len__(self) -> int:
        """Return the number of sections."""

    def __enter__(self) -> "View": ...

    def __exit__(self, *error: Any) -> None: ...


class Store(Protocol):
    """Blocks that outlive the process; one process writes at a time.

    Each method that reads begins a snapshot of its own; calls that belong together share a view.
    """

    meta: Meta

    def append(self, blocks: Blocks, **settings: Any) -> list[int]:
        """Write blocks, all or none; return their ids once they are durable.

        Args:
            settings: Fields of `Meta` that change with them.
        """

    def search(
        self,
        queries: Float[Tensor, "b d"],
        k: int,
        level: int = 1,
        topics: Sequence[str] | None = None,
    ) -> Found:
        """Return the k blocks of a level whose keys match each query best."""

    def fetch(self, ids: Sequence[int] | Int[Tensor, " n"]) -> Blocks:
        """Return these blocks; a damaged one is an error that names it."""

    def delete(self, topic: str | None) -> int:
        """Delete a topic, or all; return the number of sections that it had.

        No later view has them; each store says when their bytes are gone.
        """

    def topics(self) -> dict[str, int]:
        """Return the number of sections of each topic."""

    def verify(self) -> list[Fault]:
        """Return all that is not as it was written."""

    def close(self) -> None:
        """End writing; the store may be opened again."""

    def view(self) -> View:
        """Begin a snapshot."""

    def lock(self) -> None:
        """Become the one writer, until `close`."""

    def replace(self, parts: Iterable[Blocks], **settings: Any) -> list[int]:
        """Replace all blocks by others and change settings, all or nothing; return the new ids."""

    def compact(self) -> None:
        """Give the space of deleted blocks back."""

    def rebuild(self) -> None:
        """Make the index anew from the keys."""
