"""thinkers import: from a published checkpoint to a model folder."""

import json

import torch
from safetensors.torch import save_file

import thinkers
from thinkers import published
from thinkers.cli import commands, main
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


def checkpoint(folder):
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


def test_the_command_makes_a_model_folder(tmp_path, capsys):
    weights = checkpoint(tmp_path)
    out = tmp_path / "out"
    words = ["import", "thinker", str(tmp_path / MODEL), "--settings"]
    assert main.main([*words, str(tmp_path / "settings.json"), "--out", str(out)]) == 0
    assert "thinker with" in capsys.readouterr().out
    dumped = published.dump(thinkers.load(out))
    assert dumped.keys() == weights.keys()
    assert all(torch.equal(dumped[name], weights[name]) for name in weights)


def test_a_bad_system_or_checkpoint_is_refused(tmp_path, capsys):
    checkpoint(tmp_path)
    out, settings = tmp_path / "out", str(tmp_path / "settings.json")
    rest = ["--settings", settings, "--out", str(out)]
    assert main.main(["import", "thinkr", str(tmp_path / MODEL), *rest]) == 2
    assert "thinker" in capsys.readouterr().err
    assert main.main(["import", "thinker", str(tmp_path / "absent.safetensors"), *rest]) == 3
    (tmp_path / MODEL).write_bytes(b"no checkpoint")
    assert main.main(["import", "thinker", str(tmp_path / MODEL), *rest]) == 3
    assert len(capsys.readouterr().err.strip().splitlines()) <= 6
    assert not out.exists()


def test_the_command_knows_every_system():
    assert set(commands.SYSTEMS) == set(published.SYSTEMS)
