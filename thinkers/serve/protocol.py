"""Requests and answers in the form of OpenAI's completions, and errors in three parts.

A field that cannot be honoured is refused, whether it is unknown, of a wrong type or beyond a
limit: none is ignored, except `user`, which changes no answer there either.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from thinkers.errors import ThinkersError, near, three_lines
from thinkers.strict_json import parse_json
from thinkers.terminal import one_line

LARGEST_BODY = 1 << 20
"""Bytes of a request."""
MOST_CHOICES = 32
"""Choices of a request: its prompts times `n`."""
MOST_STOPS, LONGEST_STOP = 4, 200
"""Texts of `stop`, and characters of one."""
HIGHEST_SEED = 2**63 - 1
TYPES = {404: "not_found_error", 429: "rate_limit_error"}
"""{status: type of its error}; others are invalid requests below 500, and errors of the server."""


class RequestError(ThinkersError):
    """A request that is not answered, with its HTTP status.

    Args:
        param: The field that is at fault; None if it is none of them.
        retry_after: Seconds after which the same request may be answered.
    """

    exit_code = 2

    def __init__(
        self,
        status: int,
        found: str,
        expected: str,
        fix: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(three_lines(found, expected, fix))
        self.status, self.param, self.retry_after = status, param, retry_after
        self.found, self.expected, self.fix = found, expected, fix

    def body(self) -> dict[str, Any]:
        """Return what is sent: OpenAI's fields of an error, and its three parts."""
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": TYPES.get(self.status, other),
                "param": self.param,
                "code": None,
                "found": self.found,
                "expected": self.expected,
                "fix": self.fix,
            }
        }

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to it."""
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}


def refused(error: Exception, param: str) -> RequestError:
    """Return an error of the library about a value of a request as that of the request."""
    lines = str(error).split("\n")
    prefixes = ("found: ", "expected: ", "fix: ")
    if len(lines) == 3 and all(x.startswith(y) for x, y in zip(lines, prefixes, strict=True)):
        parts = [line.removeprefix(prefix) for line, prefix in zip(lines, prefixes, strict=True)]
    elif rule := re.fullmatch(r"\w+ must be (.+), got (.+)", str(error)):
        # The library names its own argument, the request its field.
        parts = [f"{param} {rule[2]}", rule[1], f"change {param}"]
    else:
        parts = [str(error), f"a value of {param} that this model takes", f"change {param}"]
    return RequestError(400, *parts, param=param)


@dataclass(frozen=True)
class Completion:
    """A request, as it was asked: None where it leaves a choice to the server.

    Args:
        stop: Texts before which an answer ends.
        include_usage: Send the counts of tokens at the end of a stream.
        num_steps: Thinking steps, the field `num_thinking_steps`.
        halt: Let tokens halt before: see `thinkers.models.halt`.
    """

    model: str
    prompts: tuple[str, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    echo: bool = False
    include_usage: bool = False
    num_steps: int | None = None
    halt: Any = None


def parse_completion(content: bytes, most_tokens: int) -> Completion:
    """Read the body of a request.

    Args:
        most_tokens: The limit of `max_tokens`.

    Raises:
        RequestError: It is no JSON object, a field is missing, unknown, or cannot be honoured.
    """
    try:
        found = parse_json(content, "the body")
    except ThinkersError as error:
        fix = 'send an object such as {"model": .., "prompt": "12+34="}'
        raise RequestError(400, str(error), "a JSON object in UTF-8", fix) from None
    if not isinstance(found, dict):
        raise RequestError(400, _shown(found), "a JSON object", "send the fields as an object")
    fields = {name: value for name, value in found.items() if value is not None}
    for name in fields:
        if name not in FIELDS:
            fix = "leave it out: a field that is not honoured is not ignored"
            expected = near(name, HONOURED) or f"one of {', '.join(HONOURED)}"
            raise RequestError(400, f"the field {name!r}", expected, fix, param=name)
    for name in ("model", "prompt"):
        if name not in fields:
            raise RequestError(400, f"no {name}", f"the field {name}", f"add {name}", param=name)
    read = {name: FIELDS[name](name, value) for name, value in fields.items()}
    _check_together(read, most_tokens)
    prompts, options = read["prompt"], read.get("stream_options", {})
    names = ("max_tokens", "temperature", "top_p", "n", "stop", "seed", "stream", "echo", "halt")
    own = {name: read[name] for name in names if name in read}
    return Completion(
        read["model"],
        prompts,
        include_usage=options.get("include_usage", False),
        num_steps=read.get("num_thinking_steps"),
        **own,
    )


def _check_together(read: Mapping[str, Any], most_tokens: int) -> None:
    """Raise RequestError if fields exceed a limit of the server, or do not fit each other."""
    asked = read.get("max_tokens", 1)
    if asked > most_tokens:
        expected = f"at most {most_tokens} (thinkers serve --max_tokens)"
        fix = "ask for fewer, or send what was written as the next prompt"
        raise RequestError(400, f"max_tokens {asked}", expected, fix, param="max_tokens")
    prompts, n = len(read["prompt"]), read.get("n", 1)
    if prompts * n > MOST_CHOICES:
        found = f"{prompts} prompts and n {n}: {prompts * n} choices"
        param = "n" if n > 1 else "prompt"
        raise RequestError(
            400, found, f"at most {MOST_CHOICES}", "send several requests", param=param
        )
    if read.get("best_of", n) != n:
        found = f"best_of {read['best_of']} with n {n}"
        fix = "leave best_of out"
        raise RequestError(400, found, "all choices are sent: n", fix, param="best_of")
    if "stream_options" in read and not read.get("stream"):
        fix = "leave stream_options out, or set stream"
        raise RequestError(
            400, "stream_options without stream", "stream", fix, param="stream_options"
        )
    if read.get("seed", 0) + n - 1 > HIGHEST_SEED:
        expected = f"seeds up to {HIGHEST_SEED}: choice i has seed + i"
        raise RequestError(
            400, f"seed {read['seed']}", expected, "choose a lower one", param="seed"
        )


# Fields, each with the function that reads it --------------------------------------------------


def _refuse(name: str, value: Any, expected: str) -> RequestError:
    return RequestError(400, f"{name} {_shown(value)}", expected, f"change {name}", param=name)


def _shown(value: Any) -> str:
    """Return a value as it is shown in an error."""
    return one_line(repr(value), 100)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _refuse(name, value, "a text")
    return value


def _prompts(name: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(x, str) for x in texts):
        raise _refuse(name, value, "a text, or a list of texts; tokens are not taken")
    return tuple(texts)


def _integer(low: int, high: int | None = None) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if type(value) is not int or value < low or (high is not None and value > high):
            limits = f"at least {low}" if high is None else f"in {low} .. {high}"
            raise _refuse(name, value, f"an integer {limits}")
        return value

    return read


def _number(expected: str, allowed: Callable[[float], bool]) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not allowed(value):
            raise _refuse(name, value, expected)
        return float(value)

    return read


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, value, "true or false")
    return value


def _stops(name: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    good = isinstance(texts, list) and len(texts) <= MOST_STOPS
    if not good or not all(isinstance(x, str) and 0 < len(x) <= LONGEST_STOP for x in texts):
        expected = f"up to {MOST_STOPS} texts of 1 .. {LONGEST_STOP} characters"
        raise _refuse(name, value, expected)
    return tuple(texts)


def _options(name: str, value: Any) -> dict[str, bool]:
    if not isinstance(value, dict) or not set(value) <= {"include_usage"}:
        raise _refuse(name, value, '{"include_usage": true or false}')
    return {key: _switch(f"{name}.{key}", given) for key, given in value.items()}


def _halt(name: str, value: Any) -> Any:
    if isinstance(value, str):
        if value != "answered":
            raise _refuse(name, value, 'a number in 0 .. 1, or "answered"')
        return value
    return _number('a number in 0 .. 1, or "answered"', lambda x: 0 <= x <= 1)(name, value)


def _only(*neutral: Any, why: str) -> Callable[[str, Any], None]:
    """Return a reader that takes the values that change nothing, and refuses all others."""

    def read(name: str, value: Any) -> None:
        if not any(type(value) is type(x) and value == x for x in neutral):
            fix = f"leave {name} out"
            raise RequestError(400, f"{name} {_shown(value)}", why, fix, param=name)

    return read


FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "model": _text,
    "prompt": _prompts,
    "max_tokens": _integer(1),
    "temperature": _number("a number of at least 0", lambda x: x >= 0),
    "top_p": _number("a number above 0 and at most 1", lambda x: 0 < x <= 1),
    "n": _integer(1, MOST_CHOICES),
    "best_of": _integer(1),
    "stop": _stops,
    "seed": _integer(0, HIGHEST_SEED),
    "stream": _switch,
    "stream_options": _options,
    "echo": _switch,
    "num_thinking_steps": _integer(0),
    "halt": _halt,
    "user": _text,
    "logprobs": _only(False, why="no log-probabilities: Model.score of the library gives them"),
    "suffix": _only("", why="a model that continues texts has nothing after them"),
    "frequency_penalty": _only(
        0, 0.0, why="no penalties: tokens are drawn as the model gives them"
    ),
    "presence_penalty": _only(0, 0.0, why="no penalties: tokens are drawn as the model gives them"),
    "logit_bias": _only({}, why="no bias: tokens are drawn as the model gives them"),
}
"""{field: the function that reads it}; `null` is as if a field was left out."""
NEUTRAL = ("logprobs", "suffix", "frequency_penalty", "presence_penalty", "logit_bias")
"""Fields that are taken with the one value that changes nothing."""
HONOURED = [name for name in FIELDS if name not in NEUTRAL]
