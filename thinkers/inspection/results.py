"""What inspecting and ablating a model found: values that the page and the commands read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.evaluation.statistics import Interval
from thinkers.models.base import Model
from thinkers.tasks import Task


@dataclass(frozen=True)
class ReadOut:
    """What vectors would answer: their likeliest tokens, with probabilities, and how unsure."""

    tokens: Int[Tensor, "k t n"]
    probabilities: Float[Tensor, "k t n"]
    entropy: Float[Tensor, "k t"]
    """In bits."""


@dataclass(frozen=True)
class Inspection:
    """What was seen of one prompt; k counts thinking steps from the first, t positions.

    Args:
        run: The folder of the model; empty for one that comes without.
        asked: The number of thinking steps; a model may take none, and has a state all the same.
        tokens: What was read: the prompt and, where the task has answers, the model's own.
        prompt_length: How many of them are the prompt; None where a text is gone on with.
        answer: What the model answers in the end; None where a text is gone on with.
        answers: What the state would answer.
        others: The same of other vectors in `extra`: one for each thought, plan or latent.
        by_position: Which of the others have one column for each position.
        distance: |s_k - s_k-1|, 0 at the first step.
        moved: That, relative to |s_k-1|.
        cosine: Of s_k and s_k-1, 1 at the first step.
        attention: {what the columns are: how much of it each position reads at each step}.
        plane: The states in the plane in which they vary most.
        explained: The share of their variance along each of its two axes.
    """

    model: Model
    task: Task
    run: str
    asked: int
    prompt: str
    tokens: list[int]
    prompt_length: int | None
    answer: str | None
    answers: ReadOut
    others: Mapping[str, ReadOut]
    by_position: tuple[str, ...]
    distance: Float[Tensor, "k t"]
    moved: Float[Tensor, "k t"]
    cosine: Float[Tensor, "k t"]
    attention: Mapping[str, Float[Tensor, "k t n"]]
    plane: Float[Tensor, "k t 2"]
    explained: tuple[float, float]

    @property
    def num_steps(self) -> int:
        return len(self.moved)

    @property
    def flips(self) -> Bool[Tensor, "k t"]:
        """Whether a step changes the answer of the step before."""
        best = self.answers.tokens[..., 0]
        return F.pad(best[1:] != best[:-1], (0, 0, 1, 0))

    @property
    def settled(self) -> Int[Tensor, " t"]:
        """The step from which each position answers what it does in the end."""
        steps = torch.arange(1, self.num_steps + 1)[:, None]
        return (self.flips * steps).amax(0).clamp(min=1)

    @property
    def first(self) -> int:
        """The first position that the task asks for: the last of a prompt."""
        return 0 if self.prompt_length is None else self.prompt_length - 1


def is_end(task: Task, token: int, other: int) -> bool:
    """Whether the task reads nothing after this token: another then adds nothing to the text."""
    return task.decode([token, other]) == "" != task.decode([other])


def label(task: Task, token: int, other: int) -> str:
    """How a token is shown; `other` is one that has a text."""
    text = task.decode([token])
    if text:
        return text.replace(" ", "␣")
    return "[end]" if is_end(task, token, other) else f"[{token}]"


TOLD = {
    "zeros": "every thought is 0",
    "another example's": "the thought of the same step of the example before it in its batch",
    "noise": "drawn from a normal distribution, with each coordinate's mean and deviation",
    "shuffled steps": "its own thoughts, each at another step than its own",
}


@dataclass(frozen=True)
class Effect:
    """What is lost when thoughts are replaced in one way: more is worse, whatever the metric."""

    way: str
    score: float
    lost: Interval

    @property
    def verdict(self) -> str:
        if self.lost.low > 0:
            return "the thought matters"
        return "another is better" if self.lost.high < 0 else "not distinguishable"


@dataclass(frozen=True)
class Ablation:
    """The score with the model's own thoughts, and what each replacement of them costs."""

    model: str
    metric: str
    score: float
    num_steps: int
    num_examples: int
    effects: tuple[Effect, ...]
