"""Self-Reasoning Tokens.

Source: https://github.com/lucidrains/self-reasoning-tokens-pytorch (MIT licence).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from thinkers.errors import DataError
from thinkers.models.batch import IGNORED, Batch
from thinkers.models.reasoning_tokens import ReasoningTokens
from thinkers.published.common import Get, Layout, dtype_of, fill, getters, pick


def load(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> ReasoningTokens:
    """Build the transformer with the reasoning tokens and the window of these settings."""
    steps = pick(settings, "num_reason_tokens", default=0)
    rows = pick(settings, "max_reason_seq_len", default=4)
    if steps > rows:
        raise DataError(f"num_reason_tokens must be at most max_reason_seq_len {rows}, got {steps}")
    stops = pick(settings, "stop_grad_next_tokens_to_reason", default=False)
    removes = pick(settings, "remove_reason_tokens_at_end", default=False)
    config = ReasoningTokens.Config(
        variant="published",
        vocab_size=pick(settings, "num_tokens"),
        dim=pick(settings, "dim"),
        num_layers=pick(settings, "depth"),
        num_heads=pick(settings, "heads", default=8),
        head_dim=pick(settings, "dim_head", default=64),
        max_length=pick(settings, "max_seq_len", default=2048),
        num_steps=steps,
        num_learned=rows,
        max_steps=max(4, 4 * steps, rows),
        mode="stop_grad" if stops else "mask",
        window=pick(settings, "num_steps_future_can_use_reason", default=2),
        prediction="ordinary" if removes else "all",
    )
    model = ReasoningTokens(config).to(dtype_of(weights))
    fill(layout(model), weights)
    return model


def outputs(
    model: ReasoningTokens, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the logits at all tokens except the last, and the next-token loss."""
    steps = pick(settings, "num_reason_tokens", default=model.config.num_steps)
    read, labels = inputs["tokens"][:, :-1], inputs["tokens"][:, 1:]
    labels = labels.masked_fill(labels == pick(settings, "ignore_index", default=-1), IGNORED)
    thought = model(read, num_steps=steps, keep_states=True)
    logits = thought.logits
    if model.config.prediction == "all":
        states = torch.cat([thought.states[:, -1:], thought.extra["reasoning"]], 1)
        logits = model.read_out(states).transpose(1, 2).flatten(1, 2)
    return {"logits": logits, "loss": model.loss(Batch(read, labels), num_steps=steps).total}


def parameters(model: ReasoningTokens) -> dict[str, Callable[[Get], Tensor]]:
    """Return, by published name, functions that assemble a weight or its gradient."""
    return getters(layout(model))


def layout(model: Any) -> Layout:
    """Return our parameters by published name."""
    found: dict[str, tuple[Tensor, ...]] = {
        "token_emb.weight": (model.embedding.weight,),
        "pos_emb.weight": (model.positions.weight,),
        "reason_tokens": (model.reasoning,),
        "norm.g": (model.norm.weight,),
        "to_logits.weight": (model.head.weight,),
    }
    for i, block in enumerate(model.blocks):
        forward = block.feed_forward
        found |= {
            f"layers.{i}.0.to_qkv.0.g": (block.attention_norm.weight,),
            f"layers.{i}.0.to_qkv.1.weight": (block.query.weight, block.key_value.weight),
            f"layers.{i}.0.to_out.1.weight": (block.output.weight,),
            f"layers.{i}.1.0.g": (block.feed_forward_norm.weight,),
            f"layers.{i}.1.1.ff.0.0.weight": (forward.up.weight,),
            f"layers.{i}.1.1.ff.0.0.bias": (forward.up.bias,),
            f"layers.{i}.1.1.ff.2.weight": (forward.down.weight,),
            f"layers.{i}.1.1.ff.2.bias": (forward.down.bias,),
        }
    return found
