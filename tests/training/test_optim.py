"""Which optimiser gets which matrix: by what a matrix does, never by its shape."""

from typing import Any

import pytest
import torch
from model_cases import CASES, SIZE, tiny
from torch import nn

from thinkers.config.training import Training
from thinkers.models.decoder import Decoder
from thinkers.training import optim

MUON = Training(num_updates=10, optimizer="muon")


def of_muon(model: nn.Module) -> set[str]:
    """Names of the matrices that Muon updates."""
    names = {p: name for name, p in model.named_parameters()}
    optimizers = optim.build(model, MUON)
    learned = {p for p in names if p.requires_grad}
    assert {p for o in optimizers for g in o.param_groups for p in g["params"]} == learned
    return {names[p] for g in optimizers[1].param_groups for p in g["params"]}


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps of a model that are trained, those of GPT-2 in transformers too."""
    kinds = "Linear", "Conv1D"
    found = {name: part for name, part in model.named_modules() if type(part).__name__ in kinds}
    return {name: part for name, part in found.items() if part.weight.requires_grad}


def widths(model: nn.Module) -> set[int]:
    return {n for part in linear_layers(model).values() for n in part.weight.shape}


@pytest.mark.parametrize("name, own", CASES)
def test_the_matrices_of_muon_do_not_depend_on_the_size_of_the_vocabulary(name, own):
    usual = tiny(name, own)
    wanted = of_muon(usual)
    assert wanted == {f"{n}.weight" for n in linear_layers(usual)} - {"head.weight"}
    for size in widths(usual) - {SIZE["vocab_size"]}:
        if size > own.get("wait_token", 0):  # a token of every vocabulary
            assert of_muon(tiny(name, own, vocab_size=size)) == wanted, size


def test_a_head_of_classes_is_a_head():
    for classes in (5, 8, 32):
        own = {"variant": "published", "hidden": 48, "num_classes": classes, "vocab_size": 32}
        assert "head.weight" not in of_muon(tiny("thoughtsformer", own))


class Untied(Decoder):
    """A user's model: the head has a matrix and a name of its own."""

    name = "untied"

    def __init__(self, config: Any, how: str):
        super().__init__(config)
        self.how = how
        self.turn = nn.Linear(config.dim, config.vocab_size, bias=how == "bias")

    def _answer(self, h):
        x = self.norm(h)
        if self.how == "product":
            return 2.0 * (x @ self.turn.weight.T)
        if self.how == "einsum":
            return torch.einsum("...c,vc->...v", x, self.turn.weight)
        if self.how == "capped":
            return 30 * torch.tanh(self.turn(x) / 30)
        return self.turn(x)


@pytest.mark.parametrize("how", ["plain", "bias", "product", "einsum", "capped"])
@pytest.mark.parametrize("size", [13, 32, 64, 88, 176])
def test_the_head_of_a_users_model_is_found_without_a_word_from_it(how, size):
    model = Untied(Decoder.Config(**SIZE | {"vocab_size": size}), how)
    assert model.output_weights() == {model.turn.weight}
    wanted = {n for n, p in model.named_parameters() if p.ndim == 2}
    assert of_muon(model) == wanted - {"embedding.weight", "turn.weight"}


@pytest.mark.parametrize("name, own", CASES)
def test_finding_the_head_leaves_the_model_and_the_random_stream_as_they_were(name, own):
    model = tiny(name, own).train()
    before = torch.get_rng_state()
    model.output_weights()
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and all(p.grad is None for p in model.parameters())
