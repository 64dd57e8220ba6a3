"""Confidence intervals of scores and of their differences, from few seeds and many questions.

A measured score differs from the true one for two reasons: other seeds would have learned
something else, and other questions would have been held out. Both are variances of a mean, and
the interval is that of their sum, a Student's t of the seeds plus a normal of the questions (the
problem of Behrens and Fisher, integrated exactly). Two usual methods fail here. A bootstrap over
three seeds can draw only 10 different means, and reports differences that do not exist if seeds
vary much. A t-test over seeds alone treats the questions as fixed: if the seeds agree, a chance
property of the held-out set becomes significant. The questions are many, so that a normal serves
for them; the interval of one trained model, which has no variance of seeds, is a t over its
questions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int

from thinkers.errors import UsageError

CONFIDENCE = 0.99

Grades = Float[np.ndarray, "s n"]
"""Grades of s seeds on n examples; models that are compared have the same examples in one order."""
ModelGrades = Float[np.ndarray, " n"]
"""Grades of one trained model: its interval is over questions, for these weights."""
Questions = Int[np.ndarray, " n"] | None
"""Index of each example's question; None if no question is repeated."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, from minus to plus infinity if not known."""

    value: float
    low: float
    high: float

    @property
    def is_distinguishable(self) -> bool:
        """Return True if this differs from 0: there was variance, and the interval excludes 0."""
        return self.low < self.high and not self.low <= 0 <= self.high


def mean(
    grades: Grades | ModelGrades, questions: Questions = None, confidence: float = CONFIDENCE
) -> Interval:
    """Return the mean over seeds and examples.

    Its interval is clipped to 0 .. 1 if all grades are 0 or 1.
    """
    found = _interval([by_question(grades, questions)], [1], confidence)
    return _within(found, 0.0, [grades])


def difference(
    a: Grades | ModelGrades,
    b: Grades | ModelGrades,
    questions: Questions = None,
    *,
    same_runs: bool = False,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the mean of `a` minus that of `b`, paired over examples.

    Args:
        same_runs: Row s of both is of the same trained weights, as at two numbers of thinking
            steps; otherwise the seeds of `a` and `b` are independent.
    """
    if a.shape[-1] != b.shape[-1]:
        raise UsageError(
            f"a and b must have the same examples, got {a.shape[-1]} and {b.shape[-1]}"
        )
    asked = by_question(a, questions), by_question(b, questions)
    if same_runs or a.ndim == 1:
        found = _interval([asked[0] - asked[1]], [1], confidence)
    else:
        found = _interval(asked, [1, -1], confidence)
    return _within(found, -1.0, [a, b])


def by_question(
    grades: Float[np.ndarray, "*s n"], questions: Questions
) -> Float[np.ndarray, "*s m"]:
    """Return the grades of m questions, in the order in which they are first asked.

    Each is the sum of the distances of its examples from the mean, so that the variance over
    questions is, to first order, that of the mean over examples (the ratio of two sums).
    """
    if questions is None:
        return grades
    number = grades.shape[-1]
    if questions.shape != (number,):
        raise UsageError(f"questions must have shape ({number},), got {questions.shape}")
    _, first, place = np.unique(questions, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    center = grades.mean(-1, keepdims=True)
    apart = np.zeros((*grades.shape[:-1], len(first)))
    np.add.at(apart.T, order[place], (grades - center).T)
    return center + apart * (len(first) / number)


def _interval(
    groups: Sequence[Grades | ModelGrades], signs: Sequence[int], confidence: float
) -> Interval:
    """Return the signed sum of the means of groups, each of independent seeds."""
    grades = [np.atleast_2d(group) for group in groups]
    effects = sum(sign * x.mean(0) for sign, x in zip(signs, grades, strict=True))
    value, number = float(effects.mean()), effects.size
    of_questions = float(effects.var(ddof=1)) / number if number > 1 else 0.0
    if groups[0].ndim == 1:
        half = half_width(of_questions, number - 1, 0.0, confidence)
    else:
        of_seeds, of_both, freedom = _variances(grades)
        # The variance of the seeds already contains the interaction of seed and question.
        half = half_width(of_seeds, freedom, max(0.0, of_questions - of_both), confidence)
    return Interval(value, value - half, value + half)


def _variances(groups: Sequence[Grades]) -> tuple[float, float, int]:
    """Return the variances by seed and by seed and question, and the degrees of freedom."""
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
        # Pooled: one estimate of the variance of seeds, with the degrees of freedom of all groups.
        by_seed = squares / freedom * sum(1 / len(grades) for grades in groups)
    return by_seed, float(by_both), freedom


def half_width(variance: float, freedom: int, normal: float, confidence: float) -> float:
    """Return h such that |sqrt(variance) T + sqrt(normal) Z| <= h with probability `confidence`.

    T is Student's t with `freedom` degrees, Z a standard normal variable.
    """
    total = variance + normal
    if freedom < 1:
        return math.inf
    return math.sqrt(total) * _quantile(freedom, normal / total, confidence) if total else 0.0


@lru_cache(maxsize=1024)
def _quantile(freedom: int, normal: float, confidence: float) -> float:
    """Return the half-width for variances `1 - normal` and `normal`.

    Given the chi-squared variable c of T, the sum is normal with variance `(1 - normal) * freedom
    / c + normal`. The probability is therefore a mean of normal probabilities over c, computed on a
    grid of u = log(c / freedom), and the half-width is found by bisection.
    """
    u = torch.linspace(-40, 10, 4001, dtype=torch.float64) * math.sqrt(2 / freedom)
    weights = (freedom / 2 * (u - u.exp())).softmax(0)
    scales = (2 * ((1 - normal) * (-u).exp() + normal)).sqrt()
    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        is_below = float((weights * torch.erf(middle / scales)).sum()) < confidence
        low, high = (middle, high) if is_below else (low, middle)
    return high


def _within(found: Interval, least: float, groups: Sequence[np.ndarray]) -> Interval:
    """Clip a share, or a difference of shares, to its possible values; unknown stays unknown."""
    is_known = np.isfinite([found.low, found.high]).all()
    if not is_known or not all(np.isin(grades, (0, 1)).all() for grades in groups):
        return found
    return Interval(found.value, max(least, found.low), min(1.0, found.high))


@dataclass(frozen=True)
class Fall:
    """A significant loss from more thinking.

    Args:
        loss: Score at `shallow` steps minus that at `deep` steps, above 0.
    """

    shallow: int
    deep: int
    loss: Interval


def worst_fall(
    grades: Mapping[int, ModelGrades],
    questions: Questions = None,
    confidence: float = CONFIDENCE,
) -> Fall | None:
    """Return the largest significant loss from fewer steps to more, of one trained model.

    All pairs of depths are tested, so each is tested at a confidence that keeps all together at
    `confidence` (Bonferroni).

    Args:
        grades: {thinking steps: the grade of each example}, more being better.
    """
    depths = sorted(grades)
    pairs = [(low, high) for i, low in enumerate(depths) for high in depths[i + 1 :]]
    each = 1 - (1 - confidence) / max(1, len(pairs))
    losses = [
        Fall(low, high, difference(grades[low], grades[high], questions, confidence=each))
        for low, high in pairs
    ]
    falls = [fall for fall in losses if fall.loss.is_distinguishable and fall.loss.value > 0]
    return max(falls, key=lambda fall: fall.loss.value, default=None)
