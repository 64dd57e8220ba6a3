"""The toy model of Thinker: golden files where present, and weights imported and dumped."""

import pytest
import torch
from golden import read_golden

from thinkers import published
from thinkers.errors import DataError
from thinkers.models import build_model, load_model
from thinkers.models.thinker import Thinker

NAMES = ("thinker_a", "thinker_low_rank", "thinker_memory_probe")


def agree(ours, theirs, name):
    error = (ours - theirs).abs().max() if theirs.numel() else torch.zeros(())
    limit = 1e-9 * max(float(theirs.abs().max()) if theirs.numel() else 0.0, 1e-6)
    assert ours.shape == theirs.shape and error <= limit, f"{name}: {float(error)} > {limit}"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_the_published_ones(name):
    settings, groups = read_golden(name)
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
def test_imported_weights_are_dumped_unchanged_also_after_saving(name, tmp_path):
    settings, groups = read_golden(name)
    model = published.load("thinker", groups["weights"], settings)
    model.save(tmp_path)
    for which in (model, load_model(tmp_path)):
        dumped = published.dump(which)
        assert {k for k, v in groups["weights"].items() if v.numel()} <= dumped.keys()
        for key, weight in dumped.items():
            assert torch.equal(weight, groups["weights"][key]), key


def test_weights_that_do_not_fit_are_refused_by_name():
    settings, groups = read_golden("thinker_a")
    weights = dict(groups["weights"])
    weights["embd_vocab.weight"] = weights["embd_vocab.weight"][:-1]
    with pytest.raises(DataError, match="embd_vocab.weight must have shape"):
        published.load("thinker", weights, settings)
    weights = dict(groups["weights"])
    del weights["attn_compute.norm2.weight"]
    with pytest.raises(DataError, match="weights lack attn_compute.norm2.weight"):
        published.load("thinker", weights, settings)


def test_the_published_variant_answers_in_parallel_and_cannot_generate():
    own = {"variant": "published", "output": "parallel"}
    torch.manual_seed(0)
    model = build_model("thinker", vocab_size=13, dim=24, num_heads=2, **own)
    tokens = torch.randint(13, (3, 7))
    with pytest.raises(ValueError, match="causal"):
        model.generate(tokens, 2)
    lengths = torch.tensor([7, 3, 5])
    assert model.answer(tokens, lengths, 5).shape == (3, 5)
    with pytest.raises(ValueError, match="variant published needs output='parallel'"):
        Thinker.Config(vocab_size=13, variant="published")


SETTINGS = {
    "d_model": 12,
    "d_hid": 20,
    "vocab_size": 11,
    "max_input_len": 9,
    "max_output_len": 7,
    "max_latent": 5,
    "n_latent": 3,
    "nlayers": 2,
    "nhead": 2,
    "n_step": 3,
    "n_target": 4,
    "skip_self_attn": False,
    "ff_in_self_attn": False,
    "rank": None,
}


def made(num_knowledge=0):
    """Return weights by published name, the same for all settings."""
    torch.manual_seed(5)
    config = Thinker.Config(
        variant="published",
        output="parallel",
        vocab_size=11,
        dim=12,
        num_heads=2,
        hidden=20,
        max_length=9,
        num_latents=3,
        max_latents=5,
        max_outputs=7,
        section=7,
        num_knowledge=num_knowledge,
    )
    return published.dump(Thinker(config).double())


def run(weights, inputs, **settings):
    model = published.load("thinker", weights, SETTINGS | settings)
    return model, published.outputs(model, inputs, SETTINGS | settings)


TOKENS = {"tokens": torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}


def test_a_rank_that_saves_nothing_means_full_projections():
    weights = made()
    _, full = run(weights, TOKENS)
    for rank in (12, 30):
        assert torch.equal(run(weights, TOKENS, rank=rank)[1]["logits"], full["logits"])
    with pytest.raises(DataError, match="weights lack|weights hold|must have shape"):
        run(weights, TOKENS, rank=11)


def test_knowledge_is_read_only_where_inputs_select_it():
    weights = made(num_knowledge=4)
    less = {name: x for name, x in weights.items() if name != "emb_static_mem.weight"}
    _, without = run(less, TOKENS)
    for inputs in (TOKENS, TOKENS | {"knowledge": torch.zeros(2, 0, dtype=torch.int64)}):
        model, found = run(weights, inputs, static_mem_len=4)
        assert torch.equal(found["logits"], without["logits"])
        found["logits"].sum().backward()
        assert "emb_static_mem.weight" not in published.dump(model, grads=True)
    _, known = run(
        weights, TOKENS | {"knowledge": torch.tensor([[0, 3], [1, 2]])}, static_mem_len=4
    )
    assert (known["logits"] - without["logits"]).abs().max() > 1e-6


def test_step_limits_may_be_absent_floats_or_zero():
    weights = made()
    _, every = run(weights, TOKENS, read_step=99, n_memory=99)
    for limits in ({}, {"read_step": 1e4, "n_memory": 1e4}):
        assert torch.equal(run(weights, TOKENS, **limits)[1]["logits"], every["logits"])
    forgetful = [run(weights, TOKENS, n_memory=0, n_step=n) for n in (1, 3)]
    assert torch.equal(forgetful[0][1]["logits"], forgetful[1][1]["logits"])
    assert (forgetful[1][1]["logits"] - every["logits"]).abs().max() > 1e-6
    model, found = forgetful[1]
    found["logits"].sum().backward()
    assert "embd_latent.weight" not in published.dump(model, grads=True)


def test_without_a_number_of_outputs_there_is_one_per_input():
    settings = {name: x for name, x in SETTINGS.items() if name != "n_target"}
    model = published.load("thinker", made(), settings)
    assert published.outputs(model, TOKENS, settings)["logits"].shape == (2, 1, 5, 11)
