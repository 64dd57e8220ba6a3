"""Disturb: noise, drops and resets of latents between steps, each row's from a key of its own."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Disturb:
    """Disturbance of latents between steps, so that the block learns to go on from any of them.

    All of it is a function of one key per row, so that it does not depend on how rows are batched.

    Args:
        noise: Standard deviation of the noise added to every latent.
        drop: Probability that a latent is emptied (set to zero).
        replace: Probability that a latent is replaced by noise of the spread of the learned ones.
    """

    noise: float = 0.0
    drop: float = 0.0
    replace: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.noise or self.drop or self.replace)

    def __call__(
        self,
        latent: Float[Tensor, "b l c"],
        keys: Int[Tensor, " b"],
        step: int,
        learned: Float[Tensor, "l c"],
    ) -> Float[Tensor, "b l c"]:
        """The disturbed latent; `step` makes each step's disturbance its own."""
        size = latent.shape[1:]
        if self.replace:
            chosen = uniform(keys, 8 * step, (size[0], 1), latent.dtype) < self.replace
            latent = latent.where(~chosen, like_learned(learned, keys, 8 * step + 1, size[0]))
        if self.drop:
            kept = uniform(keys, 8 * step + 2, (size[0], 1), latent.dtype) >= self.drop
            latent = latent * kept
        if self.noise:
            latent = latent + self.noise * normal(keys, 8 * step + 3, tuple(size), latent.dtype)
        return latent


def like_learned(
    learned: Float[Tensor, "l c"], keys: Int[Tensor, " b"], stream: int, number: int
) -> Float[Tensor, "b l c"]:
    """Random latents with the mean and the deviation of the learned ones."""
    drawn = normal(keys, stream, (number, learned.shape[1]), learned.dtype)
    return learned.mean() + learned.std() * drawn


def uniform(
    keys: Int[Tensor, " b"], stream: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Numbers in [0, 1), the same for a key wherever it stands in the batch (b, *shape).

    Counters hashed by the finaliser of splitmix64 (Steele et al. 2014,
    https://doi.org/10.1145/2660193.2660195).
    """
    count = torch.arange(math.prod(shape), device=keys.device).view(shape)
    seeds = mix(keys + mix(torch.tensor(stream + 1, device=keys.device)))
    bits = mix(seeds.view(-1, *[1] * len(shape)) + count * GOLDEN)
    return ((bits >> 11) & (2**53 - 1)).to(torch.float64).div(2**53).to(dtype)


def normal(
    keys: Int[Tensor, " b"], stream: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Standard normal numbers by the Box-Muller transform of `uniform` ones."""
    u, angle = uniform(keys, stream, (2, *shape), torch.float64).unbind(1)
    return ((-2 * (1 - u).log()).sqrt() * (2 * math.pi * angle).cos()).to(dtype)


GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def mix(x: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """Each number scattered over all 64 bits."""
    x = (x + GOLDEN) ^ (((x + GOLDEN) >> 30) & (2**34 - 1))
    x = x * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))
