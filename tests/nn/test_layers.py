"""The leaves against what their papers write, by loops and complex numbers."""

import math

import pytest
import torch
from torch.testing import assert_close

from thinkers.nn.layers import (
    AttentionProjections,
    Rotary,
    SwiGLU,
    attention_flops,
    rotate,
    sinusoidal,
    swiglu_width,
)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_heads_are_consecutive_parts_of_the_projections(groups):
    b, t, dim, size = 2, 5, 42, 7
    heads, x = AttentionProjections(dim, 6, groups).double(), draw(b, t, dim)
    q, (k, v) = heads.queries(x), heads.keys_values(x)
    assert q.shape == (b, 6, t, size) and k.shape == v.shape == (b, groups, t, size)
    key, value = heads.key_value.weight.chunk(2)
    for found, weight in ((q, heads.query.weight), (k, key), (v, value)):
        for h in range(found.shape[1]):
            assert_close(found[:, h], x @ weight[h * size : (h + 1) * size].T)
    wanted = torch.cat([q[:, h] for h in range(6)], -1) @ heads.output.weight.T
    assert_close(heads.merge(q), wanted)


def test_heads_count_their_products():
    heads = AttentionProjections(42, 6, 2)
    assert heads.flops(5, 11) == 2 * (5 * 42 * 42 + 11 * 42 * 2 * 14 + 5 * 42 * 42)


def test_swiglu_is_a_gated_feed_forward():
    layer, x = SwiGLU(5, 11).double(), draw(3, 7, 5)
    gate, up = layer.gate_up.weight[:11], layer.gate_up.weight[11:]
    opened = x @ gate.T
    wanted = (opened * opened.sigmoid() * (x @ up.T)) @ layer.down.weight.T
    assert_close(layer(x), wanted)
    assert layer.flops(21) == 21 * 2 * (5 * 11 * 2 + 11 * 5)


@pytest.mark.parametrize("dim, wanted", [(1, 8), (24, 64), (128, 344), (384, 1024), (768, 2048)])
def test_swiglu_width_is_eight_thirds_in_eights(dim, wanted):
    assert swiglu_width(dim) == wanted


def test_attention_flops_are_two_products():
    assert attention_flops(2, 3, 5, 7) == 2 * (2 * 3 * 5 * 7) + 2 * (2 * 3 * 5 * 7)


def test_rotation_is_multiplication_by_a_complex_number():
    size, positions = 10, torch.tensor([[0, 1, 5], [3, 900, 2]])
    x, rotary = draw(2, 3, 3, size), Rotary(size)
    found = rotate(x, rotary.table(positions, torch.float64))
    assert rotary.frequencies.dtype == torch.float32
    for b in range(2):
        for i in range(3):
            for pair in range(size // 2):
                angle = int(positions[b, i]) * rotary.frequencies[pair].item()
                z = torch.complex(x[b, :, i, pair], x[b, :, i, pair + size // 2])
                turned = z * complex(math.cos(angle), math.sin(angle))
                assert_close(found[b, :, i, pair], turned.real)
                assert_close(found[b, :, i, pair + size // 2], turned.imag)


def test_rotary_frequencies_are_a_geometric_series_in_float32():
    wanted = torch.tensor([10000.0 ** (-2 * i / 10) for i in range(5)])
    assert_close(Rotary(10).frequencies, wanted)
    assert not Rotary(10).state_dict()
    in_double = Rotary(10).double().table(torch.arange(7), torch.float64)
    for x, y in zip(in_double, Rotary(10).table(torch.arange(7), torch.float64), strict=True):
        assert torch.equal(x, y)


def test_rotated_products_depend_on_distances_alone():
    rotary, q, k = Rotary(6), draw(1, 1, 4, 6), draw(1, 1, 4, 6, seed=1)
    near, far = (rotary.table(torch.arange(4) + n, torch.float64) for n in (0, 1000))
    products = [rotate(q, table) @ rotate(k, table).mT for table in (near, far)]
    assert_close(*products)
    assert not torch.allclose(products[0], q @ k.mT)


def test_rotary_positions_need_heads_of_even_width():
    with pytest.raises(ValueError, match="even.*got 5"):
        Rotary(5)


@pytest.mark.parametrize("dim", [1, 6, 7])
def test_sinusoidal_codes_are_sines_then_cosines(dim):
    positions, half = torch.tensor([0, 3, 10_000]), (dim + 1) // 2
    found = sinusoidal(positions, dim, torch.float64)
    assert found.shape == (3, dim)
    for row, position in enumerate(positions.tolist()):
        turns = [position * 10000.0 ** (-i / half) for i in range(half)]
        wanted = [math.sin(x) for x in turns] + [math.cos(x) for x in turns]
        assert_close(found[row], torch.tensor(wanted[:dim], dtype=torch.float64))
