"""Keys and values of chains of thoughts: between the steps of a pass, and between tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.models.base import Config
from thinkers.nn.live_tokens import LiveTokens, RowKeys
from thinkers.nn.tracing import AttentionRecord, current_record
from thinkers.ops import Chain, thought_attention


class ChainCache:
    """Keys and values of base elements and of their chains of thoughts, in every layer.

    Args:
        steps: Number of thinking steps; the last one leaves no thought.
        hidden: True where a position is padding, which is never attended to.
    """

    def __init__(
        self, num_layers: int, steps: int, causal: bool, hidden: Bool[Tensor, "b t"] | None
    ):
        self.causal, self.hidden = causal, hidden
        self.bases: dict[int, tuple[Tensor, Tensor]] = {}
        self.chains = [Chain(steps - 1) for _ in range(num_layers)]
        self.thoughts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(num_layers)]

    def attend(
        self,
        step: int,
        layer: int,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b h t d"],
        v: Float[Tensor, "b h t d"],
    ) -> Float[Tensor, "b h t d"]:
        """Store the keys and values of this step's elements, and attend to all that are visible."""
        # A compiler cannot trace Chain, which writes in place and orders its gradients itself.
        eager = self.causal and not torch.compiler.is_compiling()
        if step == 0:
            self.bases[layer] = k.contiguous(), v.contiguous()
        elif eager:
            self.chains[layer].append(k, v)
        else:
            self.thoughts[layer].append((k, v))
        if eager:
            self._record(layer, q)
            return self.chains[layer].attend(q, *self.bases[layer], key_padding=self.hidden)
        base, own = self.bases[layer], self.thoughts[layer]
        chain = [torch.stack(x, 3) for x in zip(*own, strict=True)] if own else None
        if torch.compiler.is_compiling():
            return self._attend_traced(q, base, chain)
        none = base[0][:, :, :, None][:, :, :, :0]
        chain = chain or [none, none]
        return thought_attention(q, *base, *chain, causal=False, key_padding=self.hidden)

    def _attend_traced(
        self, q: Float[Tensor, "b h t d"], base: tuple[Tensor, Tensor], chain: list[Tensor] | None
    ) -> Float[Tensor, "b h t d"]:
        """Attend with explicit weights, in operations that a compiler can trace.

        The weights are a tensor (b, h, t, t + n), which the eager operations never hold.
        """
        (k, v), hidden, t = base, self.hidden, q.shape[2]
        if chain is not None and not self.causal:
            # All chains are visible, so that thoughts are keys like the base elements.
            k, v = (torch.cat([x, y.flatten(2, 3)], 2) for x, y in zip(base, chain, strict=True))
            if hidden is not None:
                n = chain[0].shape[3]
                hidden = torch.cat([hidden, hidden.repeat_interleave(n, 1)], 1)
            chain = None
        own = None if chain is None else chain[0]
        weights = attention_weights(q, k, own, self.causal, hidden)
        attended = weights[..., : k.shape[2]] @ v
        if chain is not None:
            attended = attended + torch.einsum("bhtn,bhtnd->bhtd", weights[..., t:], chain[1])
        return attended

    def _record(self, layer: int, q: Float[Tensor, "b h t d"]) -> None:
        """Record the attention weights on tokens and on the position's own thoughts."""
        if (record := current_record()) is None:
            return
        k, chain = self.bases[layer][0], self.chains[layer]
        own = chain.k if len(chain) else None
        weights = attention_weights(q, k, own, True, self.hidden).mean(1)
        record.keep("words", weights[..., : k.shape[2]])
        if own is not None:
            record.keep("own thoughts", weights[..., k.shape[2] :])


class LiveChains:
    """Keys and values of base elements, and of the chains of the tokens that still think.

    Args:
        mask: 0 or -inf, added to the scores of all tokens over the base elements.
    """

    def __init__(self, mask: Float[Tensor, "t t"]):
        self.bases, self.mask = RowKeys(), mask
        self.chains: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def select(self, keep: Bool[Tensor, " n"]) -> None:
        """Keep only these tokens."""
        self.chains = {
            layer: [(k[:, :, keep], v[:, :, keep]) for k, v in chain]
            for layer, chain in self.chains.items()
        }

    def attend(
        self,
        live: LiveTokens,
        layer: int,
        q: Float[Tensor, "1 h n d"],
        k: Float[Tensor, "1 h n d"],
        v: Float[Tensor, "1 h n d"],
    ) -> Float[Tensor, "1 h n d"]:
        """Append a thought to the chains of these tokens, and attend with their queries."""
        self.chains.setdefault(layer, []).append((k, v))
        own_k, own_v = (torch.stack(x, 3) for x in zip(*self.chains[layer], strict=True))
        base_k, base_v = (self.bases.kept[layer, i].transpose(1, 2) for i in range(2))
        if not live.is_whole:
            base_k, base_v = base_k[live.rows], base_v[live.rows]
        seen = live.masks(self.mask, None)
        q = q / q.shape[-1] ** 0.5
        of_bases = live.by_row(q) @ base_k.mT + (self.mask if seen is None else seen)
        of_own = torch.einsum("bhtd,bhtnd->bhtn", q, own_k)
        weights = torch.cat([live.packed(of_bases), of_own], -1).softmax(-1)
        if (record := current_record()) is not None:
            self._record(record, live, weights.detach().mean(1))
        of_bases, of_own = weights.split([base_k.shape[2], own_k.shape[3]], -1)
        attended = live.packed(live.by_row(of_bases) @ base_v)
        return attended + torch.einsum("bhtn,bhtnd->bhtd", of_own, own_v)

    def _record(
        self, record: AttentionRecord, live: LiveTokens, weights: Float[Tensor, "1 n _"]
    ) -> None:
        """Record the weights of these tokens, and 0 for those that have halted."""
        t = len(self.mask)
        whole = live.put(weights.new_zeros(*live.shape, weights.shape[-1]), weights)
        record.keep("words", whole[..., :t])
        record.keep("own thoughts", whole[..., t:])


def attention_weights(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    own: Float[Tensor, "b h t n d"] | None,
    causal: bool,
    hidden: Bool[Tensor, "b s"] | None,
) -> Float[Tensor, "b h t _"]:
    """Compute softmax(q k / sqrt(d)) over s keys and each query's own n thoughts, (b, h, t, s + n).

    A query without visible keys has weights 0.
    """
    visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    visible = (visible.tril() if causal else visible)[None, None]
    if hidden is not None:
        visible = visible & ~hidden[:, None, None]
    scores = q @ k.mT
    if own is not None:
        scores = torch.cat([scores, torch.einsum("bhtd,bhtnd->bhtn", q, own)], -1)
        seen = visible.new_ones(1, 1, q.shape[2], 1)
        seen = seen if hidden is None else ~hidden[:, None, :, None]
        shape = (*torch.broadcast_shapes(visible.shape[:3], seen.shape[:3]), own.shape[3])
        visible = torch.cat([visible.expand(*shape[:3], -1), seen.expand(shape)], -1)
    # A finite minimum: a row of -inf alone would have nan for weights and gradients.
    lowest = torch.finfo(scores.dtype).min
    weights = (scores / q.shape[-1] ** 0.5).masked_fill(~visible, lowest).softmax(-1)
    return weights.masked_fill(~visible, 0.0)


class GenerationCache:
    """Keys and values of the base elements of written positions, and of the one chain in progress.

    Rows end in the same slot, so that one mask serves for all steps: it hides the slots before the
    first token of a row. The thoughts of the last position lie after all base elements, in slots
    that the next position overwrites.

    Args:
        lengths: Real tokens of each row.
        capacity: Largest number of tokens of a row.
        like: A tensor of the dtype and device of the keys.
    """

    def __init__(
        self,
        config: Config,
        num_steps: int,
        lengths: Int[Tensor, " b"],
        capacity: int,
        like: Tensor,
    ):
        layers, heads = config.num_layers, config.num_heads
        slots = capacity + num_steps - 1
        shape = (len(lengths), heads, slots, config.dim // heads)
        self.kept = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(layers)]
        self.num_steps, self.lengths = num_steps, lengths
        self.used = 0
        self.bias = like.new_zeros(len(lengths), 1, 1, slots)

    def grow(self) -> Int[Tensor, "b 1"]:
        """Make room for one more token per row; return its positions."""
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        self.used += 1
        return positions

    def select(self, rows: Int[Tensor, " r"]) -> None:
        """Keep only these rows."""
        self.kept = [(keys[rows], values[rows]) for keys, values in self.kept]
        self.bias, self.lengths = self.bias[rows], self.lengths[rows]

    def read(
        self,
        layer: int,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b h t d"],
        v: Float[Tensor, "b h t d"],
    ) -> Float[Tensor, "b h t d"]:
        """Store the base elements of the prompts, and attend causally among them."""
        t = k.shape[2]
        # Rows are padded on the right here, and shifted so that all of them end in slot t - 1.
        slots = torch.arange(t, device=k.device) - (t - self.lengths[:, None])
        self.used = t
        self.bias[:, 0, 0, :t].masked_fill_(slots < 0, -torch.inf)
        for kept, x in zip(self.kept[layer], (k, v), strict=True):
            kept[:, :, :t] = x.take_along_dim(slots.clamp(min=0)[:, None, :, None], 2)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def attend(
        self,
        step: int,
        layer: int,
        q: Float[Tensor, "b h 1 d"],
        k: Float[Tensor, "b h 1 d"],
        v: Float[Tensor, "b h 1 d"],
        rows: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b h 1 d"]:
        """Store this step's element of each row's last position, and attend with its query.

        It attends to all base elements of the row and, in the slots after them, its own thoughts.

        Args:
            rows: The rows of the cache that these are; None means all.
        """
        stop = self.used + step
        keys, values = self.kept[layer]
        if rows is not None and len(rows) < len(keys):
            for kept, x in ((keys, k), (values, v)):
                kept[rows, :, stop - 1] = x[:, :, 0].to(kept.dtype)
            keys, values = keys[rows, :, :stop], values[rows, :, :stop]
            bias = self.bias[rows, ..., :stop]
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
        keys.narrow(2, stop - 1, 1).copy_(k)
        values.narrow(2, stop - 1, 1).copy_(v)
        keys, values = keys.narrow(2, 0, stop), values.narrow(2, 0, stop)
        bias = self.bias.narrow(3, 0, stop)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
