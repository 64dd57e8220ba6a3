"""Noise on latents between thinking steps, drawn for each row from its own key."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.prng import mix_tensor, normal, uniform


@dataclass(frozen=True)
class Disturb:
    """Add noise to latents, drop or replace them, so that the block learns to continue from them.

    The noise is a function of one key per row, so that it does not depend on how rows are batched.

    Args:
        noise: Standard deviation of the noise added to every latent.
        drop: Probability that a latent is set to zero.
        replace: Probability that a latent is replaced by noise with the mean and the standard
            deviation of the learned ones.
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
        learned: Float[Tensor, "n c"],
    ) -> Float[Tensor, "b l c"]:
        """Return the noisy latents of one step.

        Args:
            keys: One key per row.
            step: Number of the step; each step has random streams of its own.
            learned: Learned initial latents; `n` differs from `l` if latents were added.
        """
        size = latent.shape[1:]
        # One step owns the streams 8 * step .. 8 * step + 7. Negative streams belong to the
        # initial latents, so that no number is ever drawn twice.
        if self.replace:
            chosen = uniform(keys, 8 * step, (size[0], 1), latent.dtype) < self.replace
            latent = latent.where(~chosen, random_latents(learned, keys, 8 * step + 1, size[0]))
        if self.drop:
            kept = uniform(keys, 8 * step + 2, (size[0], 1), latent.dtype) >= self.drop
            latent = latent * kept
        if self.noise:
            latent = latent + self.noise * normal(keys, 8 * step + 3, tuple(size), latent.dtype)
        return latent


def random_latents(
    learned: Float[Tensor, "n c"], keys: Int[Tensor, " b"], stream: int, number: int
) -> Float[Tensor, "b l c"]:
    """Draw `number` latents per row with the mean and standard deviation of the learned ones."""
    drawn = normal(keys, stream, (number, learned.shape[1]), learned.dtype)
    return learned.mean() + learned.std() * drawn


def split_keys(keys: Int[Tensor, " b"], number: int) -> Int[Tensor, " r"]:
    """Derive `number` keys from each key, b * number in all, keys of one row next to each other."""
    numbers = torch.arange(number, device=keys.device)
    return mix_tensor(keys[:, None] + mix_tensor(numbers)).flatten()
