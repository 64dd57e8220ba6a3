"""A Hugging Face language model some of whose layers are applied num_steps times."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thinkers.checks import added, check_choices, check_int
from thinkers.errors import UsageError, usage_error
from thinkers.models import base, hf_looped_flops
from thinkers.models.base import Model, Thought
from thinkers.models.batch import Batch, Loss
from thinkers.models.halt import Halt, check_halt, full_steps
from thinkers.models.hf_config import FAMILIES, entry, parse
from thinkers.models.hf_layers import PassKeys, build_parts, run_layers
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.nn.layers import Head

USUAL: dict[str, Any] = {"dim": 128, "num_layers": 2, "num_heads": 4, "tie_head": True}
"""Settings that neither the call nor the Hugging Face configuration gives."""


class HFLooped(Model):
    """Hugging Face language model whose middle layers, the core, are applied n times.

        x_0 = prelude(E[tokens]); x_1 = core(x_0); x_k = x_(k-1) + g (core(x_(k-1)) - x_(k-1))
        logits = W norm(coda(x_n))

    n is `num_steps`; x_k are (b, t, c), g is a learned number. Prelude, core and coda are the
    layers before, in and after `layers`, with the code of transformers; with n = 1 the model is the
    Hugging Face model bit for bit, with its attention "sdpa". `thinkers.retrofit` makes one of a
    pretrained model, with g = 0: it is then that model at any n. Built from settings its weights
    are random, and g = 1. Each pass has keys and values of its own.

    McLeish et al. 2025, https://arxiv.org/abs/2511.07384, loop layers of pretrained models with the
    input injected each time, fewer layers and no gate. A gate that begins at 0 is that of ReZero
    (Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887).
    """

    name = "hf_looped"
    test_variants = (
        {
            "hf_config": '{"model_type": "llama", "num_key_value_heads": 2}',
            "num_layers": 4,
            "trainable": "core",
        },
        {
            "hf_config": '{"model_type": "gpt2", "attn_pdrop": 0.0, "embd_pdrop": 0.0, '
            '"resid_pdrop": 0.0}',
            "num_layers": 3,
            "layers": (0, 1),
        },
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """Settings; sizes that are None are those of `hf_config`, or else 128, 2, 4 and tied."""

        hf_config: str = '{"model_type": "llama"}'
        """Configuration of the Hugging Face model, as JSON. Entries that it lacks follow the other
        settings, and must not contradict them."""
        layers: tuple[int, int] | None = None
        """The core: the number of its first layer, from 0, and of the first layer after it. None
        means the middle half."""
        trainable: Literal["all", "core", "gate"] = "all"
        """Weights that are trained: all, those of the core and the gate, or the gate alone."""
        dim: int | None = None  # type: ignore[assignment]
        num_layers: int | None = None  # type: ignore[assignment]
        num_heads: int | None = None  # type: ignore[assignment]
        tie_head: bool | None = added(None)  # type: ignore[assignment]
        hidden: int | None = None
        """Width of the feed-forward; None means that of hf_config, or else 8/3 of dim, or 4 dim."""

        def __post_init__(self) -> None:
            found = parse(self.hf_config)
            family = FAMILIES[found["model_type"]]
            for name, key in family.keys.items():
                object.__setattr__(self, name, self._agreed(name, key, entry(found, key)))
            super().__post_init__()
            check_choices(self)
            limit = entry(found, family.length)
            if limit is not None and self.max_length is not None:
                check_int("max_length", self.max_length, 1, limit, f"{family.length} of hf_config")
            if self.hidden is not None:
                check_int("hidden", self.hidden, 1)
            if self.layers is not None:
                self._check_layers()
                object.__setattr__(self, "layers", tuple(self.layers))
            if self.trainable == "gate" and self.num_steps == 1:
                raise UsageError(
                    "trainable must be all or core where num_steps is 1 and the gate has no "
                    "effect, got 'gate'"
                )

        def _agreed(self, name: str, key: str, found: Any) -> Any:
            """Return the value of a setting, which hf_config may give too."""
            own = getattr(self, name)
            if own is None:
                return USUAL.get(name) if found is None else found
            if found not in (None, own):
                raise UsageError(f"{name} must be {found}, {key} of hf_config, got {own}")
            return own

        def _check_layers(self) -> None:
            assert self.layers is not None and self.num_layers is not None
            if len(self.layers) != 2:
                raise UsageError(
                    "layers must be two numbers, those of the first layer of the core and of the "
                    f"first after it, got {self.layers}"
                )
            first, last = self.layers
            check_int("layers[0]", first, 0, self.num_layers - 1, "num_layers - 1")
            check_int("layers[1]", last, 0, self.num_layers, "num_layers")
            if last <= first:
                raise usage_error(
                    f"layers {(first, last)}",
                    "(first, last) with first < last: the core is layers first .. last - 1",
                    f"layers=({first}, {first + 1}) loops layer {first} alone",
                )

        def check_heads(self) -> None:
            if parse(self.hf_config).get("head_dim") is None:
                super().check_heads()

        @property
        def core(self) -> tuple[int, int]:
            """The first layer of the core, and the first after it."""
            assert self.num_layers is not None
            quarter = self.num_layers // 4
            return self.layers or (quarter, self.num_layers - quarter)

    def __init__(self, config: Config):
        super().__init__(config)
        config = self.config
        first, last = config.core
        parts = build_parts(config)
        self.embedding, self.positions, self.norm = parts.embedding, parts.positions, parts.norm
        self.heads = parts.num_heads, parts.num_kv_heads, parts.head_dim
        self.prelude = nn.ModuleList(parts.layers[:first])
        self.core = nn.ModuleList(parts.layers[first:last])
        self.coda = nn.ModuleList(parts.layers[last:])
        self.head = Head(self.embedding, bool(config.tie_head))
        if self.head.weight is not None:
            self.head.weight = nn.Parameter(parts.head.detach())
        self.gate = nn.Parameter(torch.ones(()))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(self.not_trained))

    @property
    def not_trained(self) -> tuple[str, ...]:  # type: ignore[override]
        around = ("embedding.", "positions.", "prelude.", "coda.", "norm.", "head.")
        return {"all": (), "core": around, "gate": (*around, "core.")}[self.config.trainable]

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        lengths: Int[Tensor, " b"] | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
        keep_states: bool = False,
        halt: Halt = None,
    ) -> Thought:
        check_halt(self, halt)
        steps = self.check_steps(num_steps)
        tokens = self.check_tokens(tokens, lengths, prompt_lengths)
        states = self._run(tokens, steps, keep_states)
        kept = states if keep_states else None
        return Thought(self.read_out(states[:, -1:])[:, 0], kept, steps=full_steps(tokens, steps))

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        found = super().loss(batch, num_steps=num_steps, counts=counts)
        if self.config.trainable != "gate" or found.total.requires_grad:
            return found
        # After one step the loss does not depend on the gate: its gradient is 0, and is there.
        return dataclasses.replace(found, total=found.total + 0.0 * self.gate)

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
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x, table = self.positions(self.embedding(tokens), positions)
        x = run_layers(self.prelude, x, table, cache)
        states = []
        for step in range(steps):
            if step:
                x = self.thought_hook(x, step - 1)
            y = run_layers(self.core, x, table, self._keys(cache, step))
            x = x + self.gate * (y - x) if step else y
            if keep_states or step == steps - 1:
                states.append(run_layers(self.coda, x, table, cache))
        return torch.stack(states, 1)

    def _keys(self, cache: KeyValueCache | None, step: int) -> KeyValueCache | PassKeys | None:
        """Return what keeps the keys of the core at a step, in slots after those of the first."""
        if cache is None or not step:
            return cache
        first, last = self.config.core
        return PassKeys(cache, self.config.num_layers - first + (step - 1) * (last - first))

    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        return self.head(self.norm(states), self.embedding)

    def linear_weights(self) -> set[Tensor]:
        # Those of GPT-2 are no nn.Linear.
        layers = (*self.prelude, *self.core, *self.coda)
        return {x for layer in layers for x in layer.parameters() if x.ndim == 2}

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], "StepCache"]:
        first, last = self.config.core
        slots = self.config.num_layers + (num_steps - 1) * (last - first)
        heads, like = self.heads[1:], self.embedding.weight
        cache = StepCache(num_steps, slots, lengths, capacity, *heads, like)
        x = self._run(tokens, num_steps, cache=cache)[:, -1]
        return self._answer(x[torch.arange(len(x)), lengths - 1]), cache

    def extend(self, tokens: Int[Tensor, " b"], cache: "StepCache") -> Float[Tensor, "b v"]:
        x = self._run(tokens[:, None], cache.num_steps, cache=cache, positions=cache.grow())
        return self._answer(x[:, -1, 0])

    def _answer(self, x: Float[Tensor, "b c"]) -> Float[Tensor, "b v"]:
        return self.read_out(x[:, None, None])[:, 0, 0]

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        steps = self.check_steps(num_steps)
        return hf_looped_flops.of_rows(self, batch_size, length, steps, training)


class StepCache(KeyValueCache):
    """Keys and values of all layers, and of the core at each further step.

    Args:
        num_steps: Passes over the core.
    """

    def __init__(
        self,
        num_steps: int,
        num_slots: int,
        lengths: Int[Tensor, " b"],
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        like: Tensor,
    ):
        super().__init__(num_slots, lengths, capacity, num_kv_heads, head_dim, like)
        self.num_steps = num_steps
