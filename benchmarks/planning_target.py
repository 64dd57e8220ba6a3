"""Time of DeepSight's planning target by shifted adds, against a matrix over pairs of positions.

    python benchmarks/planning_target.py [--repeats 11]

The published implementation multiplies a stored (t - d) x (t - 1) matrix of weights with the
embeddings to sum over the next d tokens, 4 by default and 11 in the published runs. Both must give
the same sums before anything is timed.

Machine: the ratio depends little on it. Asked, by (length, horizon): the factors in MIN_SPEEDUP.
Exit code 1 if one is missed. Measured: docs/measured.md.
"""

import torch
from harness import alternate, one_thread, parser
from torch import Tensor

from thinkers.models.deepsight import DeepSight
from thinkers.models.deepsight_loss import PlanLoss

DIM = 150
MIN_SPEEDUP = {(400, 4): 3.0, (4096, 4): 20.0, (400, 11): 1.5, (4096, 11): 10.0}
"""(length, horizon): the least ratio of the time by matrix to the time by adds."""


def matrix(t: int, horizon: int) -> Tensor:
    """Weight of position j in the target of position i, (t - horizon, t - 1)."""
    ahead = torch.arange(1, t) - torch.arange(t - horizon)[:, None]
    return torch.where((ahead >= 1) & (ahead <= horizon), 1 / ahead.clamp(min=1), 0.0)


def measure(t: int, horizon: int, batch: int, repeats: int) -> float:
    """Print both times; return how many times faster the shifted adds are."""
    config = DeepSight.Config(vocab_size=2, dim=DIM, num_heads=5, horizon=horizon)
    loss, weights = PlanLoss(config), matrix(t, horizon)
    embedded = torch.randn(batch, t, DIM, generator=torch.Generator().manual_seed(0))
    num_future = torch.full((batch, t - horizon), horizon)

    def by_matrix() -> Tensor:
        return weights @ embedded[:, 1:]

    def by_adds() -> Tensor:
        return loss.future(embedded, t - horizon, num_future)

    torch.testing.assert_close(by_matrix(), by_adds(), rtol=1e-5, atol=1e-5)
    # Short calls are timed many at once: the clock is too coarse for one.
    number = max(1, 4000 // t)
    both = [lambda f=f: [f() for _ in range(number)] for f in (by_matrix, by_adds)]
    slow, fast = (seconds / number for seconds in alternate(both, repeats))
    print(f"t={t:5d} d={horizon:2d}   matrix {1e3 * slow:7.2f} ms   adds {1e3 * fast:6.2f}", end="")
    print(f" ms   {slow / fast:5.1f}x (at least {MIN_SPEEDUP[t, horizon]:g}x)", end="")
    print(f"   buffer {weights.nbytes} -> {loss.weights.nbytes} bytes")
    return slow / fast


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--batch_size", type=int, default=1)
    arguments.add_argument("--repeats", type=int, default=11)
    options = arguments.parse_args()
    one_thread()
    missed = [
        measure(*size, options.batch_size, options.repeats) < least
        for size, least in MIN_SPEEDUP.items()
    ]
    return int(any(missed))


if __name__ == "__main__":
    raise SystemExit(main())
