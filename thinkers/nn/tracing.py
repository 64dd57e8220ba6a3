"""Looking into a model: who may read whom, what was read, and other thoughts put in its place."""

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
    """What attention gave, call by call: (its name, the thinking step, its weights)."""

    def __init__(self) -> None:
        self.step = 0
        self.calls: list[tuple[str, int, Tensor]] = []

    def keep(self, name: str, weights: Float[Tensor, "b t n"]) -> None:
        """Weights of this step; `name` says what the columns are."""
        self.calls.append((name, self.step, weights.detach()))

    def named(self, name: str) -> list[Float[Tensor, "b t n"]]:
        """The weights of this name, in the order in which they were given."""
        return [weights for found, _, weights in self.calls if found == name]


_watch: AttentionRecord | None = None


@contextmanager
def record_attention() -> Iterator[AttentionRecord]:
    """Inside, every attention of every model leaves its weights in this watch."""
    global _watch
    before, _watch = _watch, AttentionRecord()
    try:
        yield _watch
    finally:
        _watch = before


def current_record() -> AttentionRecord | None:
    """The watch, if anyone is watching."""
    return _watch


def record_weights(
    name: str,
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b g s d"],
    mask: Tensor | None = None,
    causal: bool = False,
) -> None:
    """Leave the weights of this attention, their mean over heads, with whoever watches."""
    if _watch is not None:
        _watch.keep(name, attention_weights(q, k, mask, causal).mean(1))


@torch.no_grad()
def attention_weights(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b g s d"],
    mask: Tensor | None = None,
    causal: bool = False,
) -> Float[Tensor, "b h t s"]:
    """softmax(q k / sqrt(d)); mask and causal as in torch's scaled_dot_product_attention."""
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
    """What lets a model be looked into; the defaults are those of a causal transformer."""

    elements: ClassVar[str] = "Each position reads itself and what came before."
    """What `mask` shows, for its picture."""
    by_position: ClassVar[tuple[str, ...]] = ()
    """Names in `extra` whose vectors stand for positions: (b, t, c), or (b, n, t, c) of several."""
    _replacement: Replacement | None = None

    def mask(self, length: int, num_steps: int | None = None) -> Bool[Tensor, "t s"]:
        """True where an element (a row) may read another (a column), in a text of this length."""
        return masks.table(masks.causal, length)[0]

    def thought_hook(self, thought: Float[Tensor, "b n c"], step: int) -> Float[Tensor, "b n c"]:
        """The thought that the model goes on from: its own, unless another is put in its place."""
        if _watch is not None:
            _watch.step = step + 1
        return thought if self._replacement is None else self._replacement(thought, step)

    @contextmanager
    def replace_thoughts(self, replacement: Replacement) -> Iterator[None]:
        """Inside, every thought handed on is replacement(thought, step) instead.

        A model that thinks calls `thought_hook` where the thought of a step is handed to what
        follows, and nowhere else.
        """
        before, self._replacement = self._replacement, replacement
        try:
            yield
        finally:
            self._replacement = before

    def attention(
        self, watch: AttentionRecord, length: int, num_steps: int, prompt_length: int | None = None
    ) -> Mapping[str, Float[Tensor, "k t n"]]:
        """{what the columns are: how much of it each position reads at each step}, of one row.

        It is the mean over heads, layers and, where a step attends more than once, all its calls.

        Args:
            watch: What was left by `forward` of that row, with these arguments and its states kept.
        """
        found: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        for name, step, weights in watch.calls:
            if weights.shape[1] == length and step < num_steps:
                found[name][step].append(weights[0])
        return {name: stacked(steps, num_steps) for name, steps in found.items()}


def stacked(steps: Mapping[int, list[Float[Tensor, "t n"]]], num: int) -> Float[Tensor, "k t n"]:
    """The mean of each step, with zeros for columns that it does not have yet."""
    widest = max(x.shape[1] for weights in steps.values() for x in weights)
    (t, _), like = next(iter(steps.values()))[0].shape, next(iter(steps.values()))[0]
    empty = like.new_zeros(t, widest)
    means = []
    for step in range(num):
        padded = [F.pad(x, (0, widest - x.shape[1])) for x in steps.get(step, [])]
        means.append(torch.stack(padded).mean(0) if padded else empty)
    return torch.stack(means)
