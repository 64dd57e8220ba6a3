"""Stop-gradient attention against its dense definition: values, gradients, edges, precision."""

import json
from functools import partial

import pytest
import torch
from attention_cases import (
    STOPS,
    Largest,
    assert_agree,
    by_head,
    leaves,
    mask_of,
    random,
    results,
    stops_of,
)
from golden import read_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from thinkers.ops import dense, masks, stop_grad_attention, tiled

SHAPES = [(2, 6, 3, 37, 37, 5), (1, 4, 4, 19, 41, 3), (3, 4, 1, 41, 19, 2), (2, 2, 2, 1, 23, 7)]


MASKS = ["none", "bool", "float", "padding", "nothing"]
CASES = [
    pytest.param(SHAPES[(i + j) % len(SHAPES)], stops, mask, id=f"{stops}-{mask}")
    for i, stops in enumerate(STOPS)
    for j, mask in enumerate(MASKS)
]
"""Every stop with every mask, each of both at every shape; the property test draws all three."""


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("shape", "stops", "mask"), CASES)
def test_agrees_with_dense_in_value_and_gradient(shape, stops, mask):
    b, h, g, t, s, d = shape
    tensors = leaves(*shape)
    for causal in (True, False):
        call = {"causal": causal, "mask": mask_of(mask, b, h, t, s), "scale": 0.6}
        call |= stops_of(stops, b, h, t, s)
        oracle = results(dense.stop_grad_attention, tensors, **call)
        for backend in ("auto", "block"):
            assert_agree(results(stop_grad_attention, tensors, **call, backend=backend), oracle)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_query_blocks_give_output_and_log_sum_exp(causal, mask):
    for b, h, g, t, s, d in SHAPES:
        q, k, v = (x.detach() for x in leaves(b, h, g, t, s, d))
        mask_tensor = mask_of(mask, b, h, t, s)
        problem = tiled.Problem(b, h, g, t, s, causal, mask_tensor, 0.6, q.device)
        out, lse = tiled.forward(q, k, v, problem)
        oracle = dense.stop_grad_attention(q, k, v, causal=causal, mask=mask_tensor, scale=0.6)
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
    mask=st.sampled_from(MASKS),
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


def test_gradients_that_are_not_needed_are_not_computed():
    q, k, v = leaves(1, 2, 2, 13, 13, 3)
    near = masks.reasoning_near(1, 2)
    whole = results(stop_grad_attention, [q, k, v], causal=True, stop_v=near)
    out = stop_grad_attention(q.detach(), k.detach(), v, causal=True, stop_v=near)
    (dv,) = torch.autograd.grad(out, v, random(*out.shape, seed=9))
    torch.testing.assert_close(dv, whole[3], rtol=1e-12, atol=1e-12)
    detached = stop_grad_attention(q.detach(), k.detach(), v.detach())
    assert not detached.requires_grad


def test_a_mask_changed_before_the_backward_pass_raises():
    tensors = leaves(1, 2, 2, 13, 13, 3)
    stop = torch.zeros(13, 13, dtype=torch.bool)
    out = stop_grad_attention(*tensors, stop_k=stop)
    stop[0, 0] = True
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_inputs_are_unchanged_and_no_buffer_is_read_before_it_is_written():
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


def test_no_tensor_of_all_pairs_is_ever_made():
    tensors = leaves(1, 2, 2, 1100, 1100, 4, dtype=torch.float32)
    near = masks.reasoning_near(1, 50)
    with Largest() as largest:
        out = stop_grad_attention(*tensors, causal=True, stop_k=near, stop_v=by_head)
        torch.autograd.grad(out.sum(), tensors)
    assert largest.numel <= 2 * 128 * 1100 < 1100 * 1100


def test_a_function_gets_index_tensors_that_broadcast():
    calls = []

    def recorded(b, h, q, k):
        calls.append((b, h, q, k))
        return (q + k + b + h) % 2 == 0

    tensors = leaves(3, 4, 2, 150, 170, 2)
    results(stop_grad_attention, tensors, stop_q=recorded)
    assert all(x.dtype == torch.int64 and x.ndim == 4 for index in calls for x in index)
    rows, columns = set(), set()
    for b, h, q, k in calls[1:]:
        assert b.shape == (3, 1, 1, 1) and h.shape == (1, 4, 1, 1)
        assert q.shape == (1, 1, q.numel(), 1) and k.shape == (1, 1, 1, k.numel())
        rows |= set(q.flatten().tolist())
        columns |= set(k.flatten().tolist())
    assert rows == set(range(150)) and columns == set(range(170))


@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 5, 2), (2, 0, 1, 3, 5, 2), (2, 2, 1, 0, 5, 2)])
def test_empty_axes_give_zero_output_and_zero_gradients(shape, stops):
    b, h, _, t, s, d = shape
    call = stops_of(stops, b, h, t, s)
    for backend in ("auto", "block", "dense"):
        out, *grads = results(stop_grad_attention, leaves(*shape), **call, backend=backend)
        assert out.shape == (b, h, t, d)
        assert not any(x.any() for x in grads)


@pytest.mark.parametrize("backend", ["auto", "block", "dense"])
@pytest.mark.parametrize("scale", [-0.7, 0.0])
def test_a_scale_that_is_not_positive_agrees_with_sums_over_pairs(backend, scale):
    q, k, v = leaves(1, 2, 1, 5, 7, 3)
    keep = random(2, 5, 7, seed=3)
    call = {"stop_q": keep, "causal": True, "mask": random(5, 7, seed=4) > -1, "scale": scale}
    got = results(stop_grad_attention, (q, k, v), **call, backend=backend)
    weight = random(1, 2, 5, 3, seed=9)
    q, k, v = (x.detach() for x in (q, k, v))
    out, dq, dk, dv = (torch.zeros_like(x) for x in (q, q, k, v))
    for h, i in ((h, i) for h in range(2) for i in range(5)):
        visible = [j for j in range(7) if j <= i + 2 and call["mask"][i, j]]
        p = (k[0, 0, visible] @ q[0, h, i] * scale).softmax(0)
        out[0, h, i] = p @ v[0, 0, visible]
        go = weight[0, h, i]
        ds = scale * p * (v[0, 0, visible] @ go - go @ out[0, h, i])
        dq[0, h, i] = (keep[h, i, visible] * ds) @ k[0, 0, visible]
        dk[0, 0, visible] += ds[:, None] * q[0, h, i]
        dv[0, 0, visible] += p[:, None] * go
    assert_agree(got, [out, dq, dk, dv])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_float_mask_is_not_rounded_to_low_precision(dtype):
    tensors = leaves(1, 2, 2, 67, 67, 16, dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    near = masks.reasoning_near(0, 1)  # nothing is near: the block backend, nothing stopped
    mask = 30 * random(67, 67, seed=6, dtype=torch.float32)
    mask[5] = -1e5  # below float16, and still a row that sees all keys
    exact = results(dense.stop_grad_attention, wide, mask=mask.double())
    fused = results(functional.scaled_dot_product_attention, tensors, attn_mask=mask)
    ours = results(stop_grad_attention, tensors, mask=mask, stop_k=near)
    assert exact[0][:, :, 5].abs().min() > 0
    for x, y, z in zip(ours, fused, exact, strict=True):
        assert (x - z).abs().max() <= 2 * (y - z).abs().max()
    plain = results(dense.stop_grad_attention, tensors, mask=mask)
    torch.testing.assert_close(plain[0].double(), exact[0], rtol=0.02, atol=0.02)


def test_a_mask_of_rows_is_not_spread_over_keys():
    tensors = leaves(1, 1, 1, 1100, 1100, 4, dtype=torch.float32)
    rows = random(1100, 1, seed=6) > 0
    with Largest() as largest:
        out = stop_grad_attention(*tensors, causal=True, mask=rows)
    assert largest.numel <= 4 * 1100
    assert torch.equal((out != 0).any(-1)[0, 0], rows[:, 0])


def test_the_meta_device_gives_the_shapes():
    q = torch.empty(2, 4, 5, 3, device="meta", requires_grad=True)
    k = torch.empty(2, 2, 7, 3, device="meta", requires_grad=True)
    out = stop_grad_attention(q, k, k, causal=True, stop_k=masks.reasoning_near(1, 2))
    assert out.shape == q.shape
    assert torch.autograd.grad(out.sum(), k)[0].shape == k.shape
