"""Steps of a part of the tokens: those that still think, while the others keep their keys.

A token that has halted after step n has for every later step the state, keys and values of step n.
It costs no arithmetic: its keys are copied, and the live tokens are packed into one row.

    before step k, in every layer   keys of all new tokens <- those of step k - 1
    step k                          keys of live tokens <- their own
    attention                       live queries over the keys of their row at step k
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.nn.block import Table
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.nn.layers import attention_flops
from thinkers.nn.tracing import record_weights
from thinkers.nn.window import WholeRows, hiding

Kept = KeyValueCache | WholeRows | None
"""What keeps keys, with its mask; None for whole rows that are causal."""


class LiveTokens:
    """The tokens (row, column) that still think, packed into one row of n.

    Their number is read from the device, which is waited for.
    """

    def __init__(self, live: Bool[Tensor, "b t"]):
        self.shape = live.shape
        counts = live.sum(1)
        of_rows = counts.tolist()
        self.number, self.width = sum(of_rows), max(of_rows)
        self.num_rows = sum(count > 0 for count in of_rows)
        self.is_whole = self.number == live.numel()
        self.is_rectangle = self.number == self.num_rows * self.width
        if self.is_whole:
            return
        self.index = live.nonzero(as_tuple=True)
        self.rows = counts.nonzero()[:, 0]
        if not self.is_rectangle:
            row = (counts > 0).cumsum(0) - 1
            self.place = row[self.index[0]], (live.cumsum(1) - 1)[self.index]

    def __len__(self) -> int:
        return self.number

    def take(self, x: Shaped[Tensor, "b t *c"]) -> Shaped[Tensor, "1 n *c"]:
        """Pack the live tokens."""
        return x.flatten(0, 1)[None] if self.is_whole else x[self.index][None]

    def put(
        self, x: Shaped[Tensor, "b t *c"], packed: Shaped[Tensor, "1 n *c"]
    ) -> Shaped[Tensor, "b t *c"]:
        """Replace the live tokens of `x`."""
        if self.is_whole:
            return packed.view(x.shape)
        return x.index_put(self.index, packed[0].to(x.dtype))

    def count(self, steps: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
        """Add a step to each live token."""
        if self.is_whole:
            return steps + 1
        return steps.index_put(self.index, torch.ones_like(self.index[0]), accumulate=True)

    def table(self, table: Table) -> Table:
        """Pack the table of the positions of all tokens."""
        if table is None:
            return None
        cos, sin = (x.expand(self.shape[0], *x.shape[-3:])[:, 0] for x in table)
        return self.take(cos)[:, None], self.take(sin)[:, None]

    def by_row(self, x: Float[Tensor, "1 h n d"]) -> Float[Tensor, "r h m d"]:
        """Return queries by row, 0 behind the last of a row with fewer than others."""
        x = x[0].transpose(0, 1)
        if self.is_rectangle:
            return x.view(self.num_rows, self.width, *x.shape[1:]).transpose(1, 2)
        empty = x.new_zeros(self.num_rows, self.width, *x.shape[1:])
        return empty.index_put(self.place, x).transpose(1, 2)

    def packed(self, x: Float[Tensor, "r h m d"]) -> Float[Tensor, "1 h n d"]:
        """Undo `by_row`."""
        x = x.transpose(1, 2)
        x = x.flatten(0, 1) if self.is_rectangle else x[self.place]
        return x.transpose(0, 1)[None]

    def without(self, done: Bool[Tensor, "1 n"]) -> Bool[Tensor, "b t"]:
        """Return True at the live tokens that are not done."""
        if self.is_whole:
            return ~done.view(self.shape)
        live = torch.zeros(self.shape, dtype=torch.bool, device=done.device)
        return live.index_put(self.index, ~done[0])

    def masks(self, mask: Float[Tensor, "*b t s"], keeps: Kept) -> Float[Tensor, "*r m s"] | None:
        """Return the masks of the queries of `by_row`; None for whole rows that are causal.

        Args:
            mask: From `mask_of` with `keeps`.
        """
        t = self.shape[1]
        if self.is_whole:
            return None if keeps is None else keeps.mask
        mask = mask.expand(self.shape[0], 1, t, -1)[self.rows]
        if self.is_rectangle:
            columns = self.index[1].view(self.num_rows, self.width)
        else:
            columns = self.index[1].new_zeros(self.num_rows, self.width)
            columns = columns.index_put(self.place, self.index[1])
        return mask.take_along_dim(columns[:, None, :, None], 2)


@runtime_checkable
class StepKeys(Protocol):
    """Keys and values of the layers of one step, of all tokens so far."""

    def begin(self, step: int, live: LiveTokens) -> None:
        """Begin a step: tokens that have halted keep the keys and values of the step before."""

    def put(
        self, layer: int, live: LiveTokens, k: Float[Tensor, "1 g n d"], v: Float[Tensor, "1 g n d"]
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s d"]]:
        """Replace those of live tokens; return all."""


class RowKeys:
    """Keys and values of whole rows at one step, without a cache. Gradients flow through them."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], Tensor] = {}

    def begin(self, step: int, live: LiveTokens) -> None:
        """Keep everything: a layer replaces what is live."""

    def put(
        self, layer: int, live: LiveTokens, k: Float[Tensor, "1 g n d"], v: Float[Tensor, "1 g n d"]
    ) -> tuple[Float[Tensor, "b g t d"], Float[Tensor, "b g t d"]]:
        found = []
        for i, x in enumerate((k, v)):
            new = x[0].transpose(0, 1)
            if live.is_whole:
                self.kept[layer, i] = new.view(*live.shape, *new.shape[1:])
            else:
                kept = self.kept.get((layer, i))
                if kept is None:
                    kept = new.new_zeros(*live.shape, *new.shape[1:])
                self.kept[layer, i] = kept.index_put(live.index, new)
            found.append(self.kept[layer, i].transpose(1, 2))
        return found[0], found[1]


class CachedKeys:
    """Keys and values of one step in a cache that has slots for each layer of each step.

    Args:
        first: The slot of the first layer at step 0.
        num_layers: Layers of a step.
        new: Number of new tokens of a row.
    """

    def __init__(self, cache: KeyValueCache, first: int, num_layers: int, new: int):
        self.cache, self.first, self.num_layers = cache, first, num_layers
        self.begun = -1
        if cache.visible is None:
            cache.used = new
        self.columns = slice(cache.used - new, cache.used)

    def begin(self, step: int, live: LiveTokens) -> None:
        if step and not live.is_whole:
            self._slots(step, step + 1).copy_(self._slots(step - 1, step))
        self.begun = step

    def _slots(self, step: int, stop: int) -> Float[Tensor, "k n 2 b g t d"]:
        """Return keys and values of the new tokens, by step and layer."""
        size, first = self.num_layers, self.first
        found = self.cache.data[first + step * size : first + stop * size, ..., self.columns, :]
        return found.unflatten(0, (-1, size))

    def put(
        self, layer: int, live: LiveTokens, k: Float[Tensor, "1 g n d"], v: Float[Tensor, "1 g n d"]
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s d"]]:
        keys, values = self.cache.layers[self.first + self.begun * self.num_layers + layer]
        for kept, x in ((keys, k), (values, v)):
            new = x[0].transpose(0, 1)
            if live.is_whole:
                kept[:, :, self.columns] = new.view(*live.shape, *new.shape[1:]).transpose(1, 2)
            else:
                rows, columns = live.index
                kept[rows, :, columns + self.columns.start] = new.to(kept.dtype)
        used = slice(None, self.cache.used)
        return keys[:, :, used], values[:, :, used]

    def finish(self, num_steps: int) -> None:
        """Fill the steps that no token took, which later tokens may take."""
        if self.begun + 1 < num_steps:
            later = self._slots(self.begun + 1, num_steps)
            later.copy_(self._slots(self.begun, self.begun + 1).expand_as(later))


def run_live(
    blocks: nn.ModuleList,
    x: Float[Tensor, "1 n c"],
    table: Table,
    live: LiveTokens,
    keys: StepKeys,
    mask: Float[Tensor, "*r m s"] | None,
) -> Float[Tensor, "1 n c"]:
    """Pass packed tokens through the blocks, as `run_blocks` does with whole rows.

    Args:
        mask: From `LiveTokens.masks`; None for whole rows, which are causal.
    """
    for layer, block in enumerate(blocks):

        def attend(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
            k, v = keys.put(layer, live, k, v)
            if live.num_rows < len(k):
                k, v = k[live.rows], v[live.rows]
            q = live.by_row(q)
            record_weights("words", q, k, mask, causal=mask is None)
            attended = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=k.shape[1] < q.shape[1]
            )
            return live.packed(attended)

        x = block(x, table, attend)
    return x


def mask_of(keeps: Kept, length: int, like: Tensor) -> Float[Tensor, "*b t s"]:
    """Return the mask of 0 and -inf that is added to the scores of new tokens."""
    mask = None if keeps is None else keeps.mask
    if mask is not None:
        return mask
    seen = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
    return hiding(seen, like.dtype)


def live_flops(block: Any, num_layers: int, each: int, live: Bool[Tensor, "b t"]) -> int:
    """Count the operations of a step of live tokens: packed products, and attention by row.

    Args:
        block: One of the layers of the step.
        each: Further operations of each token.
    """
    number, counts = int(live.sum()), live.sum(1)
    rows, width, keys = int((counts > 0).sum()), int(counts.max()), live.shape[1]
    dim = block.heads.query.in_features
    by_row = attention_flops(rows, width, keys, dim) - attention_flops(1, number, keys, dim)
    return num_layers * (block.flops(1, number, keys) + by_row) + number * each


class FrozenKeys:
    """Keys and values of whole rows in training: those of a token stay after its last step.

    Every token is computed at every step, and what comes after its last one is replaced, so that
    shapes do not depend on data.

    Args:
        taken: The number of steps that each token takes.
        rows: The keys within a window, whose mask is used; None without a window.
    """

    def __init__(self, taken: Int[Tensor, "b t"], rows: Kept):
        self.taken, self.rows = taken, rows
        self.live = torch.ones_like(taken, dtype=torch.bool)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def mask(self) -> Float[Tensor, "*b t t"] | None:
        return None if self.rows is None else self.rows.mask

    def begin(self, step: int) -> None:
        """Begin the step with this index, from 0."""
        self.live = step < self.taken

    def choose(
        self, new: Float[Tensor, "b t c"], old: Float[Tensor, "b t c"]
    ) -> Float[Tensor, "b t c"]:
        """Return the states after this step."""
        return new.where(self.live[..., None], old)

    def keep(
        self, layer: int, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]
    ) -> tuple[Float[Tensor, "b g t d"], Float[Tensor, "b g t d"], Float[Tensor, "*b t t"] | None]:
        if layer in self.kept:
            live, old = self.live[:, None, :, None], self.kept[layer]
            k, v = k.where(live, old[0]), v.where(live, old[1])
        self.kept[layer] = k, v
        return k, v, self.mask
