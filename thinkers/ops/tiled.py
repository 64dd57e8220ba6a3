"""The block backend: attention by blocks of queries, in plain torch, on any device, in any dtype.

Only the scores of a few queries against their visible keys exist at a time, for as many heads as
fit the processor's cache; no tensor has t * s elements. Masks and gradient factors are sliced to
the block, or evaluated for it where they are functions. Low precision is computed in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkers.ops.tiles import FactorTile, QueryBlock, factor_tiles, tile
from thinkers.ops.validation import PairValues

BLOCK_QUERIES = 128
"""Queries of a block, counted over the query heads that share a key head. They are the rows of its
matrix products, which get slow with fewer."""
BUFFER_ELEMENTS = 2**19
"""Elements of a buffer of scores, to stay in the cache: two buffers of float32 take 4 MiB. This
bounds the batch rows and heads that are computed together."""


@dataclass(frozen=True)
class Problem:
    """Sizes, visible pairs and scale of one attention call."""

    b: int
    h: int
    g: int
    t: int
    s: int
    causal: bool
    mask: Tensor | None
    scale: float
    device: torch.device

    @property
    def rows(self) -> int:
        """Queries of a block for each query head."""
        return max(16, BLOCK_QUERIES // (self.h // self.g))

    def blocks(self) -> Iterator[QueryBlock]:
        """Every block of queries that sees at least one key."""
        for start in range(0, self.t, self.rows):
            end = min(self.t, start + self.rows)
            # Bottom-right alignment: the last query of the block, end - 1, sees keys up to
            # end - 1 + s - t. With t > s the first t - s queries see none.
            num_keys = min(self.s, max(0, end + self.s - self.t)) if self.causal else self.s
            if num_keys:
                shape = (self.b, self.h, self.t, self.s)
                yield QueryBlock(shape, start, end, num_keys, self.device)

    def chunks(self) -> list[tuple[slice, slice]]:
        """Slices of batch rows and of key heads that are computed together."""
        # Key heads, not query heads, are the unit: queries that share keys are rows of one product.
        width = self.rows * (self.h // self.g) * max(1, self.s)
        pairs = max(1, BUFFER_ELEMENTS // width)
        if pairs < self.g:
            return [
                (slice(row, row + 1), slice(head, min(self.g, head + pairs)))
                for row in range(self.b)
                for head in range(0, self.g, pairs)
            ]
        step = pairs // self.g
        return [
            (slice(row, min(self.b, row + step)), slice(0, self.g))
            for row in range(0, self.b, step)
        ]


def forward(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (b, h, t, d) and log-sum-exp (b, h, t); a row that sees nothing gives 0 and -inf."""
    work = _Workspace(q, k, v, problem)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=work.dtype)
    grouped_out, grouped_lse = work.group_heads(out), work.group_heads(lse)
    for block in problem.blocks():
        start, end, last = block.start, block.end, block.num_keys
        mask = tile(problem.mask, block, 0, last)
        future = work.future_keys(start, end, 0, last)
        for rows, heads in problem.chunks():
            scores = work.scores(rows, heads, start, end, 0, last, mask)
            if future is not None:
                scores[..., last - future.shape[1] :].masked_fill_(future, -torch.inf)
            peak = scores.amax(-1, keepdim=True)
            # An empty row has peak -inf, and -inf - -inf is nan: subtract 0 there, divide by 1
            # below. Its weights are exp(-inf) = 0, its output 0, its log-sum-exp -inf + log(0).
            scores.sub_(peak.masked_fill(peak == -torch.inf, 0.0)).exp_()
            total = scores.sum(-1, keepdim=True)
            value = torch.matmul(scores.flatten(2, 3), work.v[rows, heads, :last])
            value = value.unflatten(2, scores.shape[2:4]) / total.masked_fill(total == 0, 1.0)
            work.store(grouped_out, rows, heads, start, end, value)
            work.store(grouped_lse, rows, heads, start, end, (peak + total.log())[..., 0])
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    problem: Problem,
    stops: tuple[PairValues, PairValues, PairValues] = (None, None, None),
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of q, k and v, each pair scaled by its own factor for each of the three.

    Args:
        out: Output over all keys of a row, which may be more than `k` holds.
        lse: Log-sum-exp over the same keys.
        stops: For q, k and v: a bool (True stops) or a factor, per pair of query and key.
        needs: For q, k and v: False gives None instead of the gradient.
    """
    if not any(needs):
        return None, None, None
    work = _Workspace(q, k, v, problem)
    dq = torch.zeros_like(q, memory_format=torch.contiguous_format) if needs[0] else None
    # dk and dv sum over blocks, in float32 at least; a row of dq is finished within its block.
    dk = torch.zeros(k.shape, dtype=work.dtype, device=k.device) if needs[1] else None
    dv = torch.zeros(v.shape, dtype=work.dtype, device=v.device) if needs[2] else None
    # +inf for rows that see nothing: exp(score - inf) = 0, and so are all their gradients.
    safe_lse = work.group_heads(lse.masked_fill(lse == -torch.inf, torch.inf))
    grad, out = work.group_heads(grad), work.group_heads(out)
    grouped_dq = None if dq is None else work.group_heads(dq)
    for block in problem.blocks():
        start, end = block.start, block.end
        mask = tile(problem.mask, block, 0, block.num_keys)
        factors, (first, last) = factor_tiles(stops, needs, block, work.dtype)
        if first >= last:
            continue
        future = work.future_keys(start, end, first, last)
        for rows, heads in problem.chunks():
            p = work.scores(rows, heads, start, end, first, last, mask)
            _weights_from_lse_(p, work.load(safe_lse, rows, heads, start, end), future)
            go = work.load(grad, rows, heads, start, end)
            ds = work.products(1, go, work.v[rows, heads, first:last])
            delta = (go * work.load(out, rows, heads, start, end)).sum(-1, keepdim=True)
            ds.sub_(delta).mul_(p)
            # Two buffers serve three gradients, in this order: dv is the last reader of p, whose
            # buffer then takes the scaled copy of ds for dq; dk comes last and scales ds in place.
            if dv is not None:
                work.apply_factor_(p, factors[2], rows, heads)
                _add_product_(dv[rows, heads, first:last], p, go, 1.0)
            if grouped_dq is not None:
                unscaled = factors[0].factor is None
                ds_q = ds if unscaled else work.apply_factor_(p.copy_(ds), factors[0], rows, heads)
                block_dq = torch.matmul(ds_q.flatten(2, 3), work.k[rows, heads, first:last])
                block_dq = block_dq.mul_(problem.scale).unflatten(2, ds_q.shape[2:4])
                work.store(grouped_dq, rows, heads, start, end, block_dq)
            if dk is not None:
                work.apply_factor_(ds, factors[1], rows, heads)
                block_q = work.load(work.q, rows, heads, start, end)
                _add_product_(dk[rows, heads, first:last], ds, block_q, problem.scale)
    return dq, None if dk is None else dk.to(k.dtype), None if dv is None else dv.to(v.dtype)


def _weights_from_lse_(scores: Tensor, lse: Tensor, future: Tensor | None) -> None:
    """Turn the scores of a block into attention weights in place, by their log-sum-exp.

    Args:
        future: True at the last keys of the block that a query may not see; None if there are none.
    """
    scores.sub_(lse[..., None]).exp_()
    # After exp, as 0: the row's log-sum-exp does not count these keys, so that their exp may
    # overflow, which masked_fill_ overwrites.
    if future is not None:
        scores[..., scores.shape[-1] - future.shape[1] :].masked_fill_(future, 0.0)


class _Workspace:
    """Inputs in the dtype of the computation, and two buffers for the scores of a block.

    The buffers are reused by all blocks: nothing may be read from them before it is written.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem):
        self.problem = problem
        self.groups = problem.h // problem.g
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        rows, heads = (problem.chunks() or [(slice(0, 0), slice(0, 0))])[0]
        several_rows = rows.stop > 1
        self.q = self.group_heads(q)
        self.k, self.v = (self._batched(x, several_rows) for x in (k, v))
        pairs = (rows.stop - rows.start) * (heads.stop - heads.start)
        size = pairs * self.groups * min(problem.rows, problem.t) * problem.s
        self.buffers = [torch.empty(size, dtype=self.dtype, device=q.device) for _ in range(2)]

    def _batched(self, x: Tensor, several_rows: bool) -> Tensor:
        """Keys or values of which a chunk can be viewed as one batch of matrices, not copied."""
        x = x.to(self.dtype)
        fits = not several_rows or x.stride(0) == x.shape[1] * x.stride(1)
        return x if fits and x.stride(3) == 1 else x.contiguous()

    def group_heads(self, x: Tensor) -> Tensor:
        """View (b, h, t, ..) as (b, g, groups, t, ..): query heads by the key head they read."""
        return x.unflatten(1, (self.problem.g, self.groups))

    def load(self, x: Tensor, rows: slice, heads: slice, start: int, end: int) -> Tensor:
        """A block (b, g, groups, rows, ..) of a grouped tensor, in the computation's dtype."""
        return x[rows, heads, :, start:end].to(self.dtype)

    def store(self, x: Tensor, rows: slice, heads: slice, start: int, end: int, y: Tensor) -> None:
        """Write a block into a grouped tensor."""
        x[rows, heads, :, start:end] = y

    def products(self, buffer: int, x: Tensor, keys: Tensor) -> Tensor:
        """Write x @ keys^T into a buffer: (b, g, groups, rows, keys)."""
        b, g, groups, rows, d = x.shape
        s = keys.shape[2]
        out = self.buffers[buffer][: b * g * groups * rows * s].view(b * g, groups * rows, s)
        left, right = x.reshape(b * g, groups * rows, d), keys.reshape(b * g, s, d).mT
        torch.bmm(left, right, out=out)
        return out.view(b, g, groups, rows, s)

    def scores(
        self,
        rows: slice,
        heads: slice,
        start: int,
        end: int,
        first: int,
        last: int,
        mask: Tensor | None,
    ) -> Tensor:
        """Scaled and masked scores of a block; keys in the future are not yet hidden."""
        # Scaling q instead of the scores costs rows * d products, not rows * keys.
        scaled = self.load(self.q, rows, heads, start, end) * self.problem.scale
        scores = self.products(0, scaled, self.k[rows, heads, first:last])
        if mask is None:
            return scores
        chunk = _chunk_of(mask, self.problem, rows, heads)
        chunk = chunk if chunk.shape[4] == 1 else chunk[..., first:last]
        if chunk.dtype == torch.bool:
            return scores.masked_fill_(~chunk, -torch.inf)
        return scores.add_(chunk)

    def future_keys(self, start: int, end: int, first: int, last: int) -> Tensor | None:
        """True where causality hides one of the last keys, (rows, keys); None if it hides none.

        Only the keys from the first hidden one on are covered, a triangle at the right edge.
        """
        # The last key that the first query of the block sees: bottom-right alignment.
        offset = start + self.problem.s - self.problem.t
        edge = max(first, offset + 1)
        if not self.problem.causal or edge >= last:
            return None
        shape = (end - start, last - edge)
        ones = torch.ones(shape, dtype=torch.bool, device=self.problem.device)
        return ones.triu_(offset + 1 - edge)

    def apply_factor_(self, x: Tensor, factors: FactorTile, rows: slice, heads: slice) -> Tensor:
        """Multiply `x` by gradient factors in place, and return it."""
        if factors.factor is not None:
            factor = _chunk_of(factors.factor, self.problem, rows, heads)
            x[..., factors.start : factors.end].mul_(factor)
        return x


def _chunk_of(x: Tensor, problem: Problem, rows: slice, heads: slice) -> Tensor:
    """A tile for some batch rows and key heads, with the axes (b, g, groups, rows, keys)."""
    groups = problem.h // problem.g
    x = x.unflatten(1, (1, 1) if x.shape[1] == 1 else (problem.g, groups))
    x = x if x.shape[0] == 1 else x[rows]
    return x if x.shape[1] == 1 else x[:, heads]


def _add_product_(total: Tensor, weights: Tensor, x: Tensor, factor: float) -> None:
    """Add factor * weights^T @ x to `total`, over the rows of all heads that share a key head."""
    b, g, s, d = total.shape
    w, x = (y.reshape(b * g, -1, y.shape[4]) for y in (weights, x))
    total.view(b * g, s, d).baddbmm_(w.mT, x, alpha=factor)
