"""Attention of one reading element per position over base elements and its own train of thought.

A base element never sees a thought, so its keys and values are the same at every thinking step.
One step is causal attention of t queries over s base keys, merged by log-sum-exp with attention
over the n thoughts of the query's own position.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thinkers.ops import dense, stop_grad
from thinkers.ops.autograd import eager, lowered, no_autocast, one_derivative
from thinkers.ops.stop_grad import Call, Way
from thinkers.ops.validation import check_backend, check_thought

BACKENDS = ("auto", "dense", "fused", "block", "triton")
NAME = "thought_attention"


@eager("thought_attention chooses panels and parts of keys in Python")
def thought_attention(
    q: Float[Tensor, "b h t d"],
    base_k: Float[Tensor, "b g s d"],
    base_v: Float[Tensor, "b g s d"],
    chain_k: Float[Tensor, "b g t n d"],
    chain_v: Float[Tensor, "b g t n d"],
    *,
    causal: bool = True,
    key_padding: Bool[Tensor, "b s"] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b h t d"]:
    """Attention of one reading element per position over base elements and trains of thought.

    The mask of ThoughtsFormer, https://github.com/EmmettBicker/ThoughtsFormer. The gradient has no
    derivative of its own. A model that takes many steps keeps its thoughts in a `Chain`.

    Args:
        q: The reading elements; query i belongs to base element i + s - t.
        base_k: Keys of the base elements, those of the reading positions included. `g` divides `h`.
        base_v: Values of the base elements.
        chain_k: Keys of the n thoughts of every reading position; n may be 0.
        chain_v: Values of the thoughts.
        causal: A query sees bases up to its own and its own thoughts; otherwise all of both.
        key_padding: True where a position is hidden from everyone, its thoughts included.
        scale: Factor on the scores. Default: `d ** -0.5`.
        backend: "auto", or the way to take: "fused", "block", "triton" or "dense".

    Raises:
        ValueError: if an argument does not fit, or the named backend cannot do this call.
    """
    check_backend(backend, BACKENDS)
    q, base_k, base_v, chain_k, chain_v = lowered(q, base_k, base_v, chain_k, chain_v)
    check_thought(q, base_k, base_v, chain_k, chain_v, causal, key_padding, scale)
    way = choose(q, backend)
    if way.name == "dense":
        return dense.thought_attention(
            *(q, base_k, base_v, chain_k, chain_v),
            causal=causal,
            key_padding=key_padding,
            scale=scale,
        )
    reading = Reading(causal, q.shape[-1] ** -0.5 if scale is None else float(scale), way.name)
    if causal:
        return _Thought.apply(q, base_k, base_v, chain_k, chain_v, key_padding, reading)
    hidden = key_padding
    if hidden is not None:
        trains = hidden[:, hidden.shape[1] - q.shape[2] :, None]
        trains = trains.expand(-1, -1, chain_k.shape[3]).flatten(1)
        hidden = torch.cat([hidden, trains], 1)
    k = torch.cat([base_k, chain_k.flatten(2, 3)], 2)
    v = torch.cat([base_v, chain_v.flatten(2, 3)], 2)
    return stop_grad.run(q, k, v, reading.call(hidden))


def choose(q: Tensor, backend: str = "auto") -> Way:
    """The way a call takes: by dtype and device."""
    if backend == "dense":
        return Way("dense", "it was asked for")
    if backend == "triton" or (backend == "auto" and q.device.type == "cuda"):
        lack = stop_grad.triton_lacks(q)
        if lack is None:
            return Way("triton", f"the tensors are on {q.device}")
        if backend == "triton":
            raise ValueError(f"backend must not be 'triton' here: {lack}, got {q.device}")
    if backend == "fused" and q.device.type != "cpu":
        raise ValueError(f"backend must not be 'fused' off the CPU, got device {q.device}")
    wide = q.dtype in (torch.float32, torch.float64)
    if backend == "fused" or (backend == "auto" and wide and q.device.type == "cpu"):
        return Way("fused", "base keys through the fused kernels")
    first = "the fused kernel" if q.device.type == "cpu" else "panels"
    return Way("block", f"base keys forward by {first}, backward by panels of queries")


@dataclass(frozen=True)
class Reading:
    """How one step reads: what its backward pass has to repeat."""

    causal: bool
    scale: float
    way: str

    def call(self, hidden: Tensor | None) -> Call:
        """The same reading of plain keys."""
        mask = None if hidden is None else ~hidden[:, None, None, :]
        way = "sdpa" if self.way == "fused" else self.way
        return Call(NAME, way, self.causal, self.scale, (mask, None, None, None))


class _Thought(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        base_k: Tensor,
        base_v: Tensor,
        chain_k: Tensor,
        chain_v: Tensor,
        hidden: Tensor | None,
        reading: Reading,
    ) -> Tensor:
        with no_autocast(q):
            out, lse = read(q, base_k, base_v, chain_k, chain_v, hidden, reading)
        ctx.save_for_backward(q, base_k, base_v, chain_k, chain_v, hidden, out, lse)
        ctx.reading = reading
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, base_k, base_v, chain_k, chain_v, hidden, out, lse = ctx.saved_tensors
        (grad,) = grads
        with torch.no_grad(), no_autocast(q):
            into_k, into_v = (
                torch.zeros(chain_k.shape, dtype=lse.dtype, device=q.device) for _ in "kv"
            )
            tensors = (q, base_k, base_v, chain_k, chain_v, out, lse, hidden)
            needs = ctx.needs_input_grad
            base = read_back(grad, *tensors, ctx.reading, needs, (into_k, into_v))
        found = (*base, into_k.to(q.dtype), into_v.to(q.dtype))
        sources = (grad, q, base_k, base_v, chain_k, chain_v)
        return (*one_derivative(NAME, found, sources), None, None)


def read(
    q: Tensor,
    base_k: Tensor,
    base_v: Tensor,
    chain_k: Tensor,
    chain_v: Tensor,
    hidden: Tensor | None,
    reading: Reading,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over base elements and the own train together."""
    out, lse = stop_grad.attend(q, base_k, base_v, reading.call(hidden))
    if chain_k.shape[3] == 0:
        return out, lse
    if reading.way == "triton":
        return _kernels().merge(q, chain_k, chain_v, out, lse, hidden, reading.scale)
    scores = _chain_scores(q, chain_k, hidden, reading.scale)
    own = scores.logsumexp(-1)
    both = torch.logaddexp(lse, own)
    base = both.masked_fill(both == -torch.inf, torch.inf)
    value = _weighted(scores.sub_(base[..., None]).exp_(), chain_v)
    return value.addcmul_(out.to(value.dtype), (lse - base).exp()[..., None]).to(q.dtype), both


def _chain_scores(q: Tensor, chain_k: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """Scaled scores of every query with its own thoughts, (b, h, t, n), in the wide dtype."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = _products(q.to(wide), chain_k.to(wide)).mul_(scale)
    if hidden is None:
        return scores
    return scores.masked_fill_(hidden[:, None, hidden.shape[1] - q.shape[2] :, None], -torch.inf)


def read_back(
    grad: Tensor,
    q: Tensor,
    base_k: Tensor,
    base_v: Tensor,
    chain_k: Tensor,
    chain_v: Tensor,
    out: Tensor,
    lse: Tensor,
    hidden: Tensor | None,
    reading: Reading,
    needs: tuple[bool, ...],
    into: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of q and of the bases; those of the thoughts are added to `into`."""
    call = reading.call(hidden)
    dq, dk, dv = stop_grad.share(grad, q, base_k, base_v, out, lse, call, needs)
    s, n = base_k.shape[2], chain_k.shape[3]
    if s + n == 1:
        # One key has probability 1 whatever q and k are; rounding must not say otherwise.
        dq, dk = (None if x is None else torch.zeros_like(x) for x in (dq, dk))
    if n == 0:
        return dq, dk, dv
    wide = lse.dtype
    if reading.way == "triton":
        total = torch.zeros_like(q) if dq is None else dq
        into = into or (
            torch.zeros_like(chain_k, dtype=wide),
            torch.zeros_like(chain_v, dtype=wide),
        )
        settings = (hidden, reading.scale, total, into)
        _kernels().back(grad, q, chain_k, chain_v, out, lse, *settings)
        return dq, dk, dv
    p = _chain_scores(q, chain_k, hidden, reading.scale)
    p = p.sub_(lse.masked_fill(lse == -torch.inf, torch.inf)[..., None]).exp_()
    ds = _products(grad.to(wide), chain_v.to(wide))
    ds = ds.sub_((grad.to(wide) * out).sum(-1, keepdim=True)).mul_(p).mul_(reading.scale)
    if dq is not None:
        dq = dq + _weighted(ds, chain_k).to(dq.dtype)
    if into is not None:
        _add_outer(into[0], ds, q)
        _add_outer(into[1], p, grad)
    return dq, dk, dv


def _kernels() -> Any:
    # Triton is imported by the first call that takes it, not with the library.
    from thinkers.ops import thought_triton

    return thought_triton


def _products(x: Tensor, chain: Tensor) -> Tensor:
    """x (b, h, t, d) with the thoughts of its position (b, g, t, n, d): (b, h, t, n)."""
    b, h, t, d = x.shape
    g, n = chain.shape[1], chain.shape[3]
    rows = x.unflatten(1, (g, h // g)).transpose(2, 3)
    return torch.matmul(rows, chain.mT).transpose(2, 3).reshape(b, h, t, n)


def _weighted(p: Tensor, chain: Tensor) -> Tensor:
    """p (b, h, t, n) over the thoughts of its position (b, g, t, n, d): (b, h, t, d)."""
    b, h, t, n = p.shape
    g, d = chain.shape[1], chain.shape[4]
    rows = p.unflatten(1, (g, h // g)).transpose(2, 3)
    return torch.matmul(rows, chain.to(p.dtype)).transpose(2, 3).reshape(b, h, t, d)


def _add_outer(total: Tensor, p: Tensor, x: Tensor) -> None:
    """total (b, g, t, n, d) += p (b, h, t, n) x (b, h, t, d), summed over heads of a key head."""
    for head in range(p.shape[1] // total.shape[1]):
        weights, rows = (y.unflatten(1, (total.shape[1], -1))[:, :, head] for y in (p, x))
        total.addcmul_(weights[..., None], rows[..., None, :].to(total.dtype))
