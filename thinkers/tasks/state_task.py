"""StateTask: base class of tasks on a state that each input changes.

A concrete task defines `sizes`, `draw` (random inputs) and `layout` (their tokens, targets and due
steps); this file splits, batches and scores. All operations are vectorised in numpy, since batches
are made while a small model waits for them.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt64
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import UsageError, usage_error
from thinkers.models.batch import Batch
from thinkers.models.generation import choosable, eval_mode, ids_below
from thinkers.models.halt import Halt, halt_option
from thinkers.models.memory_option import memory_option
from thinkers.models.positions import option
from thinkers.models.tools import Tool
from thinkers.prng import Draws, constants, mix, row_keys
from thinkers.tasks.answers import SCORING_ROWS, AnswerTask
from thinkers.tasks.base import IGNORED, SPLITS, Prompt, Response, check_batch, splits_of_hashes
from thinkers.tasks.due import Steps, check_steps_of_task, step_groups
from thinkers.tasks.graded_rows import GradedRows, check_no_oracle
from thinkers.tasks.tools import refuse_tools

BLOCK_ROWS = 1 << 11
"""Training rows that are drawn at once."""
ATTEMPTS = 1000
"""Draws after which a split counts as empty; of 10 % of all rows, one is missed by 1e-46."""

LONGEST = 1000
"""The largest size of a row that a task can be configured for."""

Layout = tuple[Int64[np.ndarray, "n t"], Int64[np.ndarray, "n t"], Int64[np.ndarray, "n t"]]
"""Tokens of rows, -1 beyond their end, with their targets and due steps."""


class StateTask(AnswerTask):
    """Follow a state: an answer after n changes needs n steps, one after another.

    The rows of a training batch have one size, a function of seed and update, and consecutive
    batches all sizes in turn; the rows of a held-out batch have all sizes. Rows are held out by a
    hash of their inputs: 80 % of all rows are for training, 10 % each for valid and test.
    """

    whole_rows: ClassVar[bool] = True
    """True if `exact` needs every graded position of a row, False if the last one alone."""
    num_leading: ClassVar[int] = 1
    """Tokens of a row before its first input."""
    prompt_example: ClassVar[str]
    """A prompt."""
    num_answers: int = 0
    """Tokens from 0 on that are answers and never inputs."""
    sizes: range
    """Sizes of rows, such as their numbers of inputs."""
    start_token: int
    pad_token = 0

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        self._block: tuple[tuple[int, int, int], Batch] | None = None

    @property
    def _stage(self) -> int:
        """The stage of the curriculum, which training rows depend on; 0 without one."""
        return 0

    @property
    def _training_sizes(self) -> range:
        """Sizes of training rows at this stage."""
        return self.sizes

    @abstractmethod
    def draw(
        self, draws: Draws, sizes: Int64[np.ndarray, " n"], split: str
    ) -> Int64[np.ndarray, "n w"]:
        """Return random inputs for each row, -1 beyond its end."""

    @abstractmethod
    def layout(self, inputs: Int64[np.ndarray, "n w"], sizes: Int64[np.ndarray, " n"]) -> Layout:
        """Return the tokens, targets and due steps of rows with these inputs."""

    def early_answers(self, tokens: Int64[np.ndarray, "n t"]) -> Int[Tensor, "n t k"] | None:
        """Return the right answers before they are due (`Batch.early`), from rows of tokens that
        are -1 beyond their end; None if the task does not know them."""
        return None

    def max_answer_length(self) -> int:
        return 1

    # batches

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Return the examples of one update, padded to the longest.

        A row is a function of (seed, split, update, row), and in training of the curriculum.
        """
        check_batch(update, batch_size, split)
        if split != "train":
            return self._generate(update, 1, batch_size, split)
        # The fixed cost of numpy calls is shared by a block of consecutive updates. A block is a
        # function of its key, so that this cache cannot change a batch.
        count = max(1, BLOCK_ROWS // batch_size)
        key = (update // count, batch_size, self._stage)
        if self._block is None or self._block[0] != key:
            first_update = update // count * count
            self._block = key, self._generate(first_update, count, batch_size, split)
        first = update % count * batch_size
        rows = torch.arange(first, first + batch_size)  # an index copies, a slice would be a view
        return _cut(self._block[1].rows(rows))

    def _generate(self, update: int, count: int, batch_size: int, split: str) -> Batch:
        updates = np.arange(update, update + count)
        keys = row_keys(self.seed, SPLITS.index(split), updates, batch_size)
        if split == "train":
            sizes = np.repeat(self._sizes_of(updates), batch_size)
        else:
            sizes = self.sizes[0] + Draws(mix(keys.ravel())).below(len(self.sizes), 1)[:, 0]
        tokens, targets, due = self.layout(self._inputs(keys.ravel(), sizes, split), sizes)
        lengths = (tokens >= 0).sum(1)
        columns = [np.where(tokens < 0, self.pad_token, tokens), targets, due]
        arrays = [torch.from_numpy(np.ascontiguousarray(x)) for x in columns]
        ends = torch.from_numpy(lengths)
        return Batch(
            tokens=arrays[0],
            targets=arrays[1],
            prompt_lengths=self.prompt_lengths(ends),
            lengths=ends,
            keys=torch.from_numpy(keys.ravel().view(np.int64)),
            due=None if self.max_due is None else arrays[2],
            early=self.early_answers(tokens),
        )

    def _sizes_of(self, updates: Int64[np.ndarray, " u"]) -> Int64[np.ndarray, " u"]:
        """Return the size of the rows of each update."""
        # Consecutive updates take all sizes in random order before one is taken again, so that the
        # FLOPs of a training hardly depend on its seed, and a few updates are a fair sample.
        sizes = self._training_sizes
        number = len(sizes)
        cycles, place = np.divmod(updates, number)
        keys = row_keys(self.seed, len(SPLITS), cycles, 1)[:, 0]
        order = np.argsort(Draws(keys).below(2**32 - 1, number), 1, kind="stable")
        return sizes[0] + order[np.arange(len(updates)), place]

    def prompt_lengths(self, lengths: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Return the lengths of the prompts of rows of these lengths: whole rows."""
        return lengths.clone()

    def _inputs(
        self, keys: UInt64[np.ndarray, " n"], sizes: Int64[np.ndarray, " n"], split: str
    ) -> Int64[np.ndarray, "n w"]:
        """Return for each key the first inputs drawn from it that belong to `split`."""
        # Rejection sampling: each attempt has a key of its own, so that a row does not depend on
        # how often other rows were rejected.
        pending, found = np.arange(len(keys)), None
        for attempt in range(ATTEMPTS):
            draws = Draws(mix(keys[pending] + np.uint64(attempt + 1)))
            drawn = self.draw(draws, sizes[pending], split)
            good = splits_of_hashes(hash_inputs(drawn)) == SPLITS.index(split)
            if found is None:
                found = drawn
            else:
                found[pending[good], : drawn.shape[1]] = drawn[good]
            pending = pending[~good]
            if not len(pending):
                return found
        raise UsageError(
            f"{type(self).__name__} must have rows of size {sizes[pending[0]]} for {split}, got "
            f"none in {ATTEMPTS:,} draws; allow more different rows"
        )

    def _check_splits(self) -> None:
        """Raise UsageError if a split has none of the smallest rows, of which there are fewest."""
        for split in SPLITS:
            self._inputs(row_keys(0, 0, np.arange(1), 1)[0], np.array(self.sizes[:1]), split)

    def evaluation_batches(self, split: str, num_examples: int) -> Iterator[Batch]:
        for i, start in enumerate(range(0, num_examples, SCORING_ROWS)):
            yield self.batch(i, min(SCORING_ROWS, num_examples - start), split)

    # evaluation

    def predict(
        self,
        model: Any,
        batch: Batch,
        num_steps: int | None,
        halt: Halt = None,
        memory: Any = None,
    ) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"] | None]:
        """Return the likeliest token at each position, from one forward pass, and the steps that
        it took with `halt`; None without."""
        thought = model(
            batch.tokens,
            num_steps=num_steps,
            lengths=batch.lengths,
            prompt_lengths=batch.prompt_lengths,
            **option(batch.positions),
            **halt_option(halt),
            **memory_option(memory),
        )
        predicted = choosable(thought.logits).argmax(-1)
        return predicted, None if halt is None else thought.steps

    def read_by(self, batch: Batch, predicted: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
        """Return the tokens that a model with these predictions reads."""
        return batch.tokens

    def _predicted(
        self, model: Any, split: str, num_examples: int, num_steps: Steps, halt: Halt
    ) -> Iterator[tuple[Batch, Int[Tensor, "b t"]]]:
        """Yield held-out batches, and the model's answer at each position, -100 for padding."""
        check_int("num_examples", num_examples, 1)
        check_no_oracle(num_steps, halt)
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        with eval_mode(model), ids_below(self.vocab_size):
            for batch in self.evaluation_batches(split, num_examples):
                found = torch.full_like(batch.tokens, IGNORED)
                for rows, steps in step_groups(batch, model, num_steps):
                    some = _cut(batch.rows(rows))
                    predicted, _ = self.predict(model, some.to(device), steps, **halt_option(halt))
                    found[rows, : predicted.shape[1]] = predicted.cpu()
                yield batch, found

    def graded(
        self, model: Any, split: str, num_examples: int, num_steps: Steps, halt: Halt = None
    ) -> Iterator[tuple[Batch, Bool[Tensor, "b t"]]]:
        """Yield held-out batches, and True where the model's answer is right."""
        for batch, predicted in self._predicted(model, split, num_examples, num_steps, halt):
            yield batch, (predicted == batch.targets) & (batch.targets != IGNORED)

    def graded_rows(
        self,
        model: Any,
        split: str,
        num_examples: int,
        num_steps: Steps,
        halt: Halt = None,
        tools: Sequence[str | Tool] | None = None,
    ) -> Iterator[GradedRows]:
        refuse_tools(self, tools)
        for batch, predicted in self._predicted(model, split, num_examples, num_steps, halt):
            right = (predicted == batch.targets) & (batch.targets != IGNORED)
            grades, tokens = self._exact(batch, right).double(), self.read_by(batch, predicted)
            assert batch.lengths is not None
            yield GradedRows(tokens, batch.lengths, batch.prompt_lengths, grades)

    def score(
        self,
        model: Any,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: Steps = None,
        halt: Halt = None,
        tools: Sequence[str | Tool] | None = None,
    ) -> dict[str, float]:
        """Return the shares of rows (`exact`) and of graded positions (`per_token`) that are right.

        Args:
            num_steps: "due" evaluates each row at its largest due step: see `step_groups`.
            halt: Let tokens halt before `num_steps`: see `thinkers.models.halt`.
        """
        refuse_tools(self, tools)
        exact, right, graded = [], 0, 0
        for batch, is_right in self.graded(model, split, num_examples, num_steps, halt):
            exact.append(self._exact(batch, is_right))
            right += int(is_right.sum())
            graded += int((batch.targets != IGNORED).sum())
        return {"exact": float(torch.cat(exact).double().mean()), "per_token": right / graded}

    def grade(
        self,
        model: Any,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: Steps = None,
        halt: Halt = None,
        tools: Sequence[str | Tool] | None = None,
    ) -> Float[Tensor, " n"]:
        """Return 1 for each row that is right, 0 for the others."""
        refuse_tools(self, tools)
        found = self.graded(model, split, num_examples, num_steps, halt)
        return torch.cat([self._exact(batch, is_right) for batch, is_right in found]).double()

    def _exact(self, batch: Batch, right: Bool[Tensor, "b t"]) -> Bool[Tensor, " b"]:
        if self.whole_rows:
            return (right | (batch.targets == IGNORED)).all(1)
        assert batch.lengths is not None
        return right[torch.arange(len(right)), batch.lengths - 1]

    def by_due(
        self,
        model: Any,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: Steps = None,
        halt: Halt = None,
    ) -> dict[int, float]:
        """Return {due step: share of the positions with it that are right}: see `score`.

        Raises:
            UsageError: The task has no due steps.
        """
        check_steps_of_task("due", self.max_due)
        right, graded = torch.zeros(2, (self.max_due or 0) + 1, dtype=torch.float64)
        for batch, is_right in self.graded(model, split, num_examples, num_steps, halt):
            assert batch.due is not None
            right += batch.due[is_right].bincount(minlength=len(right))
            graded += batch.due[batch.targets != IGNORED].bincount(minlength=len(right))
        return {k: float(right[k] / graded[k]) for k in graded.nonzero()[:, 0].tolist()}

    def groups(self, split: str = "test", num_examples: int = 2000) -> Int64[np.ndarray, " n"]:
        """Return the number of each example's row: equal rows are one group."""
        numbers: dict[tuple[int, ...], int] = {}
        found = []
        for batch in self.evaluation_batches(split, check_int("num_examples", num_examples, 1)):
            assert batch.lengths is not None
            for row, length in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True):
                found.append(numbers.setdefault(tuple(row[:length]), len(numbers)))
        return np.array(found)

    # text

    def read_prompt(self, text: str) -> Prompt:
        """Read inputs, any number of them.

        Raises:
            UsageError: There are none, there is an answer among them, or `encode` refuses the text.
        """
        tokens = self.encode(text)
        answers = [place for place, token in enumerate(tokens[1:]) if token < self.num_answers]
        if len(tokens) < 2 or answers:
            raise usage_error(
                f"word {answers[0]} of {text[:60]!r}, which is an answer"
                if answers
                else "an empty prompt",
                f"a prompt such as {self.prompt_example}",
                "leave the answers to the model" if answers else "write one",
            )
        return Prompt(tokens, 0, self.max_answer_length())

    def with_answer(self, prompt: str, answer: Iterable[int]) -> str:
        """Return the prompt as it was typed, an arrow and the answer."""
        return f"{prompt.strip()} -> {self.decode(answer)}"

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
        """Answer prompts at the positions of their own inputs, by one forward pass."""
        refuse_tools(self, tools)
        device = next(model.parameters()).device
        lengths = [len(prompt.tokens) for prompt in prompts]
        rows = [x.tokens + [0] * (max(lengths) - len(x.tokens)) for x in prompts]
        tokens, ends = torch.tensor(rows, device=device), torch.tensor(lengths, device=device)
        batch = Batch(tokens, torch.full_like(tokens, IGNORED), ends, ends)
        with eval_mode(model):
            predicted, taken = self.predict(model, batch, num_steps, halt, memory)
        found = []
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            places = slice(self.num_leading, length)
            steps = None if taken is None else taken[i, places].tolist()
            found.append(Response(predicted[i, places].tolist(), prompt.tokens, length, steps))
        return found


def hash_inputs(inputs: Int64[np.ndarray, "n w"]) -> UInt64[np.ndarray, " n"]:
    """Return a hash of each row of inputs; columns of -1 at the end do not change it."""
    content = (inputs + 1).astype(np.uint64) * constants(inputs.shape[1], salt=1)
    return mix(content.sum(1, dtype=np.uint64))


def checked(tokens: Iterable[int] | Int[Tensor, " t"], vocab_size: int) -> list[int]:
    """Return `tokens` as integers, or raise UsageError about the first that is no token."""
    found = [int(token) for token in tokens]
    return [check_int(f"token {i}", token, 0, vocab_size - 1) for i, token in enumerate(found)]


def _cut(batch: Batch) -> Batch:
    """Return rows without the columns that are padding in all of them."""
    assert batch.lengths is not None
    width = int(batch.lengths.max())
    tokens, targets = (x[:, :width].contiguous() for x in (batch.tokens, batch.targets))
    due, early = (
        None if x is None else x[:, :width].contiguous() for x in (batch.due, batch.early)
    )
    return replace(batch, tokens=tokens, targets=targets, due=due, early=early)
