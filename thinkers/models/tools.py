"""Tools: what a model writes between two tokens is a call, and its result is written after it.

    row                 3 - 2 0 * 5 = [ 2 0 * 5 ] 1 0 0 , - 9 7
    written by          prompt        model       tool  model

A token that a result forces goes through the model as any other; the logits in its place are
computed and not used. What is forced at a place is a function of the row's tokens before it alone,
so that rows may force different tokens at different times, in a batch, with a cache and without.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thinkers.checks import NOT_CAUSAL, check_int
from thinkers.errors import ThinkersError, UsageError, exit_code, usage_error


@runtime_checkable
class Tool(Protocol):
    """A function from the tokens of a call to those of its result.

    Args:
        name: Its name, for errors.
        opening: The token that begins a call; another one within a call begins it anew.
        closing: The token that ends it.
        ending: The token after which a row has no more calls, such as the end of an answer.
        longest_call: A call of more tokens is none: its closing token has no result.
        longest_result: The most tokens of a result.
        num_rows: The number of rows that it has data of; None if it serves any number.
    """

    @property
    def name(self) -> str: ...
    @property
    def opening(self) -> int: ...
    @property
    def closing(self) -> int: ...
    @property
    def ending(self) -> int | None: ...
    @property
    def longest_call(self) -> int: ...
    @property
    def longest_result(self) -> int: ...
    @property
    def num_rows(self) -> int | None: ...

    def result(self, call: Sequence[int], row: int) -> Sequence[int]:
        """Return the result of a call, the tokens between `opening` and `closing`.

        A call that means nothing gives no tokens, and must not raise: the model wrote it.

        Args:
            row: The index of the row in the batch that generation began with.
        """


def tools_option(tools: Sequence[Any]) -> dict[str, Any]:
    """Return the keyword argument `tools` if there are any: a model may not take it."""
    return {"tools": tools} if tools else {}


def check_tools(model: Any, tools: Any) -> tuple[Tool, ...]:
    """Return `tools`, or raise UsageError unless they are tools of different opening tokens."""
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        raise usage_error(
            f"tools {tools!r}", "a list of tools", 'pass such as tools=[task.tool("calculator")]'
        )
    seen: dict[int, str] = {}
    for tool in tools:
        if not isinstance(tool, Tool):
            raise usage_error(
                f"the tool {tool!r}",
                "an object with the attributes of thinkers.models.tools.Tool",
                "pass one that a task gives, task.tool(name); thinkers.generate takes names",
            )
        check_tool(tool, model.config.vocab_size)
        if tool.opening in seen:
            raise usage_error(
                f"two tools, {seen[tool.opening]} and {tool.name}, whose calls begin with token "
                f"{tool.opening}",
                "tools whose calls begin with different tokens",
                "leave one of them out",
            )
        seen[tool.opening] = tool.name
    if tools:
        check_calls(model)
    return tuple(tools)


def check_tool(tool: Tool, vocab_size: int) -> None:
    """Raise UsageError unless the tokens and the bounds of a tool are valid."""
    tokens = ["opening", "closing"] + ["ending"] * (tool.ending is not None)
    limits = dict.fromkeys(tokens, vocab_size - 1) | {"longest_call": None, "longest_result": None}
    limits |= {"num_rows": None} if tool.num_rows is not None else {}
    for what, limit in limits.items():
        check_int(f"{what} of the tool {tool.name}", getattr(tool, what), 0, limit)
    if len({getattr(tool, what) for what in tokens}) < len(tokens):
        raise usage_error(
            f"the tool {tool.name} with the tokens "
            + ", ".join(f"{what} {getattr(tool, what)}" for what in tokens),
            "different tokens: with equal ones no call is ever completed",
            "correct the tool",
        )
    if not callable(tool.result):
        raise usage_error(
            f"result {tool.result!r} of the tool {tool.name}",
            "a method result(call, row) that returns tokens",
            "correct the tool",
        )


def check_rows_of(tool: Tool, rows: int) -> None:
    """Raise UsageError if a tool has data of fewer or more rows than these."""
    if tool.num_rows is not None and rows != tool.num_rows:
        raise usage_error(
            f"{rows} rows and the tool {tool.name} with data of {tool.num_rows}",
            "data of each row, or one for all",
            "pass the keys of all rows of the batch to task.tool",
        )


def check_calls(model: Any) -> None:
    """Raise UsageError if a model cannot call tools, since it does not write token by token."""
    if not model.causal:
        raise UsageError(NOT_CAUSAL.format(what="calling tools"))
    if not model.calls_tools:
        raise usage_error(
            f"{model.name}, whose settings let it write all tokens of an answer at once",
            "a model that writes token by token, since results follow calls",
            'leave the tools out, or train with output="autoregressive"',
        )


_results_cut: ContextVar[bool] = ContextVar("results_cut", default=False)


@contextmanager
def cut_results() -> Iterator[None]:
    """Let results end where a row does, in this thread or task; otherwise that is an error.

    An answer has room for the longest right one: where a result passes it, the answer is wrong
    anyway, and one such row must not end the scoring of all.
    """
    before = _results_cut.set(True)
    try:
        yield
    finally:
        _results_cut.reset(before)


class Calls:
    """The calls in the rows of a batch: what has been written of them, and results to be written.

    A prompt is read as if the model had written it: it may end within a call, which the model
    completes, or within a result, which is continued.

    Args:
        tools: The tools that may be called, as `check_tools` returns them.
        prompts: The tokens of each row so far.
        room: The number of tokens that each row will get.
    """

    def __init__(
        self, tools: Sequence[Tool], prompts: Sequence[Sequence[int]], vocab_size: int, room: int
    ):
        self.left, self.room, self.cut = room, room, _results_cut.get()
        for tool in tools:
            check_rows_of(tool, len(prompts))
        self.rows = [_Row(tools, number, vocab_size) for number in range(len(prompts))]
        for row, prompt in zip(self.rows, prompts, strict=True):
            for token in prompt:
                row.read(token)
            self._check_room(row)

    def write(self, chosen: Int[Tensor, " r"]) -> tuple[Int[Tensor, " r"], Bool[Tensor, " r"]]:
        """Return the next token of each row, and True for those that a result forces.

        Args:
            chosen: The tokens that the model chose. Their values are read from the device.
        """
        self.left -= 1
        tokens, forced = chosen.tolist(), []
        for place, row in enumerate(self.rows):
            forced.append(bool(row.forced))
            if row.forced:
                tokens[place] = row.forced[0]
            row.read(tokens[place])
            if not forced[-1]:
                self._check_room(row)
        device = chosen.device
        return torch.tensor(tokens, device=device), torch.tensor(forced, device=device)

    def select(self, rows: Int[Tensor, " r"]) -> None:
        """Keep only these rows."""
        self.rows = [self.rows[row] for row in rows.tolist()]

    def _check_room(self, row: "_Row") -> None:
        if len(row.forced) > self.left and not self.cut:
            raise usage_error(
                f"a result of {len(row.forced)} tokens of the tool {row.tool.name} in row "
                f"{row.number}, with {self.left} of {self.room} new tokens left",
                "results that fit: they count in max_new_tokens, which max_length bounds",
                "pass a larger max_new_tokens, or a shorter prompt",
            )


class _Row:
    """The state of one row: the call that is open, and the tokens of a result that are due."""

    def __init__(self, tools: Sequence[Tool], number: int, vocab_size: int):
        self.by_opening = {tool.opening: tool for tool in tools}
        self.endings = {tool.ending for tool in tools}
        self.number, self.vocab_size = number, vocab_size
        self.tool = tools[0]
        self.call: list[int] | None = None
        self.forced: deque[int] = deque()
        self.ended = False

    def read(self, token: int) -> None:
        """Append a token of the row."""
        if self.forced:
            # A result is data: no call begins within it.
            self.forced.popleft()
        elif self.ended or token in self.endings:
            self.ended, self.call = True, None
        elif token in self.by_opening:
            self.tool, self.call = self.by_opening[token], []
        elif self.call is not None and token == self.tool.closing:
            self.forced, self.call = deque(self._result(self.call)), None
        elif self.call is not None and len(self.call) < self.tool.longest_call:
            self.call.append(token)
        else:
            self.call = None

    def _result(self, call: list[int]) -> list[int]:
        tool = self.tool
        try:
            found = tool.result(call, self.number)
        except Exception as error:
            if exit_code(error) != ThinkersError.exit_code:
                raise  # an error of ours, or one about memory or the system, explains itself
            raise usage_error(
                f"{type(error).__name__}: {str(error)[:200]}, raised by the tool {tool.name} for "
                f"the call {call[:20]} of row {self.number}",
                "a result, without tokens for a call that means nothing: the model wrote it",
                "correct the tool",
            ) from error
        if isinstance(found, str) or not isinstance(found, Sequence | Tensor):
            raise usage_error(
                f"a result {found!r} of the tool {tool.name}",
                "a sequence of tokens, empty for a call that means nothing",
                "correct the tool",
            )
        if len(found) > tool.longest_result:
            raise usage_error(
                f"a result of {len(found)} tokens of the tool {tool.name}",
                f"at most {tool.longest_result}, its longest_result",
                "correct the tool",
            )
        name = f"of a result of the tool {tool.name}"
        return [
            check_int(f"token {place} {name}", token, 0, self.vocab_size - 1, "vocab_size - 1")
            for place, token in enumerate(found)
        ]
