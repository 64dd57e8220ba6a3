"""ThoughtsFormer.

Source: https://github.com/EmmettBicker/ThoughtsFormer.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from thinkers.errors import DataError
from thinkers.models.batch import IGNORED
from thinkers.models.thoughtsformer import ThoughtsFormer
from thinkers.published.common import Get, dtype_of, fill, getters, pick

LAYER = "transformer_layer."


def load(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> ThoughtsFormer:
    """Build the model of these weights: one layer, learned positions, an untied head."""
    first, last = LAYER + "linear1.weight", "output.weight"
    for name in (first, last):
        if name not in weights:
            raise DataError(f"weights lack {name}, which is required; found {sorted(weights)}")
    words, classes = pick(settings, "vocab_size"), len(weights[last])
    config = ThoughtsFormer.Config(
        variant="published",
        vocab_size=words,
        dim=pick(settings, "d_model"),
        num_heads=pick(settings, "num_heads"),
        num_layers=1,
        num_steps=pick(settings, "num_steps"),
        max_length=pick(settings, "max_sequence_length"),
        causal=pick(settings, "is_causal", default=True),
        dropout=pick(settings, "dropout", default=0.0),
        hidden=len(weights[first]),
        num_classes=None if classes == words else classes,
    )
    model = ThoughtsFormer(config).to(dtype_of(weights))
    fill(layout(model), weights)
    return model


def outputs(
    model: ThoughtsFormer, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return `logits`, and with `targets` their `loss`, without dropout in any mode.

    `attention_mask` is True where a token is real.
    """
    tokens, real = inputs["tokens"], inputs.get("attention_mask")
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        steps = pick(settings, "num_steps", default=model.config.num_steps)
        states = model.run(model.check_tokens(tokens), steps, None if real is None else ~real)
        found = {"logits": model.read_out(states)[:, -1]}
    finally:
        for part, training in modes.items():
            part.training = training
    if "targets" in inputs:
        logits, targets = found["logits"].flatten(0, 1), inputs["targets"].flatten()
        found["loss"] = F.cross_entropy(logits, targets, ignore_index=IGNORED)
    return found


def parameters(model: ThoughtsFormer) -> dict[str, Callable[[Get], Tensor]]:
    """Return, by published name, functions that assemble a weight or its gradient."""
    return getters(layout(model))


def layout(model: ThoughtsFormer) -> dict[str, tuple[Tensor, ...]]:
    """Return our parameters by published name."""
    block: Any = model.blocks[0]
    parts = {
        "self_attn.in_proj_{}": (block.heads.query, block.heads.key_value),
        "self_attn.out_proj.{}": (block.heads.output,),
        "norm1.{}": (block.attention_norm,),
        "linear1.{}": (block.feed_forward.up,),
        "linear2.{}": (block.feed_forward.down,),
        "norm2.{}": (block.feed_forward_norm,),
    }
    found: dict[str, tuple[Tensor, ...]] = {
        "embedding.weight": (model.embedding.weight,),
        "pos_embedding": (model.positions.weight,),
        "time_embedding": (model.codes.weight,),
    }
    for kind in ("weight", "bias"):
        for name, ours in parts.items():
            found[LAYER + name.format(kind)] = tuple(getattr(part, kind) for part in ours)
        found[f"output.{kind}"] = (getattr(model.head, kind),)
    return found
