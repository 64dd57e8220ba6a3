"""Triton kernels of stop-gradient attention: a flash forward, and a flash backward with factors.

The scheme of the kernels is FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691). A map of
tile states records for every tile of pairs whether a bool stop is True nowhere, somewhere or
everywhere in it: a table is read only where the answer is "somewhere", and tiles that are stopped
everywhere are skipped. Stops that are functions are evaluated for a block of queries at a time.

Names in the kernels: M and N are the queries and keys of a tile, D the head dim and DIM the next
power of two; T, S, H, G the queries, keys, query heads and key heads; x_b, x_h, x_t, x_s strides.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from thinkers.ops.tiles import QueryBlock, tile
from thinkers.ops.validation import PairValues

BLOCK_QUERIES = 2048
"""Queries for which stops that are functions are evaluated at once: their tables have (b, h,
BLOCK_QUERIES, s) elements at most."""
LOG2E = tl.constexpr(1.4426950408889634)
"""exp(x) = exp2(x * LOG2E): the GPU has an instruction for exp2 alone."""


@triton.jit
def _load(base, rows, columns, number, D: tl.constexpr):
    inside = (rows[:, None] < number) & (columns[None, :] < D)
    return tl.load(base + rows[:, None] * D + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _scores(
    q, k, rows, columns, T, S, scale, mask, m_t, m_s,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    scores = tl.dot(q, tl.trans(k), input_precision=EXACT) * scale
    visible = (rows[:, None] < T) & (columns[None, :] < S)
    if MASK > 0:
        place = rows[:, None].to(tl.int64) * m_t + columns[None, :] * m_s
        value = tl.load(mask + place, mask=visible, other=0)
        if MASK == 1:
            visible = visible & (value != 0)
        else:
            scores += value.to(tl.float32)
    if CAUSAL:
        visible = visible & (columns[None, :] <= rows[:, None] + (S - T))
    return tl.where(visible, scores, -float("inf"))


@triton.jit
def _forward(
    q, k, v, out, lse, mask, m_b, m_h, m_t, m_s, H, G, T, S, scale,
    D: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    # 64 bits: tables of several heads may have more elements than 32 bits can count.
    b, h = head // H, (head % H).to(tl.int64)
    key_offset = (b * G + h // (H // G)).to(tl.int64) * S * D
    start = tl.program_id(0) * M
    rows, dims = start + tl.arange(0, M), tl.arange(0, DIM)
    mask += b.to(tl.int64) * m_b + h * m_h
    x = _load(q + head.to(tl.int64) * T * D, rows, dims, T, D)
    row_max = tl.full((M,), -float("inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    value = tl.zeros((M, DIM), tl.float32)
    # Keys from `last` on are in the future of every row: queries are aligned bottom-right.
    last = S
    if CAUSAL:
        last = tl.maximum(0, tl.minimum(S, start + M + S - T))
    for first in range(0, last, N):
        columns = first + tl.arange(0, N)
        y = _load(k + key_offset, columns, dims, S, D)
        scores = _scores(x, y, rows, columns, T, S, scale, mask, m_t, m_s, MASK, CAUSAL, EXACT)
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        # A row that has seen no key yet: -inf - -inf would be nan.
        safe = tl.where(new_max == -float("inf"), 0.0, new_max)
        p = tl.exp2((scores - safe[:, None]) * LOG2E)
        rescale = tl.exp2((row_max - safe) * LOG2E)
        total = total * rescale + tl.sum(p, 1)
        z = _load(v + key_offset, columns, dims, S, D)
        value = value * rescale[:, None]
        value += tl.dot(p.to(z.dtype), z, input_precision=EXACT)
        row_max = new_max
    nonempty = total > 0
    value = value / tl.where(nonempty, total, 1.0)[:, None]
    end = tl.where(nonempty, row_max + tl.log(tl.where(nonempty, total, 1.0)), -float("inf"))
    inside = (rows[:, None] < T) & (dims[None, :] < D)
    pointers = out + head.to(tl.int64) * T * D + rows[:, None] * D + dims[None, :]
    tl.store(pointers, value.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + head.to(tl.int64) * T + rows, end, mask=rows < T)


@triton.jit
def _state(states, tile_row, tile_column, s_t, s_s, KIND: tl.constexpr):
    # State of a tile: 0 no factor in it, 1 read the table, 2 everything is stopped.
    if KIND == 0:
        return 0
    if KIND == 2:
        return 1
    return tl.load(states + tile_row * s_t + tile_column * s_s).to(tl.int32)


@triton.jit
def _factor(x, state, table, rows, columns, R, S, t_t, t_s, KIND: tl.constexpr):
    if KIND == 0:
        return x
    if state == 1:
        inside = (rows[:, None] < R) & (columns[None, :] < S)
        pointers = rows[:, None].to(tl.int64) * t_t + columns[None, :] * t_s
        value = tl.load(table + pointers, mask=inside, other=0)
        if KIND == 1:
            x = tl.where(value != 0, 0.0, x)
        else:
            x = x * value.to(tl.float32)
    elif state == 2:
        x = x * 0.0
    return x


@triton.jit
def _backward_q(
    q, k, v, grad, lse, delta, dq, mask, m_b, m_h, m_t, m_s,
    table, t_b, t_h, t_t, t_s, states, s_b, s_h, s_t, s_s, H, G, T, S, START, END, scale,
    D: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, EXACT: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    # 64 bits: tables of several heads may have more elements than 32 bits can count.
    b, h = head // H, (head % H).to(tl.int64)
    key_offset = (b * G + h // (H // G)).to(tl.int64) * S * D
    row_offset = head.to(tl.int64) * T
    block = tl.program_id(0)
    start = START + block * M
    rows, dims = start + tl.arange(0, M), tl.arange(0, DIM)
    mask += b.to(tl.int64) * m_b + h * m_h
    table += b.to(tl.int64) * t_b + h * t_h
    states += b * s_b + h * s_h
    x = _load(q + row_offset * D, rows, dims, END, D)
    grad_out = _load(grad + row_offset * D, rows, dims, END, D)
    row_lse = tl.load(lse + row_offset + rows, mask=rows < END, other=float("inf"))
    row_delta = tl.load(delta + row_offset + rows, mask=rows < END, other=0.0)
    total = tl.zeros((M, DIM), tl.float32)
    # Keys from `last` on are in the future of every row: queries are aligned bottom-right.
    last = S
    if CAUSAL:
        last = tl.maximum(0, tl.minimum(S, start + M + S - T))
    for first in range(0, last, N):
        state = _state(states, block, first // N, s_t, s_s, KIND)
        if state != 2:
            columns = first + tl.arange(0, N)
            y = _load(k + key_offset, columns, dims, S, D)
            z = _load(v + key_offset, columns, dims, S, D)
            scores = _scores(x, y, rows, columns, END, S, scale, mask, m_t, m_s, MASK, False, EXACT)
            if CAUSAL:
                future = columns[None, :] > rows[:, None] + (S - T)
                scores = tl.where(future, -float("inf"), scores)
            p = tl.exp2((scores - row_lse[:, None]) * LOG2E)
            ds = p * (tl.dot(grad_out, tl.trans(z), input_precision=EXACT) - row_delta[:, None])
            ds = _factor(ds, state, table, rows - START, columns, END - START, S, t_t, t_s, KIND)
            total += tl.dot(ds.to(y.dtype), y, input_precision=EXACT)
    inside = (rows[:, None] < END) & (dims[None, :] < D)
    pointers = dq + row_offset * D + rows[:, None] * D + dims[None, :]
    tl.store(pointers, (total * scale).to(dq.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kv(
    q, k, v, grad, lse, delta, dk, dv, mask, m_b, m_h, m_t, m_s,
    table_k, k_b, k_h, k_t, k_s, states_k, l_b, l_h, l_t, l_s,
    table_v, v_b, v_h, v_t, v_s, states_v, w_b, w_h, w_t, w_s, H, G, T, S, START, END, scale,
    D: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, EXACT: tl.constexpr,
    KIND_K: tl.constexpr, KIND_V: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    b, g = head // G, (head % G).to(tl.int64)
    key_offset = head.to(tl.int64) * S * D
    block = tl.program_id(0)
    columns, dims = block * N + tl.arange(0, N), tl.arange(0, DIM)
    y = _load(k + key_offset, columns, dims, S, D)
    z = _load(v + key_offset, columns, dims, S, D)
    total_k, total_v = tl.zeros((N, DIM), tl.float32), tl.zeros((N, DIM), tl.float32)
    begin = START
    if CAUSAL:
        begin = START + tl.maximum(0, block * N - (S - T) - START) // M * M
    for h in range(g * (H // G), (g + 1) * (H // G)):
        row_offset = (b * H + h).to(tl.int64) * T
        wide = b.to(tl.int64)
        for start in range(begin, END, M):
            of_k = _state(
                states_k + b * l_b + h * l_h, (start - START) // M, block, l_t, l_s, KIND_K
            )
            of_v = _state(
                states_v + b * w_b + h * w_h, (start - START) // M, block, w_t, w_s, KIND_V
            )
            if (of_k != 2) | (of_v != 2):
                rows = start + tl.arange(0, M)
                x = _load(q + row_offset * D, rows, dims, END, D)
                grad_out = _load(grad + row_offset * D, rows, dims, END, D)
                row_lse = tl.load(lse + row_offset + rows, mask=rows < END, other=float("inf"))
                row_delta = tl.load(delta + row_offset + rows, mask=rows < END, other=0.0)
                scores = _scores(
                    x, y, rows, columns, END, S, scale, mask + wide * m_b + h * m_h, m_t, m_s,
                    MASK, False, EXACT,
                )  # fmt: skip
                if CAUSAL:
                    future = columns[None, :] > rows[:, None] + (S - T)
                    scores = tl.where(future, -float("inf"), scores)
                p = tl.exp2((scores - row_lse[:, None]) * LOG2E)
                ds = p * (tl.dot(grad_out, tl.trans(z), input_precision=EXACT) - row_delta[:, None])
                p = _factor(
                    p, of_v, table_v + wide * v_b + h * v_h, rows - START, columns,
                    END - START, S, v_t, v_s, KIND_V,
                )  # fmt: skip
                ds = _factor(
                    ds, of_k, table_k + wide * k_b + h * k_h, rows - START, columns,
                    END - START, S, k_t, k_s, KIND_K,
                )  # fmt: skip
                total_v += tl.dot(tl.trans(p).to(grad_out.dtype), grad_out, input_precision=EXACT)
                total_k += tl.dot(tl.trans(ds).to(x.dtype), x, input_precision=EXACT)
    # Blocks of queries come one after the other, each in a launch of its own: add to their sums.
    inside = (columns[:, None] < S) & (dims[None, :] < D)
    pointers = key_offset + columns[:, None] * D + dims[None, :]
    tl.store(dk + pointers, tl.load(dk + pointers, mask=inside) + total_k * scale, mask=inside)
    tl.store(dv + pointers, tl.load(dv + pointers, mask=inside) + total_v, mask=inside)


@dataclass(frozen=True)
class _Table:
    """Pair values as a kernel reads them."""

    kind: int
    """0: absent, 1: bool, 2: a factor, or an addend where it is a mask."""
    value: Tensor
    states: Tensor
    """See `_tile_states`; a single 1 where `kind` is not 1."""

    @property
    def arguments(self) -> tuple[Tensor, int, int, int, int]:
        return (self.value, *_strides(self.value))

    @property
    def all_arguments(self) -> tuple[Tensor | int, ...]:
        return (*self.arguments, self.states, *_strides(self.states))


def forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (b, h, t, d) and log-sum-exp (b, h, t); a row that sees nothing gives 0 and -inf."""
    (b, h, t, _), (_, g, s, _) = q.shape, k.shape
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full((b, h, t), -torch.inf, dtype=torch.float32)
    if 0 in (b, t, s):
        return out, lse
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    settings = _settings(q)
    mask_table = _table(mask, QueryBlock((b, h, t, s), 0, t, s, q.device), settings)
    _forward[(triton.cdiv(t, settings["M"]), b * h)](
        *(q, k, v, out, lse, *mask_table.arguments, h, g, t, s, scale),
        MASK=mask_table.kind, CAUSAL=causal, **settings,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    mask: Tensor | None,
    scale: float,
    stops: tuple[PairValues, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of q, k and v; `out` and `lse` may be those of more keys than `k` holds."""
    (b, h, t, _), (_, g, s, _) = q.shape, k.shape
    dq = torch.zeros_like(q, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=q.device) for x in (k, v))
    if 0 in (b, t, s):
        return dq, dk.to(k.dtype), dv.to(v.dtype)
    delta = (grad.float() * out).sum(-1).contiguous()
    lse = lse.masked_fill(lse == -torch.inf, torch.inf).contiguous()
    inputs = (*(x.contiguous() for x in (q, k, v, grad)), lse, delta)
    settings = _settings(q)
    # Tables are there already: one block of all queries. Functions: block by block.
    size = BLOCK_QUERIES if any(callable(x) and not isinstance(x, Tensor) for x in stops) else t
    mask_table = _table(mask, QueryBlock((b, h, t, s), 0, t, s, q.device), settings)
    for start in range(0, t, size):
        end = min(t, start + size)
        here = QueryBlock((b, h, t, s), start, end, s, q.device)
        found = {id(x): _table(x, here, settings) for x in stops}
        of_q, of_k, of_v = (found[id(x)] for x in stops)
        sizes = (h, g, t, s, start, end, scale)
        if needs[0]:
            _backward_q[(triton.cdiv(end - start, settings["M"]), b * h)](
                *(*inputs, dq, *mask_table.arguments, *of_q.all_arguments, *sizes),
                MASK=mask_table.kind, CAUSAL=causal, KIND=of_q.kind, **settings,
            )  # fmt: skip
        if needs[1] or needs[2]:
            _backward_kv[(triton.cdiv(s, settings["N"]), b * g)](
                *(*inputs, dk, dv, *mask_table.arguments),
                *(*of_k.all_arguments, *of_v.all_arguments, *sizes),
                MASK=mask_table.kind, CAUSAL=causal, KIND_K=of_k.kind, KIND_V=of_v.kind, **settings,
            )  # fmt: skip
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _settings(q: Tensor) -> dict:
    d = q.shape[3]
    dim = max(16, triton.next_power_of_2(d))
    small = dim > 128 or q.dtype == torch.float32
    return {
        "D": d,
        "DIM": dim,
        "M": 32 if small else 64,
        "N": 32 if small else 64,
        "EXACT": "ieee" if q.dtype == torch.float32 else "tf32",
        "num_warps": 4,
        "num_stages": 2,
    }


def _table(values: PairValues, block: QueryBlock, settings: dict) -> _Table:
    value = tile(values, block, 0, block.num_keys)
    one = torch.ones((1, 1, 1, 1), dtype=torch.int8, device=block.device)
    if value is None:
        return _Table(0, one, one)
    if value.dtype != torch.bool:
        return _Table(2, value.float(), one)
    return _Table(1, value.to(torch.int8), _tile_states(value, settings["M"], settings["N"]))


def _tile_states(stop: Tensor, rows: int, columns: int) -> Tensor:
    """State of each tile of rows x columns pairs: 0 no pair is stopped, 1 some, 2 all."""
    b, h, t, s = stop.shape
    rows, columns = (1 if t == 1 else rows), (1 if s == 1 else columns)
    pad = (0, math.ceil(s / columns) * columns - s, 0, math.ceil(t / rows) * rows - t)
    # Both tensors are padded with False: pairs outside count neither as stopped nor as free.
    tiles = [
        torch.nn.functional.pad(x, pad).unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
        for x in (stop, ~stop)
    ]
    some, free = (x.any(dim=(3, 5)) for x in tiles)
    return some.to(torch.int8) + (some & ~free).to(torch.int8)


def _strides(x: Tensor) -> tuple[int, int, int, int]:
    """Strides in elements, 0 along axes of size 1, so that indexing broadcasts them."""
    first, second, third, fourth = (
        0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)
    )
    return first, second, third, fourth
