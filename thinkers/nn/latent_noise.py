"""Disturb: noise, drops and resets of latents between steps, each row's from a key of its own."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from thinkers.prng import normal, uniform


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
