"""Multi-token prediction: a decoder that is also trained to predict the tokens after the next."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import check_int
from thinkers.models.batch import (
    IGNORED,
    Batch,
    Loss,
    as_batch,
    graded_last,
    next_token_loss,
)
from thinkers.models.decoder import Decoder, make_block
from thinkers.nn.block import causal_attention
from thinkers.nn.layers import initialize


class MultiToken(Decoder):
    """Decoder with further heads, each of which predicts one of the tokens after the next.

        h = blocks(E[tokens]); h_1 = h, h_k = Block_k(h) for k = 2 .. n; logits_k = E norm(h_k)
        loss = sum_k mean_i -log softmax(logits_k at position i)[token_(i+k)], k = 1 .. n

    n is `num_future`; h and h_k are (b, t, c). Each further head is a block of its own after all
    layers; the output E is shared. These heads are used in training alone: logits, scores and
    generation are those of the first, so that an answer costs as much as that of a decoder. After
    Gloeckle et al. 2024 (https://arxiv.org/abs/2404.19737), whose first head has a block too.
    """

    name = "multi_token"
    takes_positions = False
    test_variants = ({"num_future": 2, "num_kv_heads": 2}, {"num_future": 1})

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        """Settings; `num_layers` is the depth beneath the heads."""

        num_future: int = 4
        """Next tokens that each position is trained to predict; 1 gives the decoder."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_int("num_future", self.num_future, 1, self.max_length, "max_length")
            self.refuse_unused(("window",), "the model is multi_token")

    def __init__(self, config: Config):
        super().__init__(config)
        self.future = nn.ModuleList(make_block(config) for _ in range(config.num_future - 1))
        initialize(self.future, num_residuals=2 * config.num_layers)

    def count_terms(self, batch: Batch) -> dict[str, int]:
        return {name: int((x != IGNORED).sum()) for name, x in self._targets(batch).items()}

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        """Compute the loss as `Model.loss`; the parts `future_2` .. are of the further heads."""
        self.check_steps(num_steps)
        batch = as_batch(batch, self)
        own, targets = self.count_terms(batch), self._targets(batch)
        heads = self._heads(self._run(batch.tokens))
        logits = {name: self._answer(h) for name, h in zip(targets, heads, strict=True)}
        parts = {
            name: next_token_loss(logits[name], targets[name], (counts or own)[name])
            for name in targets
        }
        last = graded_last(logits["next_token"], targets["next_token"])
        detached = {name: part.detach() for name, part in parts.items()}
        total = sum(parts.values(), start=torch.zeros((), device=batch.tokens.device))
        return Loss(total, detached, own, *last)

    def _heads(self, h: Float[Tensor, "b t c"]) -> list[Float[Tensor, "b t c"]]:
        """Compute h_1 .. h_n."""
        table = self.rotary.table(torch.arange(h.shape[1], device=h.device), h.dtype)
        attend = partial(causal_attention, dropout=self.config.dropout if self.training else 0.0)
        return [h, *(block(h, table, attend) for block in self.future)]

    def _targets(self, batch: Batch) -> dict[str, Int[Tensor, "b t"]]:
        """Shift the targets for each head; the names are those of the parts of the loss."""
        targets = batch.targets
        found = {"next_token": targets}
        for k in range(2, self.config.num_future + 1):
            targets = F.pad(targets[:, 1:], (0, 1), value=IGNORED)
            found[f"future_{k}"] = targets
        return found

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        found = super().flops(batch_size, length, num_steps, training)
        if not training:
            return found
        block: Any = self.blocks[0]
        head = 2 * batch_size * length * self.config.dim * self.config.vocab_size
        return found + 3 * len(self.future) * (block.flops(batch_size, length, length) + head)
