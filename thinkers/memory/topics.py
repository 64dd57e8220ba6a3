"""Topics of a snapshot of any store: their names, and their blocks that are in no group."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from thinkers.errors import UsageError, nearest, usage_error
from thinkers.memory.rows import Meta, Topic

Named = TypeVar("Named")


class TopicView(ABC):
    """The methods of `store.View` that topics alone answer."""

    meta: Meta

    @property
    @abstractmethod
    def _topics(self) -> Mapping[str, Topic]:
        """The topics by name, in the order in which they began."""

    @property
    @abstractmethod
    def _place(self) -> Path:
        """The store, for messages; raises UsageError once the snapshot was closed."""

    def topics(self) -> dict[str, int]:
        """Return the number of sections of each topic, in the order in which they began."""
        return {name: topic.counts[0] for name, topic in self._topics.items()}

    def topic(self, name: str) -> Topic:
        """Return a topic; raise UsageError, naming the nearest, if there is none of this name."""
        return find_topic(self._topics, name, self._place)

    def ungrouped(self, topic: str) -> list[list[int]]:
        """Return for each level but the last the ids of a topic that are in no group."""
        if topic not in self._topics:
            return [[] for _ in range(self.meta.levels - 1)]
        return [list(ids) for ids in self._topics[topic].ungrouped]

    def _below(self, level: int) -> list[int]:
        """Return the blocks below a level whose group is not whole."""
        return blocks_below(self._topics.values(), level)

    def __len__(self) -> int:
        """Return the number of sections."""
        return self.meta.counts[0]


def blocks_below(topics: Iterable[Topic], level: int) -> list[int]:
    """Return the blocks of topics below a level whose group is not whole, by ascending id."""
    return sorted(id for topic in topics for ids in topic.ungrouped[: level - 1] for id in ids)


def check_names(topics: Any) -> list[str]:
    """Return the names of topics; raise UsageError if they are no list."""
    if (
        isinstance(topics, str)
        or not isinstance(topics, Sequence)
        or not all(isinstance(name, str) for name in topics)
    ):
        raise UsageError(f"topics must be a list of names or None, got {topics!r}")
    return list(topics)


def find_topic(topics: Mapping[str, Named], name: str, folder: Path | str) -> Named:
    """Return the topic of this name; raise UsageError, naming the nearest, if there is none."""
    if not isinstance(name, str):
        raise UsageError(f"topic must be a text, got {name!r}")
    if name in topics:
        return topics[name]
    near = f"such as {nearest(name, topics)!r}" if topics else "of which it has none"
    raise usage_error(
        f"topic {name!r}, which is not in {folder}",
        f"a topic of the memory, {near}",
        "see all by thinkers memory list",
    )
