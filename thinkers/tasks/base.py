"""What all tasks share: batches to learn from, examples to be judged on, a score."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from thinkers.checks import NOT_CAUSAL
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
    primary_metric: ClassVar[str]
    """The metric that a run is remembered by."""
    higher_is_better: ClassVar[bool] = True
    """Of the headline; False where it is a loss."""
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
    def grade(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: int | None = None,
    ) -> Float[Tensor, " n"]:
        """The headline of each example alone, in float64: the mean of them is the score.

        The same examples in the same order for every model, so that models can be compared in
        pairs.
        """

    def questions(
        self, split: str = "test", num_examples: int = 2000
    ) -> Int64[np.ndarray, " n"] | None:
        """Which question each example of `grade` asks, by its number; None where all differ.

        Examples that ask the same, or are bound together otherwise, count as one where it is told
        how sure a score is.
        """
        return None

    def merit(self, scores: Mapping[str, float]) -> float:
        """The headline among `scores`, turned so that more is better."""
        return (
            scores[self.primary_metric] if self.higher_is_better else -scores[self.primary_metric]
        )

    def answer_length(self) -> int | None:
        """The most tokens that an answer may need; None where it goes on as long as there is room.

        An answer ends before that at the task's end token.
        """
        return None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of `text`; UsageError where it cannot stand in this task."""

    @abstractmethod
    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """The text of `tokens`."""

    def check(self, model: Any) -> None:  # noqa: B027, most can be learned by all models
        """UsageError if this model cannot learn this task."""

    def keep(self, folder: Path) -> None:  # noqa: B027, most need no more than their Config
        """Write beside the config.json of a run what using the run will need of its task."""

    @classmethod
    def of_run(cls, config: Any, seed: int, folder: Path) -> "Task":
        """The task of the run in `folder`, with what `keep` wrote there."""
        return cls(config, seed)

    def observe(self, correct: Bool[Tensor, " b"]) -> None:  # noqa: B027, most have no curriculum
        """Move the curriculum by what was right in one update, in the order of the batch."""

    def finish_curriculum(self) -> None:  # noqa: B027, most have no curriculum
        """Go to the end of the curriculum, where examples are as they will be longest."""

    def state_dict(self) -> dict[str, Any]:
        """The state of the curriculum, of plain numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` gave."""
        if state:
            raise UsageError(f"state must be empty without a curriculum, got {sorted(state)}")


def questions_of(
    task: Task, split: str, num_examples: int, grades: Float[np.ndarray, "*s n"]
) -> Int64[np.ndarray, " n"]:
    """What each of these grades of `task` was asked; all different if that is not known."""
    asked = task.questions(split, num_examples)
    number = grades.shape[-1]
    return np.arange(number) if asked is None or len(asked) != number else asked


class AnswerTask(Task):
    """A task whose held-out examples are prompts, each with one right answer."""

    primary_metric = "exact"
    closing: ClassVar[str] = ""
    """What every prompt holds before there is something to answer."""
    remedy: ClassVar[str] = "set causal=True"
    """What helps a model that reads the future, which can say one token and no more."""

    @abstractmethod
    def held_out(self, split: str, num_examples: int) -> Iterator[Batch]:
        """So many examples of `split`, or all that there are, the same whoever asks."""

    @abstractmethod
    def answer_length(self) -> int: ...

    def check(self, model: Any) -> None:
        if not model.causal and self.answer_length() > 1:
            wrong = NOT_CAUSAL.format(what="writing answers")
            raise UsageError(f"{wrong}; {self.remedy}")

    def score(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: int | None = None,
    ) -> dict[str, float]:
        """The share of whole answers that are right, and of answer tokens, the end included."""
        examples = self.held_out(split, whole("num_examples", num_examples, 1))
        return score_answers(model, examples, self.answer_length(), num_steps)

    def grade(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: int | None = None,
    ) -> Float[Tensor, " n"]:
        """1 for each whole answer that is right, 0 for the others."""
        examples = self.held_out(split, whole("num_examples", num_examples, 1))
        right, graded = grade_answers(model, examples, self.answer_length(), num_steps)
        return (right == graded).double()

    def questions(self, split: str = "test", num_examples: int = 2000) -> Int64[np.ndarray, " n"]:
        numbers: dict[tuple[int, ...], int] = {}
        found = []
        for batch in self.held_out(split, whole("num_examples", num_examples, 1)):
            assert batch.prompt_lengths is not None
            for row, length in zip(batch.tokens, batch.prompt_lengths.tolist(), strict=True):
                found.append(numbers.setdefault(tuple(row[:length].tolist()), len(numbers)))
        return np.array(found)


def score_answers(
    model: Any,
    batches: Iterable[Batch],
    max_new_tokens: int,
    num_steps: int | None = None,
) -> dict[str, float]:
    """The share of whole answers, end token included, and of their tokens that `model` gets right.

    `model` answers in evaluation mode, without gradient, and is left in the mode it was in.
    """
    right, graded = grade_answers(model, batches, max_new_tokens, num_steps)
    exact = (right == graded).double().mean()
    return {"exact": float(exact), "per_token": float(right.sum() / graded.sum())}


def grade_answers(
    model: Any,
    batches: Iterable[Batch],
    max_new_tokens: int,
    num_steps: int | None = None,
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """(how many tokens of each answer are right, how many it has), as `score_answers` counts."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    right, graded = [], []
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
                is_graded = truth != IGNORED
                right.append((is_graded & (given == truth)).sum(1))
                graded.append(is_graded.sum(1))
    finally:
        model.train(training)
    return torch.cat(right), torch.cat(graded)


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
