"""How often `statistics.difference` sees a difference that is none, and misses one that is there.

    python benchmarks/false_differences.py
    python benchmarks/false_differences.py --comparisons 100 --seeds 5

Two models answer the same examples, some of which are harder than others for both; each seed of a
model has an accuracy of its own. Beside it: the usual hierarchical bootstrap, which draws the few
seeds again as it does the many examples; what the best of all tests that err in 2 of 100 and are
not told the deviation of seeds would find, if examples added no noise; what a test would find that
is told how large all noise is, and errs in 1 of 100.
"""

import argparse
from statistics import NormalDist

import numpy as np

from thinkers.evaluation import statistics

ACCURACY, PLANTED, SHARED, NUM_EXAMPLES = 0.8, 0.05, 0.5, 2000
DEVIATIONS = (0.0, 0.005, 0.015, 0.05)


def main() -> None:
    options = parse()
    print(f"{options.comparisons} comparisons each, accuracy {ACCURACY}, {NUM_EXAMPLES} examples")
    print("seeds  deviation | false  found | bootstrap: false  found | best: found  told: found")
    for seeds in options.seeds:
        for deviation in DEVIATIONS:
            print(row(seeds, deviation, options), flush=True)


def row(seeds: int, deviation: float, options: argparse.Namespace) -> str:
    """One line: what was seen where there is nothing, and of the planted difference."""
    rng = np.random.default_rng([seeds, round(1000 * deviation)])
    values, seen, drawn = [], [], []
    for planted in (0.0, PLANTED):
        pairs = [pair(rng, seeds, deviation, planted) for _ in range(options.comparisons)]
        found = [statistics.difference(*x) for x in pairs]
        values.append(np.array([x.value for x in found]))
        seen.append(np.mean([x.is_distinguishable for x in found]))
        drawn.append(np.mean([bootstrap(*x) for x in pairs[: options.bootstraps]]))
    told = np.mean(np.abs(values[1]) > NormalDist().inv_cdf(0.995) * values[0].std())
    return (
        f"{seeds:>5}  {100 * deviation:>9.1f} | {seen[0]:>5.3f}  {seen[1]:>5.3f} | "
        f"{drawn[0]:>16.3f}  {drawn[1]:>5.3f} | {best(seeds, deviation):>11.3f}  {told:>11.3f}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--bootstraps", type=int, default=300, help="which takes longer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    return parser.parse_args()


def pair(
    rng: np.random.Generator, seeds: int, deviation: float, planted: float
) -> tuple[np.ndarray, np.ndarray]:
    """Grades of two models, the first better by `planted`."""
    hard = rng.standard_normal(NUM_EXAMPLES)
    found = []
    for better in (planted, 0.0):
        accuracy = ACCURACY + better + deviation * rng.standard_normal(seeds)
        limit = [NormalDist().inv_cdf(x) for x in accuracy.clip(1e-6, 1 - 1e-6)]
        luck = rng.standard_normal((seeds, NUM_EXAMPLES))
        met = np.sqrt(SHARED) * hard + np.sqrt(1 - SHARED) * luck
        found.append((met < np.array(limit)[:, None]).astype(float))
    return found[0], found[1]


def bootstrap(a: np.ndarray, b: np.ndarray, draws: int = 500) -> bool:
    """The usual one: seeds drawn again, then examples, the same for both; percentiles."""
    rng = np.random.default_rng(0)
    number = a.shape[1]
    examples = rng.integers(0, number, (draws, number), dtype=np.int32)
    counts = np.stack([np.bincount(row, minlength=number) for row in examples]) / number
    differences = np.zeros(draws)
    for sign, grades in ((1, a), (-1, b)):
        by_seed = counts @ grades.T
        drawn = rng.integers(0, len(grades), (draws, len(grades)))
        differences += sign * np.take_along_axis(by_seed, drawn, 1).mean(1)
    low, high = np.quantile(differences, [0.005, 0.995])
    return bool(low < high and not low <= 0 <= high)


def best(seeds: int, deviation: float, draws: int = 1_000_000) -> float:
    """What Student's t test finds if it errs in 2 of 100: no unbiased test finds more."""
    if not deviation:
        return 1.0
    rng = np.random.default_rng(0)
    freedom = 2 * (seeds - 1)
    scale = np.sqrt(rng.chisquare(freedom, draws) / freedom)
    noise = rng.standard_normal(draws)
    limit = np.quantile(np.abs(noise / scale), 0.98)
    effect = PLANTED / (deviation * np.sqrt(2 / seeds))
    return float(np.mean((noise + effect) / scale > limit))


if __name__ == "__main__":
    main()
