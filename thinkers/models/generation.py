"""Generation of tokens by any model, over `prefill`, `extend` and `cache.select`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thinkers.checks import NOT_CAUSAL, check_ids, check_int, check_lengths, check_shape
from thinkers.errors import UsageError, usage_error
from thinkers.models.extra_inputs import Extra
from thinkers.models.halt import Halt, check_halt
from thinkers.models.model_input import check_options
from thinkers.models.positions import Positions, refuse_positions
from thinkers.models.tools import Calls, Tool, check_tools
from thinkers.models.writers import Cached, Recomputed


def generate(
    model: Any,
    tokens: Int[Tensor, "b t"],
    max_new_tokens: int,
    num_steps: int | None,
    prompt_lengths: Int[Tensor, " b"] | None,
    *,
    pad_token: int,
    return_logits: bool,
    return_steps: bool,
    **options: Any,
) -> Any:
    """Implement `Model.generate`; the other options are those of `stream`."""
    check_shape("tokens", tokens)
    check_int("pad_token", pad_token, -(2**63))
    written = stream(model, tokens, max_new_tokens, num_steps, prompt_lengths, **options)
    (b, t), chosen, kept, taken = tokens.shape, [], [], []
    for new in written:
        column = torch.full((b,), pad_token, dtype=torch.int64, device=tokens.device)
        chosen.append(column.index_copy(0, new.rows, new.tokens))
        taken.append(torch.zeros_like(column).index_copy(0, new.rows, new.steps))
        if return_logits:
            logits = new.logits
            kept.append(logits.new_zeros(b, logits.shape[-1]).index_copy(0, new.rows, logits))
    out = torch.full((b, t + max_new_tokens), pad_token, dtype=torch.int64, device=tokens.device)
    out[:, :t] = tokens
    if chosen:
        out[:, t : t + len(chosen)] = torch.stack(chosen, 1)
    found = [out]
    if return_logits:
        empty = next(model.parameters()).new_zeros(b, model.config.vocab_size)
        found.append(_columns(kept, empty, max_new_tokens))
    if return_steps:
        found.append(_columns(taken, tokens.new_zeros(b), max_new_tokens))
    return out if len(found) == 1 else tuple(found)


def _columns(written: list[Tensor], empty: Tensor, number: int) -> Tensor:
    """Join what was written token by token, with `empty` once all rows have ended."""
    columns = written + [empty] * (number - len(written))
    return torch.stack(columns, 1) if columns else empty[:, None][:, :0]


@dataclass(frozen=True)
class NextTokens:
    """The next tokens of the rows that have not ended.

    Args:
        rows: Indices of these rows.
        logits: The raw logits that the tokens were chosen from, or would have been.
        steps: The thinking steps that these logits took.
        forced: True for the tokens of a tool's result, which were not chosen; None without tools.
    """

    rows: Int[Tensor, " r"]
    tokens: Int[Tensor, " r"]
    logits: Float[Tensor, "r v"]
    steps: Int[Tensor, " r"]
    forced: Bool[Tensor, " r"] | None = None


_vocab_size: ContextVar[int | None] = ContextVar("vocab_size", default=None)


@contextmanager
def ids_below(vocab_size: int) -> Iterator[None]:
    """Let models choose tokens below `vocab_size` only, in this thread or task.

    The vocabulary of a model may be larger than that of its task, which has no text for the ids
    beyond. The limit belongs to the task, so it is not a setting of a model; and
    `answer`, which models override, has no argument for it.
    """
    before = _vocab_size.set(vocab_size)
    try:
        yield
    finally:
        _vocab_size.reset(before)


def choosable(logits: Float[Tensor, "*b v"]) -> Float[Tensor, "*b n"]:
    """Return the logits of the tokens that may be chosen: see `ids_below`."""
    return logits[..., : _vocab_size.get()]


@torch.no_grad()  # on a generator function, it holds while a step runs, not between steps
def stream(
    model: Any,
    tokens: Int[Tensor, "b t"],
    max_new_tokens: int,
    num_steps: int | None = None,
    prompt_lengths: Int[Tensor, " b"] | None = None,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop_token: int | None = None,
    use_cache: bool = True,
    vocab_size: int | None = None,
    positions: Positions | None = None,
    halt: Halt = None,
    tools: Sequence[Tool] | Calls = (),
    memory: Any = None,
    extra: Extra = None,
) -> Iterator[NextTokens]:
    """Yield the tokens of `Model.generate`, each as soon as it is chosen.

    The model stays in evaluation mode until the iterator is exhausted or closed. Only ids below
    `vocab_size` are chosen: `ids_below` would not hold between two tokens.

    Args:
        tools: As in `Model.generate`; or the calls of rows that are continued.
    """
    check_options(model, memory=memory, extra=extra)
    if not model.causal:
        raise UsageError(NOT_CAUSAL.format(what="generate"))
    rows, lengths, steps = check_call(model, tokens, max_new_tokens, num_steps, prompt_lengths)
    check_sampling(temperature, top_k, top_p)
    halt = check_halt(model, halt)
    calls = begin_calls(model, tools, rows, lengths, max_new_tokens)
    positions = continued(model, positions, tokens, lengths, max_new_tokens)
    if stop_token is not None:
        check_int("stop_token", stop_token, 0, model.config.vocab_size - 1, "vocab_size - 1")
    with eval_mode(model):
        given = prompt_lengths is not None, max_new_tokens, positions, halt, memory, extra
        writer = (Cached if use_cache else Recomputed)(model, rows, lengths, steps, *given)
        alive = torch.arange(len(tokens), device=tokens.device)
        for _ in range(max_new_tokens):
            logits = writer.logits()
            chosen = choose(logits[:, :vocab_size], temperature, top_k, top_p, generator)
            chosen, forced = (chosen, None) if calls is None else calls.write(chosen)
            yield NextTokens(alive, chosen, logits, writer.taken(), forced)
            if stop_token is not None:
                # Rows that ended leave the batch. Their number is read from the device, which is
                # waited for. What a tool writes is data, and ends no row.
                goes_on = chosen != stop_token
                kept = (goes_on if forced is None else goes_on | forced).nonzero()[:, 0]
                if len(kept) < len(alive):
                    alive, chosen = alive[kept], chosen[kept]
                    writer.select(kept)
                    if calls is not None:
                        calls.select(kept)
                if not len(alive):
                    return
            writer.write(chosen)


def begin_calls(
    model: Any,
    tools: Sequence[Tool] | Calls,
    rows: Int[Tensor, "b t"],
    lengths: Int[Tensor, " b"],
    room: int,
) -> Calls | None:
    """Return the calls of left-aligned prompts, to which `room` tokens each will be added."""
    if isinstance(tools, Calls):
        return tools
    tools = check_tools(model, tools)
    if not tools:
        return None
    cut = zip(rows.tolist(), lengths.tolist(), strict=True)
    return Calls(tools, [row[:length] for row, length in cut], model.config.vocab_size, room)


def classify(
    model: Any,
    tokens: Int[Tensor, "b t"],
    prompt_lengths: Int[Tensor, " b"],
    num_steps: int | None,
) -> Int[Tensor, "b 1"]:
    """Predict the token at the end of each prompt, padded on the left, without a cache."""
    rows, lengths, steps = check_call(model, tokens, 0, num_steps, prompt_lengths)
    with eval_mode(model):
        logits = model(rows, num_steps=steps, lengths=lengths, prompt_lengths=lengths).logits
    logits = logits[torch.arange(len(rows), device=rows.device), lengths - 1]
    return choosable(logits).argmax(-1)[:, None]


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Run the block in evaluation mode without gradients, then restore the mode of each part."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def check_call(
    model: Any, tokens: Tensor, max_new_tokens: int, num_steps: Any, prompt_lengths: Any
) -> tuple[Int[Tensor, "b t"], Int[Tensor, " b"], int]:
    """Check a call of `generate`; return the prompts padded on the right, their lengths, the steps.

    Raises:
        TypeError: A tensor is not int64.
        ValueError: A shape, an id, a length or a number is invalid.
    """
    check_int("max_new_tokens", max_new_tokens, 0)
    steps = model.check_steps(num_steps)
    b, t = check_shape("tokens", tokens)
    lengths = prompt_lengths
    if lengths is None:
        lengths = torch.full((b,), t, dtype=torch.int64, device=tokens.device)
    check_lengths("prompt_lengths", lengths, b, t)
    limit, longest = model.config.max_length, int(lengths.max())
    if longest + max_new_tokens > limit:
        raise UsageError(
            f"prompt and new tokens must be at most {limit} together (max_length), "
            f"got {longest} + {max_new_tokens}"
        )
    # Callers pad on the left, where a new token is the next column; models on the right, where a
    # position is a column.
    columns = torch.arange(t, device=tokens.device)
    tokens = tokens.where(columns >= (t - lengths)[:, None], 0)
    check_ids("tokens", tokens, model.config.vocab_size)
    rows = left_aligned(tokens, lengths)[:, :longest]
    return model.check_tokens(rows, lengths), lengths, steps


def left_aligned(columns: Int[Tensor, "b t"], lengths: Int[Tensor, " b"]) -> Int[Tensor, "b t"]:
    """Move the last `lengths` columns of each row to its beginning; others hold what they may."""
    t = columns.shape[1]
    index = torch.arange(t, device=columns.device) + (t - lengths)[:, None]
    return columns.gather(1, index.clamp(max=t - 1))


def continued(
    model: Any,
    positions: Positions | None,
    tokens: Int[Tensor, "b t"],
    lengths: Int[Tensor, " b"],
    max_new_tokens: int,
) -> Positions | None:
    """Check the positions of prompts that are continued; return those of a tensor left-aligned.

    Raises:
        TypeError: A tensor is not int64.
        ValueError: The model takes none, a shape is wrong, or a tensor is to be continued.
    """
    refuse_positions(model, positions)
    if not isinstance(positions, Tensor):
        return positions
    if max_new_tokens > 1:
        raise usage_error(
            f"a tensor of positions for {max_new_tokens} new tokens",
            "a function of the tokens so far, which gives the positions of new ones as well",
            "pass a function from tokens (b, t) to positions (b, t), such as task.positions",
        )
    shape = check_shape("positions", positions)
    if shape != tuple(tokens.shape):
        raise UsageError(
            f"positions must have the shape of tokens {list(tokens.shape)}, got {list(shape)}"
        )
    return left_aligned(positions, lengths)[:, : int(lengths.max())]


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError if tokens cannot be drawn with these settings."""
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature must be at least 0 and finite, got {temperature}")
    if top_k is not None:
        check_int("top_k", top_k, 1)
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top_p must be above 0 and at most 1, got {top_p}")


def choose(
    logits: Float[Tensor, "b v"],
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " b"]:
    """Choose one token per row: the likeliest, or one drawn from the filtered distribution.

    `top_p` keeps the likeliest tokens until their probability reaches it (Holtzman et al. 2020,
    https://arxiv.org/abs/1904.09751).
    """
    logits = choosable(logits)
    if temperature == 0:
        return logits.argmax(-1)
    probs = filtered_probs(logits, temperature, top_k, top_p)
    return race(probs, draw_times(probs, generator))


def filtered_probs(
    logits: Float[Tensor, "b v"],
    temperature: float | Float[Tensor, "b 1"],
    top_k: int | None = None,
    top_p: float | Float[Tensor, "b 1"] | None = None,
) -> Float[Tensor, "b v"]:
    """Return the probabilities from which `choose` draws.

    Args:
        temperature, top_p: One for all rows, or one for each; a `top_p` of 2 filters nothing.
    """
    scaled = (logits.double() - logits.double().amax(-1, keepdim=True)) / temperature
    if top_k is None and top_p is None:
        return scaled.softmax(-1)
    ranked, order = scaled.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ranked[:, top_k:] = -torch.inf
    if top_p is not None:
        probs = ranked.softmax(-1)
        ranked = ranked.masked_fill(probs.cumsum(-1) - probs >= top_p, -torch.inf)
    # A random number belongs to a token, not to its rank: where nearly equal tokens change ranks,
    # as by the rounding of another batch, a draw would give another token.
    return torch.empty_like(ranked).scatter_(-1, order, ranked).softmax(-1)


def draw_times(
    probs: Float[Tensor, "b v"], generator: torch.Generator | None
) -> Float[Tensor, "b v"]:
    """Draw the random numbers by which `race` draws from these probabilities."""
    return torch.empty_like(probs).exponential_(generator=generator)


def race(probs: Float[Tensor, "b v"], times: Float[Tensor, "b v"]) -> Int[Tensor, " b"]:
    """Draw a token of each row: the first of exponential times at the rates `probs`.

    `torch.multinomial` draws so, too; here the times of rows may come from different generators.
    """
    return (probs / times).argmax(-1)
