"""Properties of the forward pass: input checks, outputs, causality, independence of the batch.

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
    dtype_of,
    fewest_and_most,
    refused,
    require,
    untouched,
)

Case = tuple[type[Exception], tuple[str, ...], dict[str, Any]]
"""An error, words of its message, and the arguments that must raise it."""


def input_checks(model: Model) -> None:
    """Check that invalid input raises TypeError (wrong type) or ValueError before any submodule
    runs; the message names the argument, the value, its place and the limit."""
    tokens = draw(model, (2, min(5, model.config.max_length - 1)))
    with untouched(model):
        for kind, words, given in invalid_calls(model, tokens):
            shown = ", ".join(f"{name} {describe(x)}" for name, x in given.items())
            with refused(f"model(tokens, ..) with {shown}", kind, *words):
                model(**{"tokens": tokens, **given})
            if "lengths" in given or not model.causal:
                continue
            with refused(f"model.generate(tokens, 1, ..) with {shown}", kind, *words):
                model.generate(**{"tokens": tokens, "max_new_tokens": 1, **given})


def invalid_calls(model: Model, tokens: Tensor) -> list[Case]:
    """Return calls that must be refused, given valid tokens (2, t)."""
    config, t, v = model.config, tokens.shape[1], model.config.vocab_size
    size = torch.full((2,), t, device=tokens.device)
    zero = torch.tensor([t, 0], device=tokens.device)
    high, low, huge = tokens.clone(), tokens.clone(), tokens.clone()
    high[1, t - 1], low[0, t // 2], huge[0, 0] = v, -1, 2**31
    long = draw(model, (1, config.max_length + 1))
    cases: list[Case] = [
        (TypeError, ("tokens", "int64", "list"), {"tokens": tokens.tolist()}),
        (TypeError, ("tokens", "int64", "float32"), {"tokens": tokens.float()}),
        (TypeError, ("tokens", "int64", "int32"), {"tokens": tokens.int()}),
        (ValueError, ("tokens", f"[{t}]"), {"tokens": tokens[0]}),
        (ValueError, ("tokens", f"[0, {t}]"), {"tokens": tokens[:0]}),
        (ValueError, ("tokens", "[2, 0]"), {"tokens": tokens[:, :0]}),
        (ValueError, ("tokens", f"{v - 1}", f"got {v} at [1, {t - 1}]"), {"tokens": high}),
        (ValueError, ("tokens", f"got -1 at [0, {t // 2}]"), {"tokens": low}),
        (ValueError, ("tokens", f"{v - 1}", f"got {2**31} at [0, 0]"), {"tokens": huge}),
        (ValueError, (f"{config.max_length}", f"got {config.max_length + 1}"), {"tokens": long}),
    ]
    for name in ("lengths", "prompt_lengths"):
        cases += [
            (TypeError, (name, "int64", "int32"), {name: size.int()}),
            (TypeError, (name, "int64", "list"), {name: [t, t]}),
            (ValueError, (name, "(2,)", "[1]"), {name: size[:1]}),
            (ValueError, (name, f"1 .. {t}", "got 0 in row 1"), {name: zero}),
            (ValueError, (name, f"1 .. {t}", f"got {t + 1} in row 0"), {name: size + 1}),
        ]
    for wrong in (True, 1.0, 2.5, "1", -1, 10**9, 10**30, config.max_steps + 1, torch.ones(2)):
        cases.append((ValueError, ("num_steps", repr(wrong)), {"num_steps": wrong}))
    return cases


def describe(value: Any) -> str:
    """Describe an argument briefly."""
    if isinstance(value, Tensor) and value.numel() > 4:
        return f"{value.dtype} {list(value.shape)}"
    return repr(value) if not isinstance(value, list) else "a list"


@torch.no_grad()
def outputs(model: Model) -> None:
    """Check that logits have shape (b, t, vocab_size), the dtype of the weights and finite values;
    states are None without keep_states; num_steps=None means the configured number;
    different numbers of steps give different logits; the input is not changed."""
    rows = Rows.draw(model)
    shape = (*rows.tokens.shape, model.config.vocab_size)
    given = rows.tokens.clone()
    seen: list[Tensor] = []
    for steps in model.step_counts:
        thought = model(rows.tokens, num_steps=steps)
        logits, what = thought.logits, call(steps)
        require(logits.shape == shape, f"{what}, logits are {list(logits.shape)}, not {shape}")
        require(
            logits.dtype == dtype_of(model),
            f"{what}, logits are {logits.dtype}, and the weights {dtype_of(model)}",
        )
        wrong = int((~logits.isfinite()).sum())
        require(not wrong, f"{what}, {wrong} of {logits.numel()} logits are not finite")
        require(thought.states is None, f"{what}, states are returned without keep_states")
        if steps == model.check_steps(None):
            require(
                torch.equal(model(rows.tokens).logits, logits),
                f"num_steps=None differs from the configured num_steps={steps}",
            )
        prompted = model(rows.tokens, num_steps=steps, prompt_lengths=rows.prompts).logits
        both = torch.cat([logits, prompted])
        for fewer, other in zip(model.step_counts, seen, strict=False):
            same = torch.equal(both, other)
            require(not same, f"num_steps={steps} and num_steps={fewer} give equal logits")
        seen.append(both)
    require(torch.equal(rows.tokens, given), "the model changed the tokens that it was given")


@torch.no_grad()
def states(model: Model) -> None:
    """Check that keep_states=True returns states (b, k, t, c) with 1 <= k <= num_steps + 1 and the
    same logits; read_out(states) has shape (b, k, t, vocab_size), and its last step equals the
    logits."""
    rows = Rows.draw(model)
    b, t = rows.tokens.shape
    for steps in model.step_counts:
        for prompts in (None, rows.prompts):
            what = call(steps, prompts)
            thought = model(rows.tokens, num_steps=steps, prompt_lengths=prompts, keep_states=True)
            kept = thought.states
            require(
                kept is not None and kept.ndim == 4,
                f"{what}, states are {None if kept is None else list(kept.shape)}",
            )
            assert kept is not None
            k = kept.shape[1]
            fits = kept.shape[0] == b and kept.shape[2] == t and 1 <= k <= steps + 1
            require(fits, f"{what} and tokens {[b, t]}, states are {list(kept.shape)}")
            read = model.read_out(kept)
            shape = (b, k, t, model.config.vocab_size)
            require(read.shape == shape, f"{what}, read_out is {list(read.shape)}, not {shape}")
            close(read[:, -1], thought.logits, f"{what}, last step of read_out and logits")
            logits = model(rows.tokens, num_steps=steps, prompt_lengths=prompts).logits
            close(thought.logits, logits, f"{what}, logits with and without keep_states")


@torch.no_grad()
def causality(model: Model) -> None:
    """Check that changing token j changes no logits before position j, bit for bit, and changes
    some logits from j on. A model with causal = False is not checked."""
    if not model.causal:
        return
    t = min(44, model.config.max_length)
    places = sorted({p for p in (1, 2, 5, 8, 15, 16, 17, 24, 31, 32, 33, 37, t - 1) if 0 < p < t})
    tokens = draw(model, (len(places), t))
    at = torch.tensor(places, device=tokens.device)[:, None]
    columns = torch.arange(t, device=tokens.device)
    other = tokens.where(columns != at, (tokens + 1) % model.config.vocab_size)
    # In turn, the changed token lies in the prompt, directly after it, or further on.
    turns = torch.arange(len(places), device=tokens.device)
    prompted = torch.stack([at.new_full(at.shape, t), at, (at + 1) // 2])[turns % 3, turns, 0]
    for steps in model.step_counts:
        for prompts in (None, prompted):
            before = model(tokens, num_steps=steps, prompt_lengths=prompts).logits
            after = model(other, num_steps=steps, prompt_lengths=prompts).logits
            moved = (before != after).any(-1)
            require(
                prompts is not None or moved.any(),
                f"{call(steps)}, changing any single token changes no logits at all",
            )
            for row, i in (moved & (columns < at)).nonzero().tolist():
                prompt = "no prompt" if prompts is None else f"a prompt of {int(prompts[row])}"
                raise AssertionError(
                    f"changing token {places[row]} changes the logits at position {i} by "
                    f"{difference(before[row, i], after[row, i])} (num_steps={steps}, {prompt})"
                )


@torch.no_grad()
def batch_independence(model: Model) -> None:
    """Check that logits of a row do not depend on the ids of padding (bit for bit), and are those
    of the row alone, within 1e-5 (float32) or 1e-10 (float64) of the largest."""
    rows = Rows.draw(model)
    columns = torch.arange(rows.tokens.shape[1], device=rows.tokens.device)
    real = columns < rows.lengths[:, None]
    # In turn, an id of the vocabulary, one below, and one beyond it and beyond 32 bits.
    fills = torch.tensor([1 % model.config.vocab_size, -3, 10**12], device=columns.device)
    fills = fills[columns % 3]
    for steps in model.step_counts:
        for prompts in (None, rows.prompts):
            settings: Any = {"num_steps": steps, "prompt_lengths": prompts}
            what = call(steps, prompts)
            logits = model(rows.padded(0), lengths=rows.lengths, **settings).logits
            other = model(rows.padded(fills), lengths=rows.lengths, **settings).logits
            require(
                torch.equal(logits[real], other[real]),
                f"{what}, padding with other ids than 0 changes the logits of real "
                f"tokens by {difference(logits[real], other[real])}",
            )
            for row in (0, 2, 4):
                length, one = int(rows.lengths[row]), slice(row, row + 1)
                settings["prompt_lengths"] = None if prompts is None else prompts[one]
                alone = model(rows.tokens[one, :length], **settings).logits
                close(logits[one, :length], alone, f"{what}, row {row} in a batch and alone")
    if model.causal:
        _generation_is_independent(model, rows)


def _generation_is_independent(model: Model, rows: Rows) -> None:
    answer: Any = {"prompt_lengths": rows.prompts, "return_logits": True}
    out, logits = model.generate(rows.left_padded(0), rows.new, **answer)
    other = model.generate(rows.left_padded(10**12), rows.new, **answer)[1]
    require(torch.equal(logits, other), "the ids of padding change the logits of generate")
    for row, length in enumerate(rows.prompts.tolist()):
        answer["prompt_lengths"] = rows.prompts[row : row + 1]
        found = model.generate(rows.tokens[row : row + 1, :length], rows.new, **answer)
        require(
            torch.equal(found[0][0, length:], out[row, -rows.new :]),
            f"generate writes other tokens for row {row} alone than in a batch",
        )
        close(found[1][0], logits[row], f"generate, row {row} alone and in a batch")


@torch.no_grad()
def scores(model: Model) -> None:
    """Check that score gives the log-probability of each token after the first, zero after the end
    of a row, and does not read padding. A model with causal = False raises ValueError."""
    rows = Rows.draw(model)
    if not model.causal:
        with refused("score of a model that is not causal", ValueError, "causal"):
            model.score(rows.tokens)
        return
    for steps in fewest_and_most(model):
        logits = model(rows.tokens, num_steps=steps, lengths=rows.lengths).logits
        log_probs = logits - logits.logsumexp(-1, keepdim=True)
        expected = torch.zeros_like(logits[:, 1:, 0])
        for row, length in enumerate(rows.lengths.tolist()):
            places = torch.arange(length - 1, device=logits.device)
            expected[row, : length - 1] = log_probs[row, places, rows.tokens[row, 1:length]]
        found = model.score(rows.tokens, lengths=rows.lengths, num_steps=steps)
        close(found, expected, f"{call(steps)}, score and log-softmax of the logits")
        for fill in (0, 10**12):
            found = model.score(rows.padded(fill), lengths=rows.lengths, num_steps=steps)
            close(found, expected, f"{call(steps)}, score of rows padded with id {fill}")
    found = model.score(rows.tokens, num_steps=steps)
    full = torch.full_like(rows.lengths, rows.tokens.shape[1])
    expected = model.score(rows.tokens, lengths=full, num_steps=steps)
    close(found, expected, "score with lengths=None and with the full width as lengths")
