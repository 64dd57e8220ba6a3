"""Small Hugging Face models with random weights, of every kind that can be retrofitted."""

from typing import Any

import torch
from model_cases import tiny

V, T = 13, 67
LLAMA: dict[str, Any] = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=6,
    num_attention_heads=4,
    max_position_embeddings=T,
    bos_token_id=None,
    eos_token_id=None,
)
GROUPED = LLAMA | {"num_key_value_heads": 2}
GPT2: dict[str, Any] = dict(
    vocab_size=V, n_embd=32, n_layer=6, n_head=4, n_positions=T, bos_token_id=0, eos_token_id=0
)
ROPE = {"rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = ROPE | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama, grouped, tied, biased": (
        "llama",
        GROUPED | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, frequencies of llama3": ("llama", LLAMA | {"rope_parameters": LLAMA3}),
    "llama, yarn": ("llama", LLAMA | {"rope_parameters": ROPE | {"rope_type": "yarn"}}),
    "llama, linear": (
        "llama",
        LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    ),
    "mistral": ("mistral", GROUPED | {"sliding_window": None}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3, wide heads": ("qwen3", GROUPED | {"head_dim": 12}),
    "gpt2": ("gpt2", GPT2),
    "gpt2, scaled by layer, untied": (
        "gpt2",
        GPT2
        | {"n_inner": 40, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
    ),
    "decoder": ("decoder", {}),
    "decoder, grouped, untied": (
        "decoder",
        {"num_kv_heads": 2, "hidden": 40, "tie_head": False, "rotary_base": 500.0},
    ),
}
"""{case: (`model_type`, or a model of the library that is exported; settings)}."""


def pretrained(case: str, **more: Any) -> Any:
    """A model of transformers in evaluation mode, the same one every time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from thinkers.hf import from_model

    kind, settings = CASES[case]
    if kind == "decoder":
        return from_model(tiny(kind, settings | {"num_layers": 6} | more))
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings | more))
        for x in model.parameters():
            if x.ndim == 1:  # gains and biases other than those of the beginning
                torch.nn.init.normal_(x, 0.7, 0.5)
    return model.eval()
