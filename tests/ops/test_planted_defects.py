"""Mutation tests: each planted defect fails the comparison with the dense definition."""

import inspect
import sys
import types

import pytest
import torch
from attention_cases import random

from thinkers.ops import chain, cpu_sdpa, dense, dispatch, masks, stop_grad, thought, tiled, tiles

MODULES = (dispatch, tiles, cpu_sdpa, tiled, stop_grad, thought, chain)
"""In the order of their imports."""
KNOWN = {x.__name__.rpartition(".")[2]: x for x in MODULES}

DEFECTS = [
    (
        "tiled",
        "future.shape[1] :].masked_fill_(future, 0.0)",
        "future.shape[1] :].masked_fill_(future, 1.0)",
    ),
    ("tiled", "edge = max(first, offset + 1)", "edge = max(first, offset + 2)"),
    ("tiled", "ones.triu_(offset + 1 - edge)", "ones.triu_(offset + 2 - edge)"),
    ("tiled", "work.apply_factor_(p, factors[2],", "work.apply_factor_(p, factors[1],"),
    ("tiled", "work.apply_factor_(ds, factors[1],", "work.apply_factor_(ds, factors[0],"),
    ("tiled", "work.apply_factor_(p.copy_(ds), factors[0], rows, heads)", "ds"),
    ("tiled", "block_dq.mul_(problem.scale)", "block_dq"),
    (
        "tiled",
        "_add_product_(dk[rows, heads, first:last], ds, block_q, problem.scale)",
        "_add_product_(dk[rows, heads, first:last], ds, block_q, 1.0)",
    ),
    ("tiled", "ds.sub_(delta).mul_(p)", "ds.mul_(p)"),
    ("tiled", "max(0, end + self.s - self.t)", "max(0, end)"),
    (
        "tiled",
        "return x if x.shape[1] == 1 else x[:, heads]",
        "return x if x.shape[1] == 1 else x[:, : heads.stop - heads.start]",
    ),
    (
        "tiles",
        "first, last = min(x[0] for x in ranges), max(x[1] for x in ranges)",
        "first, last = max(x[0] for x in ranges), min(x[1] for x in ranges)",
    ),
    (
        "tiles",
        "return FactorTile((~value).to(dtype), first + start, first + end), active",
        "return FactorTile(value.to(dtype), first + start, first + end), active",
    ),
    ("tiles", "first + start, first + end), active", "start, end), active"),
    ("tiles", "value[:, :, block.start : block.end]", "value[:, :, : block.end - block.start]"),
    ("cpu_sdpa", "[(0, s - t, False), (s - t, s, True)]", "[(0, s - t, False), (s - t, s, False)]"),
    ("cpu_sdpa", "dq = dq + dq_more", "dq = dq"),
    ("cpu_sdpa", "torch.logaddexp(lse, more_lse)", "torch.maximum(lse, more_lse)"),
    (
        "stop_grad",
        "factors = [x if x is None or i == 0 else x.mT for i, x in enumerate(factors)]",
        "factors = [None, *(x if x is None else x.mT for x in factors[1:])]",
    ),
    (
        "stop_grad",
        "grad, stops = grad * _as_factor(stops[0], q), [None] * 3",
        "grad, stops = grad, [None] * 3",
    ),
    (
        "dispatch",
        'return axes[0] == "query" and stops[0] is stops[1] is stops[2]',
        'return axes[0] == "query" and stops[0] is not None',
    ),
    (
        "thought",
        "(lse - base).exp()[..., None]).to(q.dtype)",
        "(lse - merged).exp()[..., None] * 0.999).to(q.dtype)",
    ),
    (
        "thought",
        "p = p.sub_(lse.masked_fill(lse == -torch.inf, torch.inf)[..., None]).exp_()",
        "p = p.softmax(-1).nan_to_num(0.0)",
    ),
    ("thought", "mul_(p).mul_(call.scale)", "mul_(p)"),
    ("thought", "dq = dq + _weighted_sum(ds, chain_k).to(dq.dtype)", "dq = dq + 0"),
    (
        "thought",
        "padding.shape[1] - q.shape[2] :, None], -torch.inf",
        ": q.shape[2], None], -torch.inf",
    ),
]


def planted(name, old, new):
    """Copies of the modules, one of which has `old` replaced by `new`; they import each other."""
    copies = {}
    for key, module in KNOWN.items():
        source = inspect.getsource(module)
        if key == name:
            assert source.count(old) == 1, f"{old!r} is not one place of {name}"
            source = source.replace(old, new)
        copies[key] = source
    made = {}
    for key in KNOWN:
        module = types.ModuleType(f"planted_{key}")
        module.__file__ = KNOWN[key].__file__
        sys.modules[module.__name__] = module
        source = copies[key]
        for other in made:
            source = source.replace(
                f"from thinkers.ops.{other} import", f"from planted_{other} import"
            )
        exec(compile(source, module.__file__, "exec"), module.__dict__)
        for other in made:
            if other in module.__dict__:
                setattr(module, other, made[other])
        made[key] = module
    return made


def assert_agree(ours, oracle, tensors, **call):
    results = []
    for attend in (ours, oracle):
        out = attend(*tensors, **call)
        results.append([out, *torch.autograd.grad(out, tensors, random(*out.shape, seed=9))])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def check(modules):
    """Compare both operations with dense: passes for the code as it is, fails with any defect."""
    attend = modules["stop_grad"].stop_grad_attention
    for b, h, g, t, s in ((2, 4, 2, 37, 53), (1, 2, 2, 41, 41), (2, 2, 1, 23, 19)):
        shapes = [(b, h, t, 5), (b, g, s, 5), (b, g, s, 5)]
        tensors = [random(*x, seed=i).requires_grad_() for i, x in enumerate(shapes)]
        near, older = masks.reasoning_near(1, 4), masks.reasoning_far(2, 3)
        tables = [random(b, h, t, s, seed=i) > 0.2 for i in (3, 4, 5)]
        query = random(t, 1, seed=6)
        for stops in (
            (None, near, older),
            (near, near, near),
            (masks.causal, older, near),
            (tables[0], tables[1].double(), tables[2]),
            (query, random(1, s, seed=7), random(1, s, seed=8)),
            (query, query, query),
        ):
            call = dict(zip(("stop_q", "stop_k", "stop_v"), stops, strict=True))
            for causal in (True, False):
                assert_agree(attend, dense.stop_grad_attention, tensors, causal=causal, **call)
        for backend in ("fused", "block"):
            rest = [random(b, g, min(t, s), 3, 5, seed=i).requires_grad_() for i in (6, 7)]
            hidden = random(b, s, seed=8) > 0.5
            chained = [tensors[0][:, :, : min(t, s)].detach().requires_grad_(), *tensors[1:], *rest]
            assert_agree(
                lambda *x, backend=backend, **call: modules["thought"].thought_attention(
                    *x, **call, backend=backend
                ),
                dense.thought_attention,
                chained,
                key_padding=hidden,
            )


def with_small_blocks(modules):
    modules["tiled"].BLOCK_QUERIES, modules["tiled"].BUFFER_ELEMENTS = 16, 1500
    return modules


def test_the_code_as_it_is_passes():
    check(with_small_blocks(planted("tiled", "BLOCK_QUERIES = 128", "BLOCK_QUERIES = 16")))


@pytest.mark.parametrize(
    ("name", "old", "new"), DEFECTS, ids=[f"{x[0]}-{i}" for i, x in enumerate(DEFECTS)]
)
def test_a_planted_defect_is_found(name, old, new):
    modules = with_small_blocks(planted(name, old, new))
    with pytest.raises(AssertionError):
        check(modules)
