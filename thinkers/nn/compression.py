"""Compression of text: sections into blocks of latents, and groups of blocks into larger blocks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd import Function

from thinkers.nn.latent_store import Memory
from thinkers.nn.processor import Process
from thinkers.prng import mix_tensor

SIGNAL = 0.1
"""Weight of the signal in the first state of a block above the first level."""

CODE = 0.1
"""Standard deviation of the codes of children before training; latents have 1."""


class Compressor(nn.Module):
    """Compress sections into blocks of latents, by steps of the processor of the model.

        level 1   z^0     = [signal_1; r_1 .. r_(m-1)]
                  z^(i+1) = process(z^i, P(section)),  i = 0 .. steps - 1
        level l   z^0_j   = sqrt(2) * (mean of 2 neighbouring child latents) + 0.1 signal_l
                  z^(i+1) = process(z^i, P(children + code of each child))

    P projects to keys and values. A block has m latents of width c at level 1, and at each level
    half the latents of its `group` children. r are random, signals and codes are learned. Nothing
    of level l - 1 that has no whole group is compressed.

    Args:
        dim: Width c of latents.
        num_latents: m.
        steps: Steps of a compression.
        levels: Number of levels.
        group: Children of a block above level 1, an even number.
    """

    def __init__(self, dim: int, num_latents: int, steps: int, levels: int, group: int):
        super().__init__()
        self.num_latents, self.steps, self.levels, self.group = num_latents, steps, levels, group
        self.signals = nn.Embedding(levels, dim)
        if levels > 1:
            self.members = nn.Embedding(group, dim)

    def reset(self) -> None:
        """Draw signals of the size of latents."""
        nn.init.normal_(self.signals.weight)
        if self.levels > 1:
            nn.init.normal_(self.members.weight, std=CODE)

    def size(self, level: int) -> int:
        """Return the number of latents of a block of this level, from 1."""
        return self.num_latents * (self.group // 2) ** (level - 1)

    def forward(
        self,
        process: Process,
        section: Sequence[Float[Tensor, "n h s d"]],
        hidden: Bool[Tensor, "n s"] | None,
        random: Float[Tensor, "n r c"],
    ) -> Float[Tensor, "n m c"]:
        """Compress sections.

        Args:
            section: Their keys and values of each layer in turn, from `Process.project`.
            hidden: True at padding; None without any.
            random: The m - 1 random latents of each.
        """
        signal = self.signals.weight[0].expand(len(random), 1, -1)
        mask = None
        if hidden is not None:
            mask = random.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None, None]
        return self._steps(process, torch.cat([signal, random], 1), section, mask)

    def merge(
        self, process: Process, children: Float[Tensor, "n g k c"], level: int
    ) -> Float[Tensor, "n m c"]:
        """Compress the whole groups of `group` blocks of level - 1 into blocks of this level."""
        pairs = children.flatten(1, 2).unflatten(1, (-1, 2))
        z = math.sqrt(2) * pairs.mean(2) + SIGNAL * self.signals.weight[level - 1]
        coded = children + self.members.weight[:, None]
        return self._steps(process, z, process.project(coded.flatten(1, 2)), None)

    def _steps(
        self, process: Process, z: Tensor, parts: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor:
        memory = Memory(parts[::2], parts[1::2], mask)
        for _ in range(self.steps):
            z = process(z, memory)
        return z

    def flops(self, process: Process, sections: int, length: int) -> int:
        """Count the operations of compressing this number of sections, all of one length."""
        total = process.project_flops(sections * length)
        return total + self.steps * process.flops(sections, self.num_latents, length)

    def merge_flops(self, process: Process, groups: int, level: int) -> int:
        """Count the operations of compressing this number of groups into blocks of this level."""
        read = self.group * self.size(level - 1)
        total = process.project_flops(groups * read)
        return total + self.steps * process.flops(groups, self.size(level), read)


def replayed(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor], rows: int
) -> Tensor:
    """Return function(*inputs), whose graph is built again for a few rows at a time.

    The forward pass keeps no graph. The backward pass computes `rows` rows again with theirs, and
    multiplies by the gradient of the result: the gradient of the whole graph, at the memory of a
    part of it (gradient caching, Gao et al. 2021, https://arxiv.org/abs/2101.06983).

    Args:
        function: A pure function of rows (n, ..), independent of each other, and of `weights`.
        inputs: Its inputs, which get no gradient.
        weights: The tensors that the gradient flows to.
        rows: Rows that are computed at once, in both passes.

    Raises:
        RuntimeError: A second derivative is asked for.
    """
    return _Replayed.apply(function, inputs, rows, *weights)


class _Replayed(Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        rows: int,
        *weights: Any,
    ) -> Tensor:
        ctx.function, ctx.inputs, ctx.rows, ctx.weights = function, inputs, rows, weights
        # Rows in the pieces of the backward pass: other shapes could round differently.
        return torch.cat([function(*part) for part in pieces(inputs, rows)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "replayed compression has no second derivative; differentiate once, without "
                "create_graph"
            )
        learned = [x for x in ctx.weights if x.requires_grad]
        total: list[Tensor | None] = [None] * len(learned)
        for part, of_part in zip(pieces(ctx.inputs, ctx.rows), grad.split(ctx.rows), strict=True):
            with torch.enable_grad():
                result = ctx.function(*part)
            found = torch.autograd.grad(result, learned, of_part, allow_unused=True)
            total = [_sum(x, y) for x, y in zip(total, found, strict=True)]
        grads = iter(total)
        return (None, None, None, *(next(grads) if x.requires_grad else None for x in ctx.weights))


def pieces(inputs: Sequence[Tensor], rows: int) -> list[tuple[Tensor, ...]]:
    """Cut tensors with equal numbers of rows into pieces of at most `rows`."""
    return list(zip(*(x.split(rows) for x in inputs), strict=True))


def _sum(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return y if x is None else x if y is None else x + y


def hash_tokens(tokens: Int[Tensor, "n s"], lengths: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return a 64-bit hash of the real tokens of each section, whatever its padding."""
    key = mix_tensor(lengths)
    for column in range(tokens.shape[1]):
        real = column < lengths
        key = torch.where(real, mix_tensor(key + mix_tensor(tokens[:, column] + 1)), key)
    return key
