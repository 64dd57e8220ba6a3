"""Chains of thoughts that end at different steps: those that go on are packed into one row."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thinkers.models.halt import Halt, HaltingCache
from thinkers.models.thought_cache import LiveChains
from thinkers.nn import live_tokens
from thinkers.nn.live_tokens import LiveTokens


def run_live(
    model: Any,
    tokens: Int[Tensor, "b t"],
    real: Bool[Tensor, "b t"],
    steps: int,
    halt: Halt,
    keep_states: bool,
) -> tuple[Float[Tensor, "b k t c"], Int[Tensor, "b t"]]:
    """Compute what `ThoughtsFormer.run` does, with tokens that halt, and the steps of each.

    Args:
        real: False where a token is padding, which does not think.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    thought = model.place(model.embedding(tokens), positions)
    table = model.table(positions, thought.dtype)
    mask = live_tokens.mask_of(None, len(positions), thought)
    state, taken, states = torch.zeros_like(thought), torch.zeros_like(tokens), []
    live, chains = LiveTokens(real), LiveChains(mask)
    for step in range(steps):
        x, rotary = model.coded(live.take(thought), step), live.table(table)
        if step == 0:
            seen = live.masks(mask, None)
            x = live_tokens.run_live(model.blocks, x, rotary, live, chains.bases, seen)
            x = model.normed(x)
        else:
            x = model.run_step(x, partial(chains.attend, live), rotary)
        state, taken = live.put(state, x), live.count(taken)
        if keep_states:
            states.append(state)
        done = model.is_done(x, halt)
        live = LiveTokens(live.without(done))
        if step == steps - 1 or not len(live):
            break
        chains.select(~done[0])
        thought = state
        if model.config.thoughts == "words":
            words = model.words(live.take(state), live.take(positions.expand(tokens.shape)), step)
            thought = live.put(state, words)
        thought = model.thought_hook(thought, step)
    if not keep_states:
        return state[:, None], taken
    return torch.stack(states + states[-1:] * (steps - len(states)), 1), taken


def later_live(
    model: Any, state: Float[Tensor, "b 1 c"], cache: HaltingCache
) -> Float[Tensor, "b v"]:
    """Take the remaining steps of each row's last position, with rows that halt; return its logits.

    Args:
        state: The state of these positions after their first step.
    """
    positions = cache.kept.lengths[:, None] - 1
    taken, live = torch.ones_like(cache.taken), ~model.is_done(state, cache.halt)[:, 0]
    for step in range(1, cache.num_steps):
        # The number of live rows is read from the device, which is waited for.
        rows = live.nonzero()[:, 0]
        if not len(rows):
            break
        thought = state
        if model.config.thoughts == "words":
            words = model.words(state[rows], positions[rows], step - 1)
            thought = state.index_put((rows,), words)
        x = model.coded(model.thought_hook(thought, step - 1)[rows], step)
        attend = partial(cache.kept.attend, step, rows=rows)
        x = model.run_step(x, attend, model.table(positions[rows], x.dtype))
        state, taken = state.index_put((rows,), x.to(state.dtype)), taken + live
        live = live.index_put((rows,), ~model.is_done(x, cache.halt)[:, 0])
    cache.taken = taken
    return model.read_out(state)[:, 0]
