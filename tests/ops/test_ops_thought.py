"""Thought attention and chains of thought against the dense definition."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from thinkers.ops import Chain, dense, thought_attention, tiled
from thinkers.ops.validation import DTYPES

NAMES = ("out", "dq", "base_dk", "base_dv", "chain_dk", "chain_dv")
SHAPES = [
    (2, 6, 3, 37, 37, 3, 5),
    (1, 4, 4, 17, 29, 5, 3),
    (3, 4, 1, 1, 23, 2, 7),
    (2, 2, 2, 19, 19, 0, 3),
    (1, 2, 1, 1, 1, 0, 2),
]


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def leaves(b, h, g, t, s, n, d, dtype=torch.float64):
    shapes = [(b, h, t, d), *[(b, g, s, d)] * 2, *[(b, g, t, n, d)] * 2]
    return [random(*x, seed=i, dtype=dtype).requires_grad_() for i, x in enumerate(shapes)]


def padding_of(kind, b, s):
    hidden = random(b, s, seed=7) > 0.4
    if kind == "right":
        hidden = torch.arange(s) >= s - torch.arange(b)[:, None] * 2
    if kind == "whole row":
        hidden[:1] = True
    return None if kind == "none" else hidden


def results(attend, tensors, **call):
    out = attend(*tensors, **call)
    grads = torch.autograd.grad(out, tensors, random(*out.shape, seed=9, dtype=out.dtype))
    return [x.detach() for x in (out, *grads)]


def assert_agree(ours, oracle, tolerance=1e-10):
    for name, x, y in zip(NAMES, ours, oracle, strict=True):
        error = float((x - y).abs().max()) if x.numel() else 0.0
        largest = float(y.abs().max()) if y.numel() else 0.0
        assert error <= tolerance * max(largest, 1e-6), f"{name} is off by {error}"


@pytest.fixture
def small_panels(monkeypatch):
    monkeypatch.setattr(tiled, "PANEL", 16)
    monkeypatch.setattr(tiled, "CACHE", 700)


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("padding", ["none", "right", "scattered", "whole row"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["auto", "block"])
def test_agrees_with_dense_in_value_and_gradient(shape, padding, causal, backend):
    tensors = leaves(*shape)
    call = {"causal": causal, "key_padding": padding_of(padding, shape[0], shape[4]), "scale": 0.6}
    oracle = results(dense.thought_attention, tensors, **call)
    assert_agree(results(thought_attention, tensors, **call, backend=backend), oracle)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    b=st.integers(0, 3),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2), (0, 1)]),
    t=st.integers(0, 20),
    more=st.integers(0, 20),
    n=st.integers(0, 7),
    d=st.integers(1, 9),
    causal=st.booleans(),
    padding=st.sampled_from(["none", "right", "scattered", "whole row"]),
    transposed=st.booleans(),
    scale=st.sampled_from([None, 0.6, 0.0, -0.9]),
    backend=st.sampled_from(["auto", "block"]),
)
def test_any_shape_agrees_with_dense(
    b, heads, t, more, n, d, causal, padding, transposed, scale, backend
):
    tensors = leaves(b, *heads, t, t + more, n, d)
    if transposed:
        tensors = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
        tensors = [x.requires_grad_() for x in tensors]
    call = {"causal": causal, "key_padding": padding_of(padding, b, t + more), "scale": scale}
    oracle = results(dense.thought_attention, tensors, **call)
    assert_agree(results(thought_attention, tensors, **call, backend=backend), oracle)


@pytest.mark.parametrize("backend", ["fused", "block"])
def test_gradcheck(backend):
    hidden = padding_of("scattered", 2, 5)
    assert torch.autograd.gradcheck(
        lambda *x: thought_attention(*x, key_padding=hidden, backend=backend),
        leaves(2, 2, 1, 3, 5, 2, 3),
        atol=1e-7,
        rtol=1e-5,
        nondet_tol=0.0,
    )


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("padding", ["none", "right"])
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(dtype, padding):
    tensors = leaves(2, 4, 2, 67, 67, 5, 16, dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    weight = random(2, 4, 67, 16, seed=9, dtype=dtype)
    hidden = padding_of(padding, 2, 67)

    def run(attend, xs):
        out = attend(*xs, key_padding=hidden)
        return [out, *torch.autograd.grad(out, xs, weight.to(out.dtype))]

    ours, plain = run(thought_attention, tensors), run(dense.thought_attention, tensors)
    for x, y, z in zip(ours, plain, run(dense.thought_attention, wide), strict=True):
        assert x.dtype == dtype
        assert (x - z).abs().max() <= 2 * (y - z).abs().max() + 1e-7


def test_steps_of_decoding_give_the_rows_of_the_whole():
    q, base_k, base_v, chain_k, chain_v = (x.detach() for x in leaves(2, 4, 2, 23, 23, 3, 5))
    whole = thought_attention(q, base_k, base_v, chain_k, chain_v)
    for start, end in ((0, 1), (6, 7), (10, 15), (22, 23)):
        here, seen = slice(start, end), slice(0, end)
        part = thought_attention(
            q[:, :, here],
            base_k[:, :, seen],
            base_v[:, :, seen],
            chain_k[:, :, here],
            chain_v[:, :, here],
        )
        torch.testing.assert_close(part, whole[:, :, here], rtol=1e-12, atol=1e-12)


def test_other_positions_thoughts_and_later_tokens_change_nothing_bit_for_bit():
    tensors = [x.detach().float() for x in leaves(2, 4, 2, 150, 150, 3, 8)]
    out = thought_attention(*tensors)
    for x in tensors:
        x[:, :, 101:] = 7.0
    changed = thought_attention(*tensors)
    assert torch.equal(out[:, :, :101], changed[:, :, :101])
    for x in tensors[3:]:
        x[:, :, 50] = -3.0
    again = thought_attention(*tensors)
    same = torch.arange(150) != 50
    assert torch.equal(again[:, :, same], changed[:, :, same])
    assert not torch.equal(again[:, :, 50], changed[:, :, 50])


def test_second_backward_repeats_and_second_derivative_is_refused():
    tensors = leaves(1, 2, 2, 11, 13, 2, 3)
    out = thought_attention(*tensors)
    first = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    again = torch.autograd.grad(out.sum(), tensors, create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="thought_attention has no second derivative"):
        torch.autograd.grad(sum(x.square().sum() for x in again), tensors)


STEPS, SIZES = 5, (2, 4, 2, 13, 17, 3)


def think(weights, base, attend, steps=STEPS):
    """A toy of thinking: each step reads, and what it reads becomes the next thought."""
    b, h, g, t, s, d = SIZES
    base_k, base_v, x = base
    to_q, to_k, to_v = weights
    ks, vs, states = [], [], []
    for _ in range(steps):
        q = torch.einsum("btc,chd->bhtd", x, to_q)
        x = x + attend(q, base_k, base_v, ks, vs).transpose(1, 2).flatten(2)
        ks.append(torch.einsum("btc,cgd->bgtd", x, to_k))
        vs.append(torch.einsum("btc,cgd->bgtd", x, to_v))
        states.append(x)
    return torch.stack(states)


def by_concatenation(q, base_k, base_v, ks, vs):
    empty = q.new_zeros(*ks[0].shape[:3], 0, q.shape[3]) if ks else None
    if empty is None:
        empty = q.new_zeros(q.shape[0], base_k.shape[1], q.shape[2], 0, q.shape[3])
    k, v = (torch.stack(x, 3) if x else empty for x in (ks, vs))
    return dense.thought_attention(q, base_k, base_v, k, v)


def by_chain(max_thoughts=STEPS):
    chain = Chain(max_thoughts)

    def attend(q, base_k, base_v, ks, vs):
        if ks:
            chain.append(ks[-1], vs[-1])
        return chain.attend(q, base_k, base_v)

    return attend


def toy():
    b, h, g, t, s, d = SIZES
    c = h * d
    weights = [random(c, n, d, seed=i) * 0.3 for i, n in enumerate((h, g, g))]
    base = [random(b, g, s, d, seed=4), random(b, g, s, d, seed=5), random(b, t, c, seed=6)]
    return [x.requires_grad_() for x in weights], [x.requires_grad_() for x in base]


def test_a_chain_gives_the_values_and_gradients_of_concatenation():
    weights, base = toy()
    losses = [think(weights, base, x) for x in (by_chain(), by_concatenation)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
    weight = random(*losses[0].shape, seed=8)
    ours, oracle = (torch.autograd.grad(x, [*weights, *base], weight) for x in losses)
    for x, y in zip(ours, oracle, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_a_chain_survives_retained_partial_and_interrupted_backward_passes():
    weights, base = toy()
    states = think(weights, base, by_chain())
    wanted = [*weights, *base]
    weight = random(*states.shape, seed=8)
    first = torch.autograd.grad(states, wanted, weight, retain_graph=True)
    torch.autograd.grad(states[-1].sum(), base[:1], retain_graph=True)
    handle = states.grad_fn.register_prehook(lambda grads: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        torch.autograd.grad(states, wanted, weight, retain_graph=True)
    handle.remove()
    torch.autograd.grad(states[2].sum(), weights[1], retain_graph=True)
    again = torch.autograd.grad(states, wanted, weight, retain_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    alone = torch.autograd.grad(states[1].sum(), wanted)
    oracle = torch.autograd.grad(think(weights, base, by_concatenation)[1].sum(), wanted)
    for x, y in zip(alone, oracle, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_a_chain_refuses_second_derivatives_and_dies_with_its_graph():
    weights, base = toy()
    states = think(weights, base, by_chain())
    grads = torch.autograd.grad(states.sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="thought_attention has no second derivative"):
        torch.autograd.grad(sum(x.square().sum() for x in grads), weights)
    chain = Chain(2)
    chain.append(base[0] * 2, base[1] * 2)
    store = weakref.ref(chain._store)
    gc.disable()
    try:
        del chain
        assert store() is None
    finally:
        gc.enable()


def test_a_chain_keeps_each_thought_once():
    b, g, t, d = 1, 2, 31, 4

    def saved(attend, steps):
        sizes = {}

        def pack(x):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        x = random(b, g, t, d, seed=1).requires_grad_()
        ks, outs = [], []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            for i in range(steps):
                if i:
                    ks.append(x * i)
                outs.append(attend(x, x, x, ks, ks))
        return sum(sizes.values())

    grown = [saved(by_chain(32), n) for n in (8, 16)]
    copied = [saved(by_concatenation, n) for n in (8, 16)]
    assert grown[1] < 2.3 * grown[0]
    assert copied[1] > 3 * copied[0]


def test_a_chain_works_without_gradient_and_says_what_does_not_fit():
    weights, base = toy()
    with torch.no_grad():
        ours, oracle = (think(weights, base, x) for x in (by_chain(), by_concatenation))
    torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-12)
    assert not ours.requires_grad
    with pytest.raises(ValueError, match="a chain must hold at most 2 thoughts, got one more"):
        think(weights, base, by_chain(2))
    chain = Chain(3)
    chain.append(base[0], base[1])
    assert len(chain) == 1 and chain.k.shape == (2, 2, 17, 1, 3)
    with pytest.raises(ValueError, match="k must be .* like the first thought's k, got"):
        chain.append(base[0][:, :, :2], base[1][:, :, :2])
    with pytest.raises(ValueError, match=r"k must be a tensor \(b g t d\), got list"):
        Chain(1).append([1.0], base[1])
    with pytest.raises(ValueError, match="v must be .* on cpu like the first thought's k, got"):
        Chain(1).append(base[0], base[1].to("meta"))
    with pytest.raises(ValueError, match="q must be a tensor .* got NoneType"):
        Chain(1).attend(None, base[0], base[1])
    with pytest.raises(ValueError, match="base_k must have the 4 axes"):
        Chain(1).attend(base[0], base[0][0], base[1])
    with pytest.raises(ValueError, match="max_thoughts must be an integer >= 0, got -1"):
        Chain(-1)


def test_a_chain_takes_part_in_autocast_as_the_operation_does():
    q, k, v, *_ = leaves(1, 2, 2, 7, 7, 0, 3, dtype=torch.float32)
    chain = Chain(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chain.append(k, v)
        ours = chain.attend(q, k, v)
        plain = thought_attention(q, k, v, k[:, :, :, None], v[:, :, :, None])
    assert ours.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(ours, plain)
    assert torch.autograd.grad(ours.sum(), k)[0].dtype == torch.float32


def test_plain_attention_is_the_case_of_no_thoughts():
    tensors = leaves(2, 4, 2, 19, 19, 0, 5)
    plain = functional.scaled_dot_product_attention(*tensors[:3], is_causal=True, enable_gqa=True)
    torch.testing.assert_close(thought_attention(*tensors), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler's own look
def test_compiled_callers_get_equal_results_or_a_reason():
    tensors = leaves(1, 2, 2, 11, 13, 2, 3)

    def model(q, *rest):
        return thought_attention(q * 2, *rest) + 1

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert_agree(results(compiled, tensors), results(model, tensors), 1e-12)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="chooses panels and parts of keys in Python"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(*tensors)
    torch._dynamo.reset()


GOOD = {
    "q": torch.ones(2, 4, 5, 3),
    "base_k": torch.ones(2, 2, 7, 3),
    "base_v": torch.ones(2, 2, 7, 3),
    "chain_k": torch.ones(2, 2, 5, 6, 3),
    "chain_v": torch.ones(2, 2, 5, 6, 3),
}
BAD = [
    ({"q": torch.ones(2, 4, 8, 3)}, "q must have at most as many positions as base_k"),
    ({"q": torch.ones(2, 3, 5, 3)}, "base_k must have a number of heads that divides q's 3, got 2"),
    ({"q": torch.ones(2, 4, 5, 0)}, "base_k must have d = 0"),
    ({"base_v": torch.ones(2, 2, 6, 3)}, "base_v must have s = 7 in (b g s d)"),
    ({"base_k": torch.ones(2, 2, 7, 3).half()}, "base_k must have q's dtype float32, got float16"),
    ({"chain_k": torch.ones(2, 2, 5, 3)}, "chain_k must have the 5 axes (b g t n d)"),
    ({"chain_k": torch.ones(2, 2, 7, 6, 3)}, "chain_k must have t = 5 in (b g t n d)"),
    ({"chain_v": torch.ones(2, 2, 5, 4, 3)}, "chain_v must have n = 6 in (b g t n d)"),
    ({"chain_v": torch.ones(2, 4, 5, 6, 3)}, "chain_v must have g = 2 in (b g t n d)"),
    ({"key_padding": torch.ones(2, 7)}, "key_padding must be a bool tensor (b, s), got float32"),
    (
        {"key_padding": torch.ones(7).bool()},
        "key_padding must have shape (b, s) = (2, 7), got (7,)",
    ),
    ({"causal": None}, "causal must be True or False, got None"),
    ({"scale": True}, "scale must be None or a number, got True"),
    ({"backend": "sdpa"}, "backend must be one of auto, dense, fused, block, triton, got 'sdpa'"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[x[1][:48] for x in BAD])
def test_bad_calls_name_the_argument_the_rule_and_the_value(change, message):
    call = GOOD | change
    tensors = [call.pop(name) for name in GOOD]
    with pytest.raises(ValueError) as caught:
        thought_attention(*tensors, **call)
    assert message in str(caught.value)
