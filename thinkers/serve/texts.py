"""Rows of text: prompts that a model continues, token by token."""

import secrets
from collections.abc import Generator, Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thinkers.errors import UsageError
from thinkers.models.base import Model
from thinkers.models.generation import draw_times, eval_mode, filtered_probs, race
from thinkers.models.halt import Halt, check_halt
from thinkers.models.writers import Cached
from thinkers.serve.protocol import Completion, RequestError, refused
from thinkers.serve.rows import Listener, Row, StoppedText
from thinkers.tasks.text import Text

TEMPERATURE = 1.0
"""The temperature of a request that leaves it out, as OpenAI's interface says."""
LEAST_GONE = 0.25
"""Share of the rows of a batch that are gone before the others are copied to a cache of their own:
a copy costs more than a token of a row that is gone."""
UNFILTERED = 2.0
"""A `top_p` that no sum of probabilities reaches."""


class TextRow(Row):
    """A text that is continued.

    Args:
        tokens: Its prompt.
        echo: The text that is sent before it.
        text: The text that is written after it.
        steps: Thinking steps.
        asked: The request, for `max_tokens`, which is set, and the drawing of tokens.
        generator: The random numbers of this row alone.
    """

    def __init__(
        self,
        index: int,
        tokens: list[int],
        echo: str,
        text: StoppedText,
        steps: int,
        halt: Halt,
        asked: Completion,
        generator: torch.Generator,
        listener: Listener,
    ):
        super().__init__([index], len(tokens), listener, asked.stream)
        self.tokens, self.text, self.generator = tokens, text, generator
        self.steps, self.halt, self.top_p = steps, halt, asked.top_p
        self.temperature = TEMPERATURE if asked.temperature is None else asked.temperature
        assert asked.max_tokens is not None
        self.left = asked.max_tokens
        self._written = self._taken = 0
        self._echo = echo

    def write(self, token: int, steps: int) -> None:
        """Append a token, and the steps that it took; end the row after its last one."""
        self.tokens.append(token)
        self.left -= 1
        self._written += 1
        self._taken += steps
        self.send(self._echo + self.text.add(token))
        self._echo = ""
        if self.text.is_stopped or not self.left:
            self.send(self.text.end())
            reason = "stop" if self.text.is_stopped else "length"
            self.end(reason, self._written, self._taken / self._written)

    def fit(self, window: int) -> None:
        """Continue a text that fills the window of the model from the last half of it."""
        if len(self.tokens) >= window:
            self.tokens = self.tokens[-(window // 2) :]


class Texts:
    """The rows of a run on text, and batches of them.

    Raises:
        UsageError: The model is not causal.
    """

    usual_tokens: int | None = 16
    """The `max_tokens` of a request that leaves it out, as OpenAI's interface says."""

    def __init__(self, model: Model, task: Text):
        task.check(model)
        self.model, self.task = model, task
        self.device = next(model.parameters()).device

    def rows(self, asked: Completion, listener: Listener) -> list[TextRow]:
        """Return the rows of a request; those of a prompt draw by the seeds seed, seed + 1, ..

        Raises:
            RequestError: A value is not one that this model can honour.
        """
        prompts = [self._read(prompt) for prompt in asked.prompts]
        steps, halt = checked_rule(self.model, asked)
        assert self.task.tokenizer is not None
        token_bytes, found = self.task.tokenizer.token_bytes, []
        first = secrets.randbits(62) if asked.seed is None else asked.seed
        for place, tokens in enumerate(prompts):
            for choice in range(asked.n):
                generator = torch.Generator(self.device).manual_seed(first + choice)
                text = StoppedText(token_bytes, asked.stop)
                echo = asked.prompts[place] if asked.echo else ""
                given = list(tokens), echo, text, steps, halt, asked, generator, listener
                found.append(TextRow(place * asked.n + choice, *given))
        return found

    def _read(self, prompt: str) -> list[int]:
        try:
            tokens = self.task.read_prompt(prompt).tokens
        except UsageError as error:
            raise refused(error, "prompt") from None
        limit = self.model.config.max_length
        if len(tokens) > limit:
            found, expected = f"a prompt of {len(tokens)} tokens", f"at most {limit} (max_length)"
            raise RequestError(400, found, expected, "shorten it", param="prompt")
        return tokens

    def key(self, row: TextRow) -> Hashable:
        """Return a value that is equal for rows which may share a batch."""
        row.fit(self.model.config.max_length)
        length = None if self.model.ragged_text else len(row.tokens)
        return row.steps, row.halt, length

    def run(self, rows: Sequence[TextRow]) -> Generator[None, None, None]:
        """Write a token of each row at a time, until all rows are gone or one fills its window."""
        computed, places = list(rows), list(range(len(rows)))
        for row in rows:
            row.fit(self.model.config.max_length)
        with eval_mode(self.model):
            writer, room = self._begin(rows)
            for _ in range(room):
                alive = [computed[place] for place in places]
                logits, taken = writer.logits()[:, : self.task.vocab_size], writer.taken().tolist()
                chosen = _chosen(alive, logits if len(alive) == len(computed) else logits[places])
                for row, place, token in zip(alive, places, chosen, strict=True):
                    row.write(token, taken[place])
                yield
                places = [place for place in places if not computed[place].is_gone]
                if not places:
                    return
                if (len(computed) - len(places)) >= LEAST_GONE * len(computed):
                    computed = [computed[place] for place in places]
                    writer.select(torch.tensor(places, device=self.device))
                    places = list(range(len(computed)))
                newest = [row.tokens[-1] for row in computed]
                writer.write(torch.tensor(newest, device=self.device))

    def _begin(self, rows: Sequence[TextRow]) -> tuple[Cached, int]:
        """Read rows that begin a batch; return what writes them, and their room."""
        lengths = [len(row.tokens) for row in rows]
        longest, first = max(lengths), rows[0]
        padded = [row.tokens + [0] * (longest - len(row.tokens)) for row in rows]
        tokens = torch.tensor(padded, device=self.device)
        ends = torch.tensor(lengths, device=self.device)
        room = min(max(row.left for row in rows), self.model.config.max_length - longest)
        tokens = self.model.check_tokens(tokens, ends)
        return Cached(self.model, tokens, ends, first.steps, False, room, halt=first.halt), room


def _chosen(rows: Sequence[TextRow], logits: Float[Tensor, "b v"]) -> list[int]:
    """Choose the next token of each row, by its own settings and random numbers."""
    found = logits.argmax(-1).tolist()
    drawn = [place for place, row in enumerate(rows) if row.temperature > 0]
    if drawn:
        settings = [[x.temperature, x.top_p or UNFILTERED] for x in map(rows.__getitem__, drawn)]
        own = torch.tensor(settings, dtype=torch.float64, device=logits.device)
        temperature, top_p = own[:, :1], own[:, 1:]
        filters = any(row.top_p is not None for row in rows)
        probs = filtered_probs(logits[drawn], temperature, None, top_p if filters else None)
        times = [draw_times(probs[:1], rows[place].generator) for place in drawn]
        tokens = race(probs, torch.cat(times)).tolist()
        for place, token in zip(drawn, tokens, strict=True):
            found[place] = token
    return found


def checked_rule(model: Model, asked: Completion) -> tuple[int, Any]:
    """Return the steps and the rule of halting of a request.

    Raises:
        RequestError: The model takes another number of steps, or cannot halt so.
    """
    try:
        steps = model.check_steps(asked.num_steps)
    except UsageError as error:
        raise refused(error, "num_thinking_steps") from None
    try:
        return steps, check_halt(model, asked.halt)
    except UsageError as error:
        raise refused(error, "halt") from None
