"""Properties of forward passes: what is refused, what is read, and what never is."""

from typing import Any

import torch
from torch import Tensor

from thinkers.models.base import Model
from thinkers.testing.helpers import Rows, close, draw, dtype_of, few_steps, refused, untouched


def refusals(model: Model) -> None:
    """Wrong input is refused before anything runs, by name, value, place and limit."""
    config, tokens = model.config, draw(model, (2, min(5, model.config.max_length - 1)))
    t, v = tokens.shape[1], config.vocab_size
    size = torch.full((2,), t, device=tokens.device)
    zero = torch.tensor([t, 0], device=tokens.device)
    high, low = tokens.clone(), tokens.clone()
    high[1, t - 1], low[0, t // 2] = v, -1
    long = draw(model, (1, config.max_length + 1))
    cases: list[tuple[Any, tuple[str, ...], dict[str, Any]]] = [
        (TypeError, ("tokens", "int64", "list"), {"tokens": tokens.tolist()}),
        (TypeError, ("tokens", "int64", "float32"), {"tokens": tokens.float()}),
        (TypeError, ("tokens", "int64", "int32"), {"tokens": tokens.int()}),
        (ValueError, ("tokens", f"[{t}]"), {"tokens": tokens[0]}),
        (ValueError, ("tokens", f"[0, {t}]"), {"tokens": tokens[:0]}),
        (ValueError, ("tokens", "[2, 0]"), {"tokens": tokens[:, :0]}),
        (ValueError, ("tokens", f"{v - 1}", f"got {v} at [1, {t - 1}]"), {"tokens": high}),
        (ValueError, ("tokens", f"got -1 at [0, {t // 2}]"), {"tokens": low}),
        (ValueError, (f"{config.max_length}", f"got {config.max_length + 1}"), {"tokens": long}),
    ]
    for name in ("lengths", "prompt_lengths"):
        cases += [
            (TypeError, (name, "int64", "int32"), {name: size.int()}),
            (TypeError, (name, "int64", "list"), {name: [t, t]}),
            (ValueError, (name, "(2,)", "[1]"), {name: size[:1]}),
            (
                ValueError,
                (name, f"1 .. {t}", "got 0 in row 1"),
                {name: zero},
            ),
            (ValueError, (name, f"1 .. {t}", f"got {t + 1} in row 0"), {name: size + 1}),
        ]
    for wrong in (True, 1.0, "1", -1, 10**30, config.max_steps + 1, torch.ones(2)):
        cases.append((ValueError, ("num_steps", repr(wrong)), {"num_steps": wrong}))
    with untouched(model):
        for kinds, words, given in cases:
            with refused(kinds, *words):
                model(**{"tokens": tokens, **given})
            if "lengths" in given or not model.causal:
                continue
            with refused(kinds, *words):
                model.generate(**{"tokens": tokens, "max_new_tokens": 1, **given})


@torch.no_grad()
def answers(model: Model) -> None:
    """Every step count answers at every position, and unlike the others."""
    rows = Rows.draw(model)
    b, t = rows.tokens.shape
    given = rows.tokens.clone()
    seen: list[Tensor] = []
    for steps in model.step_counts:
        thought = model(rows.tokens, num_steps=steps)
        logits = thought.logits
        assert logits.shape == (b, t, model.config.vocab_size), f"logits are {list(logits.shape)}"
        assert logits.dtype == dtype_of(model), f"logits are {logits.dtype}"
        assert logits.isfinite().all(), f"logits after {steps} steps are not finite"
        assert thought.states is None, "states are kept without keep_states"
        if steps == model.check_steps(None):
            assert torch.equal(model(rows.tokens).logits, logits), "None is another number of steps"
        prompted = model(rows.tokens, num_steps=steps, prompt_lengths=rows.prompts).logits
        both = torch.cat([logits, prompted])
        for fewer, other in zip(model.step_counts, seen, strict=False):
            assert not torch.equal(both, other), f"{steps} steps answer as {fewer} do"
        seen.append(both)
    assert torch.equal(rows.tokens, given), "the tokens given were changed"


@torch.no_grad()
def states(model: Model) -> None:
    """The last of the states that are kept is what the logits are read from."""
    rows = Rows.draw(model)
    b, t = rows.tokens.shape
    for steps in model.step_counts:
        for prompts in (None, rows.prompts):
            thought = model(rows.tokens, num_steps=steps, prompt_lengths=prompts, keep_states=True)
            kept = thought.states
            assert kept is not None and kept.ndim == 4, "keep_states keeps no (b, k, t, c)"
            shape = list(kept.shape)
            assert shape[0] == b and shape[2] == t, f"states are {shape}"
            assert 1 <= shape[1] <= steps + 1, f"{shape[1]} states are kept of {steps} steps"
            read = model.read_out(kept)
            assert read.shape == (b, shape[1], t, model.config.vocab_size), f"{list(read.shape)}"
            close(read[:, -1], thought.logits, f"read_out after {steps} steps")
            logits = model(rows.tokens, num_steps=steps, prompt_lengths=prompts).logits
            close(thought.logits, logits, f"keep_states with {steps} steps")


@torch.no_grad()
def causality(model: Model) -> None:
    """Changing token j changes no logits before j, bit for bit."""
    if not model.causal:
        return
    t = min(44, model.config.max_length)
    places = sorted({p for p in (1, 2, 5, 8, 15, 16, 17, 24, 31, 32, 33, 37, t - 1) if 0 < p < t})
    tokens = draw(model, (len(places), t))
    at = torch.tensor(places, device=tokens.device)[:, None]
    columns = torch.arange(t, device=tokens.device)
    other = tokens.where(columns != at, (tokens + 1) % model.config.vocab_size)
    # The token changed lies in its prompt, right behind it, or further on: in turn.
    turns = torch.arange(len(places), device=tokens.device)
    prompted = torch.stack([at.new_full(at.shape, t), at, (at + 1) // 2])[turns % 3, turns, 0]
    for steps in model.step_counts:
        for prompts in (None, prompted):
            found = model(tokens, num_steps=steps, prompt_lengths=prompts).logits
            moved = (found != model(other, num_steps=steps, prompt_lengths=prompts).logits).any(-1)
            assert prompts is not None or moved.any(), f"after {steps} steps no token is read"
            for row, i in (moved & (columns < at)).nonzero().tolist():
                prompt = "no prompt" if prompts is None else f"a prompt of {int(prompts[row])}"
                raise AssertionError(
                    f"token {places[row]} changes the logits at {i}, {steps} steps, {prompt}"
                )


@torch.no_grad()
def independence(model: Model) -> None:
    """A row answers alone as it does in a batch, and whatever the batch is padded with."""
    rows = Rows.draw(model)
    columns = torch.arange(rows.tokens.shape[1], device=rows.tokens.device)
    real = columns < rows.lengths[:, None]
    for steps in model.step_counts:
        for prompts in (None, rows.prompts):
            what = f"{steps} steps, prompted {prompts is not None}, "
            logits = model(
                rows.padded(0), num_steps=steps, lengths=rows.lengths, prompt_lengths=prompts
            ).logits
            for fill in (1 % model.config.vocab_size, -3, 10**12):
                other = model(
                    rows.padded(fill), num_steps=steps, lengths=rows.lengths, prompt_lengths=prompts
                ).logits
                assert torch.equal(logits[real], other[real]), what + "padding is read"
            for row in (0, 2, 4):
                length = int(rows.lengths[row])
                one = slice(row, row + 1)
                prompt = None if prompts is None else prompts[one]
                alone = model(
                    rows.tokens[one, :length], num_steps=steps, prompt_lengths=prompt
                ).logits
                close(logits[one, :length], alone, f"{what}row {row} alone")
    if not model.causal:
        return
    answer: Any = {"prompt_lengths": rows.prompts, "return_logits": True}
    out, logits = model.generate(rows.left(0), rows.new, **answer)
    other = model.generate(rows.left(10**12), rows.new, **answer)[1]
    assert torch.equal(logits, other), "generate reads padding"
    for row, length in enumerate(rows.prompts.tolist()):
        answer["prompt_lengths"] = rows.prompts[row : row + 1]
        found = model.generate(rows.tokens[row : row + 1, :length], rows.new, **answer)
        assert torch.equal(found[0][0, length:], out[row, -rows.new :]), f"row {row} alone"
        close(found[1][0], logits[row], f"generate, row {row} alone")


@torch.no_grad()
def scores(model: Model) -> None:
    """Scores are the log-probabilities of the next tokens, and zeros where none is real."""
    rows = Rows.draw(model)
    if not model.causal:
        with refused(ValueError, "causal"):
            model.score(rows.tokens)
        return
    for steps in few_steps(model):
        logits = model(rows.tokens, num_steps=steps, lengths=rows.lengths).logits
        wanted = torch.zeros_like(logits[:, 1:, 0])
        for row, length in enumerate(rows.lengths.tolist()):
            for i in range(length - 1):
                chances = logits[row, i] - logits[row, i].logsumexp(0)
                wanted[row, i] = chances[rows.tokens[row, i + 1]]
        close(
            model.score(rows.tokens, lengths=rows.lengths, num_steps=steps),
            wanted,
            f"{steps} steps",
        )
        for fill in (0, 10**12):
            found = model.score(rows.padded(fill), lengths=rows.lengths, num_steps=steps)
            close(found, wanted, f"{steps} steps, padded with {fill}")
    found = model.score(rows.tokens, num_steps=steps)
    wanted = model.score(
        rows.tokens, lengths=torch.full_like(rows.lengths, rows.tokens.shape[1]), num_steps=steps
    )
    close(found, wanted, "lengths=None")
