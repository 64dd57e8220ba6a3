"""`answer`, the answer of a trained model to a prompt; `stream` and `generate`, samples of text."""

import codecs
from collections.abc import Iterator

import torch

from thinkers.checks import check_int
from thinkers.errors import usage_error
from thinkers.models.base import Model
from thinkers.models.generation import check_sampling
from thinkers.models.generation import stream as next_tokens
from thinkers.runs.result import RunLike, open_with_task
from thinkers.tasks.answers import AnswerTask
from thinkers.tasks.text import Text


def answer(run: RunLike, prompt: str, num_steps: int | None = None) -> str:
    """Return the prompt followed by the model's answer, as text of its task.

    Args:
        run: A run, its folder, or (model, task).
        num_steps: Thinking steps; None is the model's own number.

    Raises:
        UsageError: The prompt is empty, asks nothing, or leaves no room for an answer.
    """
    model, task = open_with_task(run)
    tokens = task.encode(prompt)
    if not tokens:
        raise usage_error(
            "an empty prompt", "a question such as 12+34=, or the beginning of a text", "write one"
        )
    if isinstance(task, AnswerTask) and task.prompt_end not in prompt:
        raise usage_error(
            f"{prompt[-30:]!r} has no {task.prompt_end!r}",
            f"a question that ends in {task.prompt_end}",
            f"pass one such as {prompt[-30:]}{task.prompt_end}",
        )
    room = model.config.max_length - len(tokens)
    longest = task.max_answer_length()
    room = room if longest is None else min(room, longest)
    if room < 1:
        limit = model.config.max_length - 1
        raise usage_error(f"a prompt of {len(tokens)} tokens", f"at most {limit}", "shorten it")
    device = next(model.parameters()).device
    row = torch.tensor([tokens], device=device)
    lengths = torch.tensor([len(tokens)], device=device)
    with torch.no_grad():
        written = model.answer(row, lengths, room, num_steps=num_steps)
    return prompt + task.decode(written[0].tolist())


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
) -> Iterator[list[str]]:
    """Yield pieces of samples of a text, by a run on text, as they are generated in one batch.

    A model reads at most `max_length` tokens: a longer text is continued from the last half of
    that window.

    Args:
        num_steps: Thinking steps; None is the model's own number.
        temperature: 0 takes the likeliest token, so that all samples are equal.
        top_k: Sample from the k likeliest tokens.
        top_p: Sample from the likeliest tokens that have this probability together.
        seed: Equal seeds give equal samples.

    Raises:
        UsageError: The task is not text, or the prompt is empty.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("num_samples", num_samples)):
        check_int(name, value, 1)
    check_int("seed", seed, 0, 2**63 - 1)
    check_sampling(temperature, top_k, top_p)
    model, task, tokens = _open_text(run, prompt)
    device = next(model.parameters()).device
    rows = torch.tensor([tokens] * num_samples, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    assert task.tokenizer is not None
    token_bytes = task.tokenizer.token_bytes
    # A letter may be several tokens of one byte each: it is held back until it is complete.
    decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(num_samples)]
    left, window = max_new_tokens, model.config.max_length
    check_int("max_length of the model", window, 2)
    while left:
        if rows.shape[1] >= window:
            rows = rows[:, -(window // 2) :]
        count = min(left, window - rows.shape[1])
        left -= count
        for new in next_tokens(
            model,
            rows,
            count,
            num_steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
        ):
            rows = torch.cat([rows, new.tokens[:, None]], 1)
            chosen = zip(decoders, new.tokens.tolist(), strict=True)
            yield [decoder.decode(token_bytes[token]) for decoder, token in chosen]
    yield [decoder.decode(b"", final=True) for decoder in decoders]


def _open_text(run: RunLike, prompt: str) -> tuple[Model, Text, list[int]]:
    model, task = open_with_task(run)
    if not isinstance(task, Text):
        found = f"a run on {type(task).__name__}, which answers questions"
        raise usage_error(found, "a run on text", "use thinkers.answer")
    tokens = task.encode(prompt)
    if not tokens:
        raise usage_error("an empty prompt", "the beginning of a text", "write one")
    return model, task, tokens
