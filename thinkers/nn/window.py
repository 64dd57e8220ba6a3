"""Attention within a window of positions: its mask, and a cache that drops what left the window.

A query at position p sees a key at position q if the key is not later in the row and
|p - q| <= window. Positions are those of the rotary table, coupled or in order; a marker such as
START, `+` or `=` has a position like any other token. With coupled positions a query may see keys
ahead of its own position: `=`, at 0, sees the first digits of both operands, at 1.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.errors import usage_error
from thinkers.nn.kv_cache import KeyValueCache

ROOM = 32
"""Tokens that are written between two times at which a cache drops keys."""
GONE = -(2**62)
"""Position of a slot that no query sees."""


def window_mask(
    positions: Int[Tensor, "*b t"], window: int, dtype: torch.dtype
) -> Float[Tensor, "*b t t"]:
    """Return the numbers to be added to the scores of whole rows: 0 where seen, else -inf."""
    near = (positions[..., :, None] - positions[..., None, :]).abs() <= window
    return hiding(near.tril(), dtype)


def hiding(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where `seen`, else -inf."""
    # Numbers to be added: attention would convert a boolean mask in every layer.
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, -torch.inf)


class WholeRows:
    """Keys and values of whole rows, seen within a window.

    Args:
        positions: Positions of the tokens of each row, or of all rows alike.
        like: A tensor of the dtype of keys.
    """

    def __init__(self, positions: Int[Tensor, "*b t"], window: int, like: Tensor):
        mask = window_mask(positions, window, like.dtype)
        self.mask = mask if positions.ndim == 1 else mask[:, None]

    def keep(
        self, layer: int, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]
    ) -> tuple[Float[Tensor, "b g t d"], Float[Tensor, "b g t d"], Float[Tensor, "*b t t"]]:
        """Return keys and values as they are, with the mask."""
        return k, v, self.mask


class WindowCache(KeyValueCache):
    """Cache of the keys and values that a later token can attend to.

    The positions of a row must not fall after its prompt. Then a key whose position is below
    (position of the row's newest token - window) is never attended to again, and is dropped, at the
    latest when ROOM more tokens have been generated; keys ahead stay. Memory does not grow with the
    tokens generated, as long as the number that share a window does not.

    Args:
        positions: Positions of the tokens of the prompts.
        lengths: Number of each prompt's real tokens.
        capacity: Tokens of a row, prompt and new together.
    """

    def __init__(
        self,
        num_layers: int,
        positions: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        like: Tensor,
        window: int,
    ):
        t = positions.shape[1]
        slots = min(capacity, t + ROOM)
        super().__init__(num_layers, lengths, slots, num_kv_heads, head_dim, like)
        self.window = window
        self.rows: WholeRows | None = WholeRows(positions, window, like)
        self.newest = positions.gather(1, lengths[:, None] - 1)
        is_real = torch.arange(t, device=positions.device) < lengths[:, None]
        self.positions = F.pad(positions.where(is_real, GONE), (0, slots - t), value=GONE)

    def grow(self, positions: Int[Tensor, " b"] | None = None) -> Int[Tensor, "b 1"]:
        """Make room for one more token per row at these positions, and return them.

        Args:
            positions: None means the position after the newest.

        Raises:
            UsageError: A position is below that of the row's newest token.
        """
        self.rows = None
        new = self.newest + 1 if positions is None else positions[:, None]
        if positions is not None:
            self._check(new)
        if self.used == self.data.shape[-2]:
            self._drop()
        self.positions[:, self.used] = new[:, 0]
        self.used, self.lengths, self.newest = self.used + 1, self.lengths + 1, new
        seen = (self.positions[:, : self.used] - new).abs() <= self.window
        self.visible = hiding(seen[:, None, None], self.data.dtype)
        return new

    def _check(self, new: Int[Tensor, "b 1"]) -> None:
        if torch.compiler.is_compiling() or bool((new >= self.newest).all()):
            return
        row = int((new < self.newest).int().argmax())
        raise usage_error(
            f"position {int(new[row, 0])} after {int(self.newest[row, 0])} in row {row}, with "
            f"window {self.window}",
            "positions that do not fall after the prompt: keys behind the window are dropped",
            "let positions rise or stay, or generate with use_cache=False",
        )

    def _drop(self) -> None:
        """Move the keys that may be seen again to the front, and make room behind them."""
        kept = self.positions >= self.newest - self.window
        # The number is read from the device, which is waited for, once for ROOM tokens.
        count = int(kept.sum(1).max())
        order = kept.int().argsort(dim=1, descending=True, stable=True)[:, :count]
        places = self.positions.where(kept, GONE).gather(1, order)
        self.positions = F.pad(places, (0, ROOM), value=GONE)
        index = order[:, None, :, None].expand(*self.data.shape[:2], -1, self.data.shape[3], -1, -1)
        index = index.expand(*index.shape[:-1], self.data.shape[-1])
        self.data = F.pad(self.data.gather(-2, index), (0, 0, 0, ROOM))
        self.layers = [(layer[0], layer[1]) for layer in self.data]
        self.used = count

    @property
    def mask(self) -> Float[Tensor, "b 1 t s"] | None:
        return self.visible if self.rows is None else self.rows.mask

    def select(self, rows: Int[Tensor, " b"]) -> None:
        super().select(rows)
        self.positions, self.newest = self.positions[rows], self.newest[rows]


def make_cache(
    num_layers: int,
    positions: Int[Tensor, "b t"],
    lengths: Int[Tensor, " b"],
    capacity: int,
    num_kv_heads: int,
    head_dim: int,
    like: Tensor,
    window: int | None,
) -> KeyValueCache:
    """Build the cache of a window, or without one that of all keys."""
    sizes = capacity, num_kv_heads, head_dim, like
    if window is None:
        return KeyValueCache(num_layers, lengths, *sizes)
    return WindowCache(num_layers, positions, lengths, *sizes, window)


def grow(cache: KeyValueCache, positions: Int[Tensor, " b"] | None) -> Int[Tensor, "b 1"]:
    """Make room for one more token per row; return its position, the given one or the next."""
    if isinstance(cache, WindowCache):
        return cache.grow(positions)
    following = cache.grow()
    return following if positions is None else positions[:, None]
