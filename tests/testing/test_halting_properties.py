"""Properties of halting, of models in other settings than those of `test_variants`."""

import copy

import pytest
import torch
from halting_cases import halting as gated
from halting_cases import waiting
from model_cases import tiny

import thinkers
from thinkers.testing.halting import halted_caching, halting

BARE = {"num_coda_layers": 0, "num_prelude_layers": 0, "injection": "none", "time_code": True}


@pytest.mark.parametrize("own", [{"window": 3, "step_loss": "due"}, BARE])
def test_looped_with_a_gate_and_other_layers(own):
    model = tiny("looped", {"halting": True, "num_layers": 1, "max_steps": 3, **own}).double()
    before = copy.deepcopy(model.state_dict())
    thinkers.testing.check_model(model)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_model_that_waits_is_exact_when_it_halts_at_its_first_answer():
    model = waiting(thinkers.build_task("links", max_length=60))
    assert model.halts_by == ("answered",)
    halting(model)
    halted_caching(model)


@pytest.mark.parametrize("name", ["looped", "thoughtsformer", "thinker"])
def test_a_model_without_a_gate_is_asked_to_refuse(name):
    model = tiny(name)
    assert model.halts_by == ()
    halting(model)
    model.__class__ = type("Ignores", (type(model),), {"answer": _answer})
    with pytest.raises(AssertionError, match=r"halt=-0.1\) must raise ValueError"):
        halting(model)


def _answer(self, tokens, lengths, max_new_tokens, halt=None):
    return tokens[:, :1]


def test_a_gate_that_says_the_same_of_all_tokens_is_not_taken_for_a_test(monkeypatch):
    model = gated()
    monkeypatch.setattr(
        type(model), "is_done", lambda self, states, halt: torch.ones_like(states[..., 0]) > 0
    )
    with pytest.raises(AssertionError, match="no random gate lets tokens take different steps"):
        halting(model)
