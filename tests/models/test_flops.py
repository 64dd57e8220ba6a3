"""`model.flops` against PyTorch's own count of the matrix products that run."""

import sys
from dataclasses import replace

import pytest
import torch
from model_cases import CASES, NAMES, lesson, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thinkers.models import MODELS

pytestmark = pytest.mark.unchecked


def visible_thoughts(q, base_k, base_v, chain_k, chain_v, *, causal=True, **_):
    """The products of `thought_attention` over what is visible, causality not halved."""
    groups = q.shape[1] // base_k.shape[1]
    base_k, base_v, chain_k, chain_v = (
        x.repeat_interleave(groups, 1) for x in (base_k, base_v, chain_k, chain_v)
    )
    if not causal:
        base_k, base_v = (
            torch.cat([x, y.flatten(2, 3)], 2) for x, y in ((base_k, chain_k), (base_v, chain_v))
        )
        return (q @ base_k.mT).softmax(-1) @ base_v
    own = (chain_k @ q[..., None])[..., 0]
    p = torch.cat([q @ base_k.mT, own], -1).softmax(-1)
    p, own = p.split([base_k.shape[2], own.shape[-1]], -1)
    return p @ base_v + (own[..., None, :] @ chain_v)[..., 0, :]


class VisibleChain:
    """The products of a `Chain`."""

    def __init__(self, max_thoughts):
        self.thoughts = []

    def append(self, k, v):
        self.thoughts.append((k, v))

    def attend(self, q, base_k, base_v, **_):
        chain = [torch.stack(x, 3) for x in zip(*self.thoughts, strict=True)]
        chain = chain or [x[:, :, :, None][:, :, :, :0] for x in (base_k, base_v)]
        return visible_thoughts(q, base_k, base_v, *chain)


class Recomputing(torch.autograd.Function):
    """The products of `stop_grad_attention`: its backward pass computes the scores anew."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return (q @ k.mT).softmax(-1) @ v

    @staticmethod
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensors
        p = (q @ k.mT).softmax(-1)
        scores = p * (grad @ v.mT)
        return scores @ k, scores.mT @ q, p.mT @ grad


def stopped(q, k, v, **_):
    return Recomputing.apply(q, k, v)


@pytest.fixture
def countable(monkeypatch):
    """Put operations in place whose products the counter sees, in every module that uses them."""
    doubles = {
        "thought_attention": visible_thoughts,
        "Chain": VisibleChain,
        "stop_grad_attention": stopped,
    }
    for name, module in list(sys.modules.items()):
        if name.startswith("thinkers.") and not name.startswith("thinkers.ops."):
            for operation, double in doubles.items():
                if hasattr(module, operation):
                    monkeypatch.setattr(module, operation, double)


@pytest.mark.parametrize("name, own", CASES)
def test_flops_are_those_counted_by_torch(name, own, countable):
    check_flops(tiny(name, {"max_steps": 3, "vocab_size": 37, **own}), 3, 23)


@pytest.mark.parametrize("name", NAMES)
def test_flops_are_those_counted_by_torch_at_every_number_of_steps(name, countable):
    check_flops(tiny(name, num_layers=1, max_steps=8), 2, 24)


def check_flops(model, b, length):
    batch = lesson(model, b, length)
    for steps in model.step_counts:
        with sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad(), FlopCounterMode(display=False) as inference:
                model(batch.tokens, num_steps=steps)
            with FlopCounterMode(display=False) as training:
                model.train().loss(batch, num_steps=steps).total.backward()
        found = model.flops(b, length, steps)
        assert found == pytest.approx(inference.get_total_flops(), rel=0.02), f"{steps} steps"
        found = model.batch_flops(batch, steps, training=True)
        assert found == pytest.approx(training.get_total_flops(), rel=0.02), f"{steps} steps"


@pytest.mark.parametrize("own", [{}, *MODELS["thinker"].test_variants], ids=str)
def test_flops_of_rows_with_prompts_are_those_counted_by_torch(own, countable):
    model = tiny("thinker", {"max_steps": 3, "vocab_size": 37, **own})
    batch = replace(lesson(model, 3, 23), prompt_lengths=torch.tensor([5, 11, 7]))
    place = torch.arange(23)
    answered = (place >= torch.tensor([[4], [10], [6]])) & (
        place < torch.tensor([[13], [19], [15]])
    )
    batch = replace(batch, targets=batch.targets.where(answered, -100))
    for steps in model.step_counts:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as training:
            model.train().loss(batch, num_steps=steps).total.backward()
        found = model.batch_flops(batch, steps, training=True)
        assert found == pytest.approx(training.get_total_flops(), rel=0.02), f"{steps} steps"
    prompts = batch.rows(slice(1, 2)).tokens[:, :11]
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as written:
        model.eval().answer(prompts, torch.tensor([11]), 9, 2)
    found = model.batch_flops(batch.rows(slice(1, 2)), 2)
    assert found == pytest.approx(written.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_flops_of_a_batch_are_those_of_its_shape_where_prompts_change_nothing(name):
    model, batch = tiny(name), lesson(tiny(name), 3, 23)
    for training in (False, True):
        assert model.batch_flops(batch, None, training) == model.flops(3, 23, None, training)


@pytest.mark.parametrize("name, own", CASES)
def test_flops_are_integers_that_grow_with_every_size(name, own):
    model = tiny(name, own)
    usual = model.flops(2, 19)
    assert type(usual) is int and type(model.flops(2, 19, training=True)) is int
    assert model.flops(4, 19) == pytest.approx(2 * usual, rel=0.05)
    assert model.flops(2, 38) > usual
    assert model.flops(2, 19, training=True) > 2 * usual
    costs = [model.flops(2, 19, steps) for steps in model.step_counts]
    assert costs == sorted(set(costs))


def test_flops_of_a_decoder_by_hand():
    model = tiny("decoder", num_layers=3, hidden=40, num_kv_heads=2)
    b, t, c = 5, 7, 32
    projections = 2 * b * t * c * (c + c + 2 * 16)
    attention = 2 * (2 * b * t * t * c)
    feed_forward = 3 * 2 * b * t * c * 40
    wanted = 3 * (projections + attention + feed_forward) + 2 * b * t * c * 13
    assert model.flops(b, t) == wanted
    assert model.flops(b, t, training=True) == 3 * wanted


LEVELS = {"memory_levels": 2, "read_level": 2}
READ = [(own, top, 1) for own in ({}, LEVELS) for top in (None, 2)]
READ += [(LEVELS, None, 2), (LEVELS, 2, 2), ({"memory_conditioned": True}, 2, 1)]


@pytest.mark.parametrize("own, top, level", READ, ids=str)
def test_flops_of_documents_are_those_counted_by_torch(own, top, level, countable):
    sizes = {"max_steps": 3, "vocab_size": 37, "memory": "blocks", "memory_top": top}
    model = tiny("thinker", sizes | own)
    batch = replace(
        lesson(model, 4, 11),
        prompt_lengths=torch.full((4,), 10),
        sections=torch.arange(160).view(2, 8, 10) % 37,
        section_lengths=torch.full((2, 8), 10),
        document=torch.tensor([0, 0, 1, 1]),
        document_levels=torch.full((2,), min(level, model.config.read_level)),
    )
    batch = replace(batch, targets=batch.targets.where(torch.arange(11) == 9, -100))
    for steps in (2, 3):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as training:
            model.train().loss(batch, num_steps=steps).total.backward()
        found = model.batch_flops(batch, steps, training=True)
        assert found == pytest.approx(training.get_total_flops(), rel=0.03), f"{steps} steps"
        held_out = replace(batch, document_levels=None)
        plain = replace(held_out, sections=None, section_lengths=None, document=None)
        counts = []
        for rows in (held_out, plain):
            with (
                sdpa_kernel(SDPBackend.MATH),
                torch.no_grad(),
                FlopCounterMode(display=False) as read,
            ):
                given = {"memory": blocks} if (blocks := model.eval().blocks_of(rows)) else {}
                model.answer(rows.tokens[:, :10], rows.prompt_lengths, 1, steps, **given)
            counts.append(read.get_total_flops())
        found = model.batch_flops(held_out, steps) - model.batch_flops(plain, steps)
        assert found == pytest.approx(counts[0] - counts[1], rel=0.03), f"{steps} steps"
