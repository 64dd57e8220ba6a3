"""Planted defects: each changed line of the operations is caught by comparison with dense."""

import inspect
import sys
import types

import pytest
import torch

from thinkers.ops import chain, cpu_sdpa, dense, masks, stop_grad, thought, tiled, tiles

KNOWN = {
    x.__name__.rpartition(".")[2]: x for x in (chain, cpu_sdpa, stop_grad, thought, tiled, tiles)
}

DEFECTS = [
    (
        "tiled",
        "later.shape[1] :].masked_fill_(later, 0.0)",
        "later.shape[1] :].masked_fill_(later, 1.0)",
    ),
    ("tiled", "edge = max(first, offset + 1)", "edge = max(first, offset + 2)"),
    ("tiled", "ones.triu_(offset + 1 - edge)", "ones.triu_(offset + 2 - edge)"),
    ("tiled", "work.multiply(p, keep_v, rows, heads)", "work.multiply(p, keep_k, rows, heads)"),
    ("tiled", "work.multiply(ds, keep_k, rows, heads)", "work.multiply(ds, keep_q, rows, heads)"),
    ("tiled", "work.multiply(p.copy_(ds), keep_q, rows, heads)", "ds"),
    ("tiled", "share.mul_(problem.scale)", "share"),
    (
        "tiled",
        "_add(dk[rows, heads, first:last], ds, own, problem.scale)",
        "_add(dk[rows, heads, first:last], ds, own, 1.0)",
    ),
    ("tiled", "ds.sub_(delta).mul_(p)", "ds.mul_(p)"),
    ("tiled", "end + self.s - self.t", "end"),
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
        "return Keep((~value).to(dtype), first + start, first + end), active",
        "return Keep(value.to(dtype), first + start, first + end), active",
    ),
    ("tiles", "first + start, first + end), active", "start, end), active"),
    ("tiles", "value[:, :, panel.start : panel.end]", "value[:, :, : panel.end - panel.start]"),
    ("cpu_sdpa", "[(0, s - t, False), (s - t, s, True)]", "[(0, s - t, False), (s - t, s, False)]"),
    ("cpu_sdpa", "dq = dq + more", "dq = dq"),
    ("cpu_sdpa", "both = torch.logaddexp(lse, more_lse)", "both = torch.maximum(lse, more_lse)"),
    (
        "stop_grad",
        "rows = [x if x is None or i == 0 else x.mT for i, x in enumerate(rows)]",
        "rows = [None, *(x if x is None else x.mT for x in rows[1:])]",
    ),
    (
        "stop_grad",
        "grad, stops = grad * _factor(stops[0], q), [None] * 3",
        "grad, stops = grad, [None] * 3",
    ),
    (
        "thought",
        "(lse - base).exp()[..., None]).to(q.dtype)",
        "(lse - both).exp()[..., None] * 0.999).to(q.dtype)",
    ),
    (
        "thought",
        "p = p.sub_(lse.masked_fill(lse == -torch.inf, torch.inf)[..., None]).exp_()",
        "p = p.softmax(-1).nan_to_num(0.0)",
    ),
    ("thought", "mul_(p).mul_(reading.scale)", "mul_(p)"),
    ("thought", "dq = dq + _weighted(ds, chain_k).to(dq.dtype)", "dq = dq + 0"),
    (
        "thought",
        "hidden.shape[1] - q.shape[2] :, None], -torch.inf",
        ": q.shape[2], None], -torch.inf",
    ),
]


def planted(name, old, new):
    """All modules of the operations, one of them with one change."""
    copies = {}
    for key, module in KNOWN.items():
        source = inspect.getsource(module)
        if key == name:
            assert source.count(old) == 1, f"{old!r} is not one place of {name}"
            source = source.replace(old, new)
        copies[key] = source
    made = {}
    for key in ("tiles", "cpu_sdpa", "tiled", "stop_grad", "thought", "chain"):
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


def random(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def compare(ours, oracle, tensors, **call):
    results = []
    for attend in (ours, oracle):
        out = attend(*tensors, **call)
        results.append([out, *torch.autograd.grad(out, tensors, random(*out.shape, seed=9))])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def check(modules):
    """The comparisons that every defect has to fail, and the code as it is has to pass."""
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
                compare(attend, dense.stop_grad_attention, tensors, causal=causal, **call)
        for backend in ("fused", "block"):
            rest = [random(b, g, min(t, s), 3, 5, seed=i).requires_grad_() for i in (6, 7)]
            hidden = random(b, s, seed=8) > 0.5
            chained = [tensors[0][:, :, : min(t, s)].detach().requires_grad_(), *tensors[1:], *rest]
            compare(
                lambda *x, backend=backend, **call: modules["thought"].thought_attention(
                    *x, **call, backend=backend
                ),
                dense.thought_attention,
                chained,
                key_padding=hidden,
            )


def small(modules):
    modules["tiled"].PANEL, modules["tiled"].CACHE = 16, 1500
    return modules


def test_the_code_as_it_is_passes():
    check(small(planted("tiled", "PANEL = 128", "PANEL = 16")))


@pytest.mark.parametrize(
    ("name", "old", "new"), DEFECTS, ids=[f"{x[0]}-{i}" for i, x in enumerate(DEFECTS)]
)
def test_a_planted_defect_is_found(name, old, new):
    modules = small(planted(name, old, new))
    with pytest.raises(AssertionError):
        check(modules)
