"""Learned index of blocks: which of them the latents will attend to, without reading them."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

FIRST_SCALE = 10.0
"""tau before training."""


class BlockIndex(nn.Module):
    """Score blocks by their keys, as attention would weigh them.

        key_j   = normalise(W_k rms_norm(z_j))       of each latent z_j of a block
        query   = normalise(W_q latent_s[0])         of the thinking latents, by the first of them
        score_b = tau * max_j <query, key_j>
        loss    = |a| KL(a / |a|  ||  softmax_b score),  a_b = attention mass that block b got

    |a| is the sum of a: a row that read little teaches little. A key for each latent, since a mean
    of keys is close to none of them. The gradient of the loss reaches W_q, W_k and tau alone.
    Attention distilled into a retriever: Izacard and Grave 2021, https://arxiv.org/abs/2012.04584.

    Args:
        dim: Width of latents.
        index_dim: Width of keys and queries.
    """

    def __init__(self, dim: int, index_dim: int):
        super().__init__()
        self.query = nn.Linear(dim, index_dim, bias=False)
        self.key = nn.Linear(dim, index_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def keys(self, latents: Float[Tensor, "*n m c"]) -> Float[Tensor, "*n m e"]:
        """Return the keys of blocks, of unit length."""
        x = latents.detach()
        return F.normalize(self.key(F.rms_norm(x, x.shape[-1:])), dim=-1)

    def queries(self, latent: Float[Tensor, "b l c"]) -> Float[Tensor, "b e"]:
        """Return the queries of rows that think, of unit length."""
        return F.normalize(self.query(latent[:, 0].detach()), dim=-1)

    def scale(self) -> Float[Tensor, ""]:
        """Return tau."""
        return self.log_scale.exp()


def best_matches(
    queries: Float[Tensor, "b e"],
    keys: Float[Tensor, "d n m e"],
    hidden: Bool[Tensor, "d n m"],
    document: Int[Tensor, " b"],
) -> Float[Tensor, "b n"]:
    """Return max_j <query, key_j> of each block of a row's document, -inf for hidden ones."""
    products = torch.einsum("be,bnme->bnm", queries, keys[document])
    return products.masked_fill(hidden[document], -torch.inf).amax(-1)


def index_loss(mass: Float[Tensor, "b n"], scores: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Return for each row w KL(a / w || softmax score), where w = |a| is the mass of all blocks.

    A row that read nothing teaches nothing.

    Args:
        mass: Attention mass of each block, 0 for hidden ones.
        scores: -inf for hidden ones, of which a row has at least one other.
    """
    weight = mass.sum(1, keepdim=True)
    share = mass / weight.clamp(min=torch.finfo(mass.dtype).tiny)
    log_ratio = torch.xlogy(share, share) - share * scores.log_softmax(1).masked_fill(share == 0, 0)
    return weight[:, 0] * log_ratio.sum(1)
