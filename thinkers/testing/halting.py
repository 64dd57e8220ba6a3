"""Properties of models whose tokens halt: exact in a batch, alone, with a cache and without.

After "Check that", the docstring of a check is the rule that `check_model` reports.
"""

from typing import Any

import torch
from torch import Tensor

from thinkers.models.base import Model
from thinkers.models.halt import Halt, HaltingCache
from thinkers.testing.helpers import Rows, close, draw, refused, require, untouched

DRAWS, HALVINGS, ENOUGH = 4, 16, 4
"""Random gates that are tried, biases of each, and different numbers of steps that suffice."""
GATE_SCALE, LARGEST_BIAS = 3.0, 64.0
"""Standard deviation of the weights of a random gate, and its largest bias either way."""


@torch.no_grad()
def halting(model: Model) -> None:
    """Check that with halt steps are int64 (b, t), in 1 .. num_steps at real tokens and 0 at
    padding; that halt=1.0 equals halt=None; that a row has the same steps alone and in a batch, and
    logits within 1e-5 (float32) or 1e-10 (float64) of the largest; and that a later token changes
    neither. Values that the model cannot halt by raise ValueError before any submodule runs."""
    _refusals(model)
    rows, steps = Rows.draw(model), model.step_counts[-1]
    for halt in _rules(model, rows, steps):
        for prompts in (None, rows.prompts):
            _shapes(model, rows, prompts, steps, halt)
            _alone(model, rows, prompts, steps, halt)
            _later_tokens(model, prompts, steps, halt)


def _refusals(model: Model) -> None:
    prompt = draw(model, (2, min(5, model.config.max_length - 1)))
    lengths = torch.full_like(prompt[:, 0], prompt.shape[1])
    wrong: list[Any] = [-0.1, 1.5, float("nan"), True, "gate"]
    wrong += [0.5] * ("gate" not in model.halts_by)
    wrong += ["answered"] * ("answered" not in model.halts_by)
    with untouched(model):
        for halt in wrong:
            with refused(f"model.answer(.., halt={halt!r})", ValueError, "halt"):
                model.answer(prompt, lengths, 1, halt=halt)


def _rules(model: Model, rows: Rows, steps: int) -> list[Halt]:
    """Return values of halt for this model; its gate is replaced by one that opens differently."""
    rules: list[Halt] = []
    if "gate" in model.halts_by:
        rules.append(0.5)
        _vary_gate(model, rows, steps)
    if "answered" in model.halts_by:
        rules.append("answered")
    return rules


def _vary_gate(model: Any, rows: Rows, steps: int) -> None:
    """Give the model the random gate, of some, that lets tokens take most different steps."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = model.gate.weight, model.gate.bias
    best, gate = 1, (weight.clone(), bias.clone())
    for _ in range(DRAWS):
        if best >= min(ENOUGH, steps):
            break
        weight.copy_(torch.randn(weight.shape, generator=generator) * GATE_SCALE)
        low, high = -LARGEST_BIAS, LARGEST_BIAS
        for _ in range(HALVINGS):
            bias.fill_((low + high) / 2)
            taken = model(rows.tokens, num_steps=steps, lengths=rows.lengths, halt=0.5).steps
            real = taken[_real(rows)].clamp(min=1)
            number = len(real.unique())
            if number > best:
                best, gate = number, (weight.clone(), bias.clone())
            if best >= min(ENOUGH, steps):
                break
            # The larger the bias, the earlier a token halts.
            if float(real.double().mean()) > (1 + steps) / 2:
                low = float(bias)
            else:
                high = float(bias)
    require(best > min(1, steps - 1), f"no random gate lets tokens take different steps of {steps}")
    weight.copy_(gate[0])
    bias.copy_(gate[1])


def _real(rows: Rows) -> Tensor:
    columns = torch.arange(rows.tokens.shape[1], device=rows.tokens.device)
    return columns < rows.lengths[:, None]


def _call(steps: int, prompts: Tensor | None, halt: Halt) -> str:
    which = "no" if prompts is None else "ragged"
    return f"with num_steps={steps}, halt={halt!r} and {which} prompt_lengths"


def _shapes(model: Any, rows: Rows, prompts: Tensor | None, steps: int, halt: Halt) -> None:
    what, real = _call(steps, prompts, halt), _real(rows)
    given: Any = {"num_steps": steps, "lengths": rows.lengths, "prompt_lengths": prompts}
    plain, found = (model(rows.tokens, halt=x, **given) for x in (None, halt))
    taken = found.steps
    shown = None if taken is None else f"{taken.dtype} {list(taken.shape)}"
    fits = taken is not None and taken.dtype == torch.int64 and taken.shape == real.shape
    require(fits, f"{what}, steps are {shown}, not int64 {list(real.shape)}")
    require(not taken[~real].any(), f"{what}, steps at padding are {taken[~real].tolist()}")
    most = torch.full_like(taken, steps)
    if halt != "answered":
        never = model(rows.tokens, halt=1.0, **given)
        close(never.logits[real], plain.logits[real], f"{what}, logits at halt 1.0 and None")
        most = never.steps
    # A token that no thought precedes, such as one of a first section, takes no step at any halt.
    low, high = taken >= most.clamp(max=1), taken <= most
    wrong = (real & ~(low & high)).nonzero().tolist()
    require(not wrong, f"{what}, steps at {wrong[:3]} are not in 1 .. {steps}")
    kept = model(rows.tokens, halt=halt, keep_states=True, **given)
    full = model(rows.tokens, keep_states=True, **given).states
    require(
        kept.states.shape == full.shape,
        f"{what}, states are {list(kept.states.shape)}, and {list(full.shape)} without halt",
    )
    require(torch.equal(kept.steps, taken), f"{what}, steps differ with keep_states")
    close(kept.logits[real], found.logits[real], f"{what}, logits with and without keep_states")
    last = model.read_out(kept.states)[:, -1]
    close(last[real], found.logits[real], f"{what}, last step of read_out and logits")


def _alone(model: Any, rows: Rows, prompts: Tensor | None, steps: int, halt: Halt) -> None:
    what = _call(steps, prompts, halt)
    given: Any = {"num_steps": steps, "halt": halt}
    whole = model(rows.padded(10**12), lengths=rows.lengths, prompt_lengths=prompts, **given)
    for row, length in enumerate(rows.lengths.tolist()):
        one = slice(row, row + 1)
        given["prompt_lengths"] = None if prompts is None else prompts[one]
        alone = model(rows.tokens[one, :length], **given)
        _same_steps(
            alone.steps, whole.steps[one, :length], f"{what}, row {row} alone and in a batch"
        )
        close(whole.logits[one, :length], alone.logits, f"{what}, row {row} in a batch and alone")


def _later_tokens(model: Any, prompts: Tensor | None, steps: int, halt: Halt) -> None:
    t = min(36, model.config.max_length)
    places = sorted({p for p in (1, 2, 8, 15, 16, 17, 31, 32, 33, t - 1) if 0 < p < t})
    tokens = draw(model, (len(places), t))
    at = torch.tensor(places, device=tokens.device)[:, None]
    columns = torch.arange(t, device=tokens.device)
    other = tokens.where(columns != at, (tokens + 1) % model.config.vocab_size)
    # The changed token lies in the prompt, or directly after it.
    inside = torch.arange(len(places), device=tokens.device) % 2 == 0
    given = None if prompts is None else at[:, 0].where(inside, torch.full_like(at[:, 0], t))
    settings: Any = {"num_steps": steps, "halt": halt, "prompt_lengths": given}
    before, after = (model(x, **settings) for x in (tokens, other))
    earlier, what = columns < at, f"{_call(steps, given, halt)}, before and after a later token"
    _same_steps(after.steps[earlier], before.steps[earlier], what)
    close(after.logits[earlier], before.logits[earlier], what)


def _same_steps(found: Tensor, expected: Tensor, what: str) -> None:
    """Raise AssertionError unless the steps are equal."""
    wrong = int((found != expected).sum())
    require(not wrong, f"{what}: {wrong} of {found.numel()} tokens take other steps")


@torch.no_grad()
def halted_caching(model: Model) -> None:
    """Check that with halt prefill, extend and cache.select give the logits and steps of the
    forward pass over whole rows, within 1e-5 (float32) or 1e-10 (float64) of the largest; that
    generate writes the same tokens with the same steps with use_cache True and False; and that
    return_steps adds steps (b, n), 0 after a stop token."""
    rows, steps = Rows.draw(model), model.step_counts[-1]
    for halt in _rules(model, rows, steps):
        for some, prompts in ((rows, rows.prompts), (rows.even(), None)):
            _cached(model, some, prompts, steps, halt)
            _generated(model, some, prompts, steps, halt)


def _cached(model: Any, rows: Rows, prompts: Tensor | None, steps: int, halt: Halt) -> None:
    what, settings = _call(steps, prompts, halt), {"num_steps": steps, "halt": halt}
    whole = model(rows.tokens, lengths=rows.lengths, prompt_lengths=prompts, **settings)
    expected, taken = rows.continued(whole.logits), rows.continued(whole.steps)
    start = int(rows.prompts.max())
    columns = torch.arange(start, device=rows.tokens.device)
    prompt = rows.tokens[:, :start].where(columns < rows.prompts[:, None], 0)
    capacity = start + rows.new
    logits, cache = model.prefill(
        prompt, rows.prompts, steps, prompts is not None, capacity, halt=halt
    )
    require(
        isinstance(cache, HaltingCache),
        f"{what}, the cache of prefill is a {type(cache).__name__}, not a HaltingCache",
    )
    close(logits, expected[:, 0], f"{what}, prefill and forward")
    _same_steps(cache.taken, taken[:, 0], f"{what}, prefill and forward")
    alive = torch.arange(len(prompt), device=prompt.device)
    for n in range(rows.new):
        if n == rows.new // 2:
            cache.select(alive[1:])
            alive = alive[1:]
        logits = model.extend(rows.tokens[alive, rows.prompts[alive] + n], cache)
        where = f"{what}, extend {n + 1}{' after select' * (n >= rows.new // 2)} and forward"
        close(logits, expected[alive, n + 1], where)
        _same_steps(cache.taken, taken[alive, n + 1], where)


def _generated(model: Any, rows: Rows, prompts: Tensor | None, steps: int, halt: Halt) -> None:
    what, prompt, n = _call(steps, prompts, halt), rows.left_padded(0), rows.new
    settings: Any = {"num_steps": steps, "prompt_lengths": prompts, "halt": halt}
    settings |= {"return_steps": True}
    runs = [
        model.generate(prompt, n, return_logits=True, use_cache=x, **settings)
        for x in (True, False)
    ]
    (out, logits, taken), (other, slowly, again) = runs
    shape = (len(prompt), n)
    require(
        taken.shape == shape and taken.dtype == torch.int64,
        f"{what}, steps of generate are {taken.dtype} {list(taken.shape)}, not int64 {list(shape)}",
    )
    require(torch.equal(out, other), f"{what}, use_cache True and False write different tokens")
    close(logits, slowly, f"{what}, logits with use_cache True and False")
    _same_steps(taken, again, f"{what}, use_cache True and False")
    found = out[:, -n:]
    so_far = rows.continue_with(found)
    given: Any = {"lengths": rows.lengths, "prompt_lengths": prompts}
    whole = model(so_far, num_steps=steps, halt=halt, **given)
    _same_steps(taken, rows.continued(whole.steps)[:, :-1], f"{what}, generate and forward")
    stop = int(found[0, 0])
    _, counts = model.generate(prompt, n, stop_token=stop, **settings)
    ended = ((found == stop).cumsum(1) - (found == stop).long()) > 0
    expected = taken.where(~ended, 0)
    _same_steps(counts, expected, f"{what}, stop_token={stop}, generate with and without it")
    if prompts is not None and type(model).answer is Model.answer:
        answer, counts = model.answer(prompt, prompts, n, steps, halt=halt, return_steps=True)
        require(torch.equal(answer, found), f"{what}, answer differs from greedy generation")
        _same_steps(counts, taken, f"{what}, answer and generate")
