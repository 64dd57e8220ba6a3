"""Attention of one reading element per position over base elements and its own chain of thoughts.

A base element never sees a thought, so its keys and values are the same at every thinking step.
One step is causal attention of t queries over s base keys, merged by log-sum-exp with attention
over the n thoughts of the query's own position. With (O_1, L_1) and (O_2, L_2) the output and
log-sum-exp of the two parts, exactly:

    L = log(exp(L_1) + exp(L_2))        O = exp(L_1 - L) O_1 + exp(L_2 - L) O_2
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thinkers.ops import dense, stop_grad
from thinkers.ops.autograd import cast_for_autocast, eager, forbid_second_derivative, no_autocast
from thinkers.ops.dispatch import THOUGHT_BACKENDS, choose_thought
from thinkers.ops.stop_grad import Call
from thinkers.ops.validation import check_backend, check_thought

NAME = "thought_attention"


@eager("thought_attention chooses query blocks and ranges of keys in Python")
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
    """Attention of one reading element per position over base elements and chains of thoughts.

    The mask of ThoughtsFormer, https://github.com/EmmettBicker/ThoughtsFormer. The gradient has no
    derivative of its own. A model that takes many steps keeps its thoughts in a `Chain`.

    Args:
        q: The reading elements; query i belongs to base element i + s - t.
        base_k: Keys of the base elements, those of the reading positions included. `g` divides `h`.
        base_v: Values of the base elements.
        chain_k: Keys of the n thoughts of every reading position; n may be 0.
        chain_v: Values of the thoughts.
        causal: A query sees bases up to its own and its own thoughts; otherwise all of both.
        key_padding: True where a position and its thoughts are hidden from all queries.
        scale: Factor on the scores. Default: `d ** -0.5`.
        backend: "auto", "fused", "block", "triton" or "dense"; see `thinkers.ops.dispatch`.

    Raises:
        ValueError: if an argument does not fit, or the requested backend cannot do this call.
    """
    check_backend(backend, THOUGHT_BACKENDS)
    q, base_k, base_v, chain_k, chain_v = cast_for_autocast(q, base_k, base_v, chain_k, chain_v)
    check_thought(q, base_k, base_v, chain_k, chain_v, causal, key_padding, scale)
    backend = choose_thought(q, backend).backend
    if backend == "dense":
        return dense.thought_attention(
            *(q, base_k, base_v, chain_k, chain_v),
            causal=causal,
            key_padding=key_padding,
            scale=scale,
        )
    call = ThoughtCall(causal, q.shape[-1] ** -0.5 if scale is None else float(scale), backend)
    if causal:
        return _Thought.apply(q, base_k, base_v, chain_k, chain_v, key_padding, call)
    # Every query sees every thought: they are keys like the bases, and no merge is needed.
    padding = key_padding
    if padding is not None:
        of_thoughts = padding[:, padding.shape[1] - q.shape[2] :, None]
        of_thoughts = of_thoughts.expand(-1, -1, chain_k.shape[3]).flatten(1)
        padding = torch.cat([padding, of_thoughts], 1)
    k = torch.cat([base_k, chain_k.flatten(2, 3)], 2)
    v = torch.cat([base_v, chain_v.flatten(2, 3)], 2)
    return stop_grad.attention(q, k, v, call.base_call(padding))


@dataclass(frozen=True)
class ThoughtCall:
    """The settings of a forward pass that its backward pass needs, besides tensors."""

    causal: bool
    scale: float
    backend: str

    def base_call(self, padding: Tensor | None) -> Call:
        """The part of the call over base keys, which is plain attention without stops."""
        mask = None if padding is None else ~padding[:, None, None, :]
        backend = "sdpa" if self.backend == "fused" else self.backend
        return Call(NAME, backend, self.causal, self.scale, (mask, None, None, None))


class _Thought(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        base_k: Tensor,
        base_v: Tensor,
        chain_k: Tensor,
        chain_v: Tensor,
        padding: Tensor | None,
        call: ThoughtCall,
    ) -> Tensor:
        with no_autocast(q):
            out, lse = forward_with_lse(q, base_k, base_v, chain_k, chain_v, padding, call)
        ctx.save_for_backward(q, base_k, base_v, chain_k, chain_v, padding, out, lse)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, base_k, base_v, chain_k, chain_v, padding, out, lse = ctx.saved_tensors
        (grad,) = grads
        with torch.no_grad(), no_autocast(q):
            grad_k, grad_v = (
                torch.zeros(chain_k.shape, dtype=lse.dtype, device=q.device) for _ in "kv"
            )
            tensors = (q, base_k, base_v, chain_k, chain_v, out, lse, padding)
            needs = ctx.needs_input_grad
            base = backward_from_lse(grad, *tensors, ctx.call, needs, (grad_k, grad_v))
        found = (*base, grad_k.to(q.dtype), grad_v.to(q.dtype))
        sources = (grad, q, base_k, base_v, chain_k, chain_v)
        return (*forbid_second_derivative(NAME, found, sources), None, None)


def forward_with_lse(
    q: Tensor,
    base_k: Tensor,
    base_v: Tensor,
    chain_k: Tensor,
    chain_v: Tensor,
    padding: Tensor | None,
    call: ThoughtCall,
) -> tuple[Tensor, Tensor]:
    """Output (b, h, t, d) and log-sum-exp (b, h, t) over base elements and own thoughts together.

    A query that sees nothing gives output 0 and log-sum-exp -inf.
    """
    out, lse = stop_grad.forward_with_lse(q, base_k, base_v, call.base_call(padding))
    if chain_k.shape[3] == 0:
        return out, lse
    if call.backend == "triton":
        return _kernels().merge(q, chain_k, chain_v, out, lse, padding, call.scale)
    scores = _chain_scores(q, chain_k, padding, call.scale)
    chain_lse = scores.logsumexp(-1)
    merged = torch.logaddexp(lse, chain_lse)
    # A row that sees nothing has -inf everywhere, and -inf - -inf is nan. With +inf subtracted
    # instead, every weight is exp(-inf) = 0, and so is the output.
    base = merged.masked_fill(merged == -torch.inf, torch.inf)
    value = _weighted_sum(scores.sub_(base[..., None]).exp_(), chain_v)
    return value.addcmul_(out.to(value.dtype), (lse - base).exp()[..., None]).to(q.dtype), merged


def _chain_scores(q: Tensor, chain_k: Tensor, padding: Tensor | None, scale: float) -> Tensor:
    """Scaled scores of every query with its own thoughts, (b, h, t, n), in float32 or float64."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = _inner_products(q.to(wide), chain_k.to(wide)).mul_(scale)
    if padding is None:
        return scores
    # `padding` covers all s bases; the t queries are the last of them.
    return scores.masked_fill_(padding[:, None, padding.shape[1] - q.shape[2] :, None], -torch.inf)


def backward_from_lse(
    grad: Tensor,
    q: Tensor,
    base_k: Tensor,
    base_v: Tensor,
    chain_k: Tensor,
    chain_v: Tensor,
    out: Tensor,
    lse: Tensor,
    padding: Tensor | None,
    call: ThoughtCall,
    needs: tuple[bool, ...],
    chain_grads: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of q, base_k and base_v; those of the thoughts are added to `chain_grads`.

    `out` and `lse` are the merged ones. Each part finds its exact gradient from them (see
    `stop_grad.backward_from_lse`), so no gradient through a log-sum-exp of a part is needed.
    """
    base_call = call.base_call(padding)
    dq, dk, dv = stop_grad.backward_from_lse(grad, q, base_k, base_v, out, lse, base_call, needs)
    s, n = base_k.shape[2], chain_k.shape[3]
    if s + n == 1:
        # A single key has probability 1 for any q and k: exactly 0, not a rounding error.
        dq, dk = (None if x is None else torch.zeros_like(x) for x in (dq, dk))
    if n == 0:
        return dq, dk, dv
    wide = lse.dtype
    if call.backend == "triton":
        # The kernel always writes all gradients: those not needed go to buffers that are dropped.
        total = torch.zeros_like(q) if dq is None else dq
        chain_grads = chain_grads or (
            torch.zeros_like(chain_k, dtype=wide),
            torch.zeros_like(chain_v, dtype=wide),
        )
        settings = (padding, call.scale, total, chain_grads)
        _kernels().backward(grad, q, chain_k, chain_v, out, lse, *settings)
        return dq, dk, dv
    p = _chain_scores(q, chain_k, padding, call.scale)
    # +inf for rows that see nothing: exp(score - inf) = 0, and so is their gradient.
    p = p.sub_(lse.masked_fill(lse == -torch.inf, torch.inf)[..., None]).exp_()
    ds = _inner_products(grad.to(wide), chain_v.to(wide))
    ds = ds.sub_((grad.to(wide) * out).sum(-1, keepdim=True)).mul_(p).mul_(call.scale)
    if dq is not None:
        dq = dq + _weighted_sum(ds, chain_k).to(dq.dtype)
    if chain_grads is not None:
        _add_outer_products_(chain_grads[0], ds, q)
        _add_outer_products_(chain_grads[1], p, grad)
    return dq, dk, dv


def _kernels() -> Any:
    # Triton is imported by the first call that uses it, not with the library.
    from thinkers.ops import thought_triton

    return thought_triton


def _inner_products(x: Tensor, chain: Tensor) -> Tensor:
    """Inner products of x (b, h, t, d) with the own thoughts (b, g, t, n, d): (b, h, t, n)."""
    b, h, t, d = x.shape
    g, n = chain.shape[1], chain.shape[3]
    rows = x.unflatten(1, (g, h // g)).transpose(2, 3)
    return torch.matmul(rows, chain.mT).transpose(2, 3).reshape(b, h, t, n)


def _weighted_sum(p: Tensor, chain: Tensor) -> Tensor:
    """Sum over the own thoughts (b, g, t, n, d), weighted by p (b, h, t, n): (b, h, t, d)."""
    b, h, t, n = p.shape
    g, d = chain.shape[1], chain.shape[4]
    rows = p.unflatten(1, (g, h // g)).transpose(2, 3)
    return torch.matmul(rows, chain.to(p.dtype)).transpose(2, 3).reshape(b, h, t, d)


def _add_outer_products_(total: Tensor, p: Tensor, x: Tensor) -> None:
    """Add p (b, h, t, n) times x (b, h, t, d), summed over the query heads that share a key head.

    `total` is (b, g, t, n, d). Head by head, so that no copy of it is made.
    """
    for head in range(p.shape[1] // total.shape[1]):
        weights, rows = (y.unflatten(1, (total.shape[1], -1))[:, :, head] for y in (p, x))
        total.addcmul_(weights[..., None], rows[..., None, :].to(total.dtype))
