"""Scores of keys: their products with queries, the same bits whatever is scored beside them."""

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from thinkers.errors import NonFiniteError, UsageError
from thinkers.memory.kmeans import UNIT

BLOCK = 4096
"""Keys scored at once: as float32 they stay in the processor's cache."""
LONGEST = 1e30
"""The greatest length of a query, whose scores are far from infinite in float32."""


def score_error(query: Float32[np.ndarray, " d"]) -> float:
    """Return the most by which two scores of a matrix product can be in the wrong order."""
    # A float32 sum of d products is within d * 2**-24 * |query| * |key| of the exact one, in any
    # order (Higham 2002, section 3.1), and so is the other score.
    length = float(np.linalg.norm(query.astype(np.float64)))
    return 2 * (len(query) + 2) * 2**-24 * (1 + UNIT) * length + 1e-37


def score_keys(
    keys: Shaped[np.ndarray, "n d"], query: Float32[np.ndarray, " d"]
) -> Float32[np.ndarray, " n"]:
    """Return the products of keys and a query; each is a function of its key and the query alone.

    A matrix product is not: the order of its sums depends on the number of rows and on their place.
    Products are summed in float64 row by row, and rounded once.
    """
    wide = query.astype(np.float64)
    found = np.empty(len(keys), np.float32)
    for start in range(0, len(keys), BLOCK):
        products = keys[start : start + BLOCK] * wide
        found[start : start + BLOCK] = products.sum(1)
    return found


def merge(
    one: tuple[Int64[np.ndarray, "b k"], Float32[np.ndarray, "b k"]],
    other: tuple[Int64[np.ndarray, "b j"], Float32[np.ndarray, "b j"]],
    k: int,
) -> tuple[Int64[np.ndarray, "b k"], Float32[np.ndarray, "b k"]]:
    """Return the best k of two results of `Lists.search`, whose ids differ; ties by lower id."""
    ids = np.concatenate([one[0], other[0]], 1)
    scores = np.concatenate([one[1], other[1]], 1)
    order = np.lexsort((ids, -scores))[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)


def check_queries(queries: Any, d: int) -> Float32[np.ndarray, "b d"]:
    """Return queries; raise an error unless they are finite float32 vectors of width d."""
    if not isinstance(queries, np.ndarray) or queries.dtype != np.float32:
        raise UsageError(f"queries must be a float32 array, got {describe_array(queries)}")
    if queries.ndim != 2 or queries.shape[1] != d:
        raise UsageError(f"queries must have the shape (b, {d}), got {queries.shape}")
    usable = np.linalg.norm(queries.astype(np.float64), axis=1) <= LONGEST
    if not usable.all():
        raise NonFiniteError(
            f"query {int(usable.argmin())} must be finite and of a length up to {LONGEST:g}"
        )
    return np.ascontiguousarray(queries)


def describe_array(value: Any) -> str:
    """Return the type and the shape of an array, or the type of what is none, for messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__
