"""The published toy thinker: golden files, where they are at hand, and weights there and back."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from thinkers import published
from thinkers.errors import DataError
from thinkers.models import build_model, load_model
from thinkers.models.thinker import Thinker

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
NAMES = ("thinker_a", "thinker_low_rank", "thinker_memory_probe")


def golden(name):
    path = GOLDEN / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    with safe_open(path, "pt") as file:
        settings = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    groups = {"weights": {}, "in": {}, "out": {}, "grad": {}}
    for key, tensor in tensors.items():
        group, _, rest = key.partition(".")
        groups[group][rest] = tensor
    groups["weights"] = {k: v.double() for k, v in groups["weights"].items()}
    return settings, groups


def agree(ours, theirs, name):
    error = (ours - theirs).abs().max() if theirs.numel() else torch.zeros(())
    limit = 1e-9 * max(float(theirs.abs().max()) if theirs.numel() else 0.0, 1e-6)
    assert ours.shape == theirs.shape and error <= limit, f"{name}: {float(error)} > {limit}"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_the_author(name):
    settings, groups = golden(name)
    model = published.load("thinker", groups["weights"], settings)
    found = published.outputs(model, groups["in"], settings)
    assert found.keys() == groups["out"].keys()
    for key, theirs in groups["out"].items():
        agree(found[key].detach(), theirs, key)
    found["loss"].backward()
    grads = published.dump(model, grads=True)
    assert grads.keys() == groups["grad"].keys()
    for key, theirs in groups["grad"].items():
        agree(grads[key], theirs, key)


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_unchanged_also_after_saving(name, tmp_path):
    settings, groups = golden(name)
    model = published.load("thinker", groups["weights"], settings)
    model.save(tmp_path)
    for which in (model, load_model(tmp_path)):
        dumped = published.dump(which)
        assert {k for k, v in groups["weights"].items() if v.numel()} <= dumped.keys()
        for key, weight in dumped.items():
            assert torch.equal(weight, groups["weights"][key]), key


def test_weights_that_do_not_fit_are_refused_by_name():
    settings, groups = golden("thinker_a")
    weights = dict(groups["weights"])
    weights["embd_vocab.weight"] = weights["embd_vocab.weight"][:-1]
    with pytest.raises(DataError, match="embd_vocab.weight must have shape"):
        published.load("thinker", weights, settings)
    weights = dict(groups["weights"])
    del weights["attn_compute.norm2.weight"]
    with pytest.raises(DataError, match="attn_compute.norm2.weight is missing"):
        published.load("thinker", weights, settings)


def test_a_published_read_out_answers_together_and_generates_nothing():
    own = {"variant": "published", "output": "parallel"}
    torch.manual_seed(0)
    model = build_model("thinker", vocab_size=13, dim=24, num_heads=2, **own)
    tokens = torch.randint(13, (3, 7))
    with pytest.raises(ValueError, match="causal"):
        model.generate(tokens, 2)
    lengths = torch.tensor([7, 3, 5])
    assert model.answer(tokens, lengths, 5).shape == (3, 5)
    with pytest.raises(ValueError, match="output must be parallel where published"):
        Thinker.Config(vocab_size=13, variant="published")
