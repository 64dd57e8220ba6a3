"""What all ways of thinking share: batches, thoughts, losses, and the class that they extend."""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import (
    NOT_CAUSAL,
    check_ids,
    check_int,
    check_lengths,
    check_shape,
    describe,
)
from thinkers.models.generation import classify, generate
from thinkers.nn.tracing import Traced

IGNORED = -100
FORMAT = 1
SIZES = ("vocab_size", "max_length")
"""Settings that follow the task where they are None; a model needs both."""


@dataclass(frozen=True)
class Batch:
    """Rows of tokens to learn from, padded on the right.

    Args:
        tokens: What the model reads.
        targets: What the logits of each position are compared with; -100 is ignored.
        prompt_lengths: How many tokens of each row are its prompt.
        lengths: How many tokens of each row are real.
        keys: One number per row, from which all random disturbance of that row is computed.
    """

    tokens: Int[Tensor, "b t"]
    targets: Int[Tensor, "b t"]
    prompt_lengths: Int[Tensor, " b"] | None = None
    lengths: Int[Tensor, " b"] | None = None
    keys: Int[Tensor, " b"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: slice | Tensor) -> "Batch":
        """The chosen rows."""
        return Batch(*(None if x is None else x[index] for x in self._fields()))  # type: ignore

    def to(self, device: torch.device | str) -> "Batch":
        """The same rows on `device`."""
        return Batch(*(None if x is None else x.to(device) for x in self._fields()))  # type: ignore

    def _fields(self) -> tuple[Tensor | None, ...]:
        return self.tokens, self.targets, self.prompt_lengths, self.lengths, self.keys


@dataclass(frozen=True)
class Thought:
    """What a model answers at every position; with `keep_states`, after every step too."""

    logits: Float[Tensor, "b t v"]
    states: Float[Tensor, "b k t c"] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """A scalar to differentiate and what it is made of.

    Args:
        total: The weighted sum of the parts, with its graph.
        parts: The unweighted mean of each part, detached.
        counts: The number of terms of each part.
        correct: Whether every graded token of a row is right.
    """

    total: Float[Tensor, ""]
    parts: Mapping[str, Tensor]
    counts: Mapping[str, int]
    correct: Bool[Tensor, " b"]


class Cache(Protocol):
    """What a model keeps between tokens."""

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep only these rows."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every model is given beside its own settings."""

    vocab_size: int | None = None
    """Number of token ids; None is as many as the task has."""
    dim: int = 128
    """Width of the vectors between layers."""
    num_layers: int = 2
    num_heads: int = 4
    num_steps: int = 4
    """Thinking steps taken unless a call says otherwise."""
    max_length: int | None = 256
    """The most real tokens of a row, prompt and new together; None is as many as the task needs."""
    max_steps: int | None = None
    """The most thinking steps that a call may ask for; None is max(4, 4 * num_steps)."""

    least_steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers", "num_heads"):
            check_int(name, getattr(self, name), 1)
        for name in SIZES:
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1)
        check_int("num_steps", self.num_steps, self.least_steps)
        if self.max_steps is None:
            object.__setattr__(self, "max_steps", max(4, 4 * self.num_steps))
        check_int("max_steps", self.max_steps, max(1, self.num_steps))
        self.check_heads()

    def check_heads(self) -> None:
        """ValueError if the width cannot be divided into the heads."""
        if self.dim % self.num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got {self.dim} and {self.num_heads}"
            )


class Model(Traced, nn.Module, ABC):
    """A transformer that thinks: reads tokens, takes steps, answers at every position.

    A subclass has a `name`, a nested `Config`, `forward`, `prefill`, `extend`, `read_out` and
    `flops`; what a user calls besides is written here once.
    """

    name: ClassVar[str]
    test_variants: ClassVar[tuple[dict[str, Any], ...]] = ()
    causal: bool = True

    def __init__(self, config: Any):
        super().__init__()
        for name in SIZES:
            if getattr(config, name) is None:
                raise ValueError(
                    f"{name} must be set before a model is built, got None; pass {name}=, or build "
                    "the model with its task: thinkers.config.experiment.build(config)"
                )
        self.config = config

    @property
    def step_counts(self) -> tuple[int, ...]:
        """The numbers of thinking steps worth testing: the powers of two, and the usual one."""
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
        """What the model answers at every position; rows are padded on the right."""

    @abstractmethod
    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], Any]:
        """The logits after each row's last real token, and a cache for `capacity` tokens."""

    @abstractmethod
    def extend(self, tokens: Int[Tensor, " b"], cache: Any) -> Float[Tensor, "b v"]:
        """The logits after one more token in each row of the cache."""

    @abstractmethod
    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        """What each state answers."""

    @abstractmethod
    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        """The floating-point operations of one call: matrix products at 2mnk, no less, no more."""

    def batch_flops(
        self, batch: Batch, num_steps: int | None = None, training: bool = False
    ) -> int:
        """The `flops` of answering these rows, or of learning from them."""
        rows, length = batch.tokens.shape
        return self.flops(rows, length, num_steps, training)

    def counts(self, batch: Batch | Int[Tensor, "b t"]) -> dict[str, int]:
        """The number of terms of each part of the loss, found without running the model."""
        batch = as_batch(batch, self)
        return {"next_token": int((graded_targets(batch) != IGNORED).sum())}

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        """How wrong the answers are, each part divided by its number of terms.

        Args:
            counts: The terms of a larger batch of which this is a share; the losses and
                gradients of all its shares then add up to those of the whole.
        """
        batch = as_batch(batch, self)
        logits = self(
            batch.tokens,
            num_steps=num_steps,
            lengths=batch.lengths,
            prompt_lengths=batch.prompt_lengths,
        ).logits
        own, targets = self.counts(batch), graded_targets(batch)
        total = next_token_loss(logits, targets, (counts or own)["next_token"])
        return Loss(total, {"next_token": total.detach()}, own, correct_rows(logits, targets))

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
    ) -> Any:
        """The prompts, padded on the left, with `max_new_tokens` more tokens each.

        Args:
            prompt_lengths: How many of the last columns of each row are real.
            temperature: 0 takes the likeliest token.
            stop_token: A row that produced it is finished and filled with `pad_token`.
            return_logits: Also return the raw logits of each new token, zeros once finished.
        """
        return generate(
            self,
            tokens,
            max_new_tokens,
            num_steps,
            prompt_lengths,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            stop_token=stop_token,
            pad_token=pad_token,
            use_cache=use_cache,
            return_logits=return_logits,
        )

    def answer(
        self,
        tokens: Int[Tensor, "b t"],
        prompt_lengths: Int[Tensor, " b"],
        max_new_tokens: int,
        num_steps: int | None = None,
    ) -> Int[Tensor, "b n"]:
        """The model's answer to each prompt, padded on the left: what tasks score.

        One that reads the future answers with one token, after the last of the prompt.
        """
        if not self.causal and max_new_tokens == 1:
            return classify(self, tokens, prompt_lengths, num_steps)
        out = self.generate(tokens, max_new_tokens, num_steps, prompt_lengths)
        return out[:, tokens.shape[1] :]

    def score(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        num_steps: int | None = None,
    ) -> Float[Tensor, "b t-1"]:
        """The log-probability of each token after the first, in nats; 0 where there is none."""
        if not self.causal:
            raise ValueError(NOT_CAUSAL.format(what="score"))
        logits = self(tokens, num_steps=num_steps, lengths=lengths).logits[:, :-1]
        nexts = tokens[:, 1:]
        if lengths is not None:
            real = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]
            nexts = nexts.where(real, 0)
        chosen = logits.log_softmax(-1).gather(-1, nexts[..., None])[..., 0]
        return chosen if lengths is None else chosen.where(real, torch.zeros_like(chosen))

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into `folder`."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: x.detach().contiguous() for name, x in self.state_dict().items()}
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(self.config_dict(), indent=2) + "\n")

    def config_dict(self) -> dict[str, Any]:
        """What config.json holds: the format's version, the model's name, its settings."""
        settings = dataclasses.asdict(self.config)
        return {"format": FORMAT, "model": self.name, "config": settings}

    def check_steps(self, num_steps: Any) -> int:
        """`num_steps` as an int, the configured number if None; ValueError if it cannot be."""
        if num_steps is None:
            return self.config.num_steps
        return check_int(
            "num_steps", num_steps, self.config.least_steps, self.config.max_steps, "max_steps"
        )

    def check_tokens(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
    ) -> Int[Tensor, "b t"]:
        """The tokens with padding replaced by 0, or an error that says what is wrong."""
        config = self.config
        b, t = check_shape("tokens", tokens)
        if lengths is not None:
            check_lengths("lengths", lengths, b, t)
            real = torch.arange(t, device=tokens.device) < lengths[:, None]
            tokens = tokens.where(real, 0)
        if prompt_lengths is not None:
            check_lengths("prompt_lengths", prompt_lengths, b, t)
            if lengths is not None and (prompt_lengths > lengths).any():
                row = int((prompt_lengths > lengths).int().argmax())
                raise ValueError(
                    "prompt_lengths must be at most lengths, "
                    f"got {int(prompt_lengths[row])} of {int(lengths[row])} in row {row}"
                )
        longest = t if lengths is None else int(lengths.max())
        if longest > config.max_length:
            raise ValueError(
                f"a row must have at most {config.max_length} tokens (max_length), got {longest}"
            )
        check_ids("tokens", tokens, config.vocab_size)
        return tokens


def as_batch(batch: Any, model: Model) -> Batch:
    """`batch` checked; a bare (b, t) tensor is to be continued: its targets are the next tokens."""
    if isinstance(batch, Tensor):
        if not model.causal:
            raise ValueError(NOT_CAUSAL.format(what="a loss of bare tokens"))
        check_shape("tokens", batch)
        targets = torch.full_like(batch, IGNORED)
        targets[:, :-1] = batch[:, 1:]
        return Batch(batch, targets)
    if not isinstance(batch, Batch):
        raise TypeError(f"batch must be a Batch or an int64 tensor, got {describe(batch)}")
    if not isinstance(batch.targets, Tensor) or batch.targets.dtype != torch.int64:
        raise TypeError(f"targets must be an int64 tensor, got {describe(batch.targets)}")
    shape = check_shape("tokens", batch.tokens)
    if batch.targets.shape != shape:
        raise ValueError(
            f"targets must have the shape of tokens {list(shape)}, got {list(batch.targets.shape)}"
        )
    if batch.lengths is not None:
        check_lengths("lengths", batch.lengths, *shape)
    wanted = graded_targets(batch)
    check_ids("targets", wanted.where(wanted != IGNORED, 0), model.config.vocab_size)
    return batch


def graded_targets(batch: Batch) -> Int[Tensor, "b t"]:
    """The targets, ignored beyond each row's length."""
    if batch.lengths is None:
        return batch.targets
    t = batch.targets.shape[1]
    real = torch.arange(t, device=batch.targets.device) < batch.lengths[:, None]
    return batch.targets.where(real, IGNORED)


def next_token_loss(
    logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"], count: int
) -> Float[Tensor, ""]:
    """Sum the cross-entropies of the graded tokens, in nats, and divide by `count`.

    Args:
        targets: -100 where a position is not graded.
        count: The graded tokens of the batch, or of a larger one of which these rows are a share.
    """
    # Half precision has 8 bits or 11 of mantissa: too few for a sum over many tokens.
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    summed = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return summed / max(1, count)


def correct_rows(logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"]) -> Bool[Tensor, " b"]:
    """Return True for each row whose graded tokens are all the likeliest ones."""
    return ((logits.detach().argmax(-1) == targets) | (targets == IGNORED)).all(1)
