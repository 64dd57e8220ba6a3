"""Inputs, stops and masks of the attention tests, and comparisons with the dense definition."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from thinkers.ops import masks


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def leaves(b, h, g, t, s, d, dtype=torch.float64):
    shapes = [(b, h, t, d), (b, g, s, d), (b, g, s, d)]
    return [random(*x, seed=i, dtype=dtype).requires_grad_() for i, x in enumerate(shapes)]


def thought_leaves(b, h, g, t, s, n, d, dtype=torch.float64):
    shapes = [(b, h, t, d), *[(b, g, s, d)] * 2, *[(b, g, t, n, d)] * 2]
    return [random(*x, seed=i, dtype=dtype).requires_grad_() for i, x in enumerate(shapes)]


def results(attend, tensors, **settings):
    out = attend(*tensors, **settings)
    weight = random(*out.shape, seed=9, dtype=out.dtype)
    grads = torch.autograd.grad(out, tensors, weight)
    return [x.detach() for x in (out, *grads)]


def assert_agree(ours, oracle, tolerance=1e-10, least=1e-6):
    """Fail unless output and gradients agree, relative to the largest entry of each or `least`."""
    for i, (x, y) in enumerate(zip(ours, oracle, strict=True)):
        error = float((x - y).abs().max()) if x.numel() else 0.0
        largest = float(y.abs().max()) if y.numel() else 0.0
        name = "the output" if i == 0 else f"gradient {i}"
        assert error <= tolerance * max(largest, least), f"{name} is off by {error}"


def by_head(b, h, q, k):
    return (q - 2 * k + 3 * h + 5 * b) % 4 == 1


def by_distance(b, h, q, k):
    return (0.3 * (q - k) - 0.7 * h + 0.1 * b).double()


STOPS = {
    "none": (None, None, None),
    "all": (True, True, True),
    "constants": (0.5, -2.0, False),
    "rule": (None, masks.reasoning_near(1, 3), masks.reasoning_near(1, 3)),
    "functions": (by_head, by_distance, masks.invert(by_head)),
    "mixed": (masks.causal, by_head, True),
    "far": (masks.reasoning_far(2, 2), masks.sections(5), masks.finished_sections(7)),
    "tensors": "tensors",
    "floats": "floats",
    "own": "own",
    "query": "query",
    "crossed": "crossed",
    "heads": "heads",
}


def stops_of(kind, b, h, t, s):
    pairs = [random(b, h, t, s, seed=i) for i in (3, 4, 5)]
    pair = pairs[0]
    query = pair[:1, :1, :, :1].sign()
    known = {
        "tensors": (pair[:1] > 0, pairs[1][:, :1] > 0.3, random(t, s, seed=7) > 0),
        "floats": (pair, pairs[1], pairs[2][:, :1]),
        "own": (pair[:, :, :, :1] > 0, pairs[1][:, :1, :1], pairs[2][:, :1, :1] > 0),
        "query": (query, query, query),
        "crossed": (pairs[0][:, :1, :1], pairs[1][:, :, :, :1] > 0, pairs[2][:1, :1, :, :1]),
        # By key, and differing between heads that share one: the sum of dk cannot be scaled.
        "heads": (pairs[0][:, :, :, :1], pairs[1][:, :, :1], pairs[2][:, :, :1] > 0),
    }
    stops = known.get(kind) if isinstance(STOPS[kind], str) else STOPS[kind]
    return dict(zip(("stop_q", "stop_k", "stop_v"), stops, strict=True))


def mask_of(kind, b, h, t, s):
    score, shared = random(b, h, t, s, seed=6), random(h, t, s, seed=8)
    return {
        "none": None,
        "bool": score[:, :1] > -0.5,
        "float": shared.masked_fill(shared > 1, -torch.inf),
        "padding": score[:, :1, :1] > -1,
        "nothing": torch.zeros(t, s, dtype=torch.bool),
    }[kind]


def padding_of(kind, b, s):
    hidden = random(b, s, seed=7) > 0.4
    if kind == "right":
        hidden = torch.arange(s) >= s - torch.arange(b)[:, None] * 2
    if kind == "whole row":
        hidden[:1] = True
    return None if kind == "none" else hidden


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result
