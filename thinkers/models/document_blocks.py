"""Blocks of documents as tensors, from which the rows of a batch read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

ABSENT = -1
"""Number of a block that is not there."""


@dataclass(frozen=True)
class DocumentBlocks:
    """Blocks of d documents, and the document that each row reads.

    Args:
        latents: Latents of blocks, which may have different numbers; 0 where hidden.
        hidden: True for latents that a block does not have, and for blocks that are not there.
        keys: Key of each latent in the index.
        ids: Number of each block, `ABSENT` for one that is not there.
        spans: The sections of its document that each block holds, from first up to last.
        document: Document of each row; `ABSENT` for a row without.
    """

    latents: Float[Tensor, "d n m c"]
    hidden: Bool[Tensor, "d n m"]
    keys: Float[Tensor, "d n m e"]
    ids: Int[Tensor, "d n"]
    spans: Int[Tensor, "d n 2"]
    document: Int[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.document)

    def counts(self) -> Int[Tensor, "b 2"]:
        """Return the numbers of blocks and of their latents that each row can read."""
        shown = ~self.hidden
        found = torch.stack([shown.any(2).sum(1), shown.flatten(1).sum(1)], 1)
        there = self.document != ABSENT
        return found[self.document.clamp(min=0)].where(there[:, None], 0)

    def select(self, rows: Int[Tensor, " r"]) -> "DocumentBlocks":
        """Return what these rows read."""
        return replace(self, document=self.document[rows])

    def to(self, device: torch.device | str) -> "DocumentBlocks":
        """Return the blocks on `device`."""
        return DocumentBlocks(*(x.to(device) for x in vars(self).values()))


@dataclass(frozen=True)
class BlockList:
    """Blocks of one size, sorted by document, and in each document by section.

    Args:
        spans: The sections of its document that each block holds, from first up to last.
    """

    latents: Float[Tensor, "n m c"]
    document: Int[Tensor, " n"]
    spans: Int[Tensor, "n 2"]

    def rows(self, index: Tensor) -> "BlockList":
        """Return the chosen blocks."""
        return BlockList(*(x[index] for x in vars(self).values()))

    def places(self) -> Int[Tensor, " n"]:
        """Return the number of each block within its document."""
        first = torch.searchsorted(self.document, self.document)
        return torch.arange(len(self.document), device=self.document.device) - first


def raise_level(
    blocks: BlockList,
    group: int,
    merge: Callable[[Float[Tensor, "n g k c"]], Tensor],
    rises: Bool[Tensor, " d"],
) -> tuple[BlockList, BlockList]:
    """Merge whole groups of a document's blocks; return the merged ones, and those left over.

    Args:
        group: Blocks that are merged into one.
        merge: Compresses groups into blocks of the next level.
        rises: True for documents whose blocks are merged at all.
    """
    counts = torch.bincount(blocks.document, minlength=len(rises))
    whole = blocks.places() < (counts // group * group * rises)[blocks.document]
    children, left = blocks.rows(whole), blocks.rows(~whole)
    latents = merge(children.latents.unflatten(0, (-1, group)))
    spans = torch.stack([children.spans[::group, 0], children.spans[group - 1 :: group, 1]], 1)
    return BlockList(latents, children.document[::group].contiguous(), spans), left


def as_documents(
    lists: Sequence[BlockList], number: int, keys: Callable[[Tensor], Tensor]
) -> DocumentBlocks:
    """Return the blocks of all lists as those of `number` documents; row i reads document i.

    In each document, blocks are in the order of the lists, and numbered in it.

    Args:
        keys: Returns the keys (d, n, m, e) of latents (d, n, m, c).
    """
    lists = [x for x in lists if len(x.document)] or lists[:1]
    document = torch.cat([x.document for x in lists])
    order = torch.argsort(document, stable=True)
    most = max(x.latents.shape[1] for x in lists)
    latents = torch.cat([F.pad(x.latents, (0, 0, 0, most - x.latents.shape[1])) for x in lists])
    sizes = torch.cat([torch.full_like(x.document, x.latents.shape[1]) for x in lists])[order]
    spans = torch.cat([x.spans for x in lists])[order]
    sorted_list = BlockList(latents[order], document[order], spans)
    rows, columns = sorted_list.document, sorted_list.places()
    width = int(columns.max()) + 1 if len(columns) else 0
    shape = number, width
    index = (rows, columns)
    filled = latents.new_zeros(*shape, *latents.shape[1:]).index_put(index, sorted_list.latents)
    there = sizes.new_zeros(shape).index_put(index, sizes)
    hidden = torch.arange(most, device=rows.device) >= there[..., None]
    ids = there.new_full(shape, ABSENT).index_put(index, columns)
    found = spans.new_zeros(*shape, 2).index_put(index, spans)
    every = torch.arange(number, device=rows.device)
    return DocumentBlocks(filled, hidden, keys(filled), ids, found, every)
