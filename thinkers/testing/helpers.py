"""Tools of the property checks: rows of unequal lengths, and comparisons of results."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.models.base import Model
from thinkers.models.batch import IGNORED, Batch

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest difference of logits computed in two ways, relative to the largest logit."""
SHARE_TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Largest difference of a batch's loss and gradients from the sums over its shares, relative."""


@dataclass(frozen=True)
class Rows:
    """Prompts of unequal lengths, each followed by `new` tokens that continue it.

    Prompts end before, at and after multiples of 16, the default section of Thinker, and the
    continuations cross such boundaries.
    """

    tokens: Int[Tensor, "b t"]
    prompts: Int[Tensor, " b"]
    new: int

    @classmethod
    def draw(cls, model: Model) -> "Rows":
        """Draw rows that fit into `model`, the same ones every time."""
        limit = model.config.max_length
        new = max(1, min(7, limit // 3))
        prompts = torch.tensor([33, 16, 11, 27, 1]).clamp(max=max(1, limit - new))
        shape = (len(prompts), int(prompts.max()) + new)
        return cls(draw(model, shape), prompts.to(device_of(model)), new)

    def even(self) -> "Rows":
        """Return some of the rows, cut so that their prompts have equal length."""
        start, chosen = int(self.prompts[-2]), slice(0, 3)
        tokens = self.tokens[chosen, : start + self.new]
        return Rows(tokens, torch.full_like(self.prompts[chosen], start), self.new)

    @property
    def lengths(self) -> Int[Tensor, " b"]:
        """Lengths of the rows, prompt and continuation."""
        return self.prompts + self.new

    def padded(self, fill: int | Int[Tensor, " t"]) -> Int[Tensor, "b t"]:
        """Return the rows with `fill` after their ends, one id or one for each column."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return self.tokens.where(columns < self.lengths[:, None], fill)

    def left_padded(self, fill: int) -> Int[Tensor, "b p"]:
        """Return the prompts alone, aligned on the right, with `fill` before them."""
        t = int(self.prompts.max())
        out = torch.full((len(self.tokens), t), fill, device=self.tokens.device)
        for row, n in enumerate(self.prompts.tolist()):
            out[row, t - n :] = self.tokens[row, :n]
        return out

    def continue_with(self, new_tokens: Int[Tensor, "b n"]) -> Int[Tensor, "b t"]:
        """Return the rows with these tokens after each prompt."""
        out = self.tokens.clone()
        for row, n in enumerate(self.prompts.tolist()):
            out[row, n : n + self.new] = new_tokens[row]
        return out

    def continued(self, logits: Tensor) -> Tensor:
        """Return the logits (b, new + 1, v) from the last token of each prompt to the row's end."""
        offsets = torch.arange(self.new + 1, device=logits.device)
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows[:, None], self.prompts[:, None] - 1 + offsets]


def device_of(model: Model) -> torch.device:
    """Return the device of the parameters."""
    return next(model.parameters()).device


def dtype_of(model: Model) -> torch.dtype:
    """Return the dtype of the parameters."""
    return next(model.parameters()).dtype


def fewest_and_most(model: Model) -> tuple[int, ...]:
    """Return the fewest and the most steps of `step_counts`."""
    return tuple(sorted({model.step_counts[0], model.step_counts[-1]}))


def draw(model: Model, shape: tuple[int, ...], seed: int = 0) -> Int[Tensor, "..."]:
    """Draw token ids of `model`'s vocabulary, the same ones every time."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator)
    return ids.to(device_of(model))


def training_batch(model: Model, seed: int = 0) -> Batch:
    """Draw ragged rows whose continuations are graded, with other tokens after their ends."""
    rows = Rows.draw(model)
    tokens = draw(model, tuple(rows.tokens.shape), seed)
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    targets = tokens.roll(-1, 1).where(columns >= rows.prompts[:, None] - 1, IGNORED)
    targets = targets.where(columns != rows.lengths[:, None] - 1, IGNORED)
    keys = draw(model, (len(tokens),), seed) + 10**6 * torch.arange(len(tokens)).to(tokens)
    return Batch(tokens, targets, rows.prompts, rows.lengths, keys)


def call(steps: int, prompts: Tensor | None = None) -> str:
    """Describe a call for a message."""
    return f"with num_steps={steps} and {'no' if prompts is None else 'ragged'} prompt_lengths"


def require(holds: Any, message: str) -> None:
    """Raise AssertionError unless `holds`; unlike an assert statement, also under `python -O`."""
    if not holds:
        raise AssertionError(message)


def close(found: Tensor, expected: Tensor, what: str, limits: Any = TOLERANCES) -> None:
    """Raise AssertionError unless all entries agree, as closely as their dtype allows."""
    require(
        found.shape == expected.shape,
        f"{what}: the shape is {list(found.shape)}, not {list(expected.shape)}",
    )
    if not expected.numel():
        return
    found, expected = found.detach(), expected.detach()
    error, scale = float((found - expected).abs().max()), float(expected.abs().max())
    limit = limits[expected.dtype]
    require(
        error <= limit * scale,
        f"{what}: the largest difference is {error / max(scale, 1e-300):.1e} of the largest "
        f"value, allowed is {limit:.0e}",
    )


def difference(found: Tensor, expected: Tensor) -> str:
    """Return the largest absolute difference, for a message."""
    return f"{float((found.detach() - expected.detach()).abs().max()):.1e}"


@contextmanager
def refused(call: str, kind: type[Exception], *words: str) -> Iterator[None]:
    """Raise AssertionError unless the block raises `kind` with a message that holds all `words`."""
    wanted = f"{kind.__name__} with {', '.join(map(repr, words))}"
    try:
        yield
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        require(not missing, f"{call} must raise {wanted}; its message is {str(error)!r}")
    except Exception as error:
        raise AssertionError(
            f"{call} must raise {wanted}, but raised {type(error).__name__}: {error}"
        ) from error
    else:
        raise AssertionError(f"{call} must raise {wanted}, but raised nothing")


@contextmanager
def untouched(model: Model) -> Iterator[None]:
    """Raise AssertionError if the block runs any submodule of `model`."""

    def fail(part: Any, _: Any) -> None:
        raise AssertionError(f"{type(part).__name__} ran before the input was checked")

    parts = [part for part in model.modules() if part is not model]
    handles = [part.register_forward_pre_hook(fail) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
