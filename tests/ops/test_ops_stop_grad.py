"""Stop-gradient attention against its dense definition: values, gradients, shapes, precision."""

import json
from functools import partial

import pytest
import torch
from golden import read_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from thinkers.ops import dense, masks, stop_grad_attention, tiled


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def leaves(b, h, g, t, s, d, dtype=torch.float64):
    shapes = [(b, h, t, d), (b, g, s, d), (b, g, s, d)]
    return [random(*x, seed=i, dtype=dtype).requires_grad_() for i, x in enumerate(shapes)]


def results(attend, tensors, **settings):
    out = attend(*tensors, **settings)
    weight = random(*out.shape, seed=9, dtype=out.dtype)
    grads = torch.autograd.grad(out, tensors, weight)
    return [x.detach() for x in (out, *grads)]


def assert_agree(ours, oracle, tolerance=1e-10, least=1e-6):
    for name, x, y in zip(("out", "dq", "dk", "dv"), ours, oracle, strict=True):
        error = float((x - y).abs().max()) if x.numel() else 0.0
        largest = float(y.abs().max()) if y.numel() else 0.0
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


SHAPES = [(2, 6, 3, 37, 37, 5), (1, 4, 4, 19, 41, 3), (3, 4, 1, 41, 19, 2), (2, 2, 2, 1, 23, 7)]


@pytest.fixture
def small_panels(monkeypatch):
    monkeypatch.setattr(tiled, "PANEL", 16)
    monkeypatch.setattr(tiled, "CACHE", 700)


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("mask", ["none", "bool", "float", "padding", "nothing"])
def test_agrees_with_dense_in_value_and_gradient(shape, stops, mask):
    b, h, g, t, s, d = shape
    tensors = leaves(*shape)
    for causal in (True, False):
        call = {"causal": causal, "mask": mask_of(mask, b, h, t, s), "scale": 0.6}
        call |= stops_of(stops, b, h, t, s)
        oracle = results(dense.stop_grad_attention, tensors, **call)
        for backend in ("auto", "block"):
            assert_agree(results(stop_grad_attention, tensors, **call, backend=backend), oracle)


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "padding", "nothing"])
def test_the_panels_find_output_and_log_sum_exp_alone(causal, mask):
    for b, h, g, t, s, d in SHAPES:
        q, k, v = (x.detach() for x in leaves(b, h, g, t, s, d))
        shown = mask_of(mask, b, h, t, s)
        problem = tiled.Problem(b, h, g, t, s, causal, shown, 0.6, q.device)
        out, lse = tiled.forward(q, k, v, problem)
        oracle = dense.stop_grad_attention(q, k, v, causal=causal, mask=shown, scale=0.6)
        torch.testing.assert_close(out, oracle, rtol=1e-11, atol=1e-13)
        assert torch.equal(lse == -torch.inf, (oracle == 0).all(-1))


sizes = st.tuples(
    st.integers(0, 3),
    st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2), (0, 1)]),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 9),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=sizes,
    causal=st.booleans(),
    mask=st.sampled_from(["none", "bool", "float", "padding", "nothing"]),
    stops=st.sampled_from(sorted(STOPS)),
    layout=st.sampled_from(["plain", "transposed", "sliced", "expanded"]),
    backend=st.sampled_from(["auto", "block"]),
    scale=st.sampled_from([None, 0.6, 0.0, -0.9]),
)
def test_any_shape_and_layout_agrees_with_dense(sizes, causal, mask, stops, layout, backend, scale):
    b, (h, g), t, s, d = sizes
    tensors = [laid_out(x.detach(), layout).requires_grad_() for x in leaves(b, h, g, t, s, d)]
    call = {"causal": causal, "mask": mask_of(mask, b, h, t, s)} | stops_of(stops, b, h, t, s)
    call["scale"] = scale
    oracle = results(dense.stop_grad_attention, tensors, **call)
    ours = results(stop_grad_attention, tensors, **call, backend=backend)
    # Where masks leave one key to each row, dq and dk are 0 by cancellation, up to some 1e-15.
    assert_agree(ours, oracle, least=1e-4)


def laid_out(x, layout):
    if layout == "transposed":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        return x.repeat_interleave(2, dim=-1)[..., ::2]
    return x[:1].expand(x.shape) if layout == "expanded" else x


@pytest.mark.parametrize("kind", ["bool_causal", "float", "v_only"])
@pytest.mark.parametrize("backend", ["auto", "block"])
def test_golden_files(kind, backend):
    settings, groups = read_golden(f"stop_grad_attention_{kind}")
    x = {f"{group}.{name}": y for group, part in groups.items() for name, y in part.items()}
    causal = json.loads(settings["causal"])
    q, k, v = (x[f"in.{name}"].requires_grad_() for name in "qkv")
    stops = {f"stop_{name}": x.get(f"in.{name}_stop_grad") for name in "qkv"}
    out = stop_grad_attention(q, k, v, causal=causal, backend=backend, **stops)
    grads = torch.autograd.grad(out, (q, k, v), x["in.grad_out"])
    golden = [x["out.out"], *(x[f"grad.{name}"] for name in "qkv")]
    assert_agree([out.detach(), *grads], golden, 1e-9)


@pytest.mark.parametrize("backend", ["sdpa", "block"])
@pytest.mark.parametrize(("t", "s"), [(5, 5), (3, 7), (7, 3)])
def test_gradcheck(backend, t, s):
    mask = random(1, 2, t, s, seed=6)
    assert torch.autograd.gradcheck(
        lambda *x: stop_grad_attention(*x, causal=True, mask=mask, backend=backend),
        leaves(2, 2, 1, t, s, 3),
        atol=1e-7,
        rtol=1e-5,
        nondet_tol=0.0,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("stops", ["none", "own", "rule", "tensors", "floats"])
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(dtype, stops):
    shape = (2, 4, 2, 67, 67, 16)
    tensors = leaves(*shape, dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    call = {"causal": True} | stops_of(stops, 2, 4, 67, 67)
    weight = random(2, 4, 67, 16, seed=9, dtype=dtype)

    def run(attend, xs):
        out = attend(*xs, **call)
        return [out, *torch.autograd.grad(out, xs, weight.to(out.dtype))]

    exact = run(dense.stop_grad_attention, wide)
    for backend in ("auto", "block"):
        ours = run(partial(stop_grad_attention, backend=backend), tensors)
        plain = run(dense.stop_grad_attention, tensors)
        for x, y, z in zip(ours, plain, exact, strict=True):
            assert x.dtype == dtype
            assert (x - z).abs().max() <= 2 * (y - z).abs().max() + 1e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_fused_attention(dtype):
    tensors = leaves(1, 3, 3, 131, 131, 32, dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    exact = results(dense.stop_grad_attention, wide, causal=True)
    fused = results(functional.scaled_dot_product_attention, tensors, is_causal=True)
    ours = results(stop_grad_attention, tensors, causal=True, backend="block")
    for x, y, z in zip(ours, fused, exact, strict=True):
        assert (x - z).abs().max() <= 2 * (y - z).abs().max()


def test_a_head_may_be_stopped_alone():
    tensors = leaves(1, 2, 2, 11, 11, 3)
    near = masks.only_heads(masks.reasoning_near(1, 2), (1,))
    free = results(stop_grad_attention, tensors, causal=True)
    held = results(stop_grad_attention, tensors, causal=True, stop_k=near, stop_v=near)
    assert torch.equal(free[0], held[0])
    for x, y in zip(free[2:], held[2:], strict=True):
        torch.testing.assert_close(x[:, 0], y[:, 0], rtol=1e-12, atol=1e-12)
        assert (x[:, 1] - y[:, 1]).abs().max() > 1e-3


def test_fully_stopped_gradients_are_exactly_zero():
    tensors = leaves(2, 4, 2, 150, 150, 3)
    everywhere = torch.ones(150, 150, dtype=torch.bool)
    for stop in (True, everywhere, lambda b, h, q, k: (q == q) & (k == k)):
        _, *grads = results(
            stop_grad_attention, tensors, causal=True, stop_q=stop, stop_k=stop, stop_v=stop
        )
        assert not any(x.any() for x in grads)


@pytest.mark.parametrize("backend", ["auto", "block"])
def test_later_tokens_change_nothing_bit_for_bit(backend):
    q, k, v = (x.detach().float() for x in leaves(2, 3, 3, 150, 150, 8))
    near = masks.reasoning_near(1, 9)
    out = stop_grad_attention(q, k, v, causal=True, stop_k=near, backend=backend)
    for x in (q, k, v):
        x[:, :, 101:] = 7.0
    changed = stop_grad_attention(q, k, v, causal=True, stop_k=near, backend=backend)
    assert torch.equal(out[:, :, :101], changed[:, :, :101])
    assert not torch.equal(out, changed)


def test_second_backward_repeats_and_second_derivative_is_refused():
    tensors = leaves(1, 2, 2, 13, 13, 3)
    out = stop_grad_attention(*tensors, causal=True, stop_v=masks.reasoning_near(1, 2))
    first = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    again = torch.autograd.grad(out.sum(), tensors, create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="stop_grad_attention has no second derivative"):
        torch.autograd.grad(sum(x.square().sum() for x in again), tensors)


def test_only_wanted_gradients_come_back():
    q, k, v = leaves(1, 2, 2, 13, 13, 3)
    near = masks.reasoning_near(1, 2)
    whole = results(stop_grad_attention, [q, k, v], causal=True, stop_v=near)
    out = stop_grad_attention(q.detach(), k.detach(), v, causal=True, stop_v=near)
    (dv,) = torch.autograd.grad(out, v, random(*out.shape, seed=9))
    torch.testing.assert_close(dv, whole[3], rtol=1e-12, atol=1e-12)
    detached = stop_grad_attention(q.detach(), k.detach(), v.detach())
    assert not detached.requires_grad


def test_a_mask_changed_before_the_backward_is_noticed():
    tensors = leaves(1, 2, 2, 13, 13, 3)
    stop = torch.zeros(13, 13, dtype=torch.bool)
    out = stop_grad_attention(*tensors, stop_k=stop)
    stop[0, 0] = True
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_inputs_stay_as_they_were_and_no_buffer_is_read_before_it_is_written():
    tensors = leaves(2, 4, 2, 150, 150, 3)
    before = [x.detach().clone() for x in tensors]
    call = {"causal": True, "stop_q": by_head, "stop_v": masks.reasoning_near(1, 40)}
    plain = results(stop_grad_attention, tensors, **call)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        poisoned = results(stop_grad_attention, tensors, **call)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(plain, poisoned, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(before, tensors, strict=True))


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result


def test_nothing_of_all_pairs_is_ever_made():
    tensors = leaves(1, 2, 2, 1100, 1100, 4, dtype=torch.float32)
    near = masks.reasoning_near(1, 50)
    with Largest() as largest:
        out = stop_grad_attention(*tensors, causal=True, stop_k=near, stop_v=by_head)
        torch.autograd.grad(out.sum(), tensors)
    assert largest.numel <= 2 * 128 * 1100 < 1100 * 1100


def test_a_function_gets_index_tensors_that_broadcast():
    seen = []

    def watch(b, h, q, k):
        seen.append((b, h, q, k))
        return (q + k + b + h) % 2 == 0

    tensors = leaves(3, 4, 2, 150, 170, 2)
    results(stop_grad_attention, tensors, stop_q=watch)
    assert all(x.dtype == torch.int64 and x.ndim == 4 for index in seen for x in index)
    rows, columns = set(), set()
    for b, h, q, k in seen[1:]:
        assert b.shape == (3, 1, 1, 1) and h.shape == (1, 4, 1, 1)
        assert q.shape == (1, 1, q.numel(), 1) and k.shape == (1, 1, 1, k.numel())
        rows |= set(q.flatten().tolist())
        columns |= set(k.flatten().tolist())
    assert rows == set(range(150)) and columns == set(range(170))
