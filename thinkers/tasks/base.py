"""What all tasks share: batches to learn from, examples to be judged on, a score."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from thinkers.errors import UsageError
from thinkers.models.base import Batch

SPLITS = ("train", "valid", "test")
IGNORED = -100


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value`, if it is an integer from `low` to `high`.

    Raises:
        UsageError: naming what it is called, what it must be and what it is.
    """
    right = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not right or (high is not None and value > high):  # type: ignore[operator]
        wanted = f"at least {low}" if high is None else f"in {low} .. {high}"
        raise UsageError(f"{name} must be an integer {wanted}, got {value!r}")
    return value  # type: ignore[return-value]


class Task(ABC):
    """A source of batches that can also judge a model.

    Everything drawn is a pure function of (seed, update, row) and of the curriculum's state, which
    `observe` moves: batches may be asked for in any order, by any process.
    """

    Config: ClassVar[type]
    headline: ClassVar[str]
    """The metric that a run is remembered by."""
    vocab_size: int
    max_length: int
    """The most tokens that a prompt, its answer and the end token may need together."""

    def __init__(self, config: Any = None, seed: int = 0):
        self.config = self.Config() if config is None else config
        if type(self.config) is not self.Config:
            got = type(self.config).__qualname__
            raise UsageError(f"config must be a {self.Config.__qualname__}, got a {got}")
        self.seed = seed

    @abstractmethod
    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """The examples of one update; rank r of w learns from rows r::w."""

    @abstractmethod
    def score(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: int | None = None,
    ) -> dict[str, float]:
        """How well `model` does on examples of `split`, the headline first."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of `text`; UsageError where it cannot stand in this task."""

    @abstractmethod
    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """The text of `tokens`."""

    def observe(self, correct: Bool[Tensor, " b"]) -> None:  # noqa: B027, most have no curriculum
        """Move the curriculum by what was right in one update, in the order of the batch."""

    def state_dict(self) -> dict[str, Any]:
        """The state of the curriculum, of plain numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` gave."""
        if state:
            raise UsageError(f"state must be empty without a curriculum, got {sorted(state)}")


def score_answers(
    model: Any,
    batches: Iterable[Batch],
    max_new_tokens: int,
    num_steps: int | None = None,
) -> dict[str, float]:
    """The share of whole answers, end token included, and of their tokens that `model` gets right.

    `model` answers in evaluation mode, without gradient, and is left in the mode it was in.
    """
    rows = right_rows = tokens = right_tokens = 0
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                prompts, truth = left_padded_prompts(batch), answers(batch, max_new_tokens)
                given = model.answer(
                    prompts.to(device),
                    batch.prompt_lengths.to(device),  # type: ignore[union-attr]
                    max_new_tokens,
                    num_steps=num_steps,
                ).cpu()
                graded = truth != IGNORED
                right = given == truth
                rows, right_rows = (
                    rows + len(batch),
                    right_rows + int((right | ~graded).all(1).sum()),
                )
                tokens, right_tokens = tokens + int(graded.sum()), right_tokens + int(right.sum())
    finally:
        model.train(training)
    return {"exact": right_rows / rows, "per_token": right_tokens / tokens}


def left_padded_prompts(batch: Batch) -> Int[Tensor, "b p"]:
    """The prompts alone, each in the last columns of its row."""
    assert batch.prompt_lengths is not None
    longest = int(batch.prompt_lengths.max())
    columns = torch.arange(longest) - longest + batch.prompt_lengths[:, None]
    return batch.tokens.gather(1, columns.clamp_min(0)).masked_fill(columns < 0, 0)


def answers(batch: Batch, length: int) -> Int[Tensor, "b n"]:
    """What is to be answered, end token included, and -100 after it."""
    assert batch.prompt_lengths is not None
    columns = batch.prompt_lengths[:, None] - 1 + torch.arange(length)
    inside = columns < batch.targets.shape[1]
    truth = batch.targets.gather(1, columns.clamp_max(batch.targets.shape[1] - 1))
    return truth.masked_fill(~inside, IGNORED)
