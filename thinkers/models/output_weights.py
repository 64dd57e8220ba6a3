"""The matrices that compute a model's logits, found in the autograd graph, not by their shapes."""

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from thinkers.models.generation import eval_mode

PRODUCTS = ("mm", "linear", "matmul")
"""Parts of the names of autograd's nodes of matrix products: AddmmBackward0, BmmBackward0, .."""


def find_output_weights(model: Any) -> set[nn.Parameter]:
    """Return the matrices that turn states into logits, by following the graph of `read_out`.

    They reach the logits through fewer matrix products than any other matrix. One token is run to
    get a state; torch's random generator is left unchanged.
    """
    device = next(model.parameters()).device
    tokens = torch.zeros(1, 1, dtype=torch.int64, device=device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), eval_mode(model):
        states = model(tokens, keep_states=True).states
        with torch.enable_grad():
            return nearest_matrices(model.read_out(states))


def nearest_matrices(output: Tensor) -> set[nn.Parameter]:
    """Return the matrices that reach `output` through the fewest matrix products."""
    found: dict[nn.Parameter, int] = {}
    waiting: deque[tuple[Any, int]] = deque([(output.grad_fn, 0)])
    seen: set[Any] = set()
    while waiting:
        node, products = waiting.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf.ndim >= 2:
            found[leaf] = products
        is_product = any(part in node.name().lower() for part in PRODUCTS)
        for parent, _ in node.next_functions:
            # Breadth-first search that counts products alone: other nodes add no distance.
            if is_product:
                waiting.append((parent, products + 1))
            else:
                waiting.appendleft((parent, products))
    least = min(found.values(), default=0)
    return {leaf for leaf, products in found.items() if products == least}
