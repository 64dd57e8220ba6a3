"""The shared pre-norm block: its equations, and its attention with a cache."""

from functools import partial

import torch
from equations import block_by_hand
from torch import nn

from thinkers.nn.block import Block, causal_attention, run_blocks
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.nn.layers import Rotary

DIM, HEADS, T = 24, 4, 9


def blocks(number, **settings):
    torch.manual_seed(0)
    return nn.ModuleList(Block(DIM, HEADS, **settings) for _ in range(number)).double().eval()


def stream(b=2, t=T):
    return torch.randn(b, t, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def table(positions):
    return Rotary(DIM // HEADS).table(positions, torch.float64)


@torch.no_grad()
def test_a_block_is_its_equations():
    (block,) = blocks(1, hidden=40, num_kv_heads=2)
    x = stream(1)
    found = block(x, table(torch.arange(T)), causal_attention)
    torch.testing.assert_close(found[0], block_by_hand(block, x[0]), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_without_a_table_nothing_is_rotated():
    (block,) = blocks(1)
    x, still = stream(), torch.zeros(T, dtype=torch.int64)
    found = block(x, None, causal_attention)
    torch.testing.assert_close(found, block(x, table(still), causal_attention))
    assert not torch.allclose(found, block(x, table(torch.arange(T)), causal_attention))


@torch.no_grad()
def test_blocks_with_a_cache_give_the_states_of_whole_rows():
    parts, x = blocks(3, num_kv_heads=2), stream()
    wanted = run_blocks(parts, x, table(torch.arange(T)))
    cache = KeyValueCache(4, torch.full((2,), 5), T, 2, DIM // HEADS, x)
    found = [run_blocks(parts, x[:, :5], table(torch.arange(5)), cache, slot=1)]
    for i in range(5, T):
        found.append(run_blocks(parts, x[:, i : i + 1], table(cache.grow()), cache, slot=1))
    torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=1e-12, atol=1e-12)


def test_dropout_acts_on_both_branches_in_training_alone():
    (block,) = blocks(1, dropout=0.5)
    x, rows = stream(), table(torch.arange(T))
    assert torch.equal(block(x, rows, causal_attention), block(x, rows, causal_attention))
    block.train()
    for half in (
        partial(block.add_attention, x, rows, causal_attention),
        partial(block.add_feed_forward, x),
    ):
        added = half() - x
        assert 0.3 < float((added == 0).double().mean()) < 0.7


def test_operations_are_those_of_the_matrices_and_of_the_visible_rectangle():
    (block,) = blocks(1, hidden=40, num_kv_heads=2)
    weights = sum(x.numel() for x in block.parameters() if x.ndim == 2)
    assert block.flops(2, T, 5) == 2 * 2 * T * weights + 4 * 2 * T * 5 * DIM
