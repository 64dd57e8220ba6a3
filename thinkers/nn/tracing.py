"""Tracing of a forward pass: record attention, show attention masks, replace thoughts."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from thinkers.ops import masks

Replacement = Callable[[Tensor, int], Tensor]


class AttentionRecord:
    """Attention weights in the order of the calls: (name, thinking step, weights)."""

    def __init__(self) -> None:
        self.step = 0
        self.calls: list[tuple[str, int, Tensor]] = []

    def keep(self, name: str, weights: Float[Tensor, "b t n"]) -> None:
        """Add weights of the current step; `name` is that of the columns."""
        self.calls.append((name, self.step, weights.detach()))

    def named(self, name: str) -> list[Float[Tensor, "b t n"]]:
        """Return the weights of this name, in the order of the calls."""
        return [weights for found, _, weights in self.calls if found == name]


_record: AttentionRecord | None = None


@contextmanager
def record_attention() -> Iterator[AttentionRecord]:
    """Record the attention weights of every model that runs inside the block."""
    global _record
    before, _record = _record, AttentionRecord()
    try:
        yield _record
    finally:
        _record = before


def current_record() -> AttentionRecord | None:
    """Return the record of the innermost `record_attention`, None outside of any."""
    return _record


def record_weights(
    name: str,
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b g s d"],
    mask: Tensor | None = None,
    causal: bool = False,
) -> None:
    """Record the weights of this attention, averaged over heads, inside `record_attention`."""
    if _record is not None:
        _record.keep(name, attention_weights(q, k, mask, causal).mean(1))


@torch.no_grad()
def attention_weights(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b g s d"],
    mask: Tensor | None = None,
    causal: bool = False,
) -> Float[Tensor, "b h t s"]:
    """Compute softmax(q k / sqrt(d)), with mask and causal as in scaled_dot_product_attention."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    if causal:
        later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1)


class Traced:
    """Tracing hooks of a model; the defaults are those of a causal transformer."""

    mask_caption: ClassVar[str] = "Each position attends to itself and to the positions before it."
    """Caption of the picture of `mask`."""
    by_position: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors in `extra` that belong to positions: (b, t, c) or (b, n, t, c)."""
    _replacement: Replacement | None = None

    def mask(self, length: int, num_steps: int | None = None) -> Bool[Tensor, "t s"]:
        """Return the attention mask of a text of this length, True where a row reads a column."""
        return masks.table(masks.causal, length)[0]

    def thought_hook(self, thought: Float[Tensor, "b n c"], step: int) -> Float[Tensor, "b n c"]:
        """Return the thought that the model continues from: its own, or the replacement of it.

        A model calls this where the thought of a step enters the computation that follows, and
        nowhere else.
        """
        if _record is not None:
            _record.step = step + 1
        return thought if self._replacement is None else self._replacement(thought, step)

    @contextmanager
    def replace_thoughts(self, replacement: Replacement) -> Iterator[None]:
        """Replace every thought by replacement(thought, step) inside the block."""
        before, self._replacement = self._replacement, replacement
        try:
            yield
        finally:
            self._replacement = before

    def attention(
        self, record: AttentionRecord, length: int, num_steps: int, prompt_length: int | None = None
    ) -> Mapping[str, Float[Tensor, "k t _"]]:
        """Return the attention weights of one row by the name of their columns.

        The weights at (step, position, column) are averaged over heads, layers and, where a step
        attends more than once, over all its calls.

        Args:
            record: Filled by `forward` of that row with these arguments and `keep_states=True`.
        """
        found: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        for name, step, weights in record.calls:
            if weights.shape[1] == length and step < num_steps:
                found[name][step].append(weights[0])
        return {name: mean_by_step(steps, num_steps) for name, steps in found.items()}


def mean_by_step(
    weights: Mapping[int, list[Float[Tensor, "t _"]]], num_steps: int
) -> Float[Tensor, "k t n"]:
    """Average the weights of each step, with zeros for columns that a step does not have."""
    like = next(iter(weights.values()))[0]
    widest = max(x.shape[1] for of_step in weights.values() for x in of_step)
    means = []
    for step in range(num_steps):
        padded = [F.pad(x, (0, widest - x.shape[1])) for x in weights.get(step, [])]
        empty = like.new_zeros(len(like), widest)
        means.append(torch.stack(padded).mean(0) if padded else empty)
    return torch.stack(means)
