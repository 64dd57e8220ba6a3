"""Angles and other constants: not rounded by a model's dtype, and never left undefined."""

import copy

import pytest
import torch
from model_cases import CASES, ids, lesson, tiny
from torch.testing import assert_close

from thinkers.models import MODELS
from thinkers.nn.constants import ComputedBuffers
from thinkers.nn.layers import Rotary, sinusoidal

HALVES = [torch.bfloat16, torch.float16]
PUBLISHED_THINKER = pytest.param("thinker", {"variant": "published", "output": "parallel"})


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name, own", CASES)
def test_774_positions_have_774_rotary_rows_in_half_precision(name, own, dtype):
    positions = torch.arange(774)
    exact, half = tiny(name, own).double(), tiny(name, own).to(dtype)
    for wide, part in zip(exact.modules(), half.modules(), strict=True):
        if not isinstance(part, Rotary):
            continue
        table = part.table(positions, dtype)
        assert all(x.dtype == dtype for x in table)
        assert len(torch.cat(table, -1)[0].unique(dim=0)) == 774
        for found, wanted in zip(table, wide.table(positions, torch.float64), strict=True):
            # Rounding a number of at most 1, and the angles' own rounding in float32.
            assert_close(found.double(), wanted, rtol=0, atol=torch.finfo(dtype).eps / 2 + 1e-4)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("dim", [7, 32, 384])
def test_774_steps_have_774_sinusoidal_codes_in_half_precision(dtype, dim):
    numbers = torch.arange(774)
    found, wanted = (sinusoidal(numbers, dim, x) for x in (dtype, torch.float64))
    assert found.dtype == dtype and wanted.dtype == torch.float64
    assert len(found.unique(dim=0)) == 774
    assert_close(found.double(), wanted, rtol=0, atol=torch.finfo(dtype).eps / 2 + 1e-4)


CODE = sinusoidal(torch.tensor([500]), 32, torch.float32)[0]


@torch.no_grad()
def test_the_code_of_a_late_step_is_that_of_float32_in_a_half_precision_looped_model():
    model = tiny("looped", {"time_code": True, "injection": "add"}).bfloat16()
    seen: list[torch.Tensor] = []
    model.core[0].register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    zeros = torch.zeros(2, 3, 32, dtype=torch.bfloat16)
    model._think(zeros, zeros, 500, model.rotary.table(torch.arange(3), zeros.dtype), None, 0)
    assert torch.equal(seen[0], CODE.bfloat16().expand(2, 3, -1))


@torch.no_grad()
def test_the_code_of_a_late_step_is_that_of_float32_in_a_half_precision_thoughtsformer():
    zeros = torch.zeros(2, 3, 32, dtype=torch.bfloat16)
    found = tiny("thoughtsformer").bfloat16().coded(zeros, 500)
    assert torch.equal(found, CODE.bfloat16().expand(2, 3, -1))


@torch.no_grad()
@pytest.mark.parametrize("name", list(MODELS))
def test_casting_a_model_there_and_back_changes_no_constant(name):
    model = tiny(name)
    wanted = {n: x.clone() for n, x in model.named_buffers()}
    for change in (torch.nn.Module.bfloat16, torch.nn.Module.double, copy.deepcopy):
        model = change(model)
        for n, x in model.named_buffers():
            assert x.dtype == torch.float32 and torch.equal(x, wanted[n]), n


@pytest.mark.parametrize("name, own", [*CASES, PUBLISHED_THINKER])
@pytest.mark.parametrize("assign", [False, True])
def test_a_model_built_on_meta_is_the_one_whose_weights_it_loads(name, own, assign):
    model = tiny(name, own)
    with torch.device("meta"):
        again = MODELS[name](model.config)
    if not assign:
        again = again.to_empty(device="cpu")
        for x in again.parameters():
            x.data.fill_(7)  # what is left undefined may be right by chance
    again.load_state_dict(model.state_dict(), assign=assign)
    again.eval()
    for n, x in model.named_buffers():
        assert torch.equal(x, again.get_buffer(n)), n
    assert torch.equal(model(ids(2, 40)).logits, again(ids(2, 40)).logits)
    batch = lesson(model, 2, 40)
    assert torch.equal(model.loss(batch).total, again.loss(batch).total)


@pytest.mark.parametrize("name, own", [*CASES, PUBLISHED_THINKER])
def test_what_no_state_dict_carries_is_computed(name, own):
    model = tiny(name, own)
    carried = model.state_dict()
    for n, _ in model.named_buffers():
        owner = model.get_submodule(n.rpartition(".")[0])
        computed = isinstance(owner, ComputedBuffers) and n.rpartition(".")[2] in owner.constants()
        assert computed != (n in carried), n
