"""How sure a score or a difference of scores is, from the grades of few seeds on many examples.

A score differs from the truth for two reasons: other seeds would have learned otherwise, and other
questions would have been held out. Questions are many, so they are drawn again (Efron 1979), with
all examples that ask them; seeds are too few for that, three make 27 draws at most, so their mean
is spread by Student's t, as wide as they leave their deviation unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

CONFIDENCE = 0.99
DRAWS, RESAMPLES = 20_000, 500

Grades = Float[np.ndarray, "s n"]
"""Of s seeds on n examples, the same examples in the same order for all that are compared."""
Questions = Int[np.ndarray, " n"] | None
"""Which question each example asks, by its number; None where none is repeated."""


@dataclass(frozen=True)
class Interval:
    """An estimate, and where the truth is taken to lie."""

    value: float
    low: float
    high: float

    @property
    def is_distinguishable(self) -> bool:
        """Whether this is known not to be 0: there was variance, and 0 lies outside."""
        return self.low < self.high and not self.low <= 0 <= self.high


def mean(grades: Grades, questions: Questions = None, confidence: float = CONFIDENCE) -> Interval:
    """The score, over seeds and examples; a share, of grades 0 and 1, is one from end to end."""
    asked = by_question(grades, questions)
    return within(_interval(asked.mean(0), [asked], confidence), 0.0, [grades])


def difference(
    a: Grades,
    b: Grades,
    questions: Questions = None,
    *,
    same_runs: bool = False,
    confidence: float = CONFIDENCE,
) -> Interval:
    """By how much the score of `a` is above that of `b`, paired over examples.

    Args:
        same_runs: Row s of both is of the same trained weights, as at two numbers of thinking
            steps; otherwise the seeds of `a` and of `b` have nothing in common.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must have the same examples, got {a.shape[1]} and {b.shape[1]}")
    given = [a, b]
    a, b = by_question(a, questions), by_question(b, questions)
    groups = [a - b] if same_runs else [a, b]
    return within(_interval(a.mean(0) - b.mean(0), groups, confidence), -1.0, given)


def by_question(
    grades: Float[np.ndarray, "*s n"], questions: Questions
) -> Float[np.ndarray, "*s m"]:
    """The grades of m questions, in the order in which they are first asked.

    Each is how far the examples that ask it lie from the mean, in sum: drawing questions again then
    draws the mean of all their examples, to first order (the ratio of two sums).
    """
    if questions is None:
        return grades
    number = grades.shape[-1]
    if questions.shape != (number,):
        raise ValueError(f"questions must be of {number} examples, got {questions.shape}")
    _, first, place = np.unique(questions, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    center = grades.mean(-1, keepdims=True)
    apart = np.zeros((*grades.shape[:-1], len(first)))
    np.add.at(apart.T, order[place], (grades - center).T)
    return center + apart * (len(first) / number)


def within(found: Interval, least: float, groups: list[Grades]) -> Interval:
    """Of grades 0 and 1, what a share, or a difference of shares, can be; unknown stays unknown."""
    is_known = np.isfinite([found.low, found.high]).all()
    if not is_known or not all(np.isin(grades, (0, 1)).all() for grades in groups):
        return found
    return Interval(found.value, max(least, found.low), min(1.0, found.high))


def _interval(
    effects: Float[np.ndarray, " n"], groups: list[Grades], confidence: float
) -> Interval:
    """Around the mean of `effects`, the estimate of each example; the runs are in `groups`."""
    value = float(effects.mean())
    by_seed, by_both, freedom = _variances(groups)
    if freedom == 0:
        return Interval(value, -np.inf, np.inf)
    number = len(effects)
    shifts = _resamples(number) @ (effects - value)
    by_example = float(effects.var(ddof=1)) / number if number > 1 else 0.0
    if by_example:
        # What differs by chance from run to run is in the deviation of the seeds already.
        shifts *= np.sqrt(max(0.0, 1 - by_both / by_example))
    spread = np.sqrt(by_seed) * np.random.default_rng(0).standard_t(freedom, DRAWS)
    draws = value + spread + np.resize(shifts, DRAWS)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


@lru_cache(maxsize=1)
def _resamples(number: int) -> Float[np.ndarray, "r n"]:
    """The share of each example in examples drawn again; the same ones for every difference."""
    rng = np.random.default_rng(1)
    drawn = (rng.integers(0, number, number) for _ in range(RESAMPLES))
    counts = np.stack([np.bincount(row, minlength=number) for row in drawn])
    return (counts / number).astype(np.float32)


def _variances(groups: list[Grades]) -> tuple[float, float, int]:
    """Of the difference of means: by seeds, by seed and example together; degrees of freedom."""
    by_seed = by_both = squares = 0.0
    freedom = 0
    for grades in groups:
        seeds, number = grades.shape
        means = grades.mean(1, keepdims=True)
        rest = grades - means - grades.mean(0) + means.mean()
        by_both += (rest**2).sum() / max(1, (seeds - 1) * (number - 1)) / (seeds * number)
        squares += float(((means - means.mean()) ** 2).sum())
        freedom += seeds - 1
    if freedom:
        by_seed = squares / freedom * sum(1 / len(grades) for grades in groups)
    return by_seed, float(by_both), freedom


@dataclass(frozen=True)
class Fall:
    """More thinking that makes the answers worse.

    Args:
        loss: By how much, a positive number.
    """

    shallow: int
    deep: int
    loss: Interval


def worst_fall(
    grades: Mapping[int, Float[np.ndarray, " n"]],
    questions: Questions = None,
    confidence: float = CONFIDENCE,
) -> Fall | None:
    """The largest loss from fewer steps to more, of one trained model, that is not by chance.

    All pairs of depths are looked at, so each must be as sure as keeps them all at `confidence`
    (Bonferroni).

    Args:
        grades: {thinking steps: the grade of each example}, more being better.
    """
    depths = sorted(grades)
    pairs = [(low, high) for i, low in enumerate(depths) for high in depths[i + 1 :]]
    each = 1 - (1 - confidence) / max(1, len(pairs))
    asked = {k: by_question(x, questions) for k, x in grades.items()}
    losses = [Fall(*pair, _paired(asked[pair[0]] - asked[pair[1]], each)) for pair in pairs]
    falls = [fall for fall in losses if fall.loss.is_distinguishable and fall.loss.value > 0]
    return max(falls, key=lambda fall: fall.loss.value, default=None)


def _paired(losses: Float[np.ndarray, " n"], confidence: float) -> Interval:
    """The mean loss, as the examples leave it unsure."""
    number, value = len(losses), float(losses.mean())
    if number < 2:
        return Interval(value, -np.inf, np.inf)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    t = z + (z**3 + z) / (4 * (number - 1))  # Student's, for as many examples
    half = t * float(losses.std(ddof=1)) / number**0.5
    return Interval(value, value - half, value + half)
