"""What trains of thought keep: between the steps of whole rows, and between written tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.models.base import Config
from thinkers.nn.tracing import AttentionRecord, current_record
from thinkers.ops import Chain, thought_attention


class ChainCache:
    """In every layer, the keys and values of base elements, and of the thoughts behind them."""

    def __init__(
        self, num_layers: int, steps: int, causal: bool, hidden: Bool[Tensor, "b t"] | None
    ):
        self.causal, self.hidden = causal, hidden
        self.bases: dict[int, tuple[Tensor, Tensor]] = {}
        self.chains = [Chain(steps - 1) for _ in range(num_layers)]
        self.thoughts: list[tuple[Tensor, Tensor]] = []

    def attend(
        self,
        step: int,
        layer: int,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b g t d"],
        v: Float[Tensor, "b g t d"],
    ) -> Float[Tensor, "b h t d"]:
        """What the elements of this step find, their own keys and values included."""
        if step == 0:
            self.bases[layer] = k.contiguous(), v.contiguous()
        elif self.causal:
            self.chains[layer].append(k, v)
        else:
            self.thoughts.append((k, v))
        if (watch := current_record()) is not None:
            self._weigh(watch, layer, q)
        if self.causal:
            return self.chains[layer].attend(q, *self.bases[layer], key_padding=self.hidden)
        thoughts = [torch.stack(x, 3) for x in zip(*self.thoughts, strict=True)]
        chain = thoughts or [x[:, :, :, None][:, :, :, :0] for x in (k, v)]
        return thought_attention(
            q, *self.bases[layer], *chain, causal=False, key_padding=self.hidden
        )

    def _weigh(self, watch: AttentionRecord, layer: int, q: Float[Tensor, "b h t d"]) -> None:
        """Leave what each position reads of the words, and of its own thoughts."""
        if not self.causal:
            return
        k, chain = self.bases[layer][0], self.chains[layer]
        scores = q @ k.mT
        later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
        if self.hidden is not None:
            scores = scores.masked_fill(self.hidden[:, None, None], -torch.inf)
        if len(chain):
            scores = torch.cat([scores, torch.einsum("bhtd,bhtnd->bhtn", q, chain.k)], -1)
        weights = (scores / q.shape[-1] ** 0.5).softmax(-1).mean(1)
        watch.keep("words", weights[..., : k.shape[2]])
        if len(chain):
            watch.keep("own thoughts", weights[..., k.shape[2] :])


class Written:
    """What written positions leave behind, base keys and values alone, and the one train at work.

    Rows end in the same slot, so that one mask serves for good: the slots before a row's first.
    The thoughts of the last position lie behind all bases, where the next position's go.
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
        """Make room for one more token per row; its position."""
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        self.used += 1
        return positions

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep only these rows."""
        self.kept = [(keys[rows], values[rows]) for keys, values in self.kept]
        self.bias, self.lengths = self.bias[rows], self.lengths[rows]

    def read(
        self,
        layer: int,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b g t d"],
        v: Float[Tensor, "b g t d"],
    ) -> Float[Tensor, "b h t d"]:
        """What the base elements of whole rows find; they are kept."""
        t = k.shape[2]
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
        k: Float[Tensor, "b g 1 d"],
        v: Float[Tensor, "b g 1 d"],
    ) -> Float[Tensor, "b h 1 d"]:
        """What the last position of each row finds at this step, and which it keeps till the next.

        Every row sees its bases and, behind them, the thoughts of this position.
        """
        stop = self.used + step
        keys, values = self.kept[layer]
        keys.narrow(2, stop - 1, 1).copy_(k)
        values.narrow(2, stop - 1, 1).copy_(v)
        keys, values = keys.narrow(2, 0, stop), values.narrow(2, 0, stop)
        bias = self.bias.narrow(3, 0, stop)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
