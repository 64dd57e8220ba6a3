"""Reading of a long-term memory while a Thinker thinks: blocks are chosen anew at every step.

The memory is either `DocumentBlocks`, the blocks of a batch, or stores: objects whose `view()` is a
context manager of one snapshot, with `ids`, `search` and `fetch` (see `thinkers.memory`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.models.document_blocks import ABSENT, DocumentBlocks
from thinkers.nn.block_index import best_matches, index_loss
from thinkers.nn.latent_store import Memory
from thinkers.nn.tracing import attention_weights

Rows = Int[Tensor, " r"]


@dataclass(frozen=True)
class Watched(Memory):
    """Memory that keeps the queries that attended to it, in each layer of the block."""

    queries: list[Tensor] = field(default_factory=list)

    def attended(self, q: Float[Tensor, "b h l d"], layer: int) -> None:
        super().attended(q, layer)
        self.queries.append(q.detach())

    def weights(self) -> Float[Tensor, "b m"]:
        """Return the attention weights: mean over heads, layers and queries, without gradient."""
        pairs = zip(self.queries, self.keys, strict=True)
        found = [attention_weights(q, k, self.mask).mean((1, 2)) for q, k in pairs]
        return torch.stack(found).mean(0)


@dataclass(frozen=True)
class Chosen:
    """The blocks that rows read at one step, k of each row.

    Args:
        step: From 0; no row reads blocks at step 0.
        rows: Indices of the rows among those that think.
        ids: `ABSENT` where a row has fewer.
        scores: Scores of all blocks that could be chosen; None where they were searched for.
        size: Latents of a block.
        memory: The memory of this step, in which the blocks come last.
    """

    step: int
    rows: Rows
    ids: Int[Tensor, "r k"]
    scores: Float[Tensor, "r k"] | None
    size: int
    memory: Watched

    def mass(self) -> Float[Tensor, "r k"]:
        """Return the attention mass of each block: mean over heads, layers and latents."""
        weights, k = self.memory.weights(), self.ids.shape[1]
        return weights[:, weights.shape[1] - k * self.size :].unflatten(1, (k, self.size)).sum(2)


class Reading:
    """Blocks that one thinking reads: all of a row's document, or those of the highest scores.

    Args:
        blocks: Their blocks, with the document of each row.
        top: Number of blocks that a row reads at a step; None means all.
    """

    def __init__(self, model: Any, blocks: DocumentBlocks, top: int | None):
        # A mask does not keep NaN out of products.
        hidden = blocks.hidden[..., None]
        latents, keys = blocks.latents.masked_fill(hidden, 0), blocks.keys.masked_fill(hidden, 0)
        self.blocks = replace(blocks, latents=latents, keys=keys)
        self.model, self.top = model, top
        self.steps: list[Chosen] = []
        self._parts: list[Tensor] | None = None

    def has_blocks(self) -> Bool[Tensor, " b"]:
        """Return True for rows that have a block to read."""
        document = self.blocks.document
        there = (~self.blocks.hidden).flatten(1).any(1)
        return there[document.clamp(min=0)] & (document != ABSENT)

    def join(
        self,
        memory: Memory,
        latent: Float[Tensor, "r l c"],
        step: int,
        rows: Rows,
        reads: Bool[Tensor, " r"] | None = None,
    ) -> Memory:
        """Return this memory with the blocks that the rows read at a step.

        Args:
            rows: Indices of the rows that think, with these latents.
            reads: True for those that read blocks; None means all.
        """
        blocks = self.blocks
        document = blocks.document[rows].clamp(min=0)
        absent = blocks.document[rows] == ABSENT
        absent = absent if reads is None else absent | ~reads
        hidden = blocks.hidden[document] | absent[:, None, None]
        ids = blocks.ids[document].masked_fill(hidden.all(2), ABSENT)
        if not ids.shape[1]:
            return memory
        index = self.model.index
        matches = best_matches(index.queries(latent), blocks.keys, blocks.hidden, document)
        if self.top is None or self.top >= ids.shape[1]:
            parts = [x[document] for x in self._projected()]
            # -inf times tau would give tau the gradient NaN.
            absent = ids == ABSENT
            scores = (index.scale() * matches.masked_fill(absent, 0)).masked_fill(
                absent, -torch.inf
            )
        else:
            # In float32, by which the keys of stores are compared too; the first at ties.
            matches = matches.masked_fill(ids == ABSENT, -torch.inf)
            order = matches.detach().float().sort(dim=1, descending=True, stable=True).indices
            best = order[:, : self.top]
            ids, scores = ids.gather(1, best), None
            hidden = hidden.gather(1, best[..., None].expand(-1, -1, hidden.shape[2]))
            latents = blocks.latents[document[:, None], best]
            parts = self.model.process.project(latents.flatten(1, 2))
        return self._keep(step, rows, ids, scores, hidden, parts, memory)

    def _projected(self) -> list[Float[Tensor, "d h v e"]]:
        if self._parts is None:
            self._parts = self.model.process.project(self.blocks.latents.flatten(1, 2))
        return self._parts

    def _keep(
        self,
        step: int,
        rows: Rows,
        ids: Int[Tensor, "r k"],
        scores: Float[Tensor, "r k"] | None,
        hidden: Bool[Tensor, "r k m"],
        parts: Sequence[Float[Tensor, "r h v d"]],
        memory: Memory,
    ) -> Memory:
        mask = memory.mask
        if mask is None:
            mask = parts[0].new_zeros(len(rows), 1, 1, memory.keys[0].shape[2])
        own = parts[0].new_zeros(hidden.shape).masked_fill(hidden, -torch.inf).flatten(1)
        joined = Watched(
            [torch.cat(pair, 2) for pair in zip(memory.keys, parts[::2], strict=True)],
            [torch.cat(pair, 2) for pair in zip(memory.values, parts[1::2], strict=True)],
            torch.cat([mask, own[:, None, None]], 3),
        )
        self.steps.append(Chosen(step, rows, ids, scores, hidden.shape[2], joined))
        return joined

    def index_loss(self, steps: int) -> Float[Tensor, " b"]:
        """Return the loss of the index for each row, mean over the steps 1 .. `steps` - 1."""
        like = self.blocks.keys
        total = like.new_zeros(len(self.blocks.document))
        for chosen in self.steps:
            if chosen.scores is not None:
                # Rows without any block have no score to compare.
                some = (chosen.ids != ABSENT).any(1)
                found = index_loss(chosen.mass()[some], chosen.scores[some])
                total = total.index_add(0, chosen.rows[some], found)
        return total / max(1, steps - 1)

    def extra(self, steps: int) -> dict[str, Tensor]:
        """Return `blocks` (b, k, n) and `block_mass` (b, k, n), of k = `steps` steps."""
        b = len(self.blocks.document)
        width = max((chosen.ids.shape[1] for chosen in self.steps), default=0)
        ids = self.blocks.ids.new_full((b, steps, width), ABSENT)
        mass = self.blocks.keys.new_zeros(b, steps, width)
        for chosen in self.steps:
            k = chosen.ids.shape[1]
            ids[chosen.rows, chosen.step, :k] = chosen.ids
            mass[chosen.rows, chosen.step, :k] = chosen.mass().to(mass.dtype)
        return {"blocks": ids, "block_mass": mass}


class StoreReading(Reading):
    """Blocks that one thinking reads from stores, searched at every step.

    Args:
        views: A snapshot of each store.
        which: The store of each row; `ABSENT` for a row without.
    """

    def __init__(self, model: Any, views: Sequence[Any], which: Int[Tensor, " b"], top: int):
        super().__init__(model, no_blocks(model, which), top)
        self.views, self.which = views, which

    def has_blocks(self) -> Bool[Tensor, " b"]:
        there = [len(view) > 0 for view in self.views]
        # The last is that of a row without a store.
        return torch.tensor([*there, False], device=self.which.device)[self.which]

    def join(
        self,
        memory: Memory,
        latent: Float[Tensor, "r l c"],
        step: int,
        rows: Rows,
        reads: Bool[Tensor, " r"] | None = None,
    ) -> Memory:
        config, which = self.model.config, self.which[rows]
        if reads is not None:
            which = which.where(reads, ABSENT)
        queries = self.model.index.queries(latent).float()
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for number, view in enumerate(self.views):
            asked = (which == number).nonzero()[:, 0]
            if len(asked) and len(view):
                assert self.top is not None
                # No more than there are: memory would grow by `top`, however few blocks are there.
                k = min(self.top, len(view))
                ids = view.search(queries[asked], k, config.read_level).ids
                found[number] = asked, ids.to(which.device)
        if not found:
            return memory
        width = max(ids.shape[1] for _, ids in found.values())
        chosen = which.new_full((len(rows), width), ABSENT)
        latents, hidden = self._empty(latent, len(rows), width)
        for number, (asked, ids) in found.items():
            ids = F.pad(ids, (0, width - ids.shape[1]), value=ABSENT)
            chosen[asked] = ids
            some = ids != ABSENT
            unique, inverse = ids[some].unique(return_inverse=True)
            read, absent = padded(self.views[number].fetch(unique.tolist()), latents)
            place = asked[:, None].expand_as(ids)[some], some.nonzero()[:, 1]
            latents[place], hidden[place] = read[inverse], absent[inverse]
        parts = self.model.process.project(latents.flatten(1, 2))
        return self._keep(step, rows, chosen, None, hidden, parts, memory)

    def _empty(self, like: Tensor, rows: int, width: int) -> tuple[Tensor, Tensor]:
        size = self.model.compressor.size(self.model.config.read_level)
        latents = like.new_zeros(rows, width, size, like.shape[-1])
        return latents, torch.ones(latents.shape[:3], dtype=torch.bool, device=like.device)


def no_blocks(model: Any, document: Int[Tensor, " b"]) -> DocumentBlocks:
    """Return documents without any block."""
    weight = model.index.key.weight
    latents = weight.new_zeros(1, 0, 1, weight.shape[1])
    keys = weight.new_zeros(1, 0, 1, weight.shape[0])
    hidden = torch.ones(1, 0, 1, dtype=torch.bool, device=weight.device)
    ids = torch.zeros(1, 0, dtype=torch.int64, device=weight.device)
    return DocumentBlocks(latents, hidden, keys, ids, ids[..., None].expand(1, 0, 2), document)


def padded(latents: Any, like: Float[Tensor, "r k m c"]) -> tuple[Tensor, Tensor]:
    """Return the latents of blocks as tensors of `like`'s size, and where they are hidden.

    Args:
        latents: The result of `fetch`: `latents` (n, m, c) and `sizes` (n,), their numbers.
    """
    vectors = torch.as_tensor(latents.latents).to(like)
    sizes = torch.as_tensor(latents.sizes, device=like.device)
    vectors = F.pad(vectors, (0, 0, 0, like.shape[2] - vectors.shape[1]))
    hidden = torch.arange(like.shape[2], device=like.device) >= sizes[:, None]
    return vectors, hidden


@dataclass(frozen=True)
class StoreRows:
    """Stores, and the one that each row reads; `ABSENT` for a row without."""

    stores: Sequence[Any]
    which: Int[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.which)

    def select(self, rows: Rows) -> "StoreRows":
        """Return what these rows read."""
        return replace(self, which=self.which[rows])


@contextmanager
def opened(model: Any, memory: DocumentBlocks | StoreRows, top: int | None) -> Iterator[Reading]:
    """Read one snapshot of a memory inside the block."""
    if isinstance(memory, DocumentBlocks):
        yield Reading(model, memory, top)
        return
    with ExitStack() as stack:
        views = [stack.enter_context(store.view()) for store in memory.stores]
        if top is None:
            yield Reading(model, whole(model, views, memory.which), None)
        else:
            yield StoreReading(model, views, memory.which, top)


def whole(model: Any, views: Sequence[Any], which: Int[Tensor, " b"]) -> DocumentBlocks:
    """Return all blocks of each store as those of a document.

    They have the numbers of the store; the sections that they hold are not known here, and `spans`
    is not read.
    """
    ids = [torch.as_tensor(view.ids(model.config.read_level)) for view in views]
    width = max((len(x) for x in ids), default=0)
    if not width:
        return no_blocks(model, which)
    weight = model.index.key.weight
    size = model.compressor.size(model.config.read_level)
    latents = weight.new_zeros(len(views), width, size, weight.shape[1])
    hidden = torch.ones(latents.shape[:3], dtype=torch.bool, device=weight.device)
    for number, (view, own) in enumerate(zip(views, ids, strict=True)):
        if len(own):
            read, absent = padded(view.fetch(own.tolist()), latents)
            latents[number, : len(own)], hidden[number, : len(own)] = read, absent
    numbers = [F.pad(x, (0, width - len(x)), value=ABSENT) for x in ids]
    table = torch.stack(numbers).to(weight.device)
    spans = table[..., None].expand(-1, -1, 2)
    return DocumentBlocks(latents, hidden, model.index.keys(latents), table, spans, which)
