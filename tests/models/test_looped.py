"""The looped transformer, against its equations."""

import math

import pytest
import torch
from equations import block_by_hand, normed, vary
from model_cases import ids, tiny

from thinkers.models import MODELS

COUPLED = [0, 1, 2, 0, 1, 2, 3]


@torch.no_grad()
@pytest.mark.parametrize("positions", [None, COUPLED])
@pytest.mark.parametrize("own", [{}, *MODELS["looped"].test_variants])
def test_looped_is_its_equations(own, positions):
    model, tokens, steps = vary(tiny("looped", own).double()), ids(7), 3
    seen = positions, model.config.window
    e = model.embedding.weight[tokens]
    for block in model.prelude:
        e = block_by_hand(block, e, *seen)
    s = e
    for step in range(steps):
        if model.config.injection == "concat":
            s = torch.cat([s, e], -1) @ model.inject.weight.T
        elif model.config.injection == "add":
            s = s + e
        if model.config.time_code:
            half = 16
            turns = [step * 10000.0 ** (-i / half) for i in range(half)]
            code = [math.sin(a) for a in turns] + [math.cos(a) for a in turns]
            s = s + torch.tensor(code, dtype=torch.float64)
        for block in model.core:
            s = block_by_hand(block, s, *seen)
        s = normed(model.core_norm, s)
    for block in model.coda:
        s = block_by_hand(block, s, *seen)
    head = model.embedding.weight if model.config.tie_head else model.head.weight
    wanted = normed(model.norm, s) @ head.T
    places = None if positions is None else torch.tensor([positions])
    found = model(tokens[None], num_steps=steps, positions=places).logits[0]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_looped_differentiates_its_last_steps_alone(monkeypatch):
    limited, tokens = tiny("looped", backprop_steps=2).double(), ids(2, 7)
    whole = tiny("looped").double()
    think = whole._think
    monkeypatch.setattr(
        whole, "_think", lambda s, e, step, *_: think(s.detach() if step == 2 else s, e, step, *_)
    )
    found, wanted = (
        torch.autograd.grad(model.loss(tokens, num_steps=4).total, list(model.parameters()))
        for model in (limited, whole)
    )
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)
    monkeypatch.setattr(whole, "_think", think)
    other = torch.autograd.grad(whole.loss(tokens, num_steps=4).total, whole.inject.weight)[0]
    assert not torch.allclose(other, whole.inject.weight.new_tensor(0)) and not torch.allclose(
        other, dict(zip(dict(limited.named_parameters()), found, strict=True))["inject.weight"]
    )
