"""Properties of models with a long-term memory: what is read, and what gradients reach.

After "Check that", the docstring of a check is the rule that `check_model` reports.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.models import thinker_memory
from thinkers.models.base import Model
from thinkers.models.batch import Batch
from thinkers.models.document_blocks import ABSENT, DocumentBlocks
from thinkers.models.memory_option import has_memory, memory_top
from thinkers.testing.helpers import (
    SHARE_TOLERANCES,
    Rows,
    close,
    draw,
    refused,
    require,
    training_batch,
    untouched,
)

SECTIONS, TOKENS = (5, 0, 9, 2), 7
"""Sections of the documents that are drawn, and tokens of a section at most."""


def with_documents(model: Model, batch: Batch) -> Batch:
    """Return the batch with documents of different sizes, which its rows ask in turn."""
    d, n = len(SECTIONS), max(SECTIONS)
    sections = draw(model, (d, n, TOKENS), 3)
    lengths = draw(model, (d, n), 4) % TOKENS + 1
    columns = torch.arange(n, device=lengths.device)
    present = columns < torch.tensor(SECTIONS, device=lengths.device)[:, None]
    document = torch.arange(len(batch), device=lengths.device) % d
    return replace(
        batch,
        sections=sections,
        section_lengths=lengths.where(present, 0),
        document=document,
        document_keys=draw(model, (d,), 5),
        document_levels=draw(model, (d,), 6) % model.config.read_level + 1,
    )


@dataclass(frozen=True)
class ListedBlocks:
    """The blocks of one document as a store, searched one by one: the oracle of a search."""

    blocks: DocumentBlocks
    number: int

    @contextmanager
    def view(self) -> Iterator["ListedBlocks"]:
        yield self

    def check(self, model: Any) -> None:
        """Accept every model."""

    def __len__(self) -> int:
        return len(self.ids())

    def ids(self, level: int = 1) -> Int[Tensor, " n"]:
        found = self.blocks.ids[self.number]
        return found[found != ABSENT]

    def fetch(self, ids: Any) -> Any:
        hidden = self.blocks.hidden[self.number][ids]
        return Fetched(self.blocks.latents[self.number][ids], (~hidden).sum(1))

    def search(self, queries: Float[Tensor, "r e"], k: int, level: int = 1) -> Any:
        rows = []
        for query in queries:
            scores = {}
            for i in self.ids().tolist():
                shown = ~self.blocks.hidden[self.number, i]
                scores[i] = max(float(query @ key.float()) for key in self.keys(i)[shown])
            best = sorted(scores, key=lambda i: (-scores[i], i))[:k]
            rows.append(best + [ABSENT] * (k - len(best)))
        return Results(torch.tensor(rows).to(self.blocks.ids))

    def keys(self, i: int) -> Float[Tensor, "m e"]:
        """Return the keys of a block."""
        return self.blocks.keys[self.number, i]


@dataclass(frozen=True)
class Fetched:
    """Latents of blocks, and the number of each."""

    latents: Float[Tensor, "n m c"]
    sizes: Int[Tensor, " n"]


@dataclass(frozen=True)
class Results:
    """Numbers of the blocks that were found."""

    ids: Int[Tensor, "r k"]


def long_term_memory(model: Model) -> None:
    """Check that a model with a memory computes the same without a memory and with an empty one, in
    any order of blocks, with hidden blocks of any value, with as many blocks as there are and with
    all, from tensors and from stores, alone and in a batch, with a cache and without: within 1e-5
    (float32) or 1e-10 (float64) of the largest logit. That the loss of the index reaches the index
    alone, and gradients of the answer every level of compression, the same with and without a graph
    of it. And that one thinking step, or a model without memory, is refused."""
    rows = Rows.draw(model)
    if not has_memory(model):
        with untouched(model), refused("a memory for a model without", ValueError, "memory"):
            model.generate(rows.left_padded(0), 1, None, rows.prompts, memory=object())
        return
    _refusals(model, rows)
    batch = with_documents(model, training_batch(model))
    with torch.no_grad():
        blocks = model.blocks_of(batch)  # type: ignore[operator]
        for prompts in (None, rows.prompts):
            _nothing_to_read(model, rows, prompts, blocks)
            _order_and_hidden(model, rows, prompts, blocks)
            _chosen(model, rows, prompts, blocks)
            _stores(model, rows, prompts, blocks)
        _cached(model, rows, blocks)
        _the_same_text(model, batch)
    _gradients(model, batch)
    _shares(model, batch)


def _refusals(model: Model, rows: Rows) -> None:
    tokens = rows.left_padded(0)
    with untouched(model):
        with refused("one step with a memory", ValueError, "num_steps", "2"):
            model.generate(tokens, 1, 1, rows.prompts, memory=[None] * len(tokens))
        with refused("a memory that is none", TypeError, "memory"):
            model.generate(tokens, 1, None, rows.prompts, memory=3)
        with refused("memories of other rows", ValueError, "memory", "rows"):
            model.generate(tokens, 1, None, rows.prompts, memory=[None])


def _logits(model: Model, rows: Rows, prompts: Tensor | None, memory: Any) -> Tensor:
    options = {} if memory is None else {"memory": memory}
    thought = model(rows.padded(0), lengths=rows.lengths, prompt_lengths=prompts, **options)
    columns = torch.arange(rows.tokens.shape[1], device=rows.tokens.device)
    return thought.logits.where((columns < rows.lengths[:, None])[..., None], 0)


def _nothing_to_read(model: Model, rows: Rows, prompts: Tensor | None, blocks: Any) -> None:
    without = _logits(model, rows, prompts, None)
    for none in ([None] * len(rows.tokens), _empty(blocks)):
        require(
            torch.equal(_logits(model, rows, prompts, none), without),
            "an empty memory changes logits",
        )
    hidden = replace(blocks, hidden=torch.ones_like(blocks.hidden))
    close(_logits(model, rows, prompts, hidden), without, "logits with all blocks hidden")
    found = _logits(model, rows, prompts, blocks)
    require(not torch.allclose(found, without), "a memory with blocks does not change logits")


def _empty(blocks: DocumentBlocks) -> DocumentBlocks:
    cut = {name: x[:, :0] for name, x in vars(blocks).items() if name != "document"}
    return replace(blocks, **cut)


def _order_and_hidden(model: Model, rows: Rows, prompts: Tensor | None, blocks: Any) -> None:
    expected = _logits(model, rows, prompts, blocks)
    turned = {name: x.flip(1) for name, x in vars(blocks).items() if name != "document"}
    other = replace(blocks, **turned)
    close(_logits(model, rows, prompts, other), expected, "logits with blocks in another order")
    wrong = blocks.latents.masked_fill(blocks.hidden[..., None], torch.nan)
    other = replace(blocks, latents=wrong)
    close(_logits(model, rows, prompts, other), expected, "logits with NaN in hidden blocks")


def _chosen(model: Any, rows: Rows, prompts: Tensor | None, blocks: Any) -> None:
    expected = _logits(model, rows, prompts, blocks)
    for top in (max(SECTIONS), 2):
        with memory_top(model, top):
            found = _logits(model, rows, prompts, blocks)
            if top == max(SECTIONS):
                close(found, expected, "logits with memory_top at the number of blocks")
            for row in range(len(rows.tokens)):
                index = torch.tensor([row], device=rows.tokens.device)
                own = None if prompts is None else rows.prompts[index]
                alone = Rows(rows.tokens[index], rows.prompts[index], rows.new)
                single = _logits(model, alone, own, blocks.select(index))
                # Rounding could choose other blocks; no two of the scores drawn are so close.
                close(single, found[index], "logits of a row alone with a memory")


def _stores(model: Any, rows: Rows, prompts: Tensor | None, blocks: Any) -> None:
    stores = [ListedBlocks(blocks, number) for number in range(len(SECTIONS))]
    listed = [stores[i] for i in blocks.document.tolist()]
    for top in (None, 2, 100):
        with memory_top(model, top):
            expected = _logits(model, rows, prompts, blocks)
            found = _logits(model, rows, prompts, listed)
            close(found, expected, f"logits with stores and memory_top={top}")


def _cached(model: Model, rows: Rows, blocks: Any) -> None:
    options: Any = dict(memory=blocks, return_logits=True, stop_token=0)
    for prompts in (rows.prompts, None):
        chosen = rows if prompts is not None else rows.even()
        if prompts is None:
            options["memory"] = blocks.select(torch.arange(3, device=rows.tokens.device))
        tokens = chosen.left_padded(0)
        given = tokens, rows.new, None, prompts
        fast, logits = model.generate(*given, **options)
        slow, expected = model.generate(*given, use_cache=False, **options)
        require(torch.equal(fast, slow), "tokens with a memory differ with and without cache")
        close(logits, expected, "logits with a memory and a cache")


def _the_same_text(model: Any, batch: Batch) -> None:
    assert batch.sections is not None and batch.section_lengths is not None
    lengths = batch.section_lengths[0, : SECTIONS[0]]
    tokens = batch.sections[0, : SECTIONS[0]]
    found = model.compress(tokens, lengths)
    columns = torch.arange(TOKENS, device=tokens.device)
    other = tokens.where(columns < lengths[:, None], 0)
    close(model.compress(other, lengths), found, "blocks of the same text with other padding")
    wide = torch.nn.functional.pad(tokens, (0, 3))
    close(model.compress(wide, lengths), found, "blocks of the same text with more padding")
    norms = model.block_keys(found).norm(dim=-1)
    close(norms, torch.ones_like(norms), "lengths of the keys of blocks")


def _gradients(model: Any, batch: Batch) -> None:
    whole = _gradient(model, model.loss(batch).total)
    before = thinker_memory.REPLAYED_SECTIONS
    thinker_memory.REPLAYED_SECTIONS = 2
    try:
        replayed = _gradient(model, model.loss(batch).total)
    finally:
        thinker_memory.REPLAYED_SECTIONS = before
    for name, expected in whole.items():
        close(replayed[name], expected, f"gradient of {name} without a graph", SHARE_TOLERANCES)
    for level, signal in enumerate(whole["compressor.signals.weight"], 1):
        if level <= model.config.read_level:
            require(signal.any(), f"no gradient reaches the compression of level {level}")
    config = model.config
    model.config = replace(config, index_weight=0.0)
    without = _gradient(model, model.loss(batch).total)
    model.config = config
    for name, expected in whole.items():
        if name.startswith("index."):
            require(not without[name].any(), f"the answer trains {name}")
            require(expected.any(), f"the loss of the index does not train {name}")
        else:
            same = torch.equal(without[name], expected)
            require(same, f"the loss of the index trains {name}")


def _gradient(model: Model, total: Tensor) -> dict[str, Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def _shares(model: Model, batch: Batch) -> None:
    counts = model.counts(batch)
    assert batch.document is not None
    some = sum(SECTIONS[i] > 0 for i in batch.document.tolist())
    require(counts["index"] == some, f"counts of the index are {counts['index']}, not {some}")
    whole = model.loss(batch, counts=counts)
    shares = [model.loss(batch.rows(part), counts=counts) for part in (slice(0, 2), slice(2, None))]
    for name, part in whole.parts.items():
        found = torch.stack([share.parts[name] for share in shares]).sum()
        close(found, part, f"sum of the shares' part {name!r} with documents", SHARE_TOLERANCES)
    gradients = [_gradient(model, share.total) for share in shares]
    for name, expected in _gradient(model, whole.total).items():
        found = torch.stack([gradient[name] for gradient in gradients]).sum(0)
        close(found, expected, f"sum of the shares' gradients of {name}", SHARE_TOLERANCES)
