"""Configurations of Hugging Face models as data: how they name sizes, and which can be looped."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from thinkers.errors import UsageError, usage_error
from thinkers.strict_json import parse_json

OWN_TYPE = "thinkers"
"""`model_type` of models of this library that were exported; of these, decoders can be looped."""
LLAMA_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` whose models are built of the same parts; each was tried."""
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not depend on the length of a text."""
UNUSED = (
    *("_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype"),
    *("return_dict", "output_hidden_states", "output_attentions", "use_cache", "problem_type"),
    *(
        "id2label",
        "label2id",
        "is_encoder_decoder",
        "chunk_size_feed_forward",
        "attn_implementation",
    ),
)
"""Entries of a configuration that a causal language model does not depend on."""


@dataclass(frozen=True)
class Family:
    """Hugging Face models that are built of the same parts.

    Args:
        keys: {setting of ours: the entry of the configuration that holds it}; "settings.dim" is an
            entry of an entry.
        length: The entry that holds the largest number of positions.
        embedding, positions, layers, norm, head: Names of the parts in the model; positions are
            empty where they are rotations.
        has_own_layers: True if the layers are those of this library.
        uses_swiglu: True if the feed-forward is a SwiGLU, whose usual width is 8/3 of dim; that of
            others is 4 dim.
    """

    keys: Mapping[str, str]
    length: str
    embedding: str
    positions: str
    layers: str
    norm: str
    head: str
    has_own_layers: bool = False
    uses_swiglu: bool = True


COMMON = {"vocab_size": "vocab_size", "tie_head": "tie_word_embeddings"}
LLAMA = Family(
    COMMON
    | {
        "dim": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "hidden": "intermediate_size",
    },
    length="max_position_embeddings",
    embedding="model.embed_tokens",
    positions="",
    layers="model.layers",
    norm="model.norm",
    head="lm_head",
)
GPT2 = Family(
    COMMON | {"dim": "n_embd", "num_layers": "n_layer", "num_heads": "n_head", "hidden": "n_inner"},
    length="n_positions",
    embedding="transformer.wte",
    positions="transformer.wpe",
    layers="transformer.h",
    norm="transformer.ln_f",
    head="lm_head",
    uses_swiglu=False,
)
SIZES = ("vocab_size", "dim", "num_layers", "num_heads", "hidden", "tie_head")
OWN = Family(
    {name: f"settings.{name}" for name in SIZES},
    length="settings.max_length",
    embedding="model.embedding",
    positions="",
    layers="model.blocks",
    norm="model.norm",
    head="model.head",
    has_own_layers=True,
)
FAMILIES = dict.fromkeys(LLAMA_TYPES, LLAMA) | {"gpt2": GPT2, OWN_TYPE: OWN}
"""{`model_type` of a configuration: its family}."""


@lru_cache(maxsize=256)
def parse(text: str) -> Mapping[str, Any]:
    """Parse a configuration, and check that its layers can be looped.

    Raises:
        UsageError: It is no JSON object, or describes a model whose layers cannot be looped.
    """
    found = parse_json(text.encode("utf-8", "replace"), "hf_config", UsageError)
    if not isinstance(found, dict):
        raise UsageError(f"hf_config must be a JSON object, got {type(found).__name__}")
    check(found)
    return found


def entry(config: Mapping[str, Any], key: str) -> Any:
    """Return an entry of a configuration, or None; "settings.dim" is one within an entry."""
    outer, _, inner = key.partition(".")
    found = config.get(outer)
    return found.get(inner) if inner and isinstance(found, dict) else found


def check(config: Mapping[str, Any]) -> None:
    """Raise UsageError if the layers of this model cannot be looped."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise usage_error(
            f"a Hugging Face model of the type {kind!r}",
            f"one of those whose layers can be looped: {', '.join(FAMILIES)}",
            "choose such a model",
        )
    if kind == OWN_TYPE:
        _check_own(config)
        return
    windows = config.get("sliding_window") is not None and config.get("use_sliding_window", True)
    types = set(config.get("layer_types") or ()) - {"full_attention"}
    if windows or types:
        found = f"layers of the types {sorted(types)}" if types else "a sliding window"
        raise usage_error(
            f"a {kind} model with {found}",
            "layers that attend to all tokens before",
            "choose another model, or set sliding_window to null for rows that fit into it",
        )
    for name in ("add_cross_attention", "quantization_config"):
        if config.get(name):
            raise usage_error(
                f"a {kind} model with {name}", f"a model without {name}", "choose another model"
            )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise usage_error(
            f"a {kind} model with rotary positions of the type {rope_type!r}",
            f"one of {', '.join(ROPE_TYPES)}, whose frequencies do not depend on the length",
            "choose another model",
        )


def _check_own(config: Mapping[str, Any]) -> None:
    name, settings = config.get("model"), config.get("settings")
    if not isinstance(settings, dict):
        raise UsageError(f"settings in hf_config must be an object, got {type(settings).__name__}")
    if name != "decoder":
        raise usage_error(
            f"an exported {name!r}",
            "an exported decoder",
            "train and export a decoder: other models of the library think already",
        )
    if settings.get("window") is not None:
        raise usage_error(
            f"an exported decoder with window {settings['window']}",
            "layers that attend to all tokens before",
            "choose a decoder without a window",
        )


def to_text(config: Mapping[str, Any]) -> str:
    """Return the entries that a model depends on as JSON, equal text for equal entries.

    Raises:
        UsageError: They hold a value that is none of JSON.
    """
    used = {name: value for name, value in config.items() if name not in UNUSED}
    if config.get("model_type") == OWN_TYPE:  # the other entries repeat the settings
        used = {name: config.get(name) for name in ("model_type", "model", "settings")}
    try:
        return json.dumps(used, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"hf_config must hold values of JSON: {error}") from None
