"""Batches of rows with targets, and losses of predictions on them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.checks import (
    NOT_CAUSAL,
    check_due,
    check_early,
    check_lengths,
    check_one_per_token,
    check_shape,
    check_targets,
    describe,
)
from thinkers.errors import UsageError, UsageTypeError
from thinkers.models import documents
from thinkers.models.extra_inputs import Extra, check_extra, extra_of_rows, joined_extra
from thinkers.models.positions import find_positions

IGNORED = -100
"""The target of positions that are not graded."""


@dataclass(frozen=True)
class Batch:
    """Rows of tokens to learn from, padded on the right.

    Args:
        tokens: Input tokens.
        targets: The token to be predicted at each position; -100 where there is none.
        prompt_lengths: Number of tokens of each row's prompt.
        lengths: Number of each row's real tokens; None means all.
        keys: Random key of each row, from which all noise of that row is drawn.
        due: The thinking step, from 1, after which the target of a position can be known; at a
            position without a target, the step after which later targets can use it. 0 at padding.
        positions: Coupled position of each token, of a model that takes them; 0 at padding. None
            means the order of the tokens.
        early: The right answer at each position after step 1, 2 .. before its due step, for
            step_loss early; -100 where there is none.
        sections: Texts of documents that the rows ask about, for models with a memory: each is cut
            into sections, padded on the right.
        section_lengths: Number of each section's real tokens; 0 for a section that is absent.
        document: The number of the document that each row asks about.
        document_keys: Random key of each document, from which the noise of its compression is drawn
            in training; None outside of it.
        document_levels: Level of the blocks that are read of each document; None means the model's
            `read_level`.
        extra: Other inputs of each row by name, (b, ..) each, for models that take them.
    """

    tokens: Int[Tensor, "b t"]
    targets: Int[Tensor, "b t"]
    prompt_lengths: Int[Tensor, " b"] | None = None
    lengths: Int[Tensor, " b"] | None = None
    keys: Int[Tensor, " b"] | None = None
    due: Int[Tensor, "b t"] | None = None
    positions: Int[Tensor, "b t"] | None = None
    early: Int[Tensor, "b t k"] | None = None
    sections: Int[Tensor, "d n s"] | None = None
    section_lengths: Int[Tensor, "d n"] | None = None
    document: Int[Tensor, " b"] | None = None
    document_keys: Int[Tensor, " d"] | None = None
    document_levels: Int[Tensor, " d"] | None = None
    extra: Extra = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: slice | Tensor) -> "Batch":
        """Return the chosen rows, and of the documents those that they ask about."""
        fields = self._fields()
        shared = documents.chosen({name: fields.pop(name) for name in documents.SHAPES}, index)
        own = {name: None if x is None else x[index] for name, x in fields.items()}
        return Batch(**own, **shared, extra=extra_of_rows(self.extra, index))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        moved = {k: None if x is None else x.to(device) for k, x in self._fields().items()}
        extra = self.extra and {name: x.to(device) for name, x in self.extra.items()}
        return Batch(**moved, extra=extra)  # type: ignore[arg-type]

    def _fields(self) -> dict[str, Tensor | None]:
        """Return the tensors of all fields but `extra`."""
        names = [x.name for x in dataclasses.fields(self) if x.name != "extra"]
        return {name: getattr(self, name) for name in names}


def collate(batches: Sequence[Batch]) -> Batch:
    """Join batches, of one row each or more, to one batch: the `collate_fn` of a DataLoader.

    Rows are padded on the right to the width of the widest batch, and `lengths` is set; documents
    to the most and widest sections.

    Raises:
        UsageError: There are none, or some have an optional field other than lengths and others
            do not; or shapes or devices do not fit each other.
        UsageTypeError: One of them is no Batch, or a tensor of tokens is not int64.
    """
    batches = _checked(batches)
    width = max(batch.tokens.shape[1] for batch in batches)

    def joined(name: str, padding: int) -> Tensor:
        rows = (getattr(batch, name) for batch in batches)
        return torch.cat([F.pad(x, (0, width - x.shape[1]), value=padding) for x in rows])

    def are_set(name: str) -> bool:
        missing = [place for place, x in enumerate(batches) if getattr(x, name) is None]
        if missing and len(missing) < len(batches):
            raise UsageError(
                f"{name} must be set in all batches or in none, got None in {len(missing)} of "
                f"{len(batches)}, first at {missing[0]}"
            )
        return not missing

    def of_rows(name: str) -> Tensor | None:
        return torch.cat([getattr(x, name) for x in batches]) if are_set(name) else None

    def joined_documents() -> dict[str, Tensor | None]:
        found = documents.joined(batches) if any([are_set(x) for x in documents.SHAPES]) else {}
        return found | {name: of_rows(name) for name in documents.OPTIONAL}

    lengths = [
        torch.full_like(batch.tokens[:, 0], batch.tokens.shape[1])
        if batch.lengths is None
        else batch.lengths
        for batch in batches
    ]
    return Batch(
        joined("tokens", 0),
        joined("targets", IGNORED),
        of_rows("prompt_lengths"),
        torch.cat(lengths),
        of_rows("keys"),
        joined("due", 0) if are_set("due") else None,
        joined("positions", 0) if are_set("positions") else None,
        _joined_early(batches, width) if are_set("early") else None,
        **joined_documents(),
        extra=joined_extra(batches),
    )


def _checked(batches: Any) -> list[Batch]:
    """Return a list of batches that can be joined."""
    if isinstance(batches, Batch):
        raise UsageTypeError("collate takes a list of Batches, got one Batch; pass [batch]")
    batches = list(batches)
    for place, batch in enumerate(batches):
        if not isinstance(batch, Batch):
            raise UsageTypeError(
                f"collate takes a list of Batches, got {describe(batch)} at {place}; let the data "
                "set return thinkers.Batch(tokens (1, t), targets (1, t))"
            )
    if not batches:
        raise UsageError("collate takes a list of at least one Batch, got an empty one")
    for place, batch in enumerate(batches):
        _check_joined(batch, place, batches[0].tokens)
    return batches


def _check_joined(batch: Batch, place: int, first: Tensor) -> None:
    """Raise an error unless a batch can be joined to one with these tokens.

    Padding would cut a field that is wider than the tokens, and a list of tensors of several types
    would become one of the widest type.
    """
    at = f"of the batch at {place}"
    b, t = check_shape(f"tokens {at}", batch.tokens)
    for name in ("targets", "due", "positions"):
        if (x := getattr(batch, name)) is not None:
            check_one_per_token(f"{name} {at}", x, batch.tokens)
    for name in ("lengths", "prompt_lengths"):
        if (x := getattr(batch, name)) is not None:
            check_lengths(f"{name} {at}", x, b, t)
    if batch.early is not None and batch.early.shape[:2] != (b, t):
        raise UsageError(f"early {at} must have shape ({b}, {t}, k), got {list(batch.early.shape)}")
    for name, x in {**batch._fields(), **(batch.extra or {})}.items():
        if x is not None and x.device != first.device:
            raise UsageError(
                f"all batches must be on one device, got tokens on {first.device} at 0 and {name} "
                f"on {x.device} at {place}; batch.to(device) moves one"
            )


def _joined_early(batches: Sequence[Batch], width: int) -> Int[Tensor, "b t k"]:
    found = [batch.early for batch in batches if batch.early is not None]
    steps = max(x.shape[2] for x in found)
    sides = [(0, steps - x.shape[2], 0, width - x.shape[1]) for x in found]
    return torch.cat([F.pad(x, p, value=IGNORED) for x, p in zip(found, sides, strict=True)])


@dataclass(frozen=True)
class Loss:
    """A scalar to differentiate, and the parts that it sums.

    Args:
        total: The weighted sum of the parts, with its graph.
        parts: The unweighted mean of each part, detached.
        counts: The number of terms of each part.
        correct: True for rows whose graded tokens are all predicted.
        correct_tokens: The number of graded tokens of each row that are predicted; None if the
            model does not count them.
        logits: The scores that the graded tokens were predicted by, after the last step, with their
            graph; u is t, or fewer where a model computes answers alone. None if it gives none.
        targets: The targets of these logits, in the order of the batch; -100 where there is none.
    """

    total: Float[Tensor, ""]
    parts: Mapping[str, Tensor]
    counts: Mapping[str, int]
    correct: Bool[Tensor, " b"]
    correct_tokens: Int[Tensor, " b"] | None = None
    logits: Float[Tensor, "b u v"] | None = None
    targets: Int[Tensor, "b u"] | None = None

    def without_logits(self) -> "Loss":
        """Return the loss without logits, which backward would otherwise keep in memory."""
        return dataclasses.replace(self, logits=None, targets=None)


def real_positions(
    tokens: Int[Tensor, "b t"], lengths: Int[Tensor, " b"] | None
) -> Bool[Tensor, "b t"]:
    """Return True at the first `lengths` positions of each row; None means all."""
    if lengths is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


def as_batch(batch: Any, model: Any) -> Batch:
    """Check a batch, and clear its padding: tokens become 0 there, and targets -100.

    The targets of a bare (b, t) tensor are its next tokens.

    Raises:
        TypeError: It is neither a Batch nor a tensor, or one of its tensors is not int64.
        ValueError: A shape, an id or a length is invalid; the message names it and its position.
            Or it has positions, and the model takes none, or documents, and it has no memory.
    """
    if isinstance(batch, Tensor):
        if not model.causal:
            raise UsageError(NOT_CAUSAL.format(what="a loss of bare tokens"))
        check_shape("tokens", batch)
        batch = Batch(batch, F.pad(batch[:, 1:], (0, 1), value=IGNORED))
    if not isinstance(batch, Batch):
        raise UsageTypeError(f"batch must be a Batch or an int64 tensor, got {describe(batch)}")
    tokens, lengths = batch.tokens, batch.lengths
    check_targets(batch.targets, tokens, lengths, model.config.vocab_size, IGNORED)
    if batch.due is not None:
        check_due(batch.due, tokens, lengths)
        batch = dataclasses.replace(batch, due=batch.due.where(real_positions(tokens, lengths), 0))
    if batch.early is not None:
        check_early(batch.early, tokens, batch.due, model.config.vocab_size, IGNORED)
    check_extra(model, batch.extra, len(tokens))
    fields = {name: getattr(batch, name) for name in documents.SHAPES}
    sections = documents.checked(fields, len(tokens), model)
    return dataclasses.replace(
        batch,
        sections=sections,
        tokens=model.check_tokens(tokens, lengths, batch.prompt_lengths),
        targets=graded_targets(batch),
        positions=find_positions(model, batch.positions, tokens, lengths),
    )


def graded_targets(batch: Batch) -> Int[Tensor, "b t"]:
    """Return the targets, -100 beyond each row's length."""
    if batch.lengths is None:
        return batch.targets
    return batch.targets.where(real_positions(batch.tokens, batch.lengths), IGNORED)


def next_token_loss(
    logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"], count: int
) -> Float[Tensor, ""]:
    """Sum the cross-entropies of the graded tokens, in nats, and divide by `count`.

    Args:
        targets: -100 where a position is not graded.
        count: The graded tokens of the batch, or of a larger one of which these rows are a share.
    """
    # Half precision has 8 (bf16) or 11 (fp16) bits of mantissa: too few for a sum over many tokens.
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    summed = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return summed / max(1, count)


def correct_predictions(
    logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"]
) -> tuple[Bool[Tensor, " b"], Int[Tensor, " b"]]:
    """Grade the most likely tokens: `Loss.correct` and `Loss.correct_tokens`."""
    is_right = logits.detach().argmax(-1) == targets
    return (is_right | (targets == IGNORED)).all(1), is_right.sum(1)


def graded_last(
    logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"]
) -> tuple[Bool[Tensor, " b"], Int[Tensor, " b"], Float[Tensor, "b t v"], Int[Tensor, "b t"]]:
    """Return the last four fields of `Loss`: what was predicted right, the logits, the targets."""
    return *correct_predictions(logits, targets), logits, targets
