"""Intervals of scores and of differences: known cases, coverage, and what must never be claimed."""

from statistics import NormalDist

import numpy as np
import pytest

from thinkers.evaluation.statistics import (
    Interval,
    by_question,
    difference,
    half_width,
    mean,
    worst_fall,
)

T = {2: 9.925, 4: 4.604, 6: 3.707}
"""Student's t, 99.5 %, by degrees of freedom, from a printed table."""


def constant(*means, number=7):
    """Grades that say nothing of examples: each seed grades all alike."""
    return np.repeat(np.array(means)[:, None], number, 1)


def asked(rng, accuracies, number, shared=0.5, hard=None):
    """0 and 1, of examples that are hard for all and of luck."""
    hard = rng.standard_normal(number) if hard is None else hard
    luck = rng.standard_normal((len(accuracies), number))
    limits = [NormalDist().inv_cdf(min(max(x, 1e-6), 1 - 1e-6)) for x in accuracies]
    met = np.sqrt(shared) * hard + np.sqrt(1 - shared) * luck
    return (met < np.array(limits)[:, None]).astype(float)


@pytest.mark.parametrize(
    ("freedom", "confidence", "t"),
    [
        (1, 0.99, 63.657),
        (2, 0.99, 9.925),
        (5, 0.95, 2.571),
        (30, 0.999, 3.646),
        (10**6, 0.99, 2.5758),
    ],
)
def test_without_a_normal_part_the_width_is_students_t(freedom, confidence, t):
    assert half_width(4.0, freedom, 0.0, confidence) == pytest.approx(2 * t, rel=2e-4)


@pytest.mark.parametrize("freedom", [2, 4, 9])
@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_with_a_normal_part_the_width_is_that_of_the_sum(freedom, ratio):
    rng = np.random.default_rng(31)
    drawn = np.sqrt(ratio) * rng.standard_t(freedom, 10**6) + rng.standard_normal(10**6)
    share = (np.abs(drawn) <= half_width(ratio, freedom, 1.0, 0.99)).mean()
    assert share == pytest.approx(0.99, abs=5e-4)


def test_nothing_that_varies_has_no_width_and_no_seeds_has_any():
    assert half_width(0.0, 3, 0.0, 0.99) == 0
    assert half_width(0.0, 0, 1.0, 0.99) == np.inf
    assert half_width(0.0, 3, 1.0, 0.99) == pytest.approx(2.5758, rel=1e-4)


def test_between_few_seeds_the_interval_is_that_of_students_t():
    a, b = constant(0.50, 0.53, 0.59), constant(0.41, 0.42, 0.46)
    found = difference(a, b)
    assert found.value == pytest.approx(0.54 - 0.43)
    pooled = ((0.04**2 + 0.01**2 + 0.05**2) + (0.02**2 + 0.01**2 + 0.03**2)) / 4
    half = T[4] * np.sqrt(pooled * 2 / 3)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-3)
    assert (found.high + found.low) / 2 == pytest.approx(found.value)


def test_runs_that_are_the_same_are_compared_one_by_one():
    a, b = constant(0.5, 0.7, 0.9), constant(0.4, 0.61, 0.79)
    found = difference(a, b, same_runs=True)
    deviation = np.std([0.1, 0.09, 0.11], ddof=1)
    half = T[2] * deviation / np.sqrt(3)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-3)
    assert found.is_distinguishable and not difference(a, b).is_distinguishable


def test_of_one_score_the_interval_is_that_of_its_seeds():
    found = mean(constant(1.5, 1.7, 1.3, 1.9))
    assert found.value == pytest.approx(1.6)
    deviation = np.std([1.5, 1.7, 1.3, 1.9], ddof=1)
    assert found.high - 1.6 == pytest.approx(5.841 * deviation / 2, rel=1e-3)


def test_seeds_that_agree_leave_what_examples_leave():
    rng = np.random.default_rng(3)
    effects = rng.normal(0.1, 1.0, 1013)
    a = np.repeat(effects[None], 3, 0) + rng.normal(0, 1e-6, (3, 1013))
    found = difference(a, np.zeros((3, 1013)) + rng.normal(0, 1e-6, (3, 1013)))
    half = 2.576 * effects.std(ddof=1) / np.sqrt(1013)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_examples_that_are_hard_for_both_do_not_hide_a_difference():
    rng = np.random.default_rng(5)
    hard = rng.standard_normal(997)
    a, b = asked(rng, [0.7] * 3, 997, 0.95, hard), asked(rng, [0.6] * 3, 997, 0.95, hard)
    apart = difference(a, b[:, rng.permutation(997)])
    together = difference(a, b)
    assert together.high - together.low < 0.7 * (apart.high - apart.low)


@pytest.mark.parametrize(
    "a, b",
    [
        (np.ones((3, 11)), np.ones((3, 11))),
        (np.ones((3, 11)), np.zeros((3, 11))),
        (np.ones((1, 11)), np.zeros((1, 11))),
        (constant(0.9), constant(0.1)),
        (constant(0.9, 0.1, 0.5), constant(0.5, 0.9, 0.1)),
        (np.ones((2, 1)), np.zeros((2, 1))),
    ],
    ids=["equal", "no variance", "one seed", "one seed, parts", "the same seeds", "one example"],
)
def test_what_cannot_be_told_apart(a, b):
    assert not difference(a, b).is_distinguishable


def test_one_seed_leaves_the_score_unknown():
    assert mean(np.eye(1, 5)) == Interval(0.2, -np.inf, np.inf)
    assert mean(constant(0.3)) == Interval(pytest.approx(0.3), -np.inf, np.inf)


def test_a_share_stays_one():
    grades = np.ones((2, 50))
    grades[0, :9] = 0
    found = mean(grades)
    assert found.low == 0 and found.high == 1 and found.value == 0.91
    assert difference(grades, grades[:, ::-1]) == Interval(0.0, -1.0, 1.0)


def test_grades_of_a_question_are_summed_where_it_is_first_asked():
    grades = np.array([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0, 1.0]])
    found = by_question(grades, np.array([7, 3, 7, 2, 3]))
    apart = np.array([[2 - 1.2, 0 - 1.2, 1 - 0.6], [0 - 1.2, 2 - 1.2, 1 - 0.6]])
    assert found == pytest.approx(0.6 + apart * 3 / 5)
    assert found.mean(1) == pytest.approx(grades.mean(1))
    assert (by_question(np.ones((2, 5)), np.array([7, 3, 7, 2, 3])) == 1).all()
    assert by_question(grades, None) is grades
    with pytest.raises(ValueError, match=r"shape \(5,\), got \(4,\)"):
        by_question(grades, np.arange(4))


def test_asking_all_seven_times_makes_nothing_surer():
    rng = np.random.default_rng(11)
    a, b = asked(rng, [0.7, 0.75, 0.72], 211), asked(rng, [0.6, 0.68, 0.63], 211)
    questions = np.tile(rng.permutation(211), 7)
    often = [np.tile(x, 7) for x in (a, b)]
    order = by_question(often[0], questions)
    assert order == pytest.approx(a)
    for once, seven in (
        (mean(a), mean(often[0], questions)),
        (difference(a, b), difference(*often, questions)),
        (difference(a, b, same_runs=True), difference(*often, questions, same_runs=True)),
    ):
        assert [seven.value, seven.low, seven.high] == pytest.approx(
            [once.value, once.low, once.high]
        )
    blind = difference(*often)
    assert blind.high - blind.low < difference(a, b).high - difference(a, b).low


def test_drawing_questions_again_spreads_the_score_as_the_interval_says():
    rng = np.random.default_rng(13)
    questions = rng.geometric(0.01, 1500)
    known = asked(rng, [0.8], 2000)[0][questions]
    flipped = (known + (rng.random(1500) < 0.1)) % 2
    found = mean(np.stack([flipped] * 3) + rng.normal(0, 1e-9, (3, 1500)), questions)
    names = np.unique(questions)
    right = np.array([flipped[questions == x].sum() for x in names])
    count = np.array([(questions == x).sum() for x in names])
    again = rng.integers(0, len(names), (4000, len(names)))
    drawn = right[again].sum(1) / count[again].sum(1)
    low, high = np.quantile(drawn, [0.005, 0.995])
    assert found.high - found.low == pytest.approx(high - low, rel=0.12)


def test_a_fall_on_one_question_asked_often_may_be_chance():
    shallow, deep = np.ones(300), np.r_[np.zeros(30), np.ones(270)]
    questions = np.r_[np.zeros(30), np.arange(1, 271)].astype(int)
    assert worst_fall({1: shallow, 2: deep}).loss.value == pytest.approx(0.1)
    assert worst_fall({1: shallow, 2: deep}, questions) is None


def test_of_one_trained_model_the_interval_is_over_questions():
    rng = np.random.default_rng(5)
    effects = rng.choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.6, 0.3])
    found = difference(effects, np.zeros(400))
    half = 2.588 * effects.std(ddof=1) / 20
    assert found.value == effects.mean()
    assert [found.low, found.high] == pytest.approx(
        [found.value - half, found.value + half], abs=1e-4
    )
    assert difference(effects, effects) == Interval(0.0, 0.0, 0.0)
    assert (
        difference(effects[None], np.zeros((1, 400))).high == np.inf
    )  # of its seed nothing is known


def test_of_one_trained_model_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        found = mean(rng.choice([0.0, 1.0], 200, p=[0.7, 0.3]))
        held += found.low <= 0.3 <= found.high
    assert held >= 0.97 * 300


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="same examples, got 5 and 7"):
        difference(np.ones((2, 5)), np.ones((2, 7)))


@pytest.mark.parametrize("deviation", [0.0, 0.015, 0.05])
def test_equals_are_seldom_told_apart(deviation):
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(150):
        hard = rng.standard_normal(499)
        a, b = (
            asked(rng, (0.8 + deviation * rng.standard_normal(3)).clip(0, 1), 499, 0.5, hard)
            for _ in range(2)
        )
        wrong += difference(a, b).is_distinguishable
    assert wrong <= 6  # at 2 in 100, more than 6 of 150 come about once in 27 times; measured: 0-1


def test_a_difference_is_found_with_seeds_enough():
    rng = np.random.default_rng(11)
    found = 0
    for _ in range(50):
        hard = rng.standard_normal(2003)
        a, b = (
            asked(rng, (level + 0.015 * rng.standard_normal(6)).clip(0, 1), 2003, 0.5, hard)
            for level in (0.85, 0.80)
        )
        interval = difference(a, b)
        found += interval.is_distinguishable and interval.value > 0
    assert found >= 45


# falling with more thinking


def test_a_fall_is_found_with_its_depths_and_its_size():
    rng = np.random.default_rng(13)
    right = (rng.random(1500) < 0.9).astype(float)
    worse = np.where(rng.random(1500) < 0.06, 0.0, right)
    begun = np.where(rng.random(1500) < 0.5, 0.0, right)
    found = worst_fall({1: begun, 4: right, 16: worse, 8: right})
    assert found is not None
    assert found.shallow in (4, 8) and found.deep == 16
    assert found.loss.value == pytest.approx(float(right.mean() - worse.mean()))
    assert 0 < found.loss.low < found.loss.value < found.loss.high


def test_gaining_or_staying_is_no_fall():
    rng = np.random.default_rng(17)
    grades = {k: (rng.random(700) < p).astype(float) for k, p in ((1, 0.2), (2, 0.5), (4, 0.8))}
    assert worst_fall(grades) is None
    assert worst_fall({1: grades[1], 2: grades[1]}) is None
    assert worst_fall({3: grades[1]}) is None
    assert worst_fall({1: np.ones(1), 2: np.zeros(1)}) is None


def test_chance_is_seldom_taken_for_a_fall():
    rng = np.random.default_rng(19)
    wrong = 0
    for _ in range(300):
        hard = rng.standard_normal(400)
        grades = {k: asked(rng, [0.9], 400, 0.8, hard)[0] for k in (1, 2, 4, 8, 16)}
        wrong += worst_fall(grades) is not None
    assert wrong <= 6
