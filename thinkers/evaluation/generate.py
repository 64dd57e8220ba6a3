"""answer(run, prompt): what a trained model says to one prompt; stream and generate: a text."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import torch

from thinkers.checks import check_int
from thinkers.devices import find_device
from thinkers.errors import usage_error
from thinkers.models.base import Model
from thinkers.models.generation import check_sampling
from thinkers.models.generation import stream as next_tokens
from thinkers.runs.result import load, task_of
from thinkers.tasks.answers import AnswerTask
from thinkers.tasks.text import Text


def answer(run: str | Path, prompt: str, num_steps: int | None = None) -> str:
    """The prompt and the answer of the run in this folder, in the words of its task.

    Args:
        num_steps: How many steps to think; None is what the model usually takes.
    """
    task = task_of(Path(run))
    tokens = task.encode(prompt)
    if not tokens:
        raise usage_error(
            "an empty prompt", "a question such as 12+34=, or the beginning of a text", "write one"
        )
    if isinstance(task, AnswerTask) and task.prompt_end not in prompt:
        asked = f"a prompt that asks by {task.prompt_end}, such as {prompt[-30:]}{task.prompt_end}"
        raise usage_error(
            f"{prompt[-30:]!r}, which asks nothing yet", asked, f"add {task.prompt_end}"
        )
    model = _model_of(run)
    device = next(model.parameters()).device
    room = model.config.max_length - len(tokens)
    longest = task.max_answer_length()
    room = room if longest is None else min(room, longest)
    if room < 1:
        longest = model.config.max_length - 1
        raise usage_error(f"a prompt of {len(tokens)} tokens", f"at most {longest}", "shorten it")
    row = torch.tensor([tokens], device=device)
    lengths = torch.tensor([len(tokens)], device=device)
    with torch.no_grad():
        said = model.answer(row, lengths, room, num_steps)
    return prompt + task.decode(said[0].tolist())


def generate(
    run: str | Path,
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
    """The prompt as each sample goes on with it, by a run on text: see `stream`."""
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
    run: str | Path,
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
    """What each sample goes on with, as it comes; all are written in one batch.

    A model reads `max_length` tokens at most. When a text has become longer, its last half window
    is what the model goes on from.

    Args:
        temperature: 0 takes the likeliest token, so that all samples are the same.
        seed: The same seed draws the same samples.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("num_samples", num_samples)):
        check_int(name, value, 1)
    check_int("seed", seed, 0, 2**63 - 1)
    check_sampling(temperature, top_k, top_p)
    task = task_of(Path(run))
    if not isinstance(task, Text):
        raise usage_error(f"{run}, a run that answers", "a run on text", "thinkers.answer asks it")
    tokens = task.encode(prompt)
    if not tokens:
        raise usage_error("an empty prompt", "the beginning of a text", "write one")
    model = _model_of(run)
    device = next(model.parameters()).device
    rows = torch.tensor([tokens] * num_samples, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    assert task.tokenizer is not None
    words = task.tokenizer.token_bytes
    readers = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(num_samples)]
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
            chosen = zip(readers, new.tokens.tolist(), strict=True)
            yield [reader.decode(words[token]) for reader, token in chosen]
    yield [reader.decode(b"", final=True) for reader in readers]


def _model_of(run: str | Path) -> Model:
    return load(run).to(find_device("auto")).eval()
