"""Losses of DeepSight: `PlanLoss` or `TokenLoss` of the plan, `EmbeddingLoss` of embeddings."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.errors import UsageError
from thinkers.models.batch import IGNORED, Batch, graded_targets, real_positions
from thinkers.nn.constants import ComputedBuffers


class PlanLoss(ComputedBuffers):
    """Distance of each plan from the mean of past embeddings and a weighted sum of next ones.

    With E the embeddings of a row and d the horizon, at position i:

        present_i = mean(E_1 .. E_i)        future_i = sum_k w_k E_(i+k), k = 1 .. d
        target_i = after_norm((present_i + future_i) / 2)
        loss_i = disaffinity(encoder_norm(plan_i), target_i)

    The published norms have learned gains and biases: shrinking both gains takes the loss to 0
    with no plan at all. The modern ones have none. Sums are shifted adds, O(t d), with no t x t
    matrix.

    Args:
        config: A configuration of DeepSight, whose fields describe the choices.
    """

    logits: nn.Parameter
    weights: Tensor
    token_frequencies: Tensor

    def __init__(self, config: Any):
        super().__init__()
        self.kind, self.mix, self.horizon = config.plan_loss, config.plan_mix, config.horizon
        self.partial, self.longest = config.looks_partly, config.max_length
        self.reach = 1 if self.partial else self.horizon
        self.shared: list[float] | None = None
        self.learned = config.horizon_weights == "learned" and self.horizon > 1
        self.rescaled = self.partial and config.horizon_weights != "decay"
        self.encoder_norm = target_norm(config)
        self.before_norm = target_norm(config) if config.plan_norm in ("before", "both") else None
        self.after_norm = target_norm(config) if config.plan_norm in ("after", "both") else None
        if self.learned:
            self.logits = nn.Parameter(inverse_numbers(self.horizon).log())
        else:
            as_published = config.variant == "published" and not self.partial
            self.choice = config.horizon_weights
            self.rows = config.max_length - self.horizon if as_published else 0
            # Python numbers, where all positions have the same weights: several times faster.
            weights = self._constants()["weights"]
            self.shared = weights[0].tolist() if len(weights) == 1 else None
        if config.center:
            even = torch.full((config.vocab_size,), 1 / config.vocab_size)
            self.register_buffer("token_frequencies", even)
        self.compute_buffers()

    def constants(self) -> dict[str, Tensor]:
        if self.learned:
            return {}
        return {"weights": fixed_weights(self.choice, inverse_numbers(self.horizon), self.rows)}

    def counted(self, batch: Batch) -> Bool[Tensor, "b n"]:
        """Return True where a plan is graded: at positions followed by enough real ones."""
        return real_positions(batch.tokens, batch.lengths)[:, self.reach :]

    def flops(self) -> int:
        """Count the matrix products of the plan of one position: there are none."""
        return 0

    def summed(
        self,
        model: Any,
        batch: Batch,
        embedded: Float[Tensor, "b t c"],
        plan: Float[Tensor, "b t c"],
        count: int,
    ) -> Float[Tensor, ""]:
        """Sum the losses of the graded positions; `count` is their number."""
        real = real_positions(batch.tokens, batch.lengths)
        return self(plan, model.plan_inputs(embedded), real)

    def set_token_counts(self, counts: Int[Tensor, " v"]) -> None:
        """Set the token counts of the training data, for the mean that `center` subtracts.

        Until then all tokens have the same weight. Frequencies belong to the data and not to an
        update, so that every micro-batch and every rank subtracts the same mean.

        Raises:
            ValueError: There is not one count for each token, or `center` is False.
        """
        if "token_frequencies" not in self._buffers:
            raise UsageError("token counts need center=True, without which no mean is subtracted")
        if counts.shape != self.token_frequencies.shape or (counts < 0).any() or not counts.any():
            raise UsageError(f"counts must be one for each token, not all 0, got {counts}")
        self.token_frequencies.copy_(counts / counts.sum())

    def mean_token(self, embeddings: Float[Tensor, "v c"]) -> Float[Tensor, " c"]:
        """Compute the mean embedding, weighted by token frequencies."""
        return (self.token_frequencies[:, None] * embeddings).sum(0)

    def horizon_weights(self) -> Float[Tensor, "r d"]:
        """Return the weights of the next tokens, for every position, or in one row for all."""
        return self.logits.softmax(0)[None] if self.learned else self.weights

    def forward(
        self,
        plan: Float[Tensor, "b t c"],
        embedded: Float[Tensor, "b t c"],
        real: Bool[Tensor, "b t"],
    ) -> Float[Tensor, ""]:
        """Sum the distances over all positions whose horizon lies inside their row."""
        # Padded columns may lie beyond the last position.
        plan, embedded, real = (x[:, : self.longest] for x in (plan, embedded, real))
        n = plan.shape[1] - self.reach
        if n < 1:
            return plan.new_zeros(())
        found = self.encoder_norm(plan[:, :n])
        apart = disaffinity(self.kind, found, self.target(embedded, real))
        return apart.where(real[:, self.reach :], 0).sum()

    def target(
        self, embedded: Float[Tensor, "b t c"], real: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b n c"]:
        """Compute the targets of the first n plans, which are followed by enough tokens."""
        n = embedded.shape[1] - self.reach
        x = embedded.float() if embedded.dtype.itemsize < 4 else embedded
        x = x if self.before_norm is None else normed(self.before_norm, x)
        x = x.where(real[..., None], 0)
        number = torch.arange(1, n + 1, device=x.device)
        exist = (real.sum(1, keepdim=True) - number).clamp(1, self.horizon)
        target = self.future(x, n, exist)
        if self.mix != "future":
            present = x[:, :n].cumsum(1) / number[:, None]
            target = self.merge(present, target, number, exist)
        return target if self.after_norm is None else normed(self.after_norm, target)

    def merge(
        self,
        present: Float[Tensor, "b n c"],
        future: Float[Tensor, "b n c"],
        number: Int[Tensor, " n"],
        exist: Int[Tensor, "b n"],
    ) -> Float[Tensor, "b n c"]:
        """Combine the mean of `number` past tokens with the weighted sum of `exist` next ones."""
        if self.mix == "equal":
            return future * 0.5 + present * 0.5
        past = (number.float() / (number + exist))[..., None]
        ahead = (exist.float() / (number + exist))[..., None]
        return future * ahead.to(future.dtype) + present * past.to(present.dtype)

    def future(
        self, x: Float[Tensor, "b t c"], n: int, exist: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b n c"]:
        """Sum the next tokens with their weights at n positions; `exist` of them are real."""
        weights = self.horizon_weights().to(x.dtype)
        first = weights[:n, :1] if self.shared is None else self.shared[0]
        future = x[:, 1 : n + 1] * first
        for k in range(2, min(self.horizon, x.shape[1] - 1) + 1):
            width = min(n, x.shape[1] - k)
            ahead = x[:, k : k + width]
            if self.shared is None:
                future[:, :width].addcmul_(ahead, weights[:width, k - 1, None])
            else:
                future[:, :width].add_(ahead, alpha=self.shared[k - 1])
        if not self.rescaled:
            return future
        share = weights[0].cumsum(0)[exist - 1]
        return future / share.where(exist < self.horizon, 1)[..., None]


class TokenLoss(ComputedBuffers):
    """Cross-entropy of the next tokens, each predicted from the plan through a matrix of its own.

        loss_i = - sum_k w_k log softmax(E norm(W_k plan_i))[token_(i+k)], k = 1 .. d

    One W_k per offset k encodes the order of the tokens, which a sum of embeddings, or one
    distribution for all, does not. It is multi-token prediction (Gloeckle et al. 2024, https://arxiv.org/abs/2404.19737)
    from the middle of the model, by linear heads (Stern et al. 2018,
    https://arxiv.org/abs/1811.03115). Only graded positions count, so that prompts have no plan
    loss.

    Args:
        config: A configuration of DeepSight; `horizon`, `horizon_weights`, `dim` are read.
    """

    weights: Tensor

    def __init__(self, config: Any):
        super().__init__()
        self.choice, self.horizon = config.horizon_weights, config.horizon
        self.size = config.dim * (config.dim + config.vocab_size)
        noise = torch.randn(config.horizon, config.dim, config.dim)
        # Near the identity at first: a plan then lies near the embeddings of its tokens.
        self.distances = nn.Parameter(torch.eye(config.dim) + 0.5 * config.dim**-0.5 * noise)
        self.compute_buffers()

    def constants(self) -> dict[str, Tensor]:
        weights = torch.ones(self.horizon)
        if self.choice != "average":
            weights /= torch.arange(1, self.horizon + 1)
        if self.choice != "decay":
            weights /= weights.sum()
        return {"weights": weights}

    def targets(self, batch: Batch) -> Int[Tensor, "b t d"]:
        """Return the next tokens of every position, -100 where they are not graded."""
        wanted = graded_targets(batch)
        further = range(len(self.weights))
        return torch.stack([F.pad(wanted, (0, k), value=IGNORED)[:, k:] for k in further], -1)

    def counted(self, batch: Batch) -> Bool[Tensor, "b t"]:
        """Return True where a plan is graded: where a next token is."""
        return graded_targets(batch) != IGNORED

    def flops(self) -> int:
        """Count the matrix products of the plan of one position."""
        return 2 * len(self.weights) * self.size

    def summed(
        self,
        model: Any,
        batch: Batch,
        embedded: Float[Tensor, "b t c"],
        plan: Float[Tensor, "b t c"],
        count: int,
    ) -> Float[Tensor, ""]:
        """Sum the losses of the graded positions; `count` is their number."""
        # A boolean index would wait for the device, since its size is a value.
        graded = self.counted(batch).flatten().nonzero_static(size=count)[:, 0]
        turned = torch.einsum("nc,kcd->nkd", plan.flatten(0, 1)[graded], self.distances)
        logits = model.read_out(F.rms_norm(turned, turned.shape[-1:]))
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        wanted = self.targets(batch).flatten(0, 1)[graded]
        found = logits.log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
        return -(found.where(wanted != IGNORED, 0) * self.weights.to(found.dtype)).sum()


class EmbeddingLoss(nn.Module):
    """Distance of the running mean of the normed embeddings from the plan, which is detached.

    From the encoder-decoder of https://github.com/yiphei/yif-AI; it trains the embeddings.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.kind = config.embedding_loss
        self.embedding_norm = target_norm(config)
        self.encoder_norm = target_norm(config)

    def forward(
        self,
        plan: Float[Tensor, "b t c"],
        embedded: Float[Tensor, "b t c"],
        real: Bool[Tensor, "b t"],
    ) -> Float[Tensor, ""]:
        """Sum the distances of all real positions."""
        number = torch.arange(1, embedded.shape[1] + 1, device=embedded.device)
        mean = self.embedding_norm(embedded).cumsum(1) / number[:, None]
        apart = disaffinity(self.kind, mean, self.encoder_norm(plan.detach()))
        return apart.where(real, 0).sum()


def target_norm(config: Any) -> nn.LayerNorm:
    """Build the norm of plans and targets.

    The published one has a learned gain and bias. The modern one has neither, and an
    epsilon of 1e-12: the variance of a mean of many embeddings is far smaller than the usual 1e-5.
    """
    if config.variant == "published":
        return nn.LayerNorm(config.dim, eps=1e-5)
    return nn.LayerNorm(config.dim, eps=1e-12, elementwise_affine=False)


def normed(norm: nn.LayerNorm, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
    """Normalize in the dtype of `x`: sums of half-precision vectors are in single precision."""
    weight, bias = (None if y is None else y.to(x.dtype) for y in (norm.weight, norm.bias))
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def inverse_numbers(horizon: int) -> Float[Tensor, " d"]:
    """Return 1/k for the k-th next token, in float32 for any dtype, as in the published buffers."""
    return torch.arange(1, horizon + 1).float() ** -1


def fixed_weights(kind: str, decay: Float[Tensor, " d"], rows: int) -> Float[Tensor, "r d"]:
    """Return the weights of the next tokens.

    The published code sums each row of a t x t float32 matrix, and its sums differ in their
    last bit with the place of the weights in the row. `rows` reproduces that many of them; with 0
    there is one row for all positions.
    """
    if kind == "decay":
        return decay[None]
    if kind != "decay_normalized":
        return torch.full((1, len(decay)), 1 / len(decay))
    if rows < 1:
        return (decay / decay.sum())[None]
    found = []
    for first in range(0, rows, 64):
        number = torch.arange(first, min(first + 64, rows))[:, None]
        row = torch.zeros(len(number), rows + len(decay) - 1)
        row.scatter_(1, number + torch.arange(len(decay)), decay.expand(len(number), -1))
        found.append(decay / row.sum(-1, keepdim=True))
    return torch.cat(found)


def disaffinity(
    kind: str, a: Float[Tensor, "*b c"], b: Float[Tensor, "*b c"]
) -> Float[Tensor, "*b"]:
    """Compute the distance of vectors, 0 for equal ones (mse) or equal directions (cosines)."""
    if kind == "mse":
        return (a - b).square().mean(-1)
    cosine = F.cosine_similarity(a, b, dim=-1)
    if kind == "cosine":
        return (1 - cosine) / 2
    return -((1 + cosine) / 2).clamp(min=torch.finfo(cosine.dtype).eps).log()
