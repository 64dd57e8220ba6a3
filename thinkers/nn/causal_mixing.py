"""Causal mixing of embedded text: a short convolution, then layers of causal attention."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.nn.block import Block, run_blocks
from thinkers.nn.layers import Rotary


class TextCache:
    """Keys and values of the text read so far, in every layer of a `CausalMixing`.

    Text is added in pieces of any length, the same for all rows, without padding.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(
        self, layer: int, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s d"], Float[Tensor, "t s"] | None]:
        """Add keys and values of a piece.

        Returns:
            All keys and values so far, and the mask of 0 and -inf to be added to their scores.
            The mask is None for the first piece, whose attention is causal.
        """
        mask, new = None, k.shape[2]
        if layer in self.layers:
            k, v = (torch.cat(pair, 2) for pair in zip(self.layers[layer], (k, v), strict=True))
            # -inf above the diagonal through each row's own key, and 0 elsewhere.
            mask = k.new_full((new, k.shape[2]), -torch.inf).triu(k.shape[2] - new + 1)
        self.layers[layer] = k, v
        return k, v, mask

    def select(self, rows: Int[Tensor, " r"]) -> None:
        """Keep only these rows."""
        self.layers = {i: (k[rows], v[rows]) for i, (k, v) in self.layers.items()}


class CausalMixing(nn.Module):
    """Let each token of a text read those before it.

        x_i <- x_i + sum_j w_j * x_(i-j), j = 0 .. width - 1, i - j in the section of i
        x   <- block_n(x), n = 1 .. num_layers

    w_j (c,) multiplies each channel by a number of its own, without bias: a bias would drown
    embeddings, which start small. The blocks are `Block`, with rotary positions; a token attends
    to itself and to all tokens before it, those of earlier sections included.

    Args:
        width: Number of tokens that the convolution reads; 0 means no convolution.
        num_layers: Number of blocks.
        hidden: Hidden size of their feed-forwards; None means 8/3 of dim.
    """

    def __init__(
        self, dim: int, num_heads: int, width: int, num_layers: int, hidden: int | None = None
    ):
        super().__init__()
        self.dim, self.width = dim, width
        if width:
            self.convolution = nn.Conv1d(dim, dim, width, groups=dim, bias=False)
            # The tokens before a token enter with the size of the token itself.
            nn.init.normal_(self.convolution.weight)
        self.rotary = Rotary(dim // num_heads)
        self.layers = nn.ModuleList(Block(dim, num_heads, hidden) for _ in range(num_layers))

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        positions: Int[Tensor, "*b t"],
        section: int | None = None,
        past: TextCache | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Mix a text, or the piece that follows the text in `past`.

        Args:
            positions: Rotary positions.
            section: Tokens of a section, of which `x` holds whole ones; None means that it is one.
            past: Keys and values of the text before `x`, to which those of `x` are added.
        """
        if self.width:
            x = x + self._convolve(x, section)
        return run_blocks(self.layers, x, self.rotary.table(positions, x.dtype), past)

    def _convolve(self, x: Float[Tensor, "b t c"], section: int | None) -> Float[Tensor, "b t c"]:
        sections = x if section is None else x.reshape(-1, section, self.dim)
        padded = F.pad(sections.mT, (self.width - 1, 0))
        return self.convolution(padded).mT.reshape(x.shape)

    def flops(self, batch: int, length: int) -> int:
        """Count the operations of mixing texts of this length, with none of them in a cache."""
        blocks: Any = self.layers
        convolved = 2 * batch * length * self.width * self.dim
        return convolved + sum(block.flops(batch, length, length) for block in blocks)
