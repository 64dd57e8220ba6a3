"""What the properties are checked with: rows of unequal lengths, and how two results compare."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.models.base import IGNORED, Batch, Model

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
"""How far logits may be apart that are the same by another way, relative to the largest."""
SUMS = {torch.float32: 1e-5, torch.float64: 1e-12}
"""How far the losses and gradients of shares of a batch may be from those of the whole."""


@dataclass(frozen=True)
class Rows:
    """Prompts of unequal lengths, each with as many tokens that continue it.

    Prompts end before, at and behind multiples of 16, and what continues them crosses some.
    """

    tokens: Int[Tensor, "b t"]
    prompts: Int[Tensor, " b"]
    new: int

    @classmethod
    def draw(cls, model: Model) -> "Rows":
        """Rows that fit into `model`, the same ones every time."""
        limit = model.config.max_length
        new = max(1, min(7, limit // 3))
        prompts = torch.tensor([33, 16, 11, 27, 1]).clamp(max=max(1, limit - new))
        shape = (len(prompts), int(prompts.max()) + new)
        return cls(draw(model, shape), prompts.to(device_of(model)), new)

    def even(self) -> "Rows":
        """Some of the rows, with prompts of equal length."""
        start, chosen = int(self.prompts[-2]), slice(0, 3)
        tokens = self.tokens[chosen, : start + self.new]
        return Rows(tokens, torch.full_like(self.prompts[chosen], start), self.new)

    @property
    def lengths(self) -> Int[Tensor, " b"]:
        return self.prompts + self.new

    def padded(self, fill: int) -> Int[Tensor, "b t"]:
        """The rows with `fill` behind their ends."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return self.tokens.where(columns < self.lengths[:, None], fill)

    def left(self, fill: int) -> Int[Tensor, "b t"]:
        """The prompts alone, at the right edge, with `fill` before them."""
        t = int(self.prompts.max())
        out = torch.full((len(self.tokens), t), fill, device=self.tokens.device)
        for row, n in enumerate(self.prompts.tolist()):
            out[row, t - n :] = self.tokens[row, :n]
        return out

    def continue_with(self, found: Int[Tensor, "b n"]) -> Int[Tensor, "b t"]:
        """The prompts, each with these tokens behind it."""
        out = self.tokens.clone()
        for row, n in enumerate(self.prompts.tolist()):
            out[row, n : n + self.new] = found[row]
        return out

    def continued(self, logits: Tensor) -> Tensor:
        """The logits (b, new + 1, v) from the end of each prompt to the end of its row."""
        offsets = torch.arange(self.new + 1, device=logits.device)
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows[:, None], self.prompts[:, None] - 1 + offsets]


def device_of(model: Model) -> torch.device:
    return next(model.parameters()).device


def dtype_of(model: Model) -> torch.dtype:
    return next(model.parameters()).dtype


def few_steps(model: Model) -> tuple[int, ...]:
    """The fewest and the most steps worth testing."""
    return tuple(sorted({model.step_counts[0], model.step_counts[-1]}))


def draw(model: Model, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Ids of `model`'s vocabulary, the same ones every time."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator)
    return ids.to(device_of(model))


def lesson(model: Model, seed: int = 0) -> Batch:
    """Ragged rows whose answers are graded; behind their ends stands what must not count."""
    rows = Rows.draw(model)
    tokens = draw(model, tuple(rows.tokens.shape), seed)
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    targets = tokens.roll(-1, 1).where(columns >= rows.prompts[:, None] - 1, IGNORED)
    targets = targets.where(columns != rows.lengths[:, None] - 1, IGNORED)
    keys = draw(model, (len(tokens),), seed) + 10**6 * torch.arange(len(tokens)).to(tokens)
    return Batch(tokens, targets, rows.prompts, rows.lengths, keys)


def close(found: Tensor, wanted: Tensor, what: str, limits: Any = TOLERANCES) -> None:
    """AssertionError unless all entries agree, as closely as their dtype allows."""
    assert found.shape == wanted.shape, f"{what}: {list(found.shape)} is not {list(wanted.shape)}"
    if not wanted.numel():
        return
    found, wanted = found.detach(), wanted.detach()
    error, scale = float((found - wanted).abs().max()), float(wanted.abs().max())
    limit = limits[wanted.dtype]
    assert error <= limit * scale, f"{what}: {error / max(scale, 1e-300):.1e} above {limit:.0e}"


@contextmanager
def refused(kind: type[Exception], *words: str) -> Iterator[None]:
    """AssertionError unless the block raises `kind` with a message that holds all `words`."""
    try:
        yield
    except kind as error:
        for word in words:
            assert word in str(error), f"{word!r} is not in the message {str(error)!r}"
    else:
        raise AssertionError(f"no {kind.__name__} where the message should hold {words}")


@contextmanager
def untouched(model: Model) -> Iterator[None]:
    """AssertionError if the block runs any part of `model`."""

    def found(part: Any, _: Any) -> None:
        raise AssertionError(f"{type(part).__name__} ran before the check")

    parts = [part for part in model.modules() if part is not model]
    handles = [part.register_forward_pre_hook(found) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
