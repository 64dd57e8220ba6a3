"""Mask functions against loops over time steps, and the image that shows them."""

import zlib

import pytest
import torch

from thinkers.ops import masks


def loop(rule, t, s):
    return torch.tensor([[rule(i, j) for j in range(s)] for i in range(t)])


@pytest.mark.parametrize(("r", "window"), [(0, 3), (1, 2), (2, 1), (3, 0), (1, 100)])
def test_reasoning_near_and_far_divide_the_older_reasoning_tokens(r, window):
    def age(i, j):
        return i // (r + 1) - j // (r + 1)

    def reasoning(j):
        return j % (r + 1) > 0

    near = masks.table(masks.reasoning_near(r, window), 17, 13)[0]
    far = masks.table(masks.reasoning_far(r, window), 17, 13)[0]
    assert torch.equal(near, loop(lambda i, j: reasoning(j) and 0 < age(i, j) <= window, 17, 13))
    assert torch.equal(near | far, loop(lambda i, j: reasoning(j) and age(i, j) > 0, 17, 13))
    assert not (near & far).any()


def test_thought_chains_are_earlier_bases_and_the_own_chain():
    def rule(i, j):
        own = i // 4 == j // 4 and j <= i
        return own or (j % 4 == 0 and j // 4 <= i // 4)

    assert torch.equal(masks.table(masks.thought_chains(3), 19)[0], loop(rule, 19, 19))
    assert torch.equal(masks.table(masks.thought_chains(0), 7), masks.table(masks.causal, 7))


def test_sections_and_finished_sections_are_disjoint_and_make_up_causality():
    inside = masks.table(masks.sections(5), 13)[0]
    before = masks.table(masks.finished_sections(5), 13)[0]
    assert torch.equal(inside, loop(lambda i, j: i // 5 == j // 5 and j <= i, 13, 13))
    assert torch.equal(inside | before, masks.table(masks.causal, 13)[0])
    assert not (inside & before).any()


def test_combinations_and_heads():
    near = masks.reasoning_near(1, 2)
    plain = masks.table(near, 11)[0]
    some = masks.table(masks.only_heads(near, (0, 2)), 11, num_heads=3)
    assert torch.equal(some, torch.stack([plain, torch.zeros_like(plain), plain]))
    older = masks.table(masks.both(masks.causal, masks.invert(near)), 11)[0]
    assert torch.equal(older, plain.logical_not() & torch.ones_like(plain).tril())
    union = masks.table(masks.either(near, masks.causal), 11)[0]
    assert torch.equal(union, torch.ones_like(plain).tril())


def test_picture_colours_every_pair_and_writes_a_png(tmp_path):
    path = tmp_path / "mask.png"
    image = masks.picture(masks.thought_chains(2), 7, path, cell=5)
    assert image.shape == (35, 35, 3)
    expected = masks.table(masks.thought_chains(2), 7)[0]
    dark = image[::5, ::5].sum(-1, dtype=torch.int64) < 400
    assert torch.equal(dark, expected)
    data = path.read_bytes()
    size = int.from_bytes(data[33:37], "big")
    rows = zlib.decompress(data[41 : 41 + size])
    assert (
        torch.frombuffer(bytearray(rows), dtype=torch.uint8)
        .view(35, 106)[:, 1:]
        .equal(image.reshape(35, 105))
    )


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="window must be an integer of at least 0, got -1"):
        masks.reasoning_near(1, -1)
    with pytest.raises(ValueError, match="size must be an integer of at least 1, got 0"):
        masks.sections(0)
    with pytest.raises(ValueError, match="num_thoughts must be an integer of at least 0, got 1.5"):
        masks.thought_chains(1.5)
    with pytest.raises(ValueError, match="head must be an integer of at least 0, got -1"):
        masks.picture(masks.causal, 3, head=-1)
