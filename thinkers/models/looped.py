"""The looped transformer: one core of layers, applied num_steps times."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thinkers.checks import added, check_int
from thinkers.errors import UsageError
from thinkers.models import looped_flops
from thinkers.models.base import Thought
from thinkers.models.batch import Batch, Loss, as_batch, real_positions
from thinkers.models.halt import Halt, HaltingCache, check_halt, full_steps
from thinkers.models.halting_model import HaltingModel, step_numbers
from thinkers.models.positions import Positions, find_positions, in_order
from thinkers.models.step_loss import StepLossConfig, loss_of_states
from thinkers.nn.block import Block, Table, run_blocks
from thinkers.nn.kv_cache import KeepsKeys, KeyValueCache
from thinkers.nn.layers import Head, Rotary, initialize, sinusoidal
from thinkers.nn.live_tokens import (
    CachedKeys,
    FrozenKeys,
    Kept,
    LiveTokens,
    RowKeys,
    mask_of,
    run_live,
)
from thinkers.nn.window import WholeRows, grow, make_cache


class Looped(HaltingModel):
    """Transformer that applies one core of layers n times, injecting the input each time.

        e = prelude(E[tokens]); s_0 = e; s_k = norm(core(inject(s_(k-1), e))), k = 1 .. n
        logits = E norm(coda(s_n))

    n is `num_steps`; e and s_k are (b, t, c). Prelude, core and coda are stacks of
    `thinkers.nn.block.Block` with causal attention. inject(s, e) is W [s, e], s + e or s, by the
    setting `injection`; with `time_code`, a sinusoidal code of k is added to it. With `window` a
    token attends to those before it whose position, coupled or in order, is at most so far away:
    see `thinkers.nn.window`. With `halt`, tokens stop at different steps: see
    `thinkers.models.halting_model`.

    Prelude, core and coda are those of Geiping et al. 2025 (https://arxiv.org/abs/2502.05171), who
    start from a random state instead. Without prelude, coda and injection, and with a time code, it
    is the universal transformer (Dehghani et al. 2018, https://arxiv.org/abs/1807.03819).
    """

    name = "looped"
    takes_positions = True
    test_variants = (
        {
            "num_prelude_layers": 0,
            "num_coda_layers": 0,
            "injection": "none",
            "time_code": True,
        },
        {"injection": "add", "backprop_steps": 2, "num_coda_layers": 2, "window": 3},
        {"step_loss": "due", "tie_head": False},
        {"halting": True, "num_layers": 1, "num_coda_layers": 2},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(StepLossConfig):
        """Settings; `num_layers` is the depth of the core."""

        num_prelude_layers: int = 1
        num_coda_layers: int = 1
        injection: Literal["concat", "add", "none"] = "concat"
        """Injection of e into each step: concatenated and projected, added, or none."""
        time_code: bool = False
        """Add a sinusoidal code of the step's number to its input."""
        backprop_steps: int | None = None
        """Number of last steps that gradients flow through; None means all."""
        hidden: int | None = None
        """Width of the feed-forward; None means 8/3 of dim."""
        rotary_base: float = added(10_000.0)
        """Base b of the frequencies b^(-2i/d). Distances beyond those of training resemble short
        ones where a frequency completes a turn there: a larger base leaves fewer such."""
        window: int | None = added(None)
        """Attend only to tokens whose position is at most so far away; None means to all before."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1 < self.rotary_base < math.inf:
                raise UsageError(f"rotary_base must be above 1 and finite, got {self.rotary_base}")
            if self.window is not None:
                check_int("window", self.window, 1)
            check_int("num_prelude_layers", self.num_prelude_layers, 0)
            check_int("num_coda_layers", self.num_coda_layers, 0)
            if self.injection not in ("concat", "add", "none"):
                raise UsageError(f"injection must be concat, add or none, got {self.injection!r}")
            for name in ("backprop_steps", "hidden"):
                if getattr(self, name) is not None:
                    check_int(name, getattr(self, name), 1)
            if self.backprop_steps and self.step_loss != "last":
                raise UsageError(
                    f"backprop_steps must be None where step_loss is {self.step_loss}: steps that "
                    f"do not learn would be graded, got {self.backprop_steps}"
                )
            if self.backprop_steps and self.halting:
                raise UsageError(
                    "backprop_steps must be None with halting, which grades several steps, got "
                    f"{self.backprop_steps}"
                )
            if self.injection == "none" and self.num_prelude_layers and self.backprop_steps:
                raise UsageError(
                    "backprop_steps must be None where injection is none and there is a prelude, "
                    f"which would never learn, got {self.backprop_steps}"
                )

    @property
    def halts_by(self) -> tuple[str, ...]:
        # An answer is known after the coda, which runs once all tokens have halted.
        found = super().halts_by
        return tuple(way for way in found if way == "gate" or not self.config.num_coda_layers)

    @property
    def shard_units(self) -> tuple[nn.Module, ...]:
        # Where tokens halt, a block computes by its parts.
        blocks = (*self.prelude, *self.core, *self.coda)
        return () if self.config.halting else blocks

    def __init__(self, config: Config):
        super().__init__(config)
        self.embedding = nn.Embedding(self.config.vocab_size, config.dim)
        self.rotary = Rotary(config.dim // config.num_heads, config.rotary_base)
        self.prelude = make_blocks(config, config.num_prelude_layers)
        self.core = make_blocks(config, config.num_layers)
        self.coda = make_blocks(config, config.num_coda_layers)
        if config.injection == "concat":
            self.inject = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.core_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.head = Head(self.embedding, config.tie_head)
        self.make_gate()
        depth = config.num_prelude_layers + config.num_layers + config.num_coda_layers
        initialize(self, num_residuals=2 * depth)

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        lengths: Int[Tensor, " b"] | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
        keep_states: bool = False,
        positions: Positions | None = None,
        halt: Halt = None,
    ) -> Thought:
        steps, halt = self.check_steps(num_steps), check_halt(self, halt)
        tokens = self.check_tokens(tokens, lengths, prompt_lengths)
        places = find_positions(self, positions, tokens, lengths)
        if halt is None:
            states = self._run(tokens, steps, keep_states, None, places)
            taken = full_steps(tokens, steps)
        else:
            real = real_positions(tokens, lengths)
            states, taken = self._run_live(tokens, real, steps, halt, keep_states, None, places)
        return Thought(self._answer(states[:, -1]), states if keep_states else None, steps=taken)

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        batch, steps = as_batch(batch, self), self.check_steps(num_steps)
        if self.config.halting:
            return self.halting_loss(batch, steps, counts, partial(self._run_frozen, batch, steps))
        own = self.count_terms(batch)
        is_graded_once = self.config.step_loss == "last"
        states = self._run(batch.tokens, steps, not is_graded_once, positions=batch.positions)
        count = (counts or own)["next_token"]
        return loss_of_states(self, states, batch, own, count)

    def _begin(
        self,
        tokens: Int[Tensor, "b t"],
        cache: KeyValueCache | None,
        positions: Int[Tensor, "b t"] | None,
    ) -> tuple[Float[Tensor, "b t c"], Table, Kept]:
        """Return e, the table of the positions, and what keeps keys."""
        x = self.embedding(tokens)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        keeps: Kept = cache
        if cache is None and self.config.window is not None:
            keeps = WholeRows(positions, self.config.window, x)
        table = self.rotary.table(positions, x.dtype)
        return run_blocks(self.prelude, x, table, keeps, 0), table, keeps

    def _run(
        self,
        tokens: Int[Tensor, "b t"],
        steps: int,
        keep_states: bool = False,
        cache: KeyValueCache | None = None,
        positions: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b k t c"]:
        """Compute the output of the coda after the last step, or with `keep_states` after each.

        Positions None means those of whole rows.
        """
        e, table, keeps = self._begin(tokens, cache, positions)
        slot, s, states = len(self.prelude), e, []
        for step in range(steps):
            if step:
                s = self.thought_hook(s, step - 1)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._learns(step, steps)):
                s = self._think(s, e, step, table, keeps, slot)
            slot += len(self.core)
            if keep_states or step == steps - 1:
                states.append(run_blocks(self.coda, s, table, keeps, slot))
        return torch.stack(states, 1)

    def _run_live(
        self,
        tokens: Int[Tensor, "b t"],
        real: Bool[Tensor, "b t"],
        steps: int,
        halt: Halt,
        keep_states: bool = False,
        cache: KeyValueCache | None = None,
        positions: Int[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b k t c"], Int[Tensor, "b t"]]:
        """Compute what `_run` does, with tokens that halt, and the steps that each took."""
        e, table, keeps = self._begin(tokens, cache, positions)
        first, num_layers, t = len(self.prelude), len(self.core), tokens.shape[1]
        keys = RowKeys() if cache is None else CachedKeys(cache, first, num_layers, t)
        mask, s, states = mask_of(keeps, t, e), e, []
        live, taken = LiveTokens(real), torch.zeros_like(tokens)
        seen, places = live.masks(mask, keeps), live.table(table)
        for step in range(steps):
            if step:
                s = live.put(s, live.take(self.thought_hook(s, step - 1)))
            keys.begin(step, live)
            x = self._injected(live.take(s), live.take(e), step)
            x = self.core_norm(run_live(self.core, x, places, live, keys, seen))
            s, taken = live.put(s, x), live.count(taken)
            if keep_states:
                states.append(run_blocks(self.coda, s, table, keeps))
            done = self.is_done(x, halt)
            if bool(done.any()):
                live = LiveTokens(live.without(done))
                if not len(live):
                    break
                seen, places = live.masks(mask, keeps), live.table(table)
        if keep_states:
            return torch.stack(states + states[-1:] * (steps - len(states)), 1), taken
        if isinstance(keys, CachedKeys):
            keys.finish(steps)
        return run_blocks(self.coda, s, table, keeps, first + steps * num_layers)[:, None], taken

    def _run_frozen(
        self, batch: Batch, steps: int, taken: Int[Tensor, "b t"] | None
    ) -> tuple[Float[Tensor, "b k t c"], Float[Tensor, "b k t c"]]:
        """Compute outputs and states after each step, with tokens that take the given steps."""
        e, table, keeps = self._begin(batch.tokens, None, batch.positions)
        frozen = keeps if taken is None else FrozenKeys(taken, keeps)
        s, states, outputs = e, [], []
        for step in range(steps):
            s = self.thought_hook(s, step - 1) if step else s
            if isinstance(frozen, FrozenKeys):
                frozen.begin(step)
            new = self._think(s, e, step, table, frozen, 0)
            s = frozen.choose(new, s) if isinstance(frozen, FrozenKeys) else new
            states.append(s)
            outputs.append(run_blocks(self.coda, s, table, keeps))
        found = torch.stack(outputs, 1)
        if taken is not None:
            # A token is read out after the last step of all others, as it will be at inference.
            is_last = step_numbers(steps, taken) >= taken[:, None]
            found = found[:, -1:].where(is_last[..., None], found)
        return found, torch.stack(states, 1)

    def _think(
        self,
        s: Float[Tensor, "b t c"],
        e: Float[Tensor, "b t c"],
        step: int,
        table: Table,
        cache: KeepsKeys | None,
        slot: int,
    ) -> Float[Tensor, "b t c"]:
        """Compute s_k from s_(k-1), with `step` = k - 1."""
        s = self._injected(s, e, step)
        return self.core_norm(run_blocks(self.core, s, table, cache, slot))

    def _injected(
        self, s: Float[Tensor, "b t c"], e: Float[Tensor, "b t c"], step: int
    ) -> Float[Tensor, "b t c"]:
        """Return the input of the core at a step."""
        if self.config.injection == "concat":
            s = self.inject(torch.cat([s, e], -1))
        elif self.config.injection == "add":
            s = s + e
        if self.config.time_code:
            # arange on the device: copying a number from the host would wait for it.
            number = torch.arange(step, step + 1, device=s.device)
            s = s + sinusoidal(number, self.config.dim, s.dtype)
        return s

    def _learns(self, step: int, steps: int) -> bool:
        """Return True if gradients flow through this step."""
        limit = self.config.backprop_steps
        return limit is None or step >= steps - limit

    def _answer(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        return self.head(self.norm(x), self.embedding)

    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        return self._answer(states)

    def mask(self, length: int, num_steps: int | None = None) -> Bool[Tensor, "t s"]:
        seen = super().mask(length, num_steps)
        return seen if self.config.window is None else seen.triu(-self.config.window)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
        *,
        positions: Int[Tensor, "b t"] | None = None,
        halt: Halt = None,
    ) -> tuple[Float[Tensor, "b v"], KeyValueCache | HaltingCache]:
        config = self.config
        heads = config.num_heads, config.dim // config.num_heads
        num_layers = len(self.prelude) + num_steps * len(self.core) + len(self.coda)
        places = in_order(tokens) if positions is None else positions
        like = self.norm.weight
        cache = make_cache(num_layers, places, lengths, capacity, *heads, like, config.window)
        rows = torch.arange(len(tokens), device=tokens.device)
        if halt is not None:
            real = real_positions(tokens, lengths)
            x, taken = self._run_live(tokens, real, num_steps, halt, False, cache, positions)
            newest = taken[rows, lengths - 1]
            logits = self._answer(x[rows, -1, lengths - 1])
            return logits, HaltingCache(cache, num_steps, halt, newest)
        x = self._run(tokens, num_steps, cache=cache, positions=positions)[:, -1]
        return self._answer(x[rows, lengths - 1]), cache

    def extend(
        self,
        tokens: Int[Tensor, " b"],
        cache: KeyValueCache | HaltingCache,
        *,
        positions: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b v"]:
        if isinstance(cache, HaltingCache):
            places, column = grow(cache.kept, positions), tokens[:, None]
            real = torch.ones_like(column, dtype=torch.bool)
            x, taken = self._run_live(
                column, real, cache.num_steps, cache.halt, False, cache.kept, places
            )
            cache.taken = taken[:, 0]
            return self._answer(x[:, -1, 0])
        # Each step has keys of its own in the cache.
        num_steps = (len(cache.layers) - len(self.prelude) - len(self.coda)) // len(self.core)
        places = grow(cache, positions)
        x = self._run(tokens[:, None], num_steps, cache=cache, positions=places)
        return self._answer(x[:, -1, 0])

    def flops(
        self,
        batch_size: int,
        length: int,
        num_steps: int | None = None,
        training: bool = False,
        *,
        steps: Int[Tensor, "b t"] | None = None,
        halt: Halt = None,
    ) -> int:
        num = self.check_steps(num_steps)
        if steps is None:
            return looped_flops.of_all(self, batch_size, length, num, training)
        return looped_flops.of_live(self, steps, (batch_size, length), num, halt)

    def answer_flops(self, batch_size: int, length: int) -> int:
        return looped_flops.of_answer(self, batch_size, length)


def make_blocks(config: Looped.Config, number: int) -> nn.ModuleList:
    """Build `number` layers."""
    return nn.ModuleList(Block(config.dim, config.num_heads, config.hidden) for _ in range(number))
