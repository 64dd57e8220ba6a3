"""The cache against lists of what was kept."""

import torch

from thinkers.nn.kv_cache import KeyValueCache

B, G, D, LAYERS = 3, 2, 5, 2
PROMPTS = [4, 1, 3]
CAPACITY = 9


def draw(b, t, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, b, G, t, D), generator=generator, dtype=torch.float64)


def filled():
    """A cache that holds prompts, and what each row of each layer should hold."""
    like = torch.zeros((), dtype=torch.float64)
    cache = KeyValueCache(LAYERS, torch.tensor(PROMPTS), CAPACITY, G, D, like)
    rows = [[[] for _ in PROMPTS] for _ in range(LAYERS)]
    for layer in range(LAYERS):
        k, v = draw(B, max(PROMPTS), layer)
        found = cache.keep(layer, k, v)
        assert found[2] is None and torch.equal(found[0], k) and torch.equal(found[1], v)
        for row, n in enumerate(PROMPTS):
            rows[layer][row] = [(k[row, :, i], v[row, :, i]) for i in range(n)]
    return cache, rows


def lengthen(cache, rows, seed):
    """One more token per row; every row is checked to see its own tokens and no others."""
    positions = cache.grow()
    assert positions[:, 0].tolist() == [len(row) for row in rows[0]]
    for layer in range(LAYERS):
        k, v = draw(len(rows[layer]), 1, 10 * seed + layer)
        all_k, all_v, visible = cache.keep(layer, k, v)
        assert all_k.shape == all_v.shape and visible.shape == (len(k), 1, 1, all_k.shape[2])
        for row, kept in enumerate(rows[layer]):
            kept.append((k[row, :, 0], v[row, :, 0]))
            assert set(visible[row, 0, 0].tolist()) <= {0.0, float("-inf")}
            seen = visible[row, 0, 0] == 0
            assert torch.equal(all_k[row][:, seen], torch.stack([x for x, _ in kept], 1))
            assert torch.equal(all_v[row][:, seen], torch.stack([x for _, x in kept], 1))


def test_rows_of_unequal_length_keep_their_own_tokens():
    cache, rows = filled()
    for seed in range(1, 6):
        lengthen(cache, rows, seed)
    assert cache.lengths.tolist() == [n + 5 for n in PROMPTS]


def test_selected_rows_continue_as_if_alone():
    cache, rows = filled()
    lengthen(cache, rows, 1)
    for seed, chosen in ((2, [1, 2]), (3, [1])):
        cache.select(torch.tensor(chosen))
        rows = [[layer[row] for row in chosen] for layer in rows]
        lengthen(cache, rows, seed)
    assert cache.lengths.tolist() == [3 + 3]


def test_the_lengths_given_are_not_changed():
    cache, rows = filled()
    given = cache.lengths
    lengthen(cache, rows, 1)
    assert given.tolist() == PROMPTS


def test_the_buffer_has_the_dtype_asked_for_and_never_grows():
    cache, rows = filled()
    start = cache.data.data_ptr(), cache.data.shape
    for seed in range(1, 6):
        lengthen(cache, rows, seed)
    assert (cache.data.data_ptr(), cache.data.shape) == start
    assert cache.data.dtype == torch.float64
