"""The layers that models share, computed by loops from their equations."""

import torch

from thinkers.models import Model


def attention(block, x, positions=None, window=None):
    """Return causal attention by loops over heads and positions, without the residual.

    A query sees keys not after it in the row, and within the window of its position.
    """
    heads, t, dim = block.heads, x.shape[0], x.shape[1]
    size = heads.head_dim
    normed = block.attention_norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    q = (normed @ heads.query.weight.T).view(t, -1, size)
    k, v = (normed @ heads.key_value.weight.T).view(t, 2, -1, size).unbind(1)
    frequencies = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    places = list(range(t)) if positions is None else positions
    angles = torch.tensor(places)[:, None] * frequencies.double()
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]

    def turned(x):
        z = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turns
        return torch.cat([z.real, z.imag], -1)

    q, k = turned(q), turned(k)
    out = torch.zeros_like(q)
    for h in range(q.shape[1]):
        g = h * k.shape[1] // q.shape[1]
        for i in range(t):
            seen = [
                j for j in range(i + 1) if window is None or abs(places[i] - places[j]) <= window
            ]
            p = (k[seen, g] @ q[i, h] / size**0.5).softmax(0)
            out[i, h] = p @ v[seen, g]
    return out.reshape(t, dim) @ heads.output.weight.T


def block_by_hand(block, x, positions=None, window=None):
    """Return one pass of `thinkers.nn.block.Block` over a row, from its equations."""
    x = x + attention(block, x, positions, window)
    norm = block.feed_forward_norm.weight
    normed = norm * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    gate, up = (normed @ block.feed_forward.gate_up.weight.T).chunk(2, -1)
    return x + (gate / (1 + (-gate).exp()) * up) @ block.feed_forward.down.weight.T


def normed(norm, x):
    return norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def vary(model: Model) -> Model:
    """Draw gains that are not one, so that a norm left out or misplaced is seen."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += noise
    return model
