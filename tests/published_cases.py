"""A published checkpoint that takes a moment to import."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from thinkers import published
from thinkers.models.thinker import Thinker

MODEL = "model.safetensors"
SETTINGS = {
    "vocab_size": 11,
    "d_model": 12,
    "nlayers": 1,
    "nhead": 2,
    "n_step": 2,
    "max_input_len": 7,
    "n_latent": 3,
    "read_step": 99,
    "n_memory": 99,
    "ff_in_self_attn": False,
    "skip_self_attn": False,
    "d_hid": 20,
}


def published_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Write a checkpoint with the author's names, and its settings; return the weights."""
    config = Thinker.Config(
        variant="published",
        output="parallel",
        vocab_size=11,
        dim=12,
        num_layers=1,
        num_heads=2,
        num_latents=3,
        hidden=20,
        max_inputs=16,
        max_outputs=16,
    )
    torch.manual_seed(0)
    weights = published.dump(Thinker(config))
    named = {f"_orig_mod.{name}": x.contiguous().clone() for name, x in weights.items()}
    save_file(named, folder / MODEL)  # a pickle is read in a process of its own, which takes longer
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    return weights
