"""Properties of generation: with a cache and without, stopped, in whichever mode."""

from typing import Any

import torch
from torch import Tensor

from thinkers.models.base import Model
from thinkers.testing.helpers import Rows, close, draw, few_steps, refused


@torch.no_grad()
def caching(model: Model) -> None:
    """Tokens appended to a cache, some rows of it selected, answer as in whole rows."""
    if not model.causal:
        return
    rows = Rows.draw(model)
    for steps in model.step_counts:
        _cached(model, rows, rows.prompts, steps)
        _cached(model, rows.even(), None, steps)


def _cached(model: Model, rows: Rows, prompts: Tensor | None, steps: int) -> None:
    what = f"{steps} steps, " + ("even" if prompts is None else "ragged") + " rows, token "
    wanted = rows.continued(
        model(rows.tokens, num_steps=steps, lengths=rows.lengths, prompt_lengths=prompts).logits
    )
    start = int(rows.prompts.max())
    columns = torch.arange(start, device=rows.tokens.device)
    prompt = rows.tokens[:, :start].where(columns < rows.prompts[:, None], 0)
    prompted, capacity = prompts is not None, start + rows.new
    logits, cache = model.prefill(prompt, rows.prompts, steps, prompted, capacity)
    close(logits, wanted[:, 0], what + "0")
    alive = torch.arange(len(prompt), device=prompt.device)
    for n in range(rows.new):
        if n == rows.new // 2:
            cache.select(alive[1:])
            alive = alive[1:]
        logits = model.extend(rows.tokens[alive, rows.prompts[alive] + n], cache)
        close(logits, wanted[alive, n + 1], f"{what}{n + 1}")


def generation(model: Model) -> None:
    """Generated tokens are what whole rows answer, with and without a cache, stopped or not."""
    if not model.causal:
        with refused(ValueError, "causal"):
            model.generate(draw(model, (1, 1)), 1)
        return
    rows = Rows.draw(model)
    for steps in model.step_counts:
        _generated(model, rows, rows.prompts, steps)
        _generated(model, rows.even(), None, steps)


def _generated(model: Model, rows: Rows, prompts: Tensor | None, steps: int) -> None:
    what = f"{steps} steps, " + ("even" if prompts is None else "ragged") + " rows, "
    prompt, n = rows.left(-5), rows.new
    settings: Any = {"num_steps": steps, "prompt_lengths": prompts}
    out, logits = model.generate(prompt, n, return_logits=True, **settings)
    found = out[:, prompt.shape[1] :]
    assert torch.equal(out[:, :-n], prompt), what + "the prompts were changed"
    assert not logits.requires_grad, what + "the logits have a graph"
    assert torch.equal(found, logits.argmax(-1)), what + "not the likeliest tokens"
    thought = model(
        rows.continue_with(found), num_steps=steps, lengths=rows.lengths, prompt_lengths=prompts
    )
    close(logits, rows.continued(thought.logits)[:, :-1], what + "generated and whole")
    other = model.generate(prompt, n, return_logits=True, use_cache=False, **settings)
    assert torch.equal(other[0], out), what + "other tokens without a cache"
    close(logits, other[1], what + "with and without a cache")
    stop = max(found.unique().tolist(), key=lambda token: len(_ends(found, token).unique()))
    places = torch.arange(n, device=found.device)
    wanted = found.where(places <= _ends(found, stop)[:, None], -7)
    stopped = model.generate(prompt, n, stop_token=stop, pad_token=-7, **settings)
    assert torch.equal(stopped[:, -n:], wanted), what + f"wrong once rows stop at {stop}"


def _ends(found: Tensor, token: int) -> Tensor:
    """The place of the first `token` in each row, or the end."""
    hits = found == token
    return hits.int().argmax(1).where(hits.any(1), found.shape[1])


def modes(model: Model) -> None:
    """Generation runs in evaluation mode, and leaves every part in the mode it was in."""
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
        assert before == after, f"generate or answer changes the mode, from training={training}"
    assert torch.equal(*runs), "generate answers otherwise in training mode"


def answering(model: Model) -> None:
    """What tasks score is what greedy generation gives, unless the model says otherwise."""
    if not model.causal:
        return
    rows = Rows.draw(model)
    for steps in few_steps(model):
        found = model.answer(rows.left(0), rows.prompts, rows.new, steps)
        shape = (len(rows.tokens), rows.new)
        assert found.shape == shape and found.dtype == torch.int64, f"{found.shape}, {found.dtype}"
        assert 0 <= int(found.min()) <= int(found.max()) < model.config.vocab_size, "no ids"
        other = model.answer(rows.left(10**12), rows.prompts, rows.new, steps)
        assert torch.equal(found, other), "padding is read"
        if type(model).answer is Model.answer:
            greedy = model.generate(rows.left(0), rows.new, steps, rows.prompts)
            assert torch.equal(found, greedy[:, -rows.new :]), f"not greedy, {steps} steps"
