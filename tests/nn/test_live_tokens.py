"""Keys of tokens that have halted, in a cache."""

import pytest
import torch

from thinkers.nn.kv_cache import KeyValueCache
from thinkers.nn.live_tokens import CachedKeys, LiveTokens

B, T, G, D, LAYERS, STEPS, FIRST = 2, 3, 1, 5, 2, 4, 1


@pytest.mark.parametrize("taken", range(1, STEPS + 1))
def test_steps_that_no_token_took_have_the_keys_of_the_last_that_one_took(taken):
    torch.manual_seed(taken)
    like = torch.zeros((), dtype=torch.float64)
    cache = KeyValueCache(FIRST + LAYERS * STEPS, torch.full((B,), T), T + 2, G, D, like)
    keys = CachedKeys(cache, FIRST, LAYERS, T)
    live, last = LiveTokens(torch.ones(B, T, dtype=torch.bool)), []
    for step in range(taken):
        keys.begin(step, live)
        last = [torch.randn(2, 1, G, B * T, D, dtype=torch.float64) for _ in range(LAYERS)]
        for layer, (k, v) in enumerate(last):
            keys.put(layer, live, k, v)
    keys.finish(STEPS)
    for step in range(taken - 1, STEPS):
        for layer, pair in enumerate(last):
            for kept, x in zip(cache.layers[FIRST + step * LAYERS + layer], pair, strict=True):
                rows = x[0].unflatten(1, (B, T)).transpose(0, 1)
                assert torch.equal(kept[:, :, :T], rows)
                assert not kept[:, :, T:].any()
