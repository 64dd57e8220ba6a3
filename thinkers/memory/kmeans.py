"""Spherical k-means: centroids of unit keys, the list of each key, and how many lists to search.

Centroids are means of a sample of the keys, scaled to unit length (Dhillon and Modha 2001,
https://doi.org/10.1023/A:1007612920971). Every result is a function of the keys and the seed.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor

from thinkers import prng
from thinkers.errors import DamagedError

SAMPLES = 32
"""Keys per list that centroids are learned from."""
ROUNDS = 6
"""Rounds of k-means: the centroids are only where the search begins."""
BLOCK, MANY = 512, 16_384
"""Keys that are compared at once with all centroids, and with few queries: their scores stay in the
processor's cache."""
UNIT = 0.01
"""How far the length of a key may be from 1; float16 changes it by less than 0.001."""
QUERIES, NOISE = 256, 0.75
"""Queries by which the number of lists is chosen, and their noise; see `choose_probes`."""
NEIGHBOURS, MOST = 10, 80
"""Their neighbours: ids, and the most keys."""
RECALL = 0.97
"""Share of the neighbours that the lists searched must hold."""
LEAST_SHARE = 32
"""At least one of this number of lists is searched, however few hold the sample's neighbours."""


def train(keys: Shaped[np.ndarray, "n d"], num_lists: int, seed: int) -> Float32[np.ndarray, "l d"]:
    """Return centroids of unit length, learned from a sample of the keys."""
    n, d = keys.shape
    if num_lists == 1:  # all keys are in it, wherever the centroid is
        return np.zeros((1, d), np.float32)
    places = _shuffled(n, seed)[: SAMPLES * num_lists]
    sample = torch.from_numpy(keys[np.sort(places)].astype(np.float32))
    starts = torch.from_numpy(_shuffled(len(sample), seed + 1))
    centroids = sample[starts[:num_lists]]
    for _ in range(ROUNDS):
        members = torch.from_numpy(assign(sample.numpy(), centroids.numpy()))
        sums = torch.zeros_like(centroids).index_add_(0, members, sample)
        lengths = sums.norm(dim=1, keepdim=True)
        # A list without keys, or whose keys cancel out, starts anew at a key.
        lost = (lengths < 1e-6).flatten().nonzero().flatten()
        sums[lost], lengths[lost] = sample[starts[: len(lost)]], 1.0
        centroids = sums / lengths
    return centroids.numpy()


def assign(
    keys: Shaped[np.ndarray, "n d"], centroids: Float32[np.ndarray, "l d"]
) -> Int64[np.ndarray, " n"]:
    """Return the list of each key: that of the closest centroid, the first at ties.

    Raises:
        DamagedError: A key has not unit length, or is not finite.
    """
    found = np.zeros(len(keys), np.int64)
    towards = torch.from_numpy(centroids).T
    scores = torch.empty(BLOCK, len(centroids))
    for start, block in _blocks(keys, BLOCK):
        lengths = block.norm(dim=1)
        odd = ~((lengths - 1).abs() <= UNIT)  # NaN, too
        if odd.any():
            row = int(odd.nonzero()[0])
            raise DamagedError(
                f"index keys must have unit length, got {float(lengths[row])} at {start + row}"
            )
        if len(centroids) > 1:
            here = torch.mm(block, towards, out=scores[: len(block)])
            found[start : start + len(block)] = here.numpy().argmax(1)
    return found


def choose_probes(
    keys: Shaped[np.ndarray, "n d"],
    starts: Int64[np.ndarray, " l+1"],
    centroids: Float32[np.ndarray, "l d"],
    keys_per_id: int,
    seed: int,
) -> tuple[int, float]:
    """Return how many lists to search, and the share of neighbours that this finds.

    The rule: queries are QUERIES keys, each with normal noise of NOISE times its length; their
    neighbours are the best NEIGHBOURS * keys_per_id keys (at most MOST) by exact search. The number
    is the least with which the lists hold RECALL of them, and at least one list in LEAST_SHARE.

    Args:
        keys: Sorted by list; list i holds starts[i] .. starts[i + 1] - 1.
    """
    num_lists, (n, d) = len(centroids), keys.shape
    if num_lists == 1:
        return 1, 1.0
    chosen = np.sort(_shuffled(n, seed + 2)[:QUERIES])
    noise = prng.normal(torch.from_numpy(chosen), seed, (d,), torch.float32)
    queries = torch.from_numpy(keys[chosen].astype(np.float32)) + NOISE / d**0.5 * noise
    queries /= queries.norm(dim=1, keepdim=True)
    places = _neighbours(keys, queries, min(NEIGHBOURS * keys_per_id, MOST, n))
    lists = np.searchsorted(starts, places.numpy(), side="right") - 1
    order = (queries @ torch.from_numpy(centroids).T).argsort(dim=1, descending=True, stable=True)
    ranks = np.sort(order.argsort(dim=1).gather(1, torch.from_numpy(lists)).numpy().ravel())
    needed = int(ranks[int(np.ceil(RECALL * len(ranks))) - 1]) + 1
    probes = max(needed, -(-num_lists // LEAST_SHARE))
    return probes, float((ranks < probes).mean())


def _neighbours(keys: Shaped[np.ndarray, "n d"], queries: Tensor, count: int) -> Tensor:
    """Return the places of the best keys of each query, (b, count), by exact search."""
    scores = torch.full((len(queries), count), -torch.inf)
    places = torch.zeros(len(queries), count, dtype=torch.long)
    for start, block in _blocks(keys, MANY):
        some, at = (queries @ block.T).topk(min(count, len(block)), dim=1)
        scores, best = torch.cat([scores, some], 1).topk(count, dim=1)
        places = torch.cat([places, at + start], 1).gather(1, best)
    return places


def _blocks(keys: Shaped[np.ndarray, "n d"], size: int) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks of keys as float32, each with the place of its first; a block is overwritten."""
    # torch converts float16 three times faster than numpy, and into memory that is in the cache.
    buffer = torch.empty(size, keys.shape[1])
    for start in range(0, len(keys), size):
        part = torch.from_numpy(
            np.array(keys[start : start + size])
        )  # torch warns of read-only ones
        yield start, buffer[: len(part)].copy_(part)


def _shuffled(n: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Return 0 .. n - 1 in an order that is a function of n and the seed."""
    key = np.uint64(prng.hash_integers(seed))
    return np.argsort(prng.mix(np.arange(n, dtype=np.uint64) * prng.GOLDEN + key), kind="stable")
