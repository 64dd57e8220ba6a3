"""The class that models extend, and the outputs that all models share."""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thinkers.checks import NOT_CAUSAL
from thinkers.errors import UsageError, usage_error
from thinkers.files import make_folders, write_file
from thinkers.json_files import with_digest
from thinkers.models.batch import (
    IGNORED,
    Batch,
    Loss,
    as_batch,
    graded_last,
    next_token_loss,
)
from thinkers.models.config import SIZES as SIZES
from thinkers.models.config import Config as Config
from thinkers.models.extra_inputs import Extra, extra_option
from thinkers.models.generation import classify, generate
from thinkers.models.halt import Halt, check_halt, full_steps, halt_option, with_policy
from thinkers.models.memory_option import memory_option
from thinkers.models.model_input import ModelInput
from thinkers.models.names import MODELS, Name
from thinkers.models.output_weights import find_output_weights
from thinkers.models.positions import Positions, option, refuse_positions
from thinkers.models.tools import Tool, check_tools, tools_option
from thinkers.models.weights_file import pack
from thinkers.nn.tracing import Traced
from thinkers.registry import Configured, check
from thinkers.strict_json import to_json
from thinkers.user_paths import user_path

FORMAT = 2


@dataclass(frozen=True)
class Thought:
    """Output of a forward pass.

    Args:
        logits: Scores of the next token at every position.
        states: The state after each step, with `keep_states`; `read_out` gives its logits.
        extra: Further outputs of a model, by name.
        steps: The thinking steps that each token took: all, unless tokens halt; 0 at padding then.
    """

    logits: Float[Tensor, "b t v"]
    states: Float[Tensor, "b k t c"] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    steps: Int[Tensor, "b t"] | None = None


@runtime_checkable
class Cache(Protocol):
    """State that a model keeps between generated tokens."""

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep only these rows."""


class Model(Traced, Configured, ModelInput, ABC):
    """A transformer that reads tokens, takes `num_steps` steps, and predicts at every position.

    A subclass defines a nested `Config`, `forward`, `prefill`, `extend`, `read_out` and `flops`.
    Data is checked at the top of `forward`, `loss` and `generate`; nothing below them reads a value
    from a tensor, which would wait for the device and could not be compiled.
    """

    name: ClassVar[str]
    """Key in MODELS; for a class that is not in MODELS, the name that it defines."""
    compiled_methods: ClassVar[tuple[str, ...]] = ("forward",)
    """Methods of the layers that `Training.compile` compiles."""
    test_variants: ClassVar[tuple[dict[str, Any], ...]] = ()
    not_trained: ClassVar[tuple[str, ...]] = ()  # beginnings of names that `loss` does not train
    causal: bool = True
    takes_positions: ClassVar[bool] = False
    """True if `forward`, `prefill` and `extend` take `positions`, coupled ones."""
    calls_tools: bool = True
    """False if `answer` writes all tokens at once, so that no result can follow a call."""
    takes_extra: Sequence[str] = ()
    """Names of other inputs than tokens that `forward` and `prefill` take, as `extra`."""
    ragged_text: ClassVar[bool] = True
    """False if rows of text must have equal lengths in `prefill`, where they are no prompts: a
    server then continues texts of one length in one batch."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.name = Name(vars(cls).get("name"))  # type: ignore[assignment]

    def __init__(self, config: Any):
        super().__init__()
        config = self.own_config(config)
        for name in SIZES:
            if getattr(config, name) is None:
                raise UsageError(
                    f"{name} must be set before a model is built, got None; pass {name}=, or build "
                    "the model with its task: thinkers.config.experiment.build(config)"
                )
        self.config = config

    @property
    def halts_by(self) -> tuple[str, ...]:
        """Rules that `halt` may name: gate (a number), answered. With any, `forward` and `prefill`
        take it."""
        return ()

    @property
    def shard_units(self) -> tuple[nn.Module, ...]:
        """Parts that sharded training gathers one at a time: those that compute by `forward` alone.
        Without any, the weights of the whole model are gathered for each update."""
        return ()

    @property
    def step_counts(self) -> tuple[int, ...]:
        """The numbers of steps worth testing: powers of two, and the configured number."""
        powers = {2**i for i in range(self.config.max_steps.bit_length())}
        usable = {n for n in powers if n <= self.config.max_steps}
        return tuple(sorted(usable | {self.config.num_steps}))

    @abstractmethod
    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        lengths: Int[Tensor, " b"] | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
        keep_states: bool = False,
    ) -> Thought:
        """Predict the next token at every position; rows are padded on the right."""

    @abstractmethod
    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], Any]:
        """Read prompts, padded on the right, and begin a cache.

        Args:
            prompted: True if the rows are prompts to be answered, False if they are text.
            capacity: Tokens of a row, prompt and new together, that the cache has room for.

        With `takes_positions` there is a keyword `positions`, (b, t) or None, and (b,) or None in
        `extend`; with `halts_by` a keyword `halt`, and a `HaltingCache` is returned if it is set.

        Returns:
            The logits after each row's last real token, and the cache.
        """

    @abstractmethod
    def extend(self, tokens: Int[Tensor, " b"], cache: Any) -> Float[Tensor, "b v"]:
        """Append a token to each row of the cache; return the logits after it."""

    @abstractmethod
    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        """Compute the logits of states."""

    def output_weights(self) -> set[nn.Parameter]:
        """Return the matrices that turn states into logits, found by reading a state out.

        Muon leaves them to AdamW. Override this if `read_out` uses operations without autograd.
        """
        return find_output_weights(self)

    def linear_weights(self) -> set[Tensor]:
        """Return the matrices of linear layers, which Muon updates unless they write logits."""
        return {layer.weight for layer in self.modules() if isinstance(layer, nn.Linear)}

    @abstractmethod
    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        """Count the floating-point operations of a forward pass, or of one and its gradients.

        Matrix products count 2 m n k, and nothing else counts.
        """

    def batch_flops(
        self, batch: Batch, num_steps: int | None = None, training: bool = False
    ) -> int:
        """Count the `flops` of these rows."""
        rows, length = batch.tokens.shape
        return self.flops(rows, length, num_steps, training)

    def counts(self, batch: Batch | Int[Tensor, "b t"]) -> dict[str, int]:
        """Count the terms of each part of the loss, without running the model."""
        return self.count_terms(as_batch(batch, self))

    def count_terms(self, batch: Batch) -> dict[str, int]:
        """Count the terms of each part of the loss of a batch that `as_batch` gave.

        Reading the number waits for the device, so `loss` calls this before the model runs.
        """
        return {"next_token": int((batch.targets != IGNORED).sum())}

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        """Compute the cross-entropy of the next tokens, and the model's own parts of a loss.

        Args:
            batch: Rows with targets; a bare tensor is text, whose targets are its next tokens.
            counts: The `counts` of a larger batch of which this is a share. Each part is divided
                by them, so that the losses and gradients of all shares add up to the whole's.
        """
        batch = as_batch(batch, self)
        own = self.count_terms(batch)
        logits, targets = self.graded_logits(batch, num_steps)
        total = next_token_loss(logits, targets, (counts or own)["next_token"])
        return Loss(total, {"next_token": total.detach()}, own, *graded_last(logits, targets))

    def graded_logits(
        self, batch: Batch, num_steps: int | None = None
    ) -> tuple[Float[Tensor, "b u v"], Int[Tensor, "b u"]]:
        """Predict the graded tokens of a batch that `as_batch` gave; return logits and targets.

        u is t, or fewer where answers alone are computed: what `batch_flops` counts.
        """
        lengths = dict(lengths=batch.lengths, prompt_lengths=batch.prompt_lengths)
        given = option(batch.positions) | extra_option(batch.extra)
        found = self(batch.tokens, num_steps=num_steps, **lengths, **given)
        return found.logits, batch.targets

    def generate(
        self,
        tokens: Int[Tensor, "b t"],
        max_new_tokens: int,
        num_steps: int | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        stop_token: int | None = None,
        pad_token: int = 0,
        use_cache: bool = True,
        return_logits: bool = False,
        positions: Positions | None = None,
        halt: Halt = None,
        return_steps: bool = False,
        tools: Sequence[Tool] = (),
        policy: bool = False,
        memory: Any = None,
        extra: Extra = None,
    ) -> Any:
        """Continue prompts, padded on the left, by `max_new_tokens` tokens each.

        Args:
            prompt_lengths: Number of the last columns of each row that are real; None means all,
                and reads the rows as text rather than as prompts.
            temperature: 0 takes the likeliest token; otherwise tokens are drawn.
            stop_token: Ends a row, which is then filled with `pad_token`.
            use_cache: False computes whole rows again for every token, for comparison.
            return_logits: Also return the raw logits of each new token, zeros once a row has ended.
            positions: Coupled positions: a function from left-aligned tokens (b, t) to positions
                (b, t), called on the tokens so far; or for one new token those of the prompts.
            halt: Let tokens halt before `num_steps`: see `thinkers.models.halt`.
            return_steps: Also return the steps (b, n) that each new token took, 0 once a row ended.
            tools: Write the result of each call of these after it: see `thinkers.models.tools`. Its
                tokens count in `max_new_tokens` and are no stop tokens; their logits and steps are
                those of the choice that they replace.
            policy: Let the model's policy choose the block of each step, and when to stop.
            memory: A `LongTermMemory` that is read, or a list with one or None for each row.
            extra: Other inputs of the rows by name, as `Batch.extra`.
        """
        call = self, tokens, max_new_tokens, num_steps, prompt_lengths
        return generate(
            *call,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            stop_token=stop_token,
            pad_token=pad_token,
            use_cache=use_cache,
            return_logits=return_logits,
            positions=positions,
            halt=with_policy(halt, policy),
            return_steps=return_steps,
            tools=tools,
            memory=memory,
            extra=extra,
        )

    def answer(
        self,
        tokens: Int[Tensor, "b t"],
        prompt_lengths: Int[Tensor, " b"],
        max_new_tokens: int,
        num_steps: int | None = None,
        positions: Positions | None = None,
        halt: Halt = None,
        return_steps: bool = False,
        tools: Sequence[Tool] = (),
        policy: bool = False,
        memory: Any = None,
        extra: Extra = None,
    ) -> Any:
        """Answer prompts, padded on the left, greedily: what tasks score.

        A model that is not causal answers with one token, predicted at the end of the prompt.

        Args:
            positions, halt, tools, policy, memory, extra: As in `generate`.
            return_steps: Return the answers (b, n) and the steps (b, n) that each token took.
        """
        refuse_positions(self, positions)
        check_tools(self, tools)
        halt = check_halt(self, with_policy(halt, policy))
        if not self.causal and max_new_tokens == 1:
            answer = classify(self, tokens, prompt_lengths, num_steps)
            steps = full_steps(answer, self.check_steps(num_steps))
            return (answer, steps) if return_steps else answer
        options = option(positions) | halt_option(halt) | tools_option(tools)
        options |= memory_option(memory) | extra_option(extra)
        out, steps = self.generate(
            tokens, max_new_tokens, num_steps, prompt_lengths, return_steps=True, **options
        )
        answer = out[:, tokens.shape[1] :]
        return (answer, steps) if return_steps else answer

    def score(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        num_steps: int | None = None,
        positions: Positions | None = None,
        halt: Halt = None,
        memory: Any = None,
    ) -> Float[Tensor, "b t-1"]:
        """Compute the log-probability of each token after the first, in nats; 0 for padding."""
        refuse_positions(self, positions)
        if not self.causal:
            raise UsageError(NOT_CAUSAL.format(what="score"))
        options = option(positions) | halt_option(check_halt(self, halt)) | memory_option(memory)
        thought = self(tokens, num_steps=num_steps, lengths=lengths, **options)
        logits = thought.logits[:, :-1]
        nexts = tokens[:, 1:]
        if lengths is not None:
            real = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]
            nexts = nexts.where(real, 0)
        chosen = logits.log_softmax(-1).gather(-1, nexts[..., None])[..., 0]
        return chosen if lengths is None else chosen.where(real, torch.zeros_like(chosen))

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into `folder`, each with its digest.

        Raises:
            UsageError: No folder can have this name.
            NonFiniteError: A weight is infinite or not a number; nothing is written.
            ResourceError: The disk is full.
        """
        path = user_path(folder, "folder")
        found = self.config_dict()
        weights = pack(self.state_dict(), settings_digest(found["model"], found["config"]))
        make_folders(path)
        write_file(path / "model.safetensors", weights)
        write_file(path / "config.json", with_digest(found))

    def config_dict(self) -> dict[str, Any]:
        """Return the content of config.json: format version, model name, settings.

        Raises:
            UsageError: The model is not in MODELS, and another model has its name.
        """
        check(MODELS, "model")
        if MODELS.get(self.name, type(self)) is not type(self):
            own, other = type(self).__qualname__, MODELS[self.name].__qualname__
            raise usage_error(
                f"{own} with the name {self.name!r}, which is that of {other} in MODELS",
                "a unique name, by which the model is loaded",
                f'register it: thinkers.MODELS["NAME"] = {own}',
            )
        settings = dataclasses.asdict(self.config)
        return {"format": FORMAT, "model": self.name, "config": settings}


def settings_digest(name: str, settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a model's name and settings, which is kept with its weights."""
    return hashlib.sha256(to_json({"model": name, "config": settings})).hexdigest()
