"""Results of inspecting and ablating a model, which the page and the commands show."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.evaluation.statistics import Interval
from thinkers.models.base import Model
from thinkers.models.halt import Halt
from thinkers.models.tools import Tool
from thinkers.tasks import Task


@dataclass(frozen=True)
class ReadOut:
    """Predictions of vectors: likeliest tokens, their probabilities, and the entropy."""

    tokens: Int[Tensor, "k t n"]
    probabilities: Float[Tensor, "k t n"]
    entropy: Float[Tensor, "k t"]
    """Entropy of each prediction, in bits."""


@dataclass(frozen=True)
class ReadBlock:
    """A block of a long-term memory that was read at a step.

    Args:
        step: The thinking step, from 1.
        section: The section of a text whose end thought, from 1; None for a prompt.
        source: The name of the text that it was cut from; "" without a name.
        lines: First and last line in its source; None if they are not known.
        score: The score of the index, by which it was chosen.
        mass: The attention that it got: mean over heads, layers and latents; 1 is all.
        text: Its text; None if that was not kept.
    """

    step: int
    section: int | None
    id: int
    level: int
    topic: str
    source: str
    lines: tuple[int, int] | None
    score: float
    mass: float
    text: str | None

    @property
    def place(self) -> str:
        """Source and lines, such as notes.txt:3 or notes.txt:3-5."""
        if self.lines is None:
            return self.source or "-"
        first, last = self.lines
        return f"{self.source or 'line'}:{first}" + (f"-{last}" if last > first else "")


@dataclass(frozen=True)
class ReadStep:
    """The reading of one step from a long-term memory; the place is that of `ReadBlock`.

    Args:
        mass: The attention that all blocks read got together.
        covered: The share of these blocks in the attention that all blocks of the memory get in a
            pass that reads every one; None if that was not measured.
    """

    step: int
    section: int | None
    mass: float
    covered: float | None


@dataclass(frozen=True)
class Without:
    """The answer of a model without a part of its memory.

    Args:
        id: The block that was left out; None for the whole memory.
        answer: For open-ended text the next token.
        chance: The probability of the answer that is given with the memory; None if the answer
            is not written after the prompt.
    """

    id: int | None
    answer: str
    chance: float | None


@dataclass(frozen=True)
class MemoryReading:
    """The reading of a model from a long-term memory for one prompt.

    Args:
        folder: The folder of the memory; "" if it has none.
        topics: The topics that were read; None if all were.
        size: Number of blocks that could be read.
        blocks: Blocks that were read, by section, step and score.
        answer: With the memory, as `Without.answer`.
        chance: The probability of that answer with the memory, as `Without.chance`.
        without: The answer without each block, the ones of most attention first.
        alone: The answer without the memory.
        top: Number of blocks to read at a step, if that was given; None for the model's own.
    """

    folder: str
    topics: tuple[str, ...] | None
    size: int
    blocks: tuple[ReadBlock, ...]
    steps: tuple[ReadStep, ...]
    answer: str
    chance: float | None
    without: tuple[Without, ...]
    alone: Without
    top: int | None = None


@dataclass(frozen=True)
class Asked:
    """An answer from a long-term memory, and the blocks that were read for it."""

    prompt: str
    answer: str
    blocks: tuple[ReadBlock, ...]

    def record(self) -> dict[str, Any]:
        """Return the values of JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Inspection:
    """The thinking steps of a model on one prompt: k steps from the first, t positions.

    Args:
        run: The folder of the model; empty if it has none.
        requested_steps: Thinking steps; with 0 there is still one state.
        halt: The rule by which tokens may halt before these; None if they may not.
        taken: The steps that each token took, all of them if tokens may not halt.
        blocks: The blocks that the prompt, or each section of a text, chose; () without a policy.
        tokens: The input: the prompt and, where the task has answers, the model's own answer.
        prompt_length: Tokens of the prompt; None for open-ended text.
        answer: The answer after the last step; None for open-ended text.
        answers: Predictions of the states.
        others: Predictions of other vectors in `extra`: one for each thought, plan or latent.
        by_position: Names of the others that have one column for each position.
        distance: |s_k - s_k-1|, 0 at the first step.
        moved: `distance` relative to |s_k-1|.
        cosine: Cosine similarity of s_k and s_k-1, 1 at the first step.
        attention: {kind of the columns: attention weights of each position at each step}.
        plane: The states on their first two principal components.
        explained: The share of the variance of each component.
        tools: The tools that the model might call, as they were given.
        memory: The reading from a long-term memory; None without one.
    """

    model: Model
    task: Task
    run: str
    requested_steps: int
    halt: Halt
    taken: Int[Tensor, " t"]
    blocks: tuple[tuple[str, ...], ...]
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
    tools: tuple[str | Tool, ...] = ()
    memory: MemoryReading | None = None

    def __repr__(self) -> str:
        answers = ", ".join(self.predictions)
        return f"Inspection({self.model.name} on {self.prompt!r}, after each step: {answers})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{step}</td><td>{html.escape(text)}</td></tr>"
            for step, text in enumerate(self.predictions, 1)
        )
        head = "<tr><th>step</th><th>prediction</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"

    @property
    def num_steps(self) -> int:
        return len(self.moved)

    @property
    def flips(self) -> Bool[Tensor, "k t"]:
        """True where a step changes the prediction of the step before."""
        best = self.answers.tokens[..., 0]
        return F.pad(best[1:] != best[:-1], (0, 0, 1, 0))

    @property
    def settled(self) -> Int[Tensor, " t"]:
        """The step from which each position has its final prediction."""
        steps = torch.arange(1, self.num_steps + 1)[:, None]
        return (self.flips * steps).amax(0).clamp(min=1)

    @property
    def predictions(self) -> list[str]:
        """After each step, the answer, or for open-ended text the next token after the prompt."""
        best = self.answers.tokens[..., 0]
        if self.answer is not None:
            return [self.task.decode(row.tolist()) for row in best[:, self.first :]]
        return [self.label(int(row[-1])) for row in best]

    @property
    def mean_steps(self) -> float:
        """The mean steps that the tokens took, the start token left out."""
        return float(self.taken[self.tokens[0] == self.task.start_token :].double().mean())

    def record(self) -> dict[str, Any]:
        """Return the values of JSON: predictions by step, and what was read from a memory."""
        return {
            "model": self.model.name,
            "run": self.run,
            "num_steps": self.requested_steps,
            "prompt": self.prompt,
            "answer": self.answer,
            "predictions": self.predictions,
            "tokens": [self.label(token) for token in self.tokens],
            "first": self.first,
            "settled": self.settled.tolist(),
            "taken": self.taken.tolist(),
            "memory": None if self.memory is None else asdict(self.memory),
        }

    def label(self, token: int) -> str:
        """Return the text that a token is shown as."""
        return label(self.task, token, token_with_text(self.task, self.tokens))

    @property
    def first(self) -> int:
        """The first position with a reported prediction: the last of a prompt."""
        return 0 if self.prompt_length is None else self.prompt_length - 1


def token_with_text(task: Task, tokens: Sequence[int]) -> int:
    """Return the first of these tokens that has a text, to recognise the end token by."""
    return next((token for token in tokens if task.decode([token])), tokens[0])


def is_end(task: Task, token: int, other: int) -> bool:
    """Return True for the end token: text after it is not decoded."""
    return task.decode([token, other]) == "" != task.decode([other])


def label(task: Task, token: int, other: int) -> str:
    """Return the text that a token is shown as.

    Args:
        other: A token that has a text, to recognise the end token by.
    """
    text = task.decode([token])
    if text:
        return text.replace(" ", "␣")
    if token == task.start_token:
        return "[start]"
    return "[end]" if is_end(task, token, other) else f"[{task.token_name(token)}]"


DESCRIPTIONS = {
    "zeros": "zeros",
    "another example's": "the thought of the example before it in the batch, at the same step",
    "noise": "normal noise with the mean and standard deviation of each coordinate",
    "shuffled steps": "the thought of another step of the same example",
}


@dataclass(frozen=True)
class Effect:
    """The loss when thoughts are replaced; above 0 is worse, for every metric."""

    replacement: str
    score: float
    loss: Interval

    @property
    def verdict(self) -> str:
        if self.loss.low > 0:
            return "the thought matters"
        return "the replacement is better" if self.loss.high < 0 else "not distinguishable"


@dataclass(frozen=True)
class Ablation:
    """The score with the model's own thoughts, and the loss of each replacement."""

    model: str
    metric: str
    score: float
    num_steps: int | Literal["due"]
    num_examples: int
    effects: tuple[Effect, ...]
