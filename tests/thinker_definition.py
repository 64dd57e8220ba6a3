"""The definition of Thinker: one row at a time, no cache, and the input vector by vector."""

import torch

from thinkers.models import build_model
from thinkers.nn.latent_store import Memory

VOCAB, DIM = 13, 26


def thinker(seed=0, **own):
    torch.manual_seed(seed)
    own = {"num_heads": 1, "num_layers": 2, "num_steps": 3, "num_latents": 3, "section": 5} | own
    return build_model("thinker", vocab_size=VOCAB, dim=DIM, max_length=48, **own).double()


def rows(b, t, seed=1):
    return torch.randint(VOCAB, (b, t), generator=torch.Generator().manual_seed(seed))


def defined_input(model, tokens, section=None):
    """Compute the vectors (t, c) that memory holds of a prompt, or of text in whole sections."""
    config, text = model.config, model.text
    x = DIM**0.5 * (text.embedding.weight[tokens] + text.position.weight[: len(tokens)])
    if config.mixing:
        taps = text.mix.convolution.weight[:, 0].flip(1)  # torch's last tap meets the token itself
        mixed = x.clone()
        for i in range(len(x)):
            begin = 0 if section is None else i // section * section
            for j in range(config.mixing):
                if i - j >= begin:
                    mixed[i] = mixed[i] + taps[:, j] * x[i - j]
        x = mixed
    for layer in text.mix.layers if config.num_input_layers else ():
        x = defined_layer(x, layer, config.num_heads)
    return x


def defined_layer(x, layer, heads):
    """Compute a causal pre-norm layer with rotary positions 0, 1, .., position by position."""
    d = DIM // heads
    normed = rms(x, layer.attention_norm.weight)
    q, kv = normed @ layer.heads.query.weight.T, normed @ layer.heads.key_value.weight.T
    attended = torch.zeros_like(x)
    for h in range(heads):
        own = slice(h * d, h * d + d)
        queries, keys = (
            torch.stack([turn(vector, i) for i, vector in enumerate(x[:, own])]) for x in (q, kv)
        )
        values = kv[:, DIM + h * d : DIM + h * d + d]
        for i in range(len(x)):
            scores = keys[: i + 1] @ queries[i] / d**0.5
            attended[i, own] = scores.softmax(0) @ values[: i + 1]
    x = x + attended @ layer.heads.output.weight.T
    gate, up = (rms(x, layer.feed_forward_norm.weight) @ layer.feed_forward.gate_up.weight.T).chunk(
        2, -1
    )
    return x + (gate * gate.sigmoid() * up) @ layer.feed_forward.down.weight.T


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turn(x, position):
    """Rotate entries i and i + d/2 of a head by position / 10000^(2i/d)."""
    half = len(x) // 2
    exponents = torch.arange(0, 2 * half, 2, dtype=torch.float32) / (2 * half)
    angle = position * (1.0 / 10000.0**exponents).double()
    first, second = x[:half], x[half:]
    turned = first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()
    return torch.cat(turned)


def memory_of(model, pieces):
    parts = model.process.project(torch.cat(pieces, 1))
    return Memory(parts[::2], parts[1::2])


def defined_memories(model, tokens, steps, section=None):
    """Compute M_1 .. M_steps of one row of tokens, a prompt or sections, by the definition."""
    config = model.config
    inputs = defined_input(model, tokens[0], section)[None]
    latent, past, memories = model.latents.weight[None], [], []
    memory = memory_of(model, [inputs])
    for s in range(steps):
        latent = model.process(latent, memory)
        past.append(latent)
        pieces = []
        if config.read_steps is None or s < config.read_steps:
            pieces.append(inputs)
        kept = len(past) if config.memory_steps is None else config.memory_steps
        pieces += past[max(0, len(past) - kept) :]
        if config.num_knowledge:
            pieces.append(model.knowledge.weight[None])
        memory = memory_of(model, pieces)
        memories.append(memory)
    return memories


def defined_answer(model, memory, given, first):
    """Compute the logits after each token of an answer, whose first has position `first`."""
    offsets = torch.arange(given.shape[1])
    x = model.queries.weight[offsets][None]
    if model.config.output == "autoregressive":
        places = first + offsets
        x = x + DIM**0.5 * (model.text.embedding(given) + model.text.position.weight[places])
    for _ in range(model.config.output_steps):
        x = model.process(x, memory, causal=True)
    return x @ model.text.embedding.weight.T
