"""Stores of every kind for their tests, small blocks, and search by brute force.

No server of Qdrant is run: its embedded sibling `qdrant_edge` has the server's engine, and the
local mode of its client checks the requests.
"""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from thinkers.memory.blocks import Blocks
from thinkers.memory.qdrant import QdrantStore
from thinkers.memory.sqlite import SqliteStore

SETTINGS = {
    "fingerprint": "a" * 64,
    "vocabulary": "",
    "dim": 6,
    "index_dim": 5,
    "latents": 2,
    "section": 8,
    "levels": 2,
    "group": 4,
    "dtype": "float16",
}


class Sqlite:
    def __init__(self, folder):
        self.folder = folder

    def create(self, **settings):
        return SqliteStore.create(self.folder / "store", **SETTINGS | settings)

    def open(self):
        return SqliteStore(self.folder / "store")

    def close(self):
        pass


class Local:
    """Qdrant's client without a server, which always searches exactly."""

    exact = False

    def __init__(self, folder):
        from qdrant_client import QdrantClient

        self.client = QdrantClient(path=str(folder / "qdrant"))

    def create(self, **settings):
        return QdrantStore.create(self.client, "blocks", exact=self.exact, **SETTINGS | settings)

    def open(self):
        return QdrantStore(self.client, "blocks", exact=self.exact)

    def close(self):
        self.client.close()


class Edge(Local):
    """The engine of Qdrant's server, in this process."""

    exact = True

    def __init__(self, folder):
        from edge_client import EdgeClient

        self.client = EdgeClient(folder)


def needs(module):
    reason = f'{module} is not installed: pip install "thinkers[qdrant]"'
    return pytest.mark.skipif(find_spec(module) is None, reason=reason)


WARNINGS = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]
"""The client warns of what its local mode has not: indexes of payloads, approximate search."""
QDRANT = [
    pytest.param(Local, id="local", marks=[pytest.mark.extras, needs("qdrant_client")]),
    pytest.param(
        Edge,
        id="edge",
        marks=[pytest.mark.extras, needs("qdrant_client"), needs("qdrant_edge")],
    ),
]


def blocks(n, first=1, topics=("a",), seed=0, levels=None, children=None):
    """Blocks of level 1, or of level 2 with as many latents."""
    draws = torch.Generator().manual_seed(seed + first)
    keys = torch.randn(n, 2, 5, generator=draws)
    return Blocks(
        latents=torch.randn(n, 2, 6, generator=draws).half().float(),
        keys=torch.nn.functional.normalize(keys, dim=-1).half().float(),
        sizes=torch.full((n,), 2),
        levels=torch.ones(n, dtype=torch.int64),
        topics=[topics[i % len(topics)] for i in range(n)],
        sources=[f"source {i}" for i in range(n)],
        spans=torch.arange(2 * n).view(n, 2),
        lines=torch.arange(2 * n).view(n, 2) + 1,
        texts=[None if i % 2 else f"text {i}\0é" for i in range(n)],
        tokens=[None if i % 2 else torch.arange(i + 1) for i in range(n)],
        children=[()] * n,
        ids=torch.arange(first, first + n),
    )


def grouped(topic, ids, first):
    """A block of level 2 over four blocks of level 1: four latents."""
    one = blocks(1, first, (topic,), seed=9)
    four = torch.nn.functional.normalize(torch.randn(1, 4, 5), dim=-1).half().float()
    return replace(
        one,
        latents=torch.randn(1, 4, 6).half().float(),
        keys=four,
        sizes=torch.tensor([4]),
        levels=torch.tensor([2]),
        children=[tuple(ids)],
    )


def queries(b, seed=5):
    found = torch.randn(b, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=-1)


def brute_force(held, asked, k, topics=None):
    """Ids and scores of the best blocks, by one product at a time in float64."""
    found = []
    for query in asked.double():
        scores = {
            int(id): max(float((key.double() @ query).float()) for key in keys[:size])
            for id, keys, size, topic in zip(
                held.ids, held.keys, held.sizes, held.topics, strict=True
            )
            if topics is None or topic in topics
        }
        best = sorted(scores, key=lambda id: (-scores[id], id))[:k]
        lack = k - len(best)
        found.append(([*best, *[-1] * lack], [*[scores[x] for x in best], *[-torch.inf] * lack]))
    return found


def same(found, expected):
    pairs = zip(found.ids.tolist(), found.scores.tolist(), expected, strict=True)
    return all(ids == want[0] and scores == want[1] for ids, scores, want in pairs)


def assert_equal(one, other):
    for name, value in vars(one).items():
        found = getattr(other, name)
        if name == "tokens":
            value, found = ([None if x is None else x.tolist() for x in y] for y in (value, found))
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, found), name
        else:
            assert list(value) == list(found), name
