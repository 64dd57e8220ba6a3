"""Properties of generation: cache, stop token, evaluation mode, answers.

After "Check that", the docstring of a check is the rule that `check_model` reports.
"""

from typing import Any

import torch
from torch import Tensor

from thinkers.models.base import Model
from thinkers.testing.helpers import (
    Rows,
    call,
    close,
    difference,
    draw,
    fewest_and_most,
    refused,
    require,
)


@torch.no_grad()
def caching(model: Model) -> None:
    """Check that prefill, extend and cache.select give the logits of the forward pass over whole
    rows, within 1e-5 (float32) or 1e-10 (float64) of the largest. A model with causal = False is
    not checked."""
    if not model.causal:
        return
    rows = Rows.draw(model)
    texts = rows if model.ragged_text else rows.even()
    for steps in model.step_counts:
        _cached(model, rows, rows.prompts, steps)
        _cached(model, texts, None, steps)


def _cached(model: Model, rows: Rows, prompts: Tensor | None, steps: int) -> None:
    what = call(steps, prompts)
    whole = model(rows.tokens, num_steps=steps, lengths=rows.lengths, prompt_lengths=prompts)
    expected = rows.continued(whole.logits)
    start = int(rows.prompts.max())
    columns = torch.arange(start, device=rows.tokens.device)
    prompt = rows.tokens[:, :start].where(columns < rows.prompts[:, None], 0)
    prompted, capacity = prompts is not None, start + rows.new
    logits, cache = model.prefill(prompt, rows.prompts, steps, prompted, capacity)
    close(logits, expected[:, 0], f"{what}, prefill and forward")
    alive = torch.arange(len(prompt), device=prompt.device)
    for n in range(rows.new):
        if n == rows.new // 2:
            cache.select(alive[1:])
            alive = alive[1:]
        logits = model.extend(rows.tokens[alive, rows.prompts[alive] + n], cache)
        selected = " after select" if n >= rows.new // 2 else ""
        close(logits, expected[alive, n + 1], f"{what}, extend {n + 1}{selected} and forward")


def generation(model: Model) -> None:
    """Check that greedy generation writes the tokens with the largest logits of the forward pass,
    the same with use_cache True and False, and pads a row after its stop token. A model with causal
    = False raises ValueError."""
    if not model.causal:
        with refused("generate of a model that is not causal", ValueError, "causal"):
            model.generate(draw(model, (1, 1)), 1)
        return
    rows = Rows.draw(model)
    for steps in model.step_counts:
        _generated(model, rows, rows.prompts, steps)
        _generated(model, rows.even(), None, steps)


def _generated(model: Model, rows: Rows, prompts: Tensor | None, steps: int) -> None:
    what = call(steps, prompts)
    prompt, n = rows.left_padded(-5), rows.new
    settings: Any = {"num_steps": steps, "prompt_lengths": prompts}
    out, logits = model.generate(prompt, n, return_logits=True, **settings)
    found = out[:, prompt.shape[1] :]
    require(torch.equal(out[:, :-n], prompt), f"{what}, generate changes the prompts")
    require(not logits.requires_grad, f"{what}, the logits of generate require gradients")
    require(
        torch.equal(found, logits.argmax(-1)),
        f"{what}, generate at temperature 0 writes other tokens than those with the largest logits",
    )
    rows_so_far = rows.continue_with(found)
    whole = model(rows_so_far, num_steps=steps, lengths=rows.lengths, prompt_lengths=prompts)
    close(logits, rows.continued(whole.logits)[:, :-1], f"{what}, logits of generate and forward")
    other = model.generate(prompt, n, return_logits=True, use_cache=False, **settings)
    require(
        torch.equal(other[0], out), f"{what}, use_cache True and False generate different tokens"
    )
    close(logits, other[1], f"{what}, logits with use_cache True and False")
    stop = max(found.unique().tolist(), key=lambda token: len(_ends(found, token).unique()))
    columns = torch.arange(n, device=found.device)
    expected = found.where(columns <= _ends(found, stop)[:, None], -7)
    stopped = model.generate(prompt, n, stop_token=stop, pad_token=-7, **settings)[:, -n:]
    require(
        torch.equal(stopped, expected),
        f"{what}, stop_token={stop} and pad_token=-7, generate writes {stopped.tolist()}, "
        f"not {expected.tolist()}",
    )


def _ends(found: Tensor, token: int) -> Tensor:
    """Return the column of the first `token` in each row, or the width."""
    hits = found == token
    return hits.int().argmax(1).where(hits.any(1), found.shape[1])


def evaluation_mode(model: Model) -> None:
    """Check that generate and answer run in evaluation mode, and afterwards each submodule is in
    the mode that it was in. A model with causal = False is not checked."""
    if not model.causal:
        return
    new = min(3, model.config.max_length - 1)
    prompt, runs = draw(model, (2, min(7, model.config.max_length - new))), []
    for training in (False, True):
        model.train(training)
        for part in list(model.children())[:1]:
            part.train(not training)
        before = [part.training for part in model.modules()]
        runs.append(model.generate(prompt, new, return_logits=True)[1])
        model.answer(prompt, torch.full((2,), prompt.shape[1], device=prompt.device), new)
        after = [part.training for part in model.modules()]
        changed = sum(a != b for a, b in zip(before, after, strict=True))
        require(
            not changed,
            f"generate or answer of a model with training={training} leaves {changed} of "
            f"{len(after)} modules in another mode",
        )
    require(
        torch.equal(*runs),
        f"logits of generate differ between training and evaluation mode by {difference(*runs)}",
    )


def answers(model: Model) -> None:
    """Check that answer returns ids (b, max_new_tokens) of the vocabulary, does not read padding,
    and equals greedy generation unless the model overrides it. A model with causal = False is not
    checked."""
    if not model.causal:
        return
    rows = Rows.draw(model)
    for steps in fewest_and_most(model):
        found = model.answer(rows.left_padded(0), rows.prompts, rows.new, steps)
        shape, what = (len(rows.tokens), rows.new), call(steps, rows.prompts)
        require(
            found.shape == shape and found.dtype == torch.int64,
            f"{what}, answer is {found.dtype} {list(found.shape)}, not int64 {list(shape)}",
        )
        low, high = int(found.min()), int(found.max())
        require(
            0 <= low <= high < model.config.vocab_size,
            f"{what}, ids of answer lie in {low} .. {high}, and the vocabulary has "
            f"{model.config.vocab_size}",
        )
        other = model.answer(rows.left_padded(10**12), rows.prompts, rows.new, steps)
        require(torch.equal(found, other), f"{what}, the ids of padding change the answer")
        if type(model).answer is Model.answer:
            greedy = model.generate(rows.left_padded(0), rows.new, steps, rows.prompts)
            require(
                torch.equal(found, greedy[:, -rows.new :]),
                f"{what}, answer differs from greedy generation",
            )
