"""Attention by panels of queries, in plain torch operations, on any device and in any dtype.

A panel holds the scores of a few queries against all keys that they may see, for as many heads as
fit the processor's cache; nothing of size t * s exists. Masks and gradient factors are cut to the
panel, or evaluated for it when they are functions. Low precision is computed in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkers.ops.tiles import Keep, Panel, keeps, tile
from thinkers.ops.validation import Pairs

PANEL = 128
"""Queries of a panel, over the heads that share a key head: fewer make the products slow."""
CACHE = 2**19
"""Elements of a panel's scores: of float32, two such buffers take 4 MiB."""


@dataclass(frozen=True)
class Problem:
    """One attention call: who sees whom, and how much."""

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
        """Queries of a panel for each query head."""
        return max(16, PANEL // (self.h // self.g))

    def panels(self) -> Iterator[Panel]:
        """Every panel that sees a key."""
        for start in range(0, self.t, self.rows):
            end = min(self.t, start + self.rows)
            seen = min(self.s, max(0, end + self.s - self.t)) if self.causal else self.s
            if seen:
                yield Panel((self.b, self.h, self.t, self.s), start, end, seen, self.device)

    def chunks(self) -> list[tuple[slice, slice]]:
        """Slices of batch rows and of key heads that are worked on together."""
        width = self.rows * (self.h // self.g) * max(1, self.s)
        pairs = max(1, CACHE // width)
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
    work = _Work(q, k, v, problem)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=work.dtype)
    values, ends = work.split(out), work.split(lse)
    for panel in problem.panels():
        start, end, seen = panel.start, panel.end, panel.seen
        shown = tile(problem.mask, panel, 0, seen)
        later = work.later(start, end, 0, seen)
        for rows, heads in problem.chunks():
            scores = work.scores(rows, heads, start, end, 0, seen, shown)
            if later is not None:
                scores[..., seen - later.shape[1] :].masked_fill_(later, -torch.inf)
            peak = scores.amax(-1, keepdim=True)
            scores.sub_(peak.masked_fill(peak == -torch.inf, 0.0)).exp_()
            total = scores.sum(-1, keepdim=True)
            value = torch.matmul(scores.flatten(2, 3), work.v[rows, heads, :seen])
            value = value.unflatten(2, scores.shape[2:4]) / total.masked_fill(total == 0, 1.0)
            work.put(values, rows, heads, start, end, value)
            work.put(ends, rows, heads, start, end, (peak + total.log())[..., 0])
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    problem: Problem,
    stops: tuple[Pairs, Pairs, Pairs] = (None, None, None),
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of q, k and v, each pair scaled by its own factor for each of the three.

    Args:
        out: The output over all keys of a row, which may be more than `k` holds.
        lse: The log-sum-exp over the same keys.
        stops: For q, k and v: a bool (True stops) or a factor, per pair of query and key.
        needs: Which gradients are wanted; the others are None.
    """
    if not any(needs):
        return None, None, None
    work = _Work(q, k, v, problem)
    dq = torch.zeros_like(q, memory_format=torch.contiguous_format) if needs[0] else None
    dk = torch.zeros(k.shape, dtype=work.dtype, device=k.device) if needs[1] else None
    dv = torch.zeros(v.shape, dtype=work.dtype, device=v.device) if needs[2] else None
    blind = work.split(lse.masked_fill(lse == -torch.inf, torch.inf))
    grad, out = work.split(grad), work.split(out)
    given = None if dq is None else work.split(dq)
    for panel in problem.panels():
        start, end = panel.start, panel.end
        shown = tile(problem.mask, panel, 0, panel.seen)
        (keep_q, keep_k, keep_v), (first, last) = keeps(stops, needs, panel, work.dtype)
        if first >= last:
            continue
        later = work.later(start, end, first, last)
        for rows, heads in problem.chunks():
            p = work.scores(rows, heads, start, end, first, last, shown)
            p.sub_(work.cut(blind, rows, heads, start, end)[..., None]).exp_()
            if later is not None:
                p[..., last - first - later.shape[1] :].masked_fill_(later, 0.0)
            go = work.cut(grad, rows, heads, start, end)
            ds = work.product(1, go, work.v[rows, heads, first:last])
            delta = (go * work.cut(out, rows, heads, start, end)).sum(-1, keepdim=True)
            ds.sub_(delta).mul_(p)
            if dv is not None:
                work.multiply(p, keep_v, rows, heads)
                _add(dv[rows, heads, first:last], p, go, 1.0)
            if given is not None:
                whole = keep_q.factor is None
                kept = ds if whole else work.multiply(p.copy_(ds), keep_q, rows, heads)
                share = torch.matmul(kept.flatten(2, 3), work.k[rows, heads, first:last])
                share.mul_(problem.scale)
                work.put(given, rows, heads, start, end, share.unflatten(2, kept.shape[2:4]))
            if dk is not None:
                work.multiply(ds, keep_k, rows, heads)
                own = work.cut(work.q, rows, heads, start, end)
                _add(dk[rows, heads, first:last], ds, own, problem.scale)
    return dq, None if dk is None else dk.to(k.dtype), None if dv is None else dv.to(v.dtype)


class _Work:
    """The inputs in the dtype that is computed in, and two buffers for panels."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem):
        self.problem = problem
        self.groups = problem.h // problem.g
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        rows, heads = (problem.chunks() or [(slice(0, 0), slice(0, 0))])[0]
        together = rows.stop > 1
        self.q, self.k, self.v = self.split(q), self._ready(k, together), self._ready(v, together)
        pairs = (rows.stop - rows.start) * (heads.stop - heads.start)
        size = pairs * self.groups * min(problem.rows, problem.t) * problem.s
        self.buffers = [torch.empty(size, dtype=self.dtype, device=q.device) for _ in range(2)]

    def _ready(self, x: Tensor, together: bool) -> Tensor:
        """Keys or values of which a chunk can be viewed as one batch of matrices, not copied."""
        x = x.to(self.dtype)
        fits = not together or x.stride(0) == x.shape[1] * x.stride(1)
        return x if fits and x.stride(3) == 1 else x.contiguous()

    def split(self, x: Tensor) -> Tensor:
        """A tensor of query heads with those of a key head side by side: (b, g, groups, t, ..)."""
        return x.unflatten(1, (self.problem.g, self.groups))

    def cut(self, x: Tensor, rows: slice, heads: slice, start: int, end: int) -> Tensor:
        """A panel of a tensor that was split: (b, g, groups, rows, ..)."""
        return x[rows, heads, :, start:end].to(self.dtype)

    def put(self, x: Tensor, rows: slice, heads: slice, start: int, end: int, y: Tensor) -> None:
        """Write a panel into a tensor that was split."""
        x[rows, heads, :, start:end] = y

    def product(self, buffer: int, x: Tensor, keys: Tensor) -> Tensor:
        """x @ keys^T in a buffer: (b, g, groups, rows, keys)."""
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
        shown: Tensor | None,
    ) -> Tensor:
        """Scaled and masked scores of a panel, later keys not yet hidden."""
        panel = self.cut(self.q, rows, heads, start, end) * self.problem.scale
        scores = self.product(0, panel, self.k[rows, heads, first:last])
        if shown is None:
            return scores
        cut = _heads(shown, self.problem, rows, heads)
        cut = cut if cut.shape[4] == 1 else cut[..., first:last]
        if cut.dtype == torch.bool:
            return scores.masked_fill_(~cut, -torch.inf)
        return scores.add_(cut)

    def later(self, start: int, end: int, first: int, last: int) -> Tensor | None:
        """Which of the last keys causality hides, (rows, keys), or None where it hides none."""
        offset = start + self.problem.s - self.problem.t
        edge = max(first, offset + 1)
        if not self.problem.causal or edge >= last:
            return None
        shape = (end - start, last - edge)
        ones = torch.ones(shape, dtype=torch.bool, device=self.problem.device)
        return ones.triu_(offset + 1 - edge)

    def multiply(self, x: Tensor, keep: Keep, rows: slice, heads: slice) -> Tensor:
        """`x` after its multiplication by gradient factors, in place."""
        if keep.factor is not None:
            factor = _heads(keep.factor, self.problem, rows, heads)
            x[..., keep.start : keep.end].mul_(factor)
        return x


def _heads(x: Tensor, problem: Problem, rows: slice, heads: slice) -> Tensor:
    """A tile for some batch rows and key heads, with the axes (b, g, groups, rows, keys)."""
    groups = problem.h // problem.g
    x = x.unflatten(1, (1, 1) if x.shape[1] == 1 else (problem.g, groups))
    x = x if x.shape[0] == 1 else x[rows]
    return x if x.shape[1] == 1 else x[:, heads]


def _add(total: Tensor, weights: Tensor, x: Tensor, factor: float) -> None:
    """total += factor * weights^T @ x, over the rows of all heads that share a key head."""
    b, g, s, d = total.shape
    w, x = (y.reshape(b * g, -1, y.shape[4]) for y in (weights, x))
    total.view(b * g, s, d).baddbmm_(w.mT, x, alpha=factor)
