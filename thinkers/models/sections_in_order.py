"""Compression of sections in the order of their documents, each with the block before it."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def in_order(
    compress: Callable[..., Float[Tensor, "n m c"]],
    inputs: Sequence[Tensor],
    places: Int[Tensor, " n"],
) -> Float[Tensor, "n m c"]:
    """Compress sections, each with the block of the section before it, without gradient to that.

    Where gradients are wanted, sections are read twice: one after another for the blocks before
    them, and then at once, with these blocks as constants. Their graph is that of sections which
    are read by themselves.

    Args:
        compress: Returns the blocks of rows of the inputs; takes the blocks before them as one
            input more, which first sections do not have.
        inputs: Tensors with a row for each section, document by document.
        places: The number of each section in its document.
    """
    with torch.no_grad():
        known = _one_after_another(compress, inputs, places)
    if not torch.is_grad_enabled() or not len(places):
        return known
    first, later = (places == 0).nonzero()[:, 0], (places > 0).nonzero()[:, 0]
    found = [compress(*(x[first] for x in inputs))]
    if len(later):
        found.append(compress(*(x[later] for x in inputs), known[later - 1]))
    return torch.cat(found)[torch.cat([first, later]).argsort()]


def _one_after_another(
    compress: Callable[..., Float[Tensor, "n m c"]],
    inputs: Sequence[Tensor],
    places: Int[Tensor, " n"],
) -> Float[Tensor, "n m c"]:
    found = compress(*(x[places == 0] for x in inputs))
    known = found.new_zeros(len(places), *found.shape[1:])
    known[places == 0] = found
    for place in range(1, int(places.max()) + 1 if len(places) else 0):
        rows = (places == place).nonzero()[:, 0]
        known[rows] = compress(*(x[rows] for x in inputs), known[rows - 1])
    return known
