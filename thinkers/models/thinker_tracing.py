"""Attention of a Thinker's output queries, from a record of its calls."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thinkers.nn.tracing import AttentionRecord


def read_out_attention(
    config: Any,
    record: AttentionRecord,
    length: int,
    num_steps: int,
    prompt_length: int | None,
) -> dict[str, Float[Tensor, "k t _"]]:
    """Return the weights on tokens, knowledge and the latents by step; see `Traced.attention`."""
    size = config.section
    sections = length // size
    if prompt_length is None and not sections:
        return {}
    # The read-outs after each step come last, after all steps of thinking.
    per_step = config.output_steps * config.num_layers
    calls = record.named("memory")[-num_steps * per_step :]
    start = size - 1 if prompt_length is None else prompt_length - 1
    words = sections * size if prompt_length is None else prompt_length
    like = calls[0]
    found = {
        "words": like.new_zeros(num_steps, length, length),
        "knowledge": like.new_zeros(num_steps, length, config.num_knowledge),
        "latents by step": like.new_zeros(num_steps, length, num_steps),
    }
    for s in range(num_steps):
        weights = torch.stack(calls[s * per_step : (s + 1) * per_step]).mean(0)
        weights = weights.flatten(0, 1)[: length - start]
        rows = slice(start, start + len(weights))
        rereads = config.read_steps is None or s < config.read_steps
        past = s + 1 if config.memory_steps is None else min(s + 1, config.memory_steps)
        of_words, of_knowledge, of_latents = weights.split(
            [rereads * words, config.num_knowledge, past * config.num_latents], 1
        )
        found["words"][s, rows, : rereads * words] = of_words
        found["knowledge"][s, rows] = of_knowledge
        by_step = of_latents.unflatten(1, (past, config.num_latents)).sum(2)
        found["latents by step"][s, rows, s + 1 - past : s + 1] = by_step
    return {name: x for name, x in found.items() if x.shape[2]}
