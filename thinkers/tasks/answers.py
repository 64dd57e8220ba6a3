"""Tasks of prompts with one right answer: batches, and the scores `exact` and `per_token`."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import tee
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from thinkers.checks import NOT_CAUSAL, check_int
from thinkers.errors import UsageError, usage_error
from thinkers.models.batch import Batch
from thinkers.models.documents import check_reads_sections, inputs_option
from thinkers.models.generation import eval_mode, ids_below
from thinkers.models.halt import Halt, halt_option
from thinkers.models.positions import Positions, option, refuse_positions
from thinkers.models.tools import Tool, check_calls, cut_results, tools_option
from thinkers.prng import Rng, mix_int, row_keys
from thinkers.problems import Collector
from thinkers.tasks.base import IGNORED, Prompt, Task, check_batch, split_of_hash
from thinkers.tasks.due import Steps, step_groups
from thinkers.tasks.graded_rows import GradedRows, check_no_oracle, with_answers
from thinkers.tasks.tools import count_calls, find_tools

SCORING_ROWS = 500
"""Examples of one batch when a model is scored."""
SCORING_SECTIONS = 2000
"""Sections of documents that are read at once then, or those of one document."""
SCORED_PAIRS = 1 << 26
"""Pairs of tokens of the rows that are answered at once: more are split, since masks of windows are
of this size."""
ATTEMPTS = 100_000
"""Draws after which a split counts as empty."""


class AnswerTask(Task):
    """Task of prompts, each with one right answer, scored by exact match.

    The shortest task defines `Config`, `max_length`, `symbols`, `max_answer_length` and `example`.
    `batch`, `encode` and `decode` follow from these, and prompts are held out by their hash: 80 %
    of all prompts are for training, 10 % each for valid and test. A task with tokens of its own or
    with vectorised draws overrides these three methods, and `evaluation_batches` where its
    evaluation examples are not those of `batch`.
    """

    primary_metric = "exact"
    symbols: ClassVar[str] = ""
    """The characters of its texts; character i is token i, then come the end token, padding and the
    start token. Empty for a task that sets `vocab_size` and overrides `encode` and `decode`."""
    prompt_end: ClassVar[str] = ""
    """Text that a complete prompt must contain, such as `=`."""
    causal_fix: ClassVar[str] = "set causal=True"
    """Fix for a non-causal model, which can answer with one token only."""

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        if self.symbols:
            count = len(self.symbols)
            self.end_token, self.pad_token, self.start_token = range(count, count + 3)
            self.vocab_size = count + 3

    @abstractmethod
    def max_answer_length(self) -> int: ...

    def example(self, rng: Rng) -> tuple[str, str]:
        """Return the text of a random prompt and of its answer, all randomness drawn from `rng`.

        Required unless `batch` is overridden.
        """
        raise NotImplementedError(f"{type(self).__name__} must define example, or override batch")

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Return rows that are a function of (seed, split, update, row), padded to the longest."""
        stream = check_batch(update, batch_size, split)
        keys = row_keys(self.seed, stream, np.array([update]), batch_size)[0]
        examples = [self._draw_example(key, split) for key in keys.tolist()]
        return answer_batch(examples, keys.view(np.int64), self.pad_token)

    def _draw_example(self, key: int, split: str) -> tuple[list[int], list[int]]:
        """Return the tokens of the first prompt of `split` drawn from `key`, and of its answer."""
        for rng in self.generators(key):
            prompt, answer = self.example(rng)
            if split_of_hash(int.from_bytes(prompt.encode())) == split:
                break
        else:
            raise UsageError(
                f"{type(self).__name__} must have prompts for {split}, got none in {ATTEMPTS:,} "
                "draws; allow more different prompts"
            )
        tokens = self.encode(prompt)
        target = [*self.without_start(self.encode(answer)), self.end_token]
        for name, needed, limit in (
            ("max_length", len(tokens) + len(target), self.max_length),
            ("max_answer_length", len(target), self.max_answer_length()),
        ):
            if needed > limit:
                raise UsageError(
                    f"{name} must be at least {needed}, the tokens of {prompt!r} {answer!r} with "
                    f"start and end, got {limit}"
                )
        return tokens, target

    @staticmethod
    def generators(key: int) -> Iterator[Rng]:
        """Yield the random numbers of each attempt at an example of the row with this key."""
        # Rejection sampling: each attempt has its own generator, a function of key and attempt.
        for attempt in range(ATTEMPTS):
            yield Rng(mix_int(key + attempt + 1))

    def evaluation_batches(self, split: str, num_examples: int) -> Iterator[Batch]:
        """Yield `num_examples` examples of `split`, or all there are, the same in every call."""
        for i, start in enumerate(range(0, num_examples, SCORING_ROWS)):
            yield self.batch(i, min(SCORING_ROWS, num_examples - start), split)

    def encode(self, text: str) -> list[int]:
        """Return the start token and the token of each character of `text`.

        Raises:
            UsageError: naming the first character that is not in `symbols`.
        """
        for position, character in enumerate(text):
            if character not in self.symbols:
                raise UsageError(
                    f"character {position} of {text!r} must be one of {' '.join(self.symbols)}, "
                    f"got {character!r}"
                )
        assert self.start_token is not None
        return [self.start_token, *(self.symbols.index(character) for character in text)]

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens`, up to the end token, without start tokens and padding."""
        text = ""
        for position, token in enumerate(int(token) for token in tokens):
            check_int(f"token {position}", token, 0, self.vocab_size - 1)
            if token == self.end_token:
                break
            text += self.symbols[token : token + 1]  # start token and padding are beyond
        return text

    def read_prompt(self, text: str) -> Prompt:
        """Read a prompt; tokens after the last `prompt_end` are the beginning of its answer.

        Raises:
            UsageError: It is empty, lacks `prompt_end`, or `encode` refuses it.
        """
        read = super().read_prompt(text)
        if self.prompt_end not in text:
            raise usage_error(
                f"{text[-30:]!r} has no {self.prompt_end!r}",
                f"a question that ends in {self.prompt_end}",
                f"pass one such as {text[-30:]}{self.prompt_end}",
            )
        if not self.prompt_end:
            return read
        end = text.rindex(self.prompt_end) + len(self.prompt_end)
        # The tokens of the question are counted, not those after it: `encode` adds a start token.
        begun = len(read.tokens) - len(self.encode(text[:end]))
        return replace(read, begun=begun)

    def check(self, model: Any) -> None:
        with (problems := Collector()):
            refuse_positions(model, self.positions)
        with problems:
            if not model.causal and self.max_answer_length() > 1:
                raise UsageError(f"{NOT_CAUSAL.format(what='writing answers')}; {self.causal_fix}")
        with problems:
            if self.scored_with:
                check_calls(model)
        with problems:
            if self.section_length is not None:
                check_reads_sections(model, self.section_length)
        problems.raise_all()

    def score(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: Steps = None,
        halt: Halt = None,
        tools: Sequence[str | Tool] | None = None,
    ) -> dict[str, float]:
        """Return the shares of answers (`exact`) and of answer tokens (`per_token`) that are right.

        Both include the end token: `exact` counts an answer only if it also ends at the right
        place. With tools, `calls` is the mean number of calls of an answer.

        Args:
            tools: The tools that the model may call; None means `scored_with`.
        """
        exact, calls, right, graded = [], [], 0, 0
        called = find_tools(self, self.scored_with if tools is None else tools)
        given = model, split, num_examples, num_steps, halt, tools
        for _, predicted, truth, is_right in self._judged(*given):
            exact.append(is_right)
            calls.append(count_calls(predicted, called, self.end_token))
            right += int(((predicted == truth) & (truth != IGNORED)).sum())
            graded += int((truth != IGNORED).sum())
        found = {"exact": float(torch.cat(exact).double().mean()), "per_token": right / graded}
        if called:
            found["calls"] = float(torch.cat(calls).double().mean())
        return found

    def grade(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: Steps = None,
        halt: Halt = None,
        tools: Sequence[str | Tool] | None = None,
    ) -> Float[Tensor, " n"]:
        """Return 1 for each answer that is right to its end token, 0 for the others."""
        found = self._judged(model, split, num_examples, num_steps, halt, tools)
        return torch.cat([is_right for _, _, _, is_right in found]).double()

    def graded_rows(
        self,
        model: Any,
        split: str,
        num_examples: int,
        num_steps: Steps,
        halt: Halt = None,
        tools: Sequence[str | Tool] | None = None,
    ) -> Iterator[GradedRows]:
        end = self.end_token if self.max_answer_length() > 1 else None
        found = self._judged(model, split, num_examples, num_steps, halt, tools)
        for batch, predicted, _, is_right in found:
            tokens, lengths = with_answers(batch, predicted, end)
            yield GradedRows(tokens, lengths, batch.prompt_lengths, is_right.double(), batch)

    def are_right(
        self, batch: Batch, predicted: Int[Tensor, "n a"], truth: Int[Tensor, "n a"]
    ) -> Bool[Tensor, " n"]:
        """Return True for the answers to these rows that are right, for `exact` and `grade`.

        Here they are those equal to the one of the row; a task overrides this where there are
        several.
        """
        return self.is_exact(predicted, truth)

    def is_exact(
        self, predicted: Int[Tensor, "n a"], truth: Int[Tensor, "n a"]
    ) -> Bool[Tensor, " n"]:
        """Return True for the answers that are right; `truth` has -100 after their end."""
        return ((predicted == truth) | (truth == IGNORED)).all(1)

    def _judged(
        self, model: nn.Module, split: str, num_examples: int, *options: Any
    ) -> Iterator[tuple[Batch, Int[Tensor, "n a"], Int[Tensor, "n a"], Bool[Tensor, " n"]]]:
        """Yield held-out rows with the answers of the model, those of the task, and the grades.

        Args:
            options: As in `_answers`.
        """
        batches = self.evaluation_batches(split, check_int("num_examples", num_examples, 1))
        rows, again = tee(batches)
        answers = self._answers(model, split, num_examples, *options, batches=again)
        for batch, (predicted, truth) in zip(rows, answers, strict=True):
            yield batch, predicted, truth, self.are_right(batch, predicted, truth)

    def _answers(
        self,
        model: nn.Module,
        split: str,
        num_examples: int,
        num_steps: Steps,
        halt: Halt = None,
        tools: Sequence[str | Tool] | None = None,
        *,
        batches: Iterator[Batch] | None = None,
    ) -> Iterator[tuple[Int[Tensor, "n a"], Int[Tensor, "n a"]]]:
        """Yield the answers of the model to held-out prompts, and the right ones.

        Args:
            batches: The prompts; None makes them.
        """
        if batches is None:
            batches = self.evaluation_batches(split, check_int("num_examples", num_examples, 1))
        length, choices = self.max_answer_length(), self.num_output_tokens
        names = self.scored_with if tools is None else tools
        find_tools(self, names)  # a wrong name is refused before anything is computed
        return generated_answers(
            model,
            batches,
            length,
            choices,
            num_steps,
            self.positions,
            halt=halt,
            tools=lambda rows: find_tools(self, names, rows.keys),
        )

    def groups(self, split: str = "test", num_examples: int = 2000) -> Int64[np.ndarray, " n"]:
        """Return the number of each example's prompt: equal prompts are one group."""
        numbers: dict[tuple[int, ...], int] = {}
        found = []
        for batch in self.evaluation_batches(split, check_int("num_examples", num_examples, 1)):
            assert batch.prompt_lengths is not None
            for row, length in zip(batch.tokens, batch.prompt_lengths.tolist(), strict=True):
                found.append(numbers.setdefault(tuple(row[:length].tolist()), len(numbers)))
        return np.array(found)


def answer_batch(
    examples: Sequence[tuple[list[int], list[int]]], keys: Int64[np.ndarray, " b"], pad_token: int
) -> Batch:
    """Return a batch of (prompt, answer with end token), padded to the longest of them.

    The input of a row is its prompt and its answer without the end token; the targets of the
    prompt's last position and of the answer's positions are the answer, all others are ignored.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in examples) - 1
    tokens = np.full((len(examples), width), pad_token)
    targets = np.full((len(examples), width), IGNORED)
    prompts = np.array([len(prompt) for prompt, _ in examples])
    lengths = prompts + [len(answer) - 1 for _, answer in examples]
    rows = zip(examples, prompts, lengths, strict=True)
    for row, ((prompt, answer), start, end) in enumerate(rows):
        tokens[row, :start] = prompt
        tokens[row, start:end] = answer[:-1]
        targets[row, start - 1 : end] = answer
    return Batch(*(torch.from_numpy(x) for x in (tokens, targets, prompts, lengths, keys)))


def generated_answers(
    model: Any,
    batches: Iterable[Batch],
    max_new_tokens: int,
    vocab_size: int,
    num_steps: Steps = None,
    positions: Positions | None = None,
    *,
    halt: Halt = None,
    tools: Callable[[Batch], Sequence[Tool]] = lambda rows: (),
) -> Iterator[tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]]:
    """Yield for each batch the answers of `model` and the right ones, -100 after their end.

    `model` answers in evaluation mode without gradients; its mode is restored.

    Args:
        vocab_size: The model chooses among the ids below.
        positions: Coupled positions of tokens, `Task.positions`.
        halt: Let tokens halt before `num_steps`: see `thinkers.models.halt`.
        tools: Returns the tools that the rows of a batch may call.
    """
    check_no_oracle(num_steps, halt)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with eval_mode(model), ids_below(vocab_size), cut_results():
        for batch in batches:
            truth = true_answers(batch, max_new_tokens)
            predicted = torch.full_like(truth, IGNORED)
            most = max(1, SCORED_PAIRS // batch.tokens.shape[1] ** 2)
            for group, steps in step_groups(batch, model, num_steps):
                for rows in group.split(most):
                    some = batch.rows(rows)
                    predicted[rows] = model.answer(
                        left_padded_prompts(some).to(device),
                        some.prompt_lengths.to(device),  # type: ignore[union-attr]
                        max_new_tokens,
                        num_steps=steps,
                        **option(positions),
                        **halt_option(halt),
                        **tools_option(tools(some)),
                        **inputs_option(model, some.to(device)),
                    ).cpu()
            yield predicted, truth


def left_padded_prompts(batch: Batch) -> Int[Tensor, "b p"]:
    """Return the prompts alone, each in the last columns of its row."""
    assert batch.prompt_lengths is not None
    # Padding on the left puts the last token of all prompts in one column, where answers begin.
    longest = int(batch.prompt_lengths.max())
    columns = torch.arange(longest) - longest + batch.prompt_lengths[:, None]
    return batch.tokens.gather(1, columns.clamp_min(0)).masked_fill(columns < 0, 0)


def true_answers(batch: Batch, length: int) -> Int[Tensor, "b n"]:
    """Return the right answers, end token included, padded to `length` with -100.

    Positions before a prompt's last may be graded in training; they are no answer.
    """
    assert batch.prompt_lengths is not None
    answered = torch.arange(batch.targets.shape[1]) >= batch.prompt_lengths[:, None] - 1
    lengths = ((batch.targets != IGNORED) & answered).sum(1)
    if (lengths > length).any():
        # If answers were graded by their first tokens alone, wrong ones could count as right.
        raise UsageError(
            f"max_answer_length must be at least {int(lengths.max())}, the tokens of an answer "
            f"with its end token, got {length}"
        )
    columns = batch.prompt_lengths[:, None] - 1 + torch.arange(length)
    inside = columns < batch.targets.shape[1]
    truth = batch.targets.gather(1, columns.clamp_max(batch.targets.shape[1] - 1))
    return truth.masked_fill(~inside, IGNORED)
