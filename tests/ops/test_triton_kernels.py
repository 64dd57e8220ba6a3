"""The Triton kernels against dense: on a GPU, or on the CPU under Triton's interpreter, slowly.

Without a GPU: TRITON_INTERPRET=1 python -m pytest -m slow tests/ops/test_triton_kernels.py
"""

import os

import pytest
import torch

from thinkers.ops import Chain, dense, masks, stop_grad_attention, thought_attention

pytest.importorskip("triton", reason="triton is not installed here")

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.slow),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(autouse=True, params=DEVICES)
def device(request, monkeypatch):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device is present")
    if request.param == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("set TRITON_INTERPRET=1 for the whole process to run the kernels on the CPU")
    kernels = pytest.importorskip("thinkers.ops.stop_grad_triton")
    monkeypatch.setattr(kernels, "BLOCK_QUERIES", 32 if request.param == "cpu" else 512)
    return request.param


def random(*shape, seed, device):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def agree(fast, oracle, shapes, device, dtype=torch.float32, tolerance=1e-5, **call):
    leaves = [random(*x, seed=i, device=device).to(dtype) for i, x in enumerate(shapes)]
    results = []
    for attend, kind in ((fast, dtype), (oracle, torch.float64), (oracle, dtype)):
        xs = [x.to(kind).requires_grad_() for x in leaves]
        out = attend(*xs, **call)
        weight = random(*out.shape, seed=9, device=device).to(dtype).to(kind)
        results.append([out.detach().double(), *torch.autograd.grad(out, xs, weight)])
    for ours, exact, plain in zip(*results, strict=True):
        if exact.numel() == 0:
            continue
        error, allowed = (ours - exact).abs().max(), tolerance * exact.abs().max().clamp(min=0.1)
        if dtype != torch.float32:
            allowed = 2 * (plain - exact).abs().max() + 1e-6
        assert error <= allowed


def stops(kind, b, h, t, s, device):
    table = random(b, h, t, s, seed=5, device=device)
    near, far = masks.reasoning_near(1, 9), masks.reasoning_far(1, 9)
    found = {
        "none": (None, None, None),
        "rule": (None, near, near),
        "three": (near, far, masks.causal),
        "tables": (table > 0, table[0, 0] > 0.5, table[:, :1].float()),
        "constants": (True, 0.5, -2.0),
        "axes": (table[:1, :1, :, :1] > 0, table[:1, :1, :1], table[:, :1, :1] > 0),
    }[kind]
    return dict(zip(("stop_q", "stop_k", "stop_v"), found, strict=True))


SHAPES = [(1, 4, 2, 70, 70, 5), (2, 2, 2, 37, 75, 16), (1, 2, 1, 75, 37, 3), (1, 1, 1, 1, 5, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["none", "rule", "three", "tables", "constants", "axes"])
def test_stop_gradient_kernels_agree_with_dense(shape, kind, device):
    b, h, g, t, s, d = shape
    score = random(b, h, t, s, seed=6, device=device)
    shapes = [(b, h, t, d), (b, g, s, d), (b, g, s, d)]
    mask = {"rule": score[0, 0] > -0.5, "tables": score[:, :1, :1] > -1, "axes": score.float()}
    call = {"causal": kind != "axes", "mask": mask.get(kind)} | stops(kind, b, h, t, s, device)
    call["scale"] = {"tables": -0.7, "constants": 0.0}.get(kind)

    def fast(*x, **call):
        return stop_grad_attention(*x, **call, backend="triton")

    agree(fast, dense.stop_grad_attention, shapes, device, **call)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(dtype, device):
    if device == "cpu":
        pytest.skip("the interpreter computes products in another precision")
    shapes = [(1, 4, 257, 64), (1, 2, 257, 64), (1, 2, 257, 64)]
    call = {"causal": True} | stops("rule", 1, 4, 257, 257, device)

    def fast(*x, **call):
        return stop_grad_attention(*x, **call, backend="triton")

    agree(fast, dense.stop_grad_attention, shapes, device, dtype, **call)


@pytest.mark.parametrize("shape", [(2, 4, 2, 20, 20, 3, 5), (1, 2, 2, 7, 29, 5, 3)], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_thought_kernels_agree_with_dense(shape, causal, device):
    b, h, g, t, s, n, d = shape
    hidden = random(b, s, seed=7, device=device) > 0.4
    hidden[0] = True

    def fast(*x, **call):
        return thought_attention(*x, **call, backend="triton")

    shapes = [(b, h, t, d), *[(b, g, s, d)] * 2, *[(b, g, t, n, d)] * 2]
    for padding in (None, hidden):
        call = {"causal": causal, "key_padding": padding}
        agree(fast, dense.thought_attention, shapes, device, **call)


def test_a_chain_on_the_kernels_agrees_with_dense(device):
    def fast(x, y):
        chain, total = Chain(4), x
        for _ in range(3):
            total = total + chain.attend(total, y, y, backend="triton")
            chain.append(total[:, ::2] * 0.5, total[:, 1::2])
        return total

    def oracle(x, y):
        ks, vs, total = [], [], x
        for _ in range(3):
            k, v = (torch.stack(z, 3) if z else y[:, :, :, None][:, :, :, :0] for z in (ks, vs))
            total = total + dense.thought_attention(total, y, y, k, v)
            ks.append(total[:, ::2] * 0.5)
            vs.append(total[:, 1::2])
        return total

    agree(fast, oracle, [(1, 4, 13, 6), (1, 2, 13, 6)], device)
