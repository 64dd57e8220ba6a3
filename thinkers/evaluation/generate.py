"""`answer`, the answer of a trained model to a prompt; `stream` and `generate`, samples of text."""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import usage_error
from thinkers.models.base import Model
from thinkers.models.generation import begin_calls, check_sampling, ids_below
from thinkers.models.generation import stream as next_tokens
from thinkers.models.halt import Halt, check_halt, halt_option, with_policy
from thinkers.models.memory_option import check_takes_memory, memory_option
from thinkers.models.tools import Tool, check_tools, cut_results, tools_option
from thinkers.runs.result import RunLike, open_with_task
from thinkers.tasks import Task
from thinkers.tasks.answers import AnswerTask
from thinkers.tasks.base import Prompt, Response
from thinkers.tasks.text import Text
from thinkers.tasks.tools import find_tools

UNFINISHED = " …"
"""Suffix of an answer that was cut off, since it is longer than any right one."""


def answer(
    run: RunLike,
    prompt: str,
    num_steps: int | None = None,
    *,
    halt: Halt = None,
    tools: Sequence[str | Tool] = (),
    policy: bool = False,
    memory: Any = None,
) -> str:
    """Return the prompt followed by the model's answer, as text of its task.

    A prompt may hold the beginning of its answer: `12+34=6` is continued to `12+34=46`, since
    digits are generated least significant first. A text is continued up to the `max_length` of the
    model. An answer that lacks its end token is followed by UNFINISHED.

    Args:
        run: A run, its folder, or (model, task).
        num_steps: Thinking steps; None means as many as the prompt asks for itself, such as
            `3:01101001` of automaton, else the model's own number.
        halt: Let tokens halt before `num_steps`: see `thinkers.models.halt`.
        tools: Names of tools of the task, or tools: what the model writes between `[` and `]` is
            computed, and the result is written after it. None is on unless it is named.
        policy: Let the model choose the block of each step: see `thinkers.models.thinker_policy`.
        memory: A `LongTermMemory` of this model, which is read at every step after the first.

    Raises:
        UsageError: The prompt does not fit the task, or leaves no room for its longest answer; the
            model cannot halt so; the task has no such tool; or the model has no memory, takes a
            single step, or did not write this one.
    """
    model, task = open_with_task(run)
    check_takes_memory(model, memory)
    found = check_tools(model, find_tools(task, tools))
    halt = check_halt(model, with_policy(halt, policy))
    return answered(model, task, prompt, num_steps, halt, found, memory)[0]


def answered(
    model: Model,
    task: Task,
    prompt: str,
    num_steps: int | None,
    halt: Halt = None,
    tools: Sequence[Tool] = (),
    memory: Any = None,
) -> tuple[str, Response]:
    """Return the text of `answer`, and what it is the text of."""
    read, room = fit_prompt(model, task, prompt)
    if room < 1:
        limit = model.config.max_length - 1
        raise usage_error(
            f"a prompt of {len(read.tokens)} tokens", f"at most {limit}", "shorten it"
        )
    response = respond(model, task, read, room, num_steps, halt, tools, memory)
    is_cut = (
        isinstance(task, AnswerTask)
        and task.max_answer_length() > 1  # an answer of one token has no end token
        and task.end_token not in response.answer
    )
    return task.with_answer(prompt, response.answer) + UNFINISHED * is_cut, response


def fit_prompt(model: Model, task: Task, prompt: str) -> tuple[Prompt, int]:
    """Return the prompt as the task reads it, and the most tokens to generate after it.

    Raises:
        UsageError: The prompt does not fit the task, or leaves no room for its longest answer.
    """
    read, limit = task.read_prompt(prompt), model.config.max_length
    count = len(read.tokens)
    if read.longest is None:
        if count > limit:
            raise usage_error(f"a prompt of {count} tokens", f"at most {limit}", "shorten it")
        return read, limit - count
    if read.begun >= read.longest:
        raise usage_error(
            f"{prompt[-30:]!r}, which holds an answer of {read.begun} tokens",
            f"fewer than {read.longest}, the most that the answer and its end may take",
            "leave the answer to the model",
        )
    if count - read.begun + read.longest > limit:
        raise usage_error(
            f"a prompt of {count - read.begun} tokens, whose answer and its end may take "
            f"{read.longest}",
            f"at most {limit} together, the max_length of the model",
            "shorten the prompt, or train with a larger --model.max_length",
        )
    usual = task.max_answer_length() or 0
    return read, min(max(read.longest, usual) - read.begun, limit - count)


def respond(
    model: Model,
    task: Task,
    prompt: Prompt,
    room: int,
    num_steps: int | None,
    halt: Halt = None,
    tools: Sequence[Tool] = (),
    memory: Any = None,
) -> Response:
    """Return the answer of the model to a prompt, of at most `room` tokens after it."""
    steps = steps_for(model, prompt, num_steps)
    return respond_all(model, task, [prompt], room, steps, halt, tools, memory)[0]


def respond_all(
    model: Model,
    task: Task,
    prompts: Sequence[Prompt],
    room: int,
    num_steps: int | None,
    halt: Halt = None,
    tools: Sequence[Tool] = (),
    memory: Any = None,
) -> list[Response]:
    """Return the answers of the model to prompts, in one batch at one number of steps."""
    options = halt_option(halt) | tools_option(tools) | memory_option(memory)
    with torch.no_grad(), ids_below(task.num_output_tokens), cut_results():
        return task.responses(model, prompts, room, num_steps, **options)


def steps_for(model: Model, prompt: Prompt, num_steps: int | None) -> int | None:
    """Return the number of thinking steps for a prompt: as given, else as it asks for itself."""
    if num_steps is None and prompt.num_steps and model.config.takes_steps:
        return prompt.num_steps
    return num_steps


def answer_text(task: Task, prompt: str, begun: int, answer: Sequence[int]) -> str:
    """Return the text of an answer; the text of prompt and answer if the prompt begins it."""
    return task.with_answer(prompt, answer) if begun else task.decode(answer)


def generate(
    run: RunLike,
    prompt: str,
    max_new_tokens: int = 200,
    num_steps: int | None = None,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    num_samples: int = 1,
    halt: Halt = None,
    tools: Sequence[str | Tool] = (),
    policy: bool = False,
    memory: Any = None,
) -> list[str]:
    """Return samples of a text that begins with the prompt; the arguments are those of `stream`."""
    pieces = stream(
        run,
        prompt,
        max_new_tokens,
        num_steps,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        num_samples=num_samples,
        halt=halt,
        tools=tools,
        policy=policy,
        memory=memory,
    )
    return [prompt + "".join(sample) for sample in zip(*pieces, strict=True)]


def stream(
    run: RunLike,
    prompt: str,
    max_new_tokens: int = 200,
    num_steps: int | None = None,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    num_samples: int = 1,
    halt: Halt = None,
    tools: Sequence[str | Tool] = (),
    policy: bool = False,
    memory: Any = None,
) -> Iterator[list[str]]:
    """Yield pieces of samples of a text, by a run on text, as they are generated in one batch.

    A model reads at most `max_length` tokens: a longer text is continued from the last half of
    that window.

    Args:
        num_steps: Thinking steps; None means the model's own number.
        temperature: 0 takes the likeliest token, so that all samples are equal.
        top_k: Sample from the k likeliest tokens.
        top_p: Sample from the likeliest tokens that have this probability together.
        seed: Equal seeds give equal samples.
        halt: Let tokens halt before `num_steps`: see `thinkers.models.halt`.
        tools, policy: As in `answer`; results of tools count in `max_new_tokens`.
        memory: A `LongTermMemory` that all samples read, or a list with one or None for each.

    Raises:
        UsageError: The task is not text, the prompt is empty, the model cannot halt so, the text
            has no such tool, or a result does not fit in `max_new_tokens`; and as in `answer`.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("num_samples", num_samples)):
        check_int(name, value, 1)
    check_int("seed", seed, 0, 2**63 - 1)
    check_sampling(temperature, top_k, top_p)
    model, task, tokens = _open_text(run, prompt)
    check_takes_memory(model, memory)
    device = next(model.parameters()).device
    rows = torch.tensor([tokens] * num_samples, device=device)
    sampling = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "generator": torch.Generator(device).manual_seed(seed),
        "vocab_size": task.vocab_size,
        **halt_option(check_halt(model, with_policy(halt, policy))),
        **memory_option(memory),
    }
    found, lengths = find_tools(task, tools), torch.full_like(rows[:, 0], len(tokens))
    calls = begin_calls(model, found, rows, lengths, max_new_tokens)
    if calls is not None:
        sampling["tools"] = calls  # one for all windows: a call may pass the end of one
    written = _sampled(model, rows, max_new_tokens, num_steps, sampling)
    yield from _decoded(task, num_samples, written)


def _sampled(
    model: Model,
    rows: Int[Tensor, "b t"],
    max_new_tokens: int,
    num_steps: int | None,
    sampling: dict[str, Any],
) -> Iterator[list[int]]:
    """Yield the next token of each row, however long the text gets."""
    left, window = max_new_tokens, model.config.max_length
    check_int("max_length of the model", window, 2)
    while left:
        if rows.shape[1] >= window:
            rows = rows[:, -(window // 2) :]
        count = min(left, window - rows.shape[1])
        left -= count
        for new in next_tokens(model, rows, count, num_steps, **sampling):
            rows = torch.cat([rows, new.tokens[:, None]], 1)
            yield new.tokens.tolist()


def _decoded(task: Text, num_samples: int, written: Iterator[list[int]]) -> Iterator[list[str]]:
    """Yield the text of the next token of each row."""
    assert task.tokenizer is not None
    token_bytes = task.tokenizer.token_bytes
    # A letter may be several tokens of one byte each: it is held back until it is complete.
    decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(num_samples)]
    for tokens in written:
        chosen = zip(decoders, tokens, strict=True)
        yield [decoder.decode(token_bytes[token]) for decoder, token in chosen]
    yield [decoder.decode(b"", final=True) for decoder in decoders]


def _open_text(run: RunLike, prompt: str) -> tuple[Model, Text, list[int]]:
    model, task = open_with_task(run)
    if not isinstance(task, Text):
        found = f"a run on {type(task).__name__}, which answers questions"
        raise usage_error(found, "a run on text", "use thinkers.answer")
    return model, task, task.read_prompt(prompt).tokens
