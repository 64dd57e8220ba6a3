"""Blocks whose content follows from their ids, and the states of a store that holds them.

What a store must hold after any operation is computed here, without the store: an operation is a
function of the state before it, and a block of its id. Two levels, groups of two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor
from torch.nn import functional as F

from thinkers import prng
from thinkers.memory import keys, sqlite
from thinkers.memory.blocks import Blocks, join
from thinkers.memory.sqlite import SqliteStore
from thinkers.memory.views import SqliteView

SETTINGS: dict[str, Any] = dict(
    fingerprint="0" * 64,
    vocabulary="",
    dim=16,
    index_dim=16,
    latents=2,
    section=16,
    levels=2,
    group=2,
    dtype="float16",
)
INDEXED = 100
"""Keys of a level beyond which a store of these benchmarks has the file of an index."""
TOPICS = 5


def index_early() -> None:
    """Let small stores have the file of an index; its search stays exact."""
    for module in (keys, sqlite):
        module.EXACT = INDEXED  # type: ignore[attr-defined]


@dataclass(frozen=True)
class State:
    """What a store must hold.

    Args:
        topics: For each topic the ids of its sections, and {id: children} of the blocks above.
    """

    last: int = 0
    topics: dict[str, tuple[tuple[int, ...], dict[int, tuple[int, int]]]] = field(
        default_factory=dict
    )

    def written(self, topic: str, count: int) -> "State":
        """Return the state after `count` sections of a topic."""
        sections, upper = self.topics.get(topic, ((), {}))
        sections += tuple(range(self.last + 1, self.last + count + 1))
        last, upper = self.last + count, dict(upper)
        for pair in range(len(upper), len(sections) // 2):
            last += 1
            upper[last] = (sections[2 * pair], sections[2 * pair + 1])
        return State(last, self.topics | {topic: (sections, upper)})

    def cleared(self, topic: str | None) -> "State":
        """Return the state without a topic, or without all."""
        left = {x: y for x, y in self.topics.items() if topic is not None and x != topic}
        return replace(self, topics=left)

    def after(self, operation: dict[str, Any]) -> "State":
        """Return the state after an operation of `perform`."""
        if operation["do"] == "write":
            return self.written(operation["topic"], operation["count"])
        return self.cleared(operation["topic"]) if operation["do"] == "clear" else self

    def sections(self) -> int:
        """Return the number of sections."""
        return sum(len(sections) for sections, _ in self.topics.values())


def perform(store: SqliteStore, state: State, operation: dict[str, Any]) -> None:
    """Do an operation: write, clear, compact or rebuild."""
    if operation["do"] == "write":
        store.append(blocks_between(state, state.after(operation), operation["topic"]))
    elif operation["do"] == "clear":
        store.delete(operation["topic"])
    elif operation["do"] == "compact":
        store.compact()
    else:
        store.rebuild()


def blocks_between(before: State, after: State, topic: str) -> Blocks:
    """Return the blocks that a write adds."""
    sections, upper = after.topics[topic]
    first = [id for id in sections if id > before.last]
    parts = [blocks_of(first, 1, topic, [()] * len(first))]
    second = [id for id in upper if id > before.last]
    if second:
        parts.append(blocks_of(second, 2, topic, [upper[id] for id in second]))
    return join(parts)


def blocks_of(
    ids: Sequence[int], level: int, topic: str, children: Sequence[tuple[int, ...]]
) -> Blocks:
    """Return blocks of a level, which has two latents as every level of groups of two."""
    n = len(ids)
    return Blocks(
        latents=latents_of(ids),
        keys=keys_of(ids),
        sizes=torch.full((n,), SETTINGS["latents"]),
        levels=torch.full((n,), level),
        topics=[topic] * n,
        sources=[f"source {topic}"] * n,
        spans=torch.tensor([[id, id + 1] for id in ids]),
        lines=torch.ones(n, 2, dtype=torch.int64),
        texts=[text_of(id) for id in ids],
        tokens=[torch.tensor([id, level]) for id in ids],
        children=list(children),
        ids=torch.tensor(ids),
    )


def latents_of(ids: Sequence[int]) -> Tensor:
    """Return the latents of blocks, as they are read."""
    shape = (SETTINGS["latents"], SETTINGS["dim"])
    return prng.normal(torch.tensor(ids), 1, shape, torch.float32).half().float()


def keys_of(ids: Sequence[int]) -> Tensor:
    """Return the keys of blocks, as they are read."""
    shape = (SETTINGS["latents"], SETTINGS["index_dim"])
    vectors = prng.normal(torch.tensor(ids), 2, shape, torch.float32)
    return F.normalize(vectors, dim=-1).half().float()


def text_of(id: int) -> str:
    return f"the text of block {id}, which nobody else has"


def differences(view: SqliteView, state: State) -> list[str]:
    """Compare a snapshot with what it must hold: topics, blocks, and what is found."""
    expected = {topic: len(sections) for topic, (sections, _) in state.topics.items()}
    if view.topics() != expected or len(view) != state.sections():
        return [f"topics {view.topics()} in place of {expected}"]
    wrong = []
    for topic, (sections, upper) in state.topics.items():
        for level, ids in ((1, list(sections)), (2, list(upper))):
            blocks = view.fetch(ids)
            children = [upper[id] if level == 2 else () for id in ids]
            if not same(blocks, blocks_of(ids, level, topic, children) if ids else None):
                wrong.append(f"blocks of level {level} of {topic}")
    return wrong + wrong_searches(view)


def same(found: Blocks, expected: Blocks | None) -> bool:
    """Return True if all fields of blocks are equal."""
    if expected is None:
        return len(found) == 0
    for name, value in vars(expected).items():
        own = getattr(found, name)
        if isinstance(value, Tensor):
            equal = torch.equal(own, value)
        elif name == "tokens":
            equal = all(torch.equal(x, y) for x, y in zip(own, value, strict=True))
        else:
            equal = list(own) == list(value)
        if not equal:
            return False
    return True


def wrong_searches(view: SqliteView, k: int = 7) -> list[str]:
    """Compare searches with brute force over the keys that the snapshot holds."""
    queries = F.normalize(torch.randn(3, SETTINGS["index_dim"]), dim=-1)
    wrong = []
    for level in (1, 2):
        ids = view.ids(level)
        blocks = view.fetch(ids)
        products = torch.einsum("be,nme->bnm", queries.double(), blocks.keys.double())
        scores = products.amax(2).float() if len(ids) else torch.zeros(3, 0)
        topics = sorted(view.topics())[:1]
        chosen = torch.tensor([topic in topics for topic in blocks.topics], dtype=torch.bool)
        cases = {"all": (None, torch.ones(len(ids), dtype=torch.bool)), "one": (topics, chosen)}
        for name, (wanted, mask) in cases.items():
            found = view.search(queries, k, level, wanted)
            # Ids ascend, and the sort is stable: at ties the lower id is first.
            order = scores[:, mask].sort(dim=1, descending=True, stable=True)
            count = min(k, int(mask.sum()))
            if not torch.equal(found.ids[:, :count], ids[mask][order.indices[:, :count]]):
                wrong.append(f"search of level {level}, topics {name}: ids")
            if not torch.equal(found.scores[:, :count], order.values[:, :count]):
                wrong.append(f"search of level {level}, topics {name}: scores")
            if (found.ids[:, count:] != -1).any():
                wrong.append(f"search of level {level}, topics {name}: too many")
    return wrong


def write_part(page: Path, name: str, value: dict[str, Any]) -> None:
    """Write one part of memory_store.json in a folder; the other parts stay."""
    harness.write_part(page, name, value, "memory_store.json")
