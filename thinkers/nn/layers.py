"""Layers besides attention: projections, feed-forwards, positions, initial weights."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.errors import UsageError
from thinkers.nn.constants import ComputedBuffers


class AttentionProjections(nn.Module):
    """Linear maps into attention heads and out of them.

    With fewer key and value heads than query heads, each serves several (Ainslie et al. 2023,
    https://arxiv.org/abs/2305.13245).
    """

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int | None = None, bias: bool = False
    ):
        super().__init__()
        self.head_dim = dim // num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim, 2 * self.num_kv_heads * self.head_dim, bias=bias)
        self.output = nn.Linear(dim, dim, bias=bias)

    def queries(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b h t d"]:
        """Project queries and split them into heads."""
        return self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_values(
        self, x: Float[Tensor, "b s c"]
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s d"]]:
        """Project keys and values and split them into heads."""
        k, v = self.key_value(x).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        return k, v

    def merge(self, x: Float[Tensor, "b h t d"]) -> Float[Tensor, "b t c"]:
        """Join the heads and project them back to the residual stream."""
        return self.output(x.transpose(1, 2).flatten(2))

    def flops(self, queries: int, keys: int) -> int:
        """Count the operations of projecting `queries` queries, and `keys` keys and values."""
        dim, kv = self.query.in_features, self.key_value.out_features
        return 2 * dim * (2 * queries * dim + keys * kv)


class SwiGLU(nn.Module):
    """A gated feed-forward, silu(x W1) * (x W2) W3 (Shazeer 2020, arxiv.org/abs/2002.05202)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)

    def flops(self, rows: int) -> int:
        """Count the operations on `rows` vectors."""
        return 2 * rows * 3 * self.down.in_features * self.down.out_features


class GELUFeedForward(nn.Module):
    """gelu(x W1 + b1) W2 + b2 (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415)."""

    def __init__(self, dim: int, hidden: int, bias: bool = True):
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias)
        self.down = nn.Linear(hidden, dim, bias)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        return self.down(F.gelu(self.up(x)))

    def flops(self, rows: int) -> int:
        """Count the operations on `rows` vectors."""
        return 2 * rows * 2 * self.down.in_features * self.down.out_features


def swiglu_width(dim: int) -> int:
    """Return 8/3 of `dim` as a multiple of 8: three such matrices have the size of two of 4 dim."""
    return 8 * max(1, round(dim / 3))


def attention_flops(batch: int, queries: int, keys: int, dim: int) -> int:
    """Count the operations of scores and weighted sums over the keys; a causal mask saves none."""
    return 4 * batch * queries * keys * dim


class Rotary(ComputedBuffers):
    """Positions as rotations of queries and keys (Su et al. 2021, arxiv.org/abs/2104.09864).

    Entry i of the first half of a head and entry i of the second are rotated by position times
    base^(-2i/d). The frequencies are computed in float32 for any dtype, as published
    checkpoints have them, and the angles in float32 or float64: bfloat16 holds integers up to 256.
    """

    frequencies: Tensor

    def __init__(self, head_dim: int, base: float = 10_000.0):
        super().__init__()
        if head_dim % 2:
            raise UsageError(f"dim / num_heads must be even for rotary positions, got {head_dim}")
        self.head_dim, self.base = head_dim, base
        self.compute_buffers()

    def constants(self) -> dict[str, Tensor]:
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        return {"frequencies": 1.0 / self.base**exponents}

    def table(
        self, positions: Int[Tensor, "*b t"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "*b 1 t d"], Float[Tensor, "*b 1 t d"]]:
        """Compute cosines and sines of these positions, for `rotate`."""
        wide = angle_dtype(dtype)
        angles = positions[..., None].to(wide) * self.frequencies.to(wide)
        angles = torch.cat([angles, angles], -1).unsqueeze(-3)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Float[Tensor, "b h t d"], table: tuple[Tensor, Tensor]) -> Float[Tensor, "b h t d"]:
    """Rotate heads by their positions."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], -1) * sin


def sinusoidal(positions: Int[Tensor, " t"], dim: int, dtype: torch.dtype) -> Float[Tensor, "t c"]:
    """Sines and cosines of geometric frequencies (Vaswani et al. 2017, arxiv.org/abs/1706.03762).

    They are defined for any number, and so for thinking steps beyond those trained. The angles are
    computed in float32 or float64, and only their sines and cosines are of this dtype.
    """
    half, wide = (dim + 1) // 2, angle_dtype(dtype)
    frequencies = 10000.0 ** (-torch.arange(half, device=positions.device, dtype=wide) / half)
    angles = positions[:, None].to(wide) * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)[:, :dim].to(dtype)


def angle_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of angles whose sines and cosines are of this dtype: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Head(nn.Module):
    """Logits of states, W h, without bias; W is the embedding's matrix E, or one of its own.

    A tied head pushes the embeddings of tokens that are never answers away from every answer.

    Args:
        embedding: The token embedding E (v, c), which also gives the shape.
        tied: True for W = E (Press and Wolf 2016, https://arxiv.org/abs/1608.05859).
    """

    def __init__(self, embedding: nn.Embedding, tied: bool):
        super().__init__()
        self.weight = None if tied else nn.Parameter(torch.empty_like(embedding.weight))

    def forward(
        self, states: Float[Tensor, "*b c"], embedding: nn.Embedding
    ) -> Float[Tensor, "*b v"]:
        return F.linear(states, embedding.weight if self.weight is None else self.weight)


def initialize(module: nn.Module, num_residuals: int) -> None:
    """Draw all weights with standard deviation 1/sqrt(fan-in), biases 0.

    Those at the end of a residual branch are divided by sqrt(num_residuals), so that the stream
    keeps its size (Radford et al. 2019, GPT-2). Embeddings and heads have 0.02, for small logits at
    first.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            std = part.in_features**-0.5
            if name.endswith(("output", "down")):
                std /= math.sqrt(num_residuals)
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding | Head) and part.weight is not None:
            nn.init.normal_(part.weight, std=0.02)
