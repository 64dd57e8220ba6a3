"""The contract of a task: batches, scores, text and tokens; and which examples are held out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt64
from torch import Tensor, nn

from thinkers.checks import check_int, describe
from thinkers.errors import UsageError, UsageTypeError, usage_error
from thinkers.models.batch import IGNORED as IGNORED
from thinkers.models.batch import Batch
from thinkers.models.halt import Halt, halt_option
from thinkers.models.memory_option import memory_option
from thinkers.models.positions import option
from thinkers.models.tools import Tool, tools_option
from thinkers.prng import hash_integers
from thinkers.registry import Configured
from thinkers.tasks.due import Steps
from thinkers.tasks.graded_rows import GradedRows, refuse_to_show_rows
from thinkers.tasks.tools import check_tool_name

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt.

    Args:
        begun: Number of its last tokens that are the start of the answer.
        longest: The most tokens of the whole answer, end token included; None for open-ended text.
        num_steps: Thinking steps that it asks for, of a model that takes any; None means the
            model's own number.
    """

    tokens: list[int]
    begun: int = 0
    longest: int | None = None
    num_steps: int | None = None


@dataclass(frozen=True)
class Response:
    """The answer of a model to a prompt.

    Args:
        answer: Its tokens.
        row: The tokens that the model read and wrote, prompt and answer.
        prompt_length: Number of tokens of `row` that are its prompt.
        steps: The thinking steps that each token of the answer took; None if none may halt.
    """

    answer: list[int]
    row: list[int]
    prompt_length: int
    steps: list[int] | None = None


class Task(Configured, ABC):
    """Source of training batches that also scores models on held-out examples.

    A task must define or inherit `Config` (a frozen dataclass of its settings), `primary_metric`,
    `vocab_size`, `max_length`, and the abstract methods `batch`, `score`, `grade`, `encode` and
    `decode`. All other methods have defaults that suit a task without a curriculum that needs no
    files. `AnswerTask` defines most of them for tasks of prompts with one right answer.

    Batches are pure functions of (seed, split, update, batch_size) and of the curriculum's state,
    which only `observe`, `skip_curriculum` and `load_state_dict` change. So batches may be
    requested in any order, by any process, and a resumed run gets the batches that an uninterrupted
    one gets.
    """

    primary_metric: ClassVar[str]
    """The metric by which runs are compared, the first of those that `score` returns."""
    higher_is_better: ClassVar[bool] = True
    """Direction of the primary metric; False for a loss."""
    vocab_size: int
    positions: Callable[[Tensor], Tensor] | None = None
    """Coupled positions (b, t) of left-aligned tokens (b, t), a pure function in which a position
    depends on the tokens up to it alone; None for positions in order."""
    max_due: int | None = None
    """The latest due step of any target (`Batch.due`); None if batches have no due steps."""
    judged_at: ClassVar[Steps] = None
    """The steps of the scores of training, and the first row of `evaluate`: None means the model's
    own number, "due" an oracle's, where more steps ask for something else."""
    wait_token: int | None = None
    """The token that means "not yet", which a model may be trained to answer before a target is
    due (`step_loss="wait"`); None if the task has none."""
    max_length: int
    """The most tokens that a prompt and its answer may take together, start and end included."""
    start_token: int | None = None
    """The first token of every row, added by `encode` and dropped by `decode`; None for rows that
    begin with their text. Without one, attention over equal leading tokens averages equal values:
    a model without absolute positions cannot distinguish `11+` from `111+`."""

    section_length: int | None = None
    """The most tokens of a section of documents (`Batch.sections`), which a model must read into a
    memory; None if its rows are all that there is to read."""
    tools: tuple[str, ...] = ()
    """The names of the tools that it has: see `tool`."""
    scored_with: tuple[str, ...] = ()
    """Those that its rows call: `score`, `grade` and `evaluate` let the model call them, unless
    others are named. Nothing else calls a tool that was not named."""

    def __init__(self, config: Any = None, seed: int = 0):
        self.config = self.Config() if config is None else self.own_config(config)
        self.seed = seed

    @property
    def num_output_tokens(self) -> int:
        """Number of tokens, from 0 on, that a model may write; those above are input alone."""
        return self.vocab_size

    @abstractmethod
    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Return the examples of one update, over all ranks: rank r of w trains on rows r::w.

        Row i must not depend on `batch_size`, and rows of different splits must share no example.
        """

    @abstractmethod
    def score(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: Steps = None,
        halt: Halt = None,
    ) -> dict[str, float]:
        """Return {metric: mean over examples of `split`}, the primary metric first.

        Args:
            num_steps: "due" evaluates each example at its largest due step, if the task has any.
            halt: Let tokens halt before `num_steps`: see `thinkers.models.halt`.
        """

    @abstractmethod
    def grade(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: Steps = None,
        halt: Halt = None,
    ) -> Float[Tensor, " n"]:
        """Return the primary metric of each example, in float64; their mean is the score.

        Examples and their order must be the same for every model, since models are compared by
        paired differences.
        """

    def graded_rows(
        self, model: Any, split: str, num_examples: int, num_steps: Steps, halt: Halt = None
    ) -> Iterator[GradedRows]:
        """Yield what the model read and wrote for the examples of `grade`, in their order.

        Raises:
            UsageError: The task does not define this.
        """
        return refuse_to_show_rows(self)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`, the start token first if the task has one.

        Raises:
            UsageError: naming the first part of `text` that has no token.
        """

    @abstractmethod
    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens`, up to the end token if the task has one.

        Start tokens and padding have no text.
        """

    def token_name(self, token: int) -> str:
        """Return the name of a token that has no text."""
        return str(token)

    def read_prompt(self, text: str) -> Prompt:
        """Parse a prompt, which may end in the beginning of its answer.

        Raises:
            UsageError: It is not a prompt of this task; the message names the position.
        """
        tokens = self.encode(text)
        if not self.without_start(tokens):
            raise usage_error(
                "an empty prompt",
                "a question such as 12+34=, or the beginning of a text",
                "write one",
            )
        return Prompt(tokens, 0, self.max_answer_length())

    def with_answer(self, prompt: str, answer: Iterable[int]) -> str:
        """Return the text of a prompt and its answer, which are decoded as one.

        The text of a token may depend on those before it: an answer that begins in the prompt
        cannot be decoded separately.
        """
        return self.decode([*self.encode(prompt), *answer])

    def without_start(self, tokens: list[int]) -> list[int]:
        """Return `tokens` without the start token that `encode` puts first."""
        return tokens[1:] if tokens[:1] == [self.start_token] else tokens

    def responses(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        room: int,
        num_steps: int | None = None,
        halt: Halt = None,
        tools: Sequence[Tool] = (),
        memory: Any = None,
    ) -> list[Response]:
        """Let the model answer prompts in one batch, here by `room` tokens generated after each."""
        device = next(model.parameters()).device
        lengths = [len(prompt.tokens) for prompt in prompts]
        rows = [[0] * (max(lengths) - len(x.tokens)) + x.tokens for x in prompts]
        given = torch.tensor(rows, device=device), torch.tensor(lengths, device=device), room
        options = option(self.positions) | halt_option(halt) | tools_option(tools)
        options |= memory_option(memory)
        taken: list[Any] = [None] * len(prompts)
        if halt is None:
            found = model.answer(*given, num_steps=num_steps, **options)
        else:
            options["return_steps"] = True
            found, steps = model.answer(*given, num_steps=num_steps, **options)
            taken = steps.tolist()
        answers = zip(prompts, found.tolist(), taken, strict=True)
        return [Response(x, p.tokens + x, len(p.tokens), steps) for p, x, steps in answers]

    def tool(self, name: str, keys: Int[Tensor, " b"] | None = None) -> Tool:
        """Return the tool of this name, one of `tools`.

        Args:
            keys: The keys of the rows that will call it, `Batch.keys`, where what it gives depends
                on the row; None for rows that are no examples of the task.

        Raises:
            UsageError: The task has no such tool, or these are no keys.
        """
        check_tool_name(self, name)
        if keys is not None and (
            not isinstance(keys, Tensor) or keys.dtype != torch.int64 or keys.ndim != 1
        ):
            raise UsageTypeError(f"keys must be an int64 tensor (b,), got {describe(keys)}")
        return self.make_tool(name, keys)

    def make_tool(self, name: str, keys: Int[Tensor, " b"] | None) -> Tool:
        """Return what `tool` does; required of a task that has `tools`."""
        raise NotImplementedError(f"{type(self).__name__} must define make_tool for its tools")

    def max_answer_length(self) -> int | None:
        """Return the most tokens of an answer, end token included; None for open-ended text."""
        return None

    def groups(
        self, split: str = "test", num_examples: int = 2000
    ) -> Int64[np.ndarray, " n"] | None:
        """Return a group number for each example of `grade`; None if examples are independent.

        Examples of one group, such as a question that was drawn twice, are correlated: confidence
        intervals are over groups, not examples.
        """
        return None

    def has_own_test(self) -> bool:
        """Return True unless the test split is the validation split."""
        return True

    def objective(self, scores: Mapping[str, float]) -> float:
        """Return the primary metric of `scores`, negated if lower is better."""
        value = scores[self.primary_metric]
        return value if self.higher_is_better else -value

    def progress(self, batch: Batch, values: Mapping[str, float]) -> dict[str, float]:
        """Return the numbers that show the progress of training, logged and shown with the loss.

        Args:
            batch: The batch of an update.
            values: Its measured numbers: loss, accuracy (share of rows whose graded tokens were all
                predicted), token_accuracy (share of graded tokens; absent if the model does not
                count them) and the parts of the loss.
        """
        return {"accuracy": values["accuracy"]}

    def check(self, model: Any) -> None:  # noqa: B027, most can be learned by all models
        """Raise UsageError if this model cannot learn this task."""

    def observe(self, correct: Bool[Tensor, " b"]) -> None:  # noqa: B027, most have no curriculum
        """Advance the curriculum by the correct rows of one update, in the order of the batch."""

    def skip_curriculum(self) -> None:  # noqa: B027, most have no curriculum
        """Set the curriculum to its last stage, whose examples are the longest."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the curriculum as plain numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        if state:
            raise UsageError(f"state must be empty without a curriculum, got {sorted(state)}")

    def save_to_run(self, folder: Path) -> None:  # noqa: B027, most need only their Config
        """Write to a run folder the files that `from_run` reads, such as a vocabulary."""

    def allow_sources(self, settings: Collection[str]) -> None:  # noqa: B027, most have none
        """Allow reading the files that these settings name, with any content.

        A task of a run reads only files that the run recorded or contains, since its settings may
        be untrusted. The user named these files.
        """

    @classmethod
    def from_run(cls, config: Any, seed: int, folder: Path) -> "Task":
        """Build the task of the run in `folder` from its config and the files of `save_to_run`."""
        return cls(config, seed)


def example_groups(
    task: Task, split: str, num_examples: int, grades: Float[np.ndarray, "*s n"]
) -> Int64[np.ndarray, " n"]:
    """Return the group of each of these grades; each is its own group if the task has none."""
    groups = task.groups(split, num_examples)
    count = grades.shape[-1]
    return np.arange(count) if groups is None or len(groups) != count else groups


def check_split(split: str) -> int:
    """Return the index of `split` in SPLITS, or raise UsageError."""
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return SPLITS.index(split)


def check_batch(update: int, batch_size: int, split: str) -> int:
    """Check the arguments of `Task.batch` and return the index of `split` in SPLITS."""
    check_int("update", update, 0, 2**63 - 1)
    check_int("batch_size", batch_size, 1)
    return check_split(split)


def split_of_hash(*content: int) -> str:
    """Return the split of an example, by a hash of its content: 80 % train, 10 % valid, 10 % test.

    The hash does not depend on seed or update: a held-out example is held out of every training, at
    any seed, size and curriculum stage.
    """
    return SPLITS[max(0, hash_integers(*content) % 10 - 7)]


def splits_of_hashes(hashes: UInt64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return the index into SPLITS of each hash of an example's content: see `split_of_hash`."""
    tenths = (hashes >> np.uint64(32)) % np.uint64(10)
    return np.maximum(tenths.astype(np.int64) - 7, 0)
