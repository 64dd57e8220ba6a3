"""The looped transformer: one core of layers, applied num_steps times."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thinkers.checks import added, check_int
from thinkers.errors import UsageError
from thinkers.models.base import Model, Thought
from thinkers.models.batch import Batch, Loss, as_batch
from thinkers.models.step_loss import StepLossConfig, loss_of_states
from thinkers.nn.block import Block, Table, run_blocks
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.nn.layers import Head, Rotary, initialize, sinusoidal


class Looped(Model):
    """Transformer that applies one core of layers n times, injecting the input each time.

        e = prelude(E[tokens]); s_0 = e; s_k = norm(core(inject(s_(k-1), e))), k = 1 .. n
        logits = E norm(coda(s_n))

    n is `num_steps`; e and s_k are (b, t, c). Prelude, core and coda are stacks of
    `thinkers.nn.block.Block` with causal attention. inject(s, e) is W [s, e], s + e or s, by the
    setting `injection`; with `time_code`, a sinusoidal code of k is added to it.

    Prelude, core and coda are those of Geiping et al. 2025 (https://arxiv.org/abs/2502.05171), who
    start from a random state instead. Without prelude, coda and injection, and with a time code, it
    is the universal transformer (Dehghani et al. 2018, https://arxiv.org/abs/1807.03819).
    """

    name = "looped"
    test_variants = (
        {
            "num_prelude_layers": 0,
            "num_coda_layers": 0,
            "injection": "none",
            "time_code": True,
        },
        {"injection": "add", "backprop_steps": 2, "num_coda_layers": 2},
        {"step_loss": "due", "tie_head": False},
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

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1 < self.rotary_base < math.inf:
                raise UsageError(f"rotary_base must be above 1 and finite, got {self.rotary_base}")
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
            if self.injection == "none" and self.num_prelude_layers and self.backprop_steps:
                raise UsageError(
                    "backprop_steps must be None where injection is none and there is a prelude, "
                    f"which would never learn, got {self.backprop_steps}"
                )

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
    ) -> Thought:
        steps = self.check_steps(num_steps)
        tokens = self.check_tokens(tokens, lengths, prompt_lengths)
        states = self._run(tokens, steps, keep_states)
        return Thought(self._answer(states[:, -1]), states if keep_states else None)

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        batch, steps = as_batch(batch, self), self.check_steps(num_steps)
        own = self.count_terms(batch)
        states = self._run(batch.tokens, steps, keep_states=self.config.step_loss != "last")
        count = (counts or own)["next_token"]
        return loss_of_states(self, states, batch.targets, batch.due, own, count)

    def _run(
        self,
        tokens: Int[Tensor, "b t"],
        steps: int,
        keep_states: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "b k t c"]:
        """Compute the output of the coda after the last step, or with `keep_states` after each."""
        if cache is None or cache.visible is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        else:
            positions = cache.lengths[:, None] - 1
        x = self.embedding(tokens)
        table = self.rotary.table(positions, x.dtype)
        e = run_blocks(self.prelude, x, table, cache, 0)
        slot, s, states = len(self.prelude), e, []
        for step in range(steps):
            if step:
                s = self.thought_hook(s, step - 1)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._learns(step, steps)):
                s = self._think(s, e, step, table, cache, slot)
            slot += len(self.core)
            if keep_states or step == steps - 1:
                states.append(run_blocks(self.coda, s, table, cache, slot))
        return torch.stack(states, 1)

    def _think(
        self,
        s: Float[Tensor, "b t c"],
        e: Float[Tensor, "b t c"],
        step: int,
        table: Table,
        cache: KeyValueCache | None,
        slot: int,
    ) -> Float[Tensor, "b t c"]:
        """Compute s_k from s_(k-1), with `step` = k - 1."""
        if self.config.injection == "concat":
            s = self.inject(torch.cat([s, e], -1))
        elif self.config.injection == "add":
            s = s + e
        if self.config.time_code:
            # arange on the device: copying a number from the host would wait for it.
            number = torch.arange(step, step + 1, device=s.device)
            s = s + sinusoidal(number, self.config.dim, s.dtype)
        return self.core_norm(run_blocks(self.core, s, table, cache, slot))

    def _learns(self, step: int, steps: int) -> bool:
        """Return True if gradients flow through this step."""
        limit = self.config.backprop_steps
        return limit is None or step >= steps - limit

    def _answer(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        return self.head(self.norm(x), self.embedding)

    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        return self._answer(states)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], "LoopedCache"]:
        heads = self.config.num_heads
        num_layers = len(self.prelude) + num_steps * len(self.core) + len(self.coda)
        weight = self.norm.weight
        head_dim = self.config.dim // heads
        cache = LoopedCache(num_layers, lengths, capacity, heads, head_dim, weight)
        cache.num_steps = num_steps
        x = self._run(tokens, num_steps, cache=cache)[:, -1]
        return self._answer(x[torch.arange(len(x)), lengths - 1]), cache

    def extend(self, tokens: Int[Tensor, " b"], cache: "LoopedCache") -> Float[Tensor, "b v"]:
        cache.grow()
        x = self._run(tokens[:, None], cache.num_steps, cache=cache)
        return self._answer(x[:, -1, 0])

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        steps, rows, dim = self.check_steps(num_steps), batch_size * length, self.config.dim
        block: Any = self.core[0]
        layer = block.flops(batch_size, length, length)
        step = len(self.core) * layer
        if self.config.injection == "concat":
            step += 2 * rows * 2 * dim * dim
        answer = len(self.coda) * layer + 2 * rows * dim * self.config.vocab_size
        once = len(self.prelude) * layer
        if not training:
            return once + answer + steps * step
        answers = 1 if self.config.step_loss == "last" else steps
        learned = min(steps, self.config.backprop_steps or steps)
        return 3 * (once + answers * answer) + (steps + 2 * learned) * step


class LoopedCache(KeyValueCache):
    """Keys and values of every layer at every step, and the number of steps."""

    num_steps: int


def make_blocks(config: Looped.Config, number: int) -> nn.ModuleList:
    """Build `number` layers."""
    return nn.ModuleList(Block(config.dim, config.num_heads, config.hidden) for _ in range(number))
