"""DeepSight, also named DeepPlan, and its companion model.

Source: https://github.com/yiphei/yif-AI (no licence stated).
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from thinkers.errors import DataError
from thinkers.models.batch import Batch
from thinkers.models.deepsight import DeepSight
from thinkers.published.common import (
    Get,
    Layout,
    dtype_of,
    fill,
    getters,
    keep_all_unread,
    pick,
    untie,
)

LOSSES = {
    "NONE": "none",
    "MSE": "mse",
    "COSINE": "cosine",
    "LOG_COSINE": "log_cosine",
    "CONSINE_SIM": "cosine",
    "LOG_COSINE_SIM": "log_cosine",
}
NORMS = {"NONE": "none", "PRE_AGGR": "before", "POST_AGGR": "after", "BOTH": "both"}
MIXES = {"EQUAL": "equal", "CONTEXT_SIZE": "length", "NONE": "future"}
HORIZONS = {"DECAY": "decay", "DECAY_W_NORMALIZE": "decay_normalized", "AVG": "average"}
UNREAD = ("encoder_out_ln", "planning_context_ln_1", "planning_context_ln_2", "embeddings_ln")
COMPANION = {
    "add_pos_embed_to_decoder": (False,),
    "sub_pos_embed_to_decoder": ("NO", "YES_NO_LN"),
    "add_ln_before_decoder_ff": (False,),
    "order_type": ("ORIGINAL",),
    "detach_type": ("ENCODER_OUT", None),
    "embedding_ln_type": ("INIT", None),
    "use_ln_on_encoder_out": (True, None),
}
"""Settings of the companion model (encoder-decoder with an embedding loss) that are supported."""


def load(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> DeepSight:
    """Build the encoder-decoder with the planning or the embedding loss of these settings."""
    for name, choices in COMPANION.items():
        if settings.get(name, choices[0]) not in choices:
            raise DataError(
                f"{name} must be one of {choices} to be imported, got {settings[name]!r}"
            )
    model = DeepSight(configure(settings)).to(dtype_of(weights))
    weights = untie(weights, "token_embedding.weight", "output_layer.weight")
    wanted = layout(model)
    unread = {
        name: weight
        for name, weight in weights.items()
        if name not in wanted and name.rpartition(".")[0] in UNREAD
    }
    fill(wanted, {name: x for name, x in weights.items() if name not in unread})
    keep_all_unread(model, unread)
    return model


def configure(settings: Mapping[str, Any]) -> DeepSight.Config:
    """Translate settings, by the names of the golden files or those of the author."""
    cross = settings.get("cross_attn_config") or {}
    bias = bool(pick(settings, "use_bias"))
    if cross.get("use_bias", bias) != bias:
        raise DataError(
            f"cross_attn_config.use_bias must equal use_bias, {bias}, got {cross['use_bias']!r}"
        )
    context = pick(settings, "context_size", "max_length")
    horizon = pick(settings, "future_context_size", default=None)
    loss: Any = choose(settings, "planning_loss_type", LOSSES) or "none"
    if loss != "none" and not (isinstance(horizon, int) and 1 < horizon < context):
        raise DataError(
            f"future_context_size must be above 1 and below the context size {context}, "
            f"got {horizon!r}"
        )
    chosen = {
        "horizon": horizon,
        "plan_weight": settings.get("planning_loss_coeff"),
        "plan_norm": choose(settings, "planning_context_ln_type", NORMS),
        "plan_mix": choose(settings, "present_future_context_aggregation_type", MIXES),
        "horizon_weights": choose(settings, "future_context_aggregation_type", HORIZONS),
        "embedding_loss": choose(settings, "embedding_loss_type", LOSSES),
        "embedding_weight": settings.get("embedding_loss_coeff"),
        "num_cross_heads": settings.get("cross_n_head") or cross.get("n_head"),
    }
    # Published settings may name choices of a loss that they turn off.
    if loss == "none":
        for name in ("horizon", "plan_weight", "plan_norm", "plan_mix", "horizon_weights"):
            del chosen[name]
    if chosen["embedding_loss"] in (None, "none"):
        del chosen["embedding_weight"]
    return DeepSight.Config(
        variant="published",
        vocab_size=pick(settings, "vocab_size", "alphabet_size"),
        dim=pick(settings, "n_embed"),
        num_layers=pick(settings, "n_layer"),
        num_heads=pick(settings, "n_head"),
        max_length=context,
        bias=bias,
        plan_loss=loss,
        dropout=settings.get("dropout_rate") or 0.0,
        subtract_position=settings.get("sub_pos_embed_to_decoder", "NO") != "NO",
        **{name: value for name, value in chosen.items() if value is not None},
    )


def choose(settings: Mapping[str, Any], name: str, choices: Mapping[str, str]) -> Any:
    """Translate a published choice; None where the setting is absent."""
    value = settings.get(name)
    if value is not None and value not in choices:
        raise DataError(f"{name} must be one of {sorted(choices)}, got {value!r}")
    return None if value is None else choices[value]


def outputs(
    model: DeepSight, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return logits, and with targets the loss: cross-entropy and planning or embedding loss."""
    logits = model(inputs["tokens"]).logits
    if "targets" not in inputs:
        return {"logits": logits}
    loss, parts = model.grade(Batch(inputs["tokens"], inputs["targets"]))
    found = {"logits": logits, "loss": loss.total, "cross_entropy": parts["next_token"]}
    found["planning_loss"] = parts.get("plan", loss.total.new_zeros(()))
    if "embedding" in parts:
        found["embedding_loss"] = parts["embedding"]
    return found


def parameters(model: DeepSight) -> dict[str, Callable[[Get], Tensor]]:
    """Return, by published name, functions that assemble a weight or its gradient."""
    return getters(layout(model))


def layout(model: DeepSight) -> Layout:
    """Return our parameters by published name."""
    found: dict[str, tuple[Tensor, ...]] = {
        "token_embedding.weight": (model.embedding.weight,),
        "positional_embedding.weight": (model.positions.weight,),
    }

    def add(name: str, *parts: Any) -> None:
        for kind in ("weight", "bias"):
            values: Any = tuple(getattr(part, kind, None) for part in parts)
            if all(value is not None for value in values):
                found[f"{name}.{kind}"] = values

    def add_block(prefix: str, attention: str, feed_forward: str, block: Any) -> None:
        heads = block.heads
        add(f"{prefix}.{attention}.batch_attn_weights", heads.query, heads.key_value)
        add(f"{prefix}.{attention}.residual_proj", heads.output)
        add(f"{prefix}.{feed_forward}.linear", block.feed_forward.up)
        add(f"{prefix}.{feed_forward}.residual_proj", block.feed_forward.down)

    add("decoder_feed_forward", model.bridge)
    add("ln", model.norm)
    for i, block in enumerate(model.encoder):
        prefix = f"encoder_transformer_blocks.{i}"
        add_block(prefix, "multi_attn_head", "feed_forward", block)
        add(f"{prefix}.ln1", block.attention_norm)
        add(f"{prefix}.ln2", block.feed_forward_norm)
    decoder: list[Any] = list(model.decoder)
    for i, layer in enumerate(decoder):
        block, prefix = layer.block, f"decoder_transformer_blocks.{i}"
        add_block(prefix, "decoder_multi_attn_head", "decoder_feed_forward", block)
        add(f"{prefix}.decoder_ln1", block.attention_norm)
        add(f"{prefix}.decoder_ln2", block.feed_forward_norm)
        add(f"{prefix}.encoder_cross_ln", layer.plan_norm)
        add(f"{prefix}.decoder_cross_ln", layer.cross_norm)
        add(f"{prefix}.cross_multi_attn_head.k_v_weights", layer.cross_heads.key_value)
        add(f"{prefix}.cross_multi_attn_head.q_weights", layer.cross_heads.query)
        add(f"{prefix}.cross_multi_attn_head.residual_proj", layer.cross_heads.output)
    if model.plan_loss is not None:
        add("encoder_out_ln", model.plan_loss.encoder_norm)
        add("planning_context_ln_1", model.plan_loss.before_norm)
        add("planning_context_ln_2", model.plan_loss.after_norm)
    if model.embedding_loss is not None:
        add("encoder_out_ln", model.embedding_loss.encoder_norm)
        add("embeddings_ln", model.embedding_loss.embedding_norm)
    return found
