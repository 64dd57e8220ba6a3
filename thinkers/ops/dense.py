"""The definition of each operation, in einsum and autograd: slow, the reference of the tests."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thinkers.ops.validation import PairValues, check_backend, check_stop_grad, check_thought


def stop_grad_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b g s d"],
    v: Float[Tensor, "b g s d"],
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    stop_q: PairValues = None,
    stop_k: PairValues = None,
    stop_v: PairValues = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b h t d"]:
    """Softmax attention in which every pair (query, key) scales its gradient to q, k and v.

    Idea: F. Bonetto, Self-Reasoning Tokens, 2024, https://reasoning-tokens.ghost.io/reasoning-tokens/.
    See `thinkers.ops.stop_grad_attention` for the arguments.
    """
    check_backend(backend, ("auto", "dense"))
    stops = {"stop_q": stop_q, "stop_k": stop_k, "stop_v": stop_v}
    check_stop_grad(q, k, v, causal, mask, stops, scale)
    factor_q, factor_k, factor_v = (_gradient_factor(stop, q, k) for stop in stops.values())
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))

    # Each difference below is exactly 0 in value and carries the gradient to one tensor alone, so
    # that multiplying it by a factor scales this gradient and leaves the output as it is.
    scores = _scores(q.detach(), k.detach())
    to_q = factor_q * (_scores(q, k.detach()) - scores)
    to_k = factor_k * (_scores(q.detach(), k) - scores)
    p = _softmax((scores + to_q + to_k) * _scale(scale, q), *_visible(q, k, causal, mask))
    to_v = torch.einsum("bhts,bhsd->bhtd", p.detach() * factor_v, v - v.detach())
    return torch.einsum("bhts,bhsd->bhtd", p, v.detach()) + to_v


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

    The mask of ThoughtsFormer, https://github.com/EmmettBicker/ThoughtsFormer.
    See `thinkers.ops.thought_attention` for the arguments.
    """
    check_backend(backend, ("auto", "dense"))
    check_thought(q, base_k, base_v, chain_k, chain_v, causal, key_padding, scale)
    b, h, t, _ = q.shape
    s, n = base_k.shape[2], chain_k.shape[3]
    k, v, chain_k, chain_v = (
        x.repeat_interleave(h // x.shape[1], dim=1) for x in (base_k, base_v, chain_k, chain_v)
    )
    padding = q.new_zeros((b, s), dtype=torch.bool) if key_padding is None else key_padding
    visible_base = ~padding[:, None, None, :].expand(b, h, t, s)
    own = torch.eye(t, dtype=torch.bool, device=q.device)[:, :, None].expand(t, t, n)
    visible_chain = ~padding[:, None, None, s - t :, None].expand(b, h, t, t, n)
    if causal:
        visible_base = visible_base & _causal(t, s, q.device)
        visible_chain = visible_chain & own
    k, v = (torch.cat([x, y.flatten(2, 3)], 2) for x, y in ((k, chain_k), (v, chain_v)))
    visible = torch.cat([visible_base, visible_chain.flatten(3)], dim=3)
    p = _softmax(_scores(q, k) * _scale(scale, q), visible)
    return torch.einsum("bhts,bhsd->bhtd", p, v)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bhtd,bhsd->bhts", q, k)


def _scale(scale: float | None, q: Tensor) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _causal(t: int, s: int, device: torch.device) -> Tensor:
    """True where query i may see key j, (t, s): j <= i + s - t (bottom-right alignment)."""
    return torch.ones(t, s, dtype=torch.bool, device=device).tril(s - t)


def _visible(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """True where a pair is visible, (b, h, t, s), and the addend of the scores."""
    b, h, t, _ = q.shape
    s = k.shape[2]
    visible = _causal(t, s, q.device) if causal else q.new_ones((t, s), dtype=torch.bool)
    bias = q.new_zeros(())
    if mask is not None and mask.dtype != torch.bool:
        # Low precision would turn a finite addend into -inf.
        bias = mask.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
        mask = bias != -torch.inf
    if mask is not None:
        visible = visible & mask
    return visible.expand(b, h, t, s), bias


def _softmax(scores: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
    """Probabilities over the visible keys; 0 in a row that sees none, and so is its gradient."""
    dtype = scores.dtype
    scores = scores if bias is None else scores + bias
    empty = ~visible.any(dim=-1, keepdim=True)
    # A softmax over nothing but -inf is nan, and so is its gradient: empty rows are computed over
    # zeros, and set to 0 afterwards.
    scores = scores.masked_fill(~visible, -torch.inf).masked_fill(empty, 0.0)
    return torch.softmax(scores, dim=-1).masked_fill(empty, 0.0).to(dtype)


def _gradient_factor(stop: PairValues, q: Tensor, k: Tensor) -> Tensor:
    """The gradient factor of every pair, (b, h, t, s): 1 keeps the gradient, 0 stops it."""
    b, h, t, _ = q.shape
    shape = (b, h, t, k.shape[2])
    if stop is None:
        return q.new_ones(shape)
    if callable(stop) and not isinstance(stop, Tensor):
        axes = enumerate(shape)
        index = [
            torch.arange(n, device=q.device).view([-1 if a == i else 1 for a in range(4)])
            for i, n in axes
        ]
        stop = stop(*index)
    stop = torch.as_tensor(stop, device=q.device)
    return (~stop if stop.dtype == torch.bool else stop).to(q.dtype).expand(shape)
