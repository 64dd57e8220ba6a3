"""A small model with the interface of one with memory, and memories of it."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.memory import LongTermMemory
from thinkers.tasks import Task


@dataclass(frozen=True)
class Settings:
    memory: str = "blocks"
    memory_section: int = 8
    block_latents: int = 2
    memory_conditioned: bool = False
    memory_levels: int = 1
    memory_group: int = 4
    read_level: int = 1
    memory_top: int | None = None
    index_dim: int = 8
    dim: int = 16
    vocab_size: int = 40


class FakeModel(nn.Module):
    """Blocks are sums of token vectors; nothing of it is trained."""

    def __init__(self, seed: int = 0, **settings: Any):
        super().__init__()
        self.config = Settings(**settings)
        c = self.config
        draws = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=draws))

        self.tokens = weight(c.vocab_size, c.block_latents, c.dim)
        self.places = weight(c.memory_section, c.block_latents, c.dim)
        self.key, self.query = weight(c.dim, c.index_dim), weight(c.dim, c.index_dim)
        self.members = weight(c.memory_group, c.dim)

    def compress(self, sections: Tensor, lengths: Tensor, before: Tensor | None = None) -> Tensor:
        real = torch.arange(sections.shape[1]) < lengths[:, None]
        parts = self.tokens[sections] * self.places[: sections.shape[1]]
        total = (parts * real[..., None, None]).sum(1)
        if before is not None:
            assert self.config.memory_conditioned and before.dtype == total.dtype
            total = total + before
        return F.rms_norm(total, (self.config.dim,)).detach()

    def compress_level(self, children: Tensor, level: int) -> Tensor:
        mixed = (children + self.members[:, None]).flatten(1, 2).unflatten(1, (-1, 2)).sum(2)
        return F.rms_norm(mixed, (self.config.dim,)).detach()

    def block_keys(self, latents: Tensor) -> Tensor:
        return F.normalize(latents @ self.key, dim=-1).detach()

    def block_query(self, latent: Tensor) -> Tensor:
        return F.normalize(latent[:, 0] @ self.query, dim=-1).detach()

    def block_scale(self) -> float:
        return 10.0

    def memory_fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.config).encode())
        for weight in self.parameters():
            digest.update(weight.detach().numpy().tobytes())
        return digest.hexdigest()


class Words(Task):
    """Words `w0` .. `w39`, one token each; the start token is 0."""

    primary_metric = "exact"
    vocab_size, max_length, start_token = 40, 64, 0

    @dataclass(frozen=True)
    class Config:
        pass

    def batch(self, update, batch_size, split="train"):
        raise NotImplementedError

    score = grade = batch

    def encode(self, text):
        words = text.split()
        for word in words:
            if not (word.startswith("w") and word[1:].isdigit() and int(word[1:]) < 40):
                from thinkers.errors import usage_error

                raise usage_error(f"the word {word!r}", "words w1 .. w39", "replace it")
        return [0, *(int(word[1:]) for word in words)]

    def decode(self, tokens):
        return " ".join(f"w{int(token)}" for token in tokens if int(token))


def rows(n: int, seed: int = 0, t: int = 8) -> Tensor:
    """Tokens of n sections."""
    return torch.randint(1, 40, (n, t), generator=torch.Generator().manual_seed(seed))


def text(n: int, seed: int = 0) -> str:
    """A text of n words."""
    return " ".join(f"w{token}" for token in rows(1, seed, n)[0].tolist())


def latents(n: int, seed: int = 0, dim: int = 16) -> Tensor:
    """Thinking latents that ask."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def filled(folder, counts: dict[str, int], **settings: Any) -> LongTermMemory:
    """A memory of a fake model with so many sections of each topic."""
    memory = LongTermMemory.create(folder, FakeModel(**settings), Words())
    for seed, (topic, n) in enumerate(counts.items()):
        memory.write(rows(n, seed), topic)
    return memory


def brute_force(memory, queries, k, topics=None):
    """Ids and scores by comparing each query with all keys of level 1, in float64."""
    with memory.view() as view:
        blocks = view.fetch(view.ids())
    best = torch.einsum("bd,nmd->bnm", queries.double(), blocks.keys.double()).amax(-1).float()
    ids, scores = [], []
    for row in best.tolist():
        found = [
            (-score, id)
            for score, id, topic in zip(row, blocks.ids.tolist(), blocks.topics, strict=True)
            if topics is None or topic in topics
        ]
        found = sorted(found)[:k] + [(torch.inf, -1)] * (k - len(found))
        ids.append([id for _, id in found])
        scores.append([-score for score, _ in found])
    return torch.tensor(ids), torch.tensor(scores)
