"""What does the planning target cost? Shifted adds against a matrix over all pairs of positions.

python benchmarks/planning_target.py

The published way multiplies a stored (t - d) x (t - 1) matrix of weights with the embeddings to
sum up the next d tokens, 4 by default and 11 in the published runs.
Both must give the same sums before anything is timed. Process time of one thread, both in turn,
medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from thinkers.models.deepsight import DeepSight
from thinkers.models.deepsight_loss import PlanLoss

DIM = 150
AT_LEAST = {(400, 4): 3.0, (4096, 4): 20.0, (400, 11): 1.5, (4096, 11): 10.0}
"""(length, horizon): how many times faster the adds have to be."""


def matrix(t: int, horizon: int) -> Tensor:
    """What position j counts in the future of position i."""
    ahead = torch.arange(1, t) - torch.arange(t - horizon)[:, None]
    return torch.where((ahead >= 1) & (ahead <= horizon), 1 / ahead.clamp(min=1), 0.0)


def seconds(work: Callable[[], object], times: int) -> float:
    """The process time of a call."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def measure(t: int, horizon: int, batch: int, repeats: int) -> float:
    """How many times faster the shifted adds are."""
    config = DeepSight.Config(vocab_size=2, dim=DIM, num_heads=5, horizon=horizon)
    loss, weights = PlanLoss(config), matrix(t, horizon)
    embedded = torch.randn(batch, t, DIM, generator=torch.Generator().manual_seed(0))
    whole = torch.full((batch, t - horizon), horizon)
    ways = (
        lambda: weights @ embedded[:, 1:],
        lambda: loss.future(embedded, t - horizon, whole),
    )
    torch.testing.assert_close(*(way() for way in ways), rtol=1e-5, atol=1e-5)
    calls = max(1, 4000 // t)
    times = [[seconds(way, calls) for way in ways] for _ in range(repeats)]
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"t={t:5d} d={horizon:2d}   matrix {1e3 * slow:7.2f} ms   adds {1e3 * fast:6.2f}", end="")
    print(f" ms   {slow / fast:5.1f}x (at least {AT_LEAST[t, horizon]:g}x)", end="")
    print(f"   buffer {weights.nbytes} -> {loss.weights.nbytes} bytes")
    return slow / fast


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(*size, options.batch, options.repeats) < x for size, x in AT_LEAST.items()]
    return int(any(found))


if __name__ == "__main__":
    raise SystemExit(main())
