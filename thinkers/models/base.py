"""What all ways of thinking share: batches, thoughts, losses, and the class that they extend."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of tokens to learn from, padded on the right.

    Args:
        tokens: What the model reads.
        targets: What the logits of each position are compared with; -100 is ignored.
        prompt_lengths: How many tokens of each row are its prompt.
        lengths: How many tokens of each row are real.
        keys: One number per row, from which all random disturbance of that row is computed.
    """

    tokens: Int[Tensor, "b t"]
    targets: Int[Tensor, "b t"]
    prompt_lengths: Int[Tensor, " b"] | None = None
    lengths: Int[Tensor, " b"] | None = None
    keys: Int[Tensor, " b"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: slice | Tensor) -> "Batch":
        """The chosen rows."""
        return Batch(*(None if x is None else x[index] for x in self._fields()))  # type: ignore

    def to(self, device: torch.device | str) -> "Batch":
        """The same rows on `device`."""
        return Batch(*(None if x is None else x.to(device) for x in self._fields()))  # type: ignore

    def _fields(self) -> tuple[Tensor | None, ...]:
        return self.tokens, self.targets, self.prompt_lengths, self.lengths, self.keys


@dataclass(frozen=True)
class Thought:
    """What a model answers at every position; with `keep_states`, after every step too."""

    logits: Float[Tensor, "b t v"]
    states: Float[Tensor, "b k t c"] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """A scalar to differentiate and what it is made of.

    Args:
        total: The weighted sum of the parts, with its graph.
        parts: The unweighted mean of each part, detached.
        counts: The number of terms of each part.
        correct: Whether every graded token of a row is right.
    """

    total: Float[Tensor, ""]
    parts: Mapping[str, Tensor]
    counts: Mapping[str, int]
    correct: Bool[Tensor, " b"]
