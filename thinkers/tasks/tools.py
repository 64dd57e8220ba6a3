"""Tools of tasks: names to tools, and the calculator."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.data.tokenizers import Tokenizer
from thinkers.errors import nearest, usage_error
from thinkers.models.tools import Tool

CALLED = "0123456789+-*[]"
"""Characters without which a text has no calculator; calls may have spaces besides."""
TOOLS = ("calculator", "store")
"""The names of all tools."""
LONGEST_OPERAND = 2000
"""Digits of an operand; a product of two is computed and written in milliseconds."""
_SUM = r"(-?)([0-9A-F]+)([_ ]*)([-+*]) *(-?)([0-9A-F]+)([_ ]*)"


def find_tools(
    task: Any, tools: Sequence[str | Tool], keys: Int[Tensor, " b"] | None = None
) -> tuple[Tool, ...]:
    """Return the tools of a task by their names; a tool that is no name stays.

    Args:
        keys: The keys of the rows that will call them, `Batch.keys`.

    Raises:
        UsageError: There is no such tool, or the task has none of this name.
    """
    if isinstance(tools, str):
        raise usage_error(
            f"tools {tools!r}", "a list of names", f"pass tools=({tools!r},) with a comma"
        )
    if not isinstance(tools, Sequence):
        raise usage_error(
            f"tools {tools!r}",
            "a list of names and tools",
            "pass such as tools=[], or leave it out",
        )
    for tool in tools:
        if not isinstance(tool, str | Tool):
            raise usage_error(
                f"the tool {tool!r}",
                "a name, or an object with the attributes of thinkers.models.tools.Tool",
                "pass the name of a tool of the task",
            )
    return tuple(task.tool(tool, keys) if isinstance(tool, str) else tool for tool in tools)


def check_tool_name(task: Any, name: str) -> None:
    """Raise UsageError if a task has no tool of this name."""
    if name in task.tools:
        return
    if name not in TOOLS:
        fix = "leave it out" if not task.tools else f"this task has {', '.join(task.tools)}"
        raise usage_error(f"the tool {name!r}", nearest(name, {*TOOLS, *task.tools}), fix)
    raise usage_error(
        f"the tool {name!r} for {type(task).__name__}",
        f"one of its tools, which are: {', '.join(task.tools) or 'none with these settings'}",
        "calculator: arithmetic trained with --task.calculator true, or a text of single "
        "characters with []; store: lookup",
    )


def refuse_tools(task: Any, tools: Sequence[str | Tool] | None) -> None:
    """Raise UsageError if tools are named for a task that cannot call any."""
    if tools:
        raise usage_error(
            f"tools for {type(task).__name__}",
            "a task whose answers are written one token after another; its answers stand at the "
            "tokens of its prompt",
            "leave them out",
        )


def last_part(row: Sequence[int], comma: int, end: int) -> list[int]:
    """Return the tokens of an answer after its last comma, up to its end token."""
    row = list(row)
    row = row[: row.index(end) + 1] if end in row else row
    return row[len(row) - row[::-1].index(comma) :] if comma in row else row


def count_calls(
    answers: Int[Tensor, "n a"], tools: Sequence[Tool], end_token: int
) -> Int[Tensor, " n"]:
    """Return the number of calls that each answer begins before its end token."""
    is_open = sum((answers == tool.opening for tool in tools), torch.zeros_like(answers))
    ended = (answers == end_token).cumsum(1) > 0
    return torch.as_tensor(is_open).masked_fill(ended, 0).sum(1)


@dataclass(frozen=True)
class Calculator:
    """Compute `a+b`, `a-b` or `a*b`, of integers that may have a sign; anything else is nothing.

    Calls are parsed by one regular expression and computed by Python's integers: no part of them
    is run as code.

    Args:
        symbols: The character of each token that a call or a result may have.
        reverse: True if numbers are written least significant digit first.
        negative: The token of the sign of a number.
        blank: The token by which numbers are padded after their last digit. A result is then
            padded to the width of both operands together, or of the wider one and 1 for sums.
        longest_operand: A call with a longer number is none.
    """

    opening: int
    closing: int
    ending: int | None
    symbols: Mapping[int, str]
    negative: int
    base: int = 10
    reverse: bool = False
    blank: int | None = None
    longest_operand: int = 100
    name: str = field(default="calculator", init=False)
    num_rows: None = field(default=None, init=False)

    @property
    def longest_call(self) -> int:
        return 2 * self.longest_operand + 5

    @property
    def longest_result(self) -> int:
        return self.longest_call

    def result(self, call: Sequence[int], row: int) -> list[int]:
        """Return the number that a call asks for; no tokens if it asks for none."""
        text = "".join(self.symbols.get(token, "?") for token in call)
        found = re.fullmatch(_SUM, text)
        if found is None:
            return []
        sign_x, x, pad_x, operator, sign_y, y, pad_y = found.groups()
        a, b = self._number(sign_x, x), self._number(sign_y, y)
        if a is None or b is None:
            return []
        value = a + b if operator == "+" else a - b if operator == "-" else a * b
        widths = len(x) + len(pad_x), len(y) + len(pad_y)
        return self._tokens(value, sum(widths) if operator == "*" else max(widths) + 1)

    def _number(self, sign: str, digits: str) -> int | None:
        ordered = digits[::-1] if self.reverse else digits
        if len(digits) > self.longest_operand or any(int(x, 16) >= self.base for x in digits):
            return None
        return int(ordered, self.base) * (-1 if sign else 1)

    def _tokens(self, value: int, width: int) -> list[int]:
        token_of = {symbol: token for token, symbol in self.symbols.items()}
        rest, digits = abs(value), list[int]()
        while rest or not digits:
            rest, digit = divmod(rest, self.base)
            digits.append(token_of["0123456789ABCDEF"[digit]])
        if not self.reverse:
            digits.reverse()
        if self.blank is not None:
            digits += [self.blank] * (width - len(digits))
        return [self.negative] * (value < 0) + digits


def writes_calls(tokenizer: Tokenizer) -> bool:
    """Return True if each character of a call is a token, and tokens are single characters."""
    return tokenizer.kind != "bpe" and {x.encode() for x in CALLED} <= {*tokenizer.token_bytes}


def calculator_of_text(tokenizer: Tokenizer) -> Calculator:
    """Return the calculator of texts: `[12 * 34]` is followed by `408`."""
    tokens = {x: tokenizer.token_bytes.index(x.encode()) for x in CALLED}
    symbols = {token: x for x, token in tokens.items() if x not in "[]"}
    if b" " in tokenizer.token_bytes:
        symbols[tokenizer.token_bytes.index(b" ")] = " "
    return Calculator(
        opening=tokens["["],
        closing=tokens["]"],
        ending=None,
        symbols=symbols,
        negative=tokens["-"],
    )
