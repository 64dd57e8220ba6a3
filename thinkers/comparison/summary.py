"""Scores and differences of a comparison, each with its interval, and conclusions from them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from thinkers.comparison.results import Comparison, Result
from thinkers.evaluation import statistics
from thinkers.evaluation.statistics import Interval

UNITS = {"flops": "FLOPs", "parameters": "updates", "seconds": "seconds of process time"}
Point = tuple[float, Interval]


class Findings:
    """The scores and differences of a comparison, each with its interval.

    Attributes:
        scores: {contender: {thinking steps, or "due": score}}.
        differences: {contender: improvement over the baseline}, of all but the baseline.
        thinking: {contender: improvement of the configured number of steps over the fewest}; none
            for a contender that is judged at due steps, where more steps ask for something else.
        curves: {contender: [(training FLOPs, score)]}.
    """

    def __init__(self, comparison: Comparison):
        self.comparison = comparison
        self.results = {name: runs for name, runs in comparison.results.items() if runs}
        self.usual = {name: runs[0].record["num_steps"] for name, runs in self.results.items()}
        self.grades = {name: _grades(runs) for name, runs in self.results.items()}
        self.questions = next((x[0].questions for x in self.results.values()), np.arange(0))
        self.scores = {
            name: {k: statistics.mean(x, self.questions) for k, x in by_steps.items()}
            for name, by_steps in self.grades.items()
        }
        self.baseline = comparison.plan.contenders[0].name
        self.differences = {
            name: self._better(self.at_usual(name), self.at_usual(self.baseline))
            for name in self.results
            if name != self.baseline and self.baseline in self.results
        }
        self.thinking = {
            name: self._better(x[self.usual[name]], x[min(x)], same_runs=True)
            for name, x in self.grades.items()
            if self.usual[name] != "due" and min(x) < self.usual[name]
        }
        self.curves = {name: _curve(runs) for name, runs in self.results.items()}

    @property
    def fewest_runs(self) -> int:
        """The smallest number of runs of a contender, among those with runs."""
        return min(len(runs) for runs in self.results.values())

    def at_usual(self, name: str) -> np.ndarray:
        return self.grades[name][self.usual[name]]

    def score(self, name: str) -> Interval:
        return self.scores[name][self.usual[name]]

    def mean_of(self, name: str, what: str) -> float | None:
        """Return the mean over runs of a number in their results; None if a run lacks it."""
        values = [run.record[what] for run in self.results[name]]
        return None if None in values else float(np.mean(values))

    def amount(self, value: float) -> str:
        """Format a difference; differences of shares are in percentage points."""
        return f"{100 * value:.1f} points" if self._is_share else f"{value:.4f}"

    def span(self, interval: Interval) -> str:
        """Format the interval of a difference."""
        factor, digits = (100, 1) if self._is_share else (1, 4)
        return f"{factor * interval.low:.{digits}f} to {factor * interval.high:.{digits}f}"

    @property
    def _is_share(self) -> bool:
        return self.comparison.plan.higher_is_better

    def _better(self, a: np.ndarray, b: np.ndarray, same_runs: bool = False) -> Interval:
        if not self.comparison.plan.higher_is_better:
            a, b = b, a
        return statistics.difference(a, b, self.questions, same_runs=same_runs)


def by_steps(runs: Sequence[Result], what: str) -> dict[str, float]:
    """Return {thinking steps: the mean over runs} of numbers in their results, by steps."""
    found = [run.record[what] for run in runs]
    return {k: float(np.mean([x[k] for x in found])) for k in found[0]}


def verdict(difference: Interval) -> str:
    """Return "better", "worse" or "not distinguishable"."""
    if not difference.is_distinguishable:
        return "not distinguishable"
    return "better" if difference.value > 0 else "worse"


def conclusion(findings: Findings) -> str:
    """Write the conclusion, in one or two sentences."""
    if findings.baseline not in findings.results:
        return f"Nothing can be concluded: all runs of {findings.baseline} failed."
    names = [one.name for one in findings.comparison.plan.contenders]
    failed = [name for name in names if name not in findings.results]
    missing = f" All runs of {_listed(failed)} failed." if failed else ""
    if findings.fewest_runs < 2:
        return (
            f"Nothing can be concluded from one seed: results of other seeds may differ.{missing}"
        )
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for name, difference in findings.differences.items():
        groups[verdict(difference)].append(name)
    parts = [
        f"{_listed(groups[word])} {_is(groups[word])} {word} than {findings.baseline}"
        for word in ("better", "worse")
        if groups[word]
    ]
    if unclear := groups["not distinguishable"]:
        parts.append(
            f"{_listed(unclear)} {_is(unclear)} not distinguishable from {findings.baseline}"
        )
    if not parts:
        score = with_interval(findings.score(findings.baseline))
        return f"Only {findings.baseline} was evaluated: {score}.{missing}"
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}.{missing}"


def limits(findings: Findings) -> list[str]:
    """Write the limits of the conclusion, a sentence or two each."""
    plan, sentences = findings.comparison.plan, []
    if findings.differences and findings.fewest_runs > 1:
        widest = max(max(x.high - x.value, x.value - x.low) for x in findings.differences.values())
        if 0 < widest < np.inf:
            sentences.append(
                f"With {findings.fewest_runs} seeds and {examples(findings)}, differences of less "
                f"than about {findings.amount(widest)} are not detected in the least certain pair; "
                '"not distinguishable" does not mean equal. More seeds detect smaller differences.'
            )
        number = len(findings.differences)
        sentences.append(
            f"The false-positive rate of each pair is about 1 %: with {number} "
            f"{'pair' if number == 1 else 'pairs'} tested here, about {number} in 100 such pages "
            f"{'shows' if number == 1 else 'show'} a difference where there is none."
        )
    if oracles := [name for name, steps in findings.usual.items() if steps == "due"]:
        sentences.append(
            f"{_listed(oracles)} {_is(oracles)} graded with as many steps as each row's answers "
            "need: an oracle's number, since more steps ask for something else here."
        )
    for name, difference in findings.thinking.items():
        sentences.append(_thinking(findings, name, difference))
    sentences += [sentence for name in findings.results if (sentence := _falls(findings, name))]
    sentences.append(
        f"All of this holds for {plan.task} with these settings, for models of this size and for "
        "this budget; another learning rate, task or budget may reverse it."
    )
    return sentences + _off_budget(findings)


def examples(findings: Findings) -> str:
    """Write the number of examples, and of different questions if some are repeated."""
    number, different = len(findings.questions), len(np.unique(findings.questions))
    repeated = f" ({different:,} different questions; intervals are over questions)"
    return f"{number:,} examples{repeated * (different < number)}"


def _thinking(findings: Findings, name: str, difference: Interval) -> str:
    fewest, usual = min(findings.grades[name]), findings.usual[name]
    if len(findings.results[name]) < 2:
        return f"One seed does not show whether {name} improves with thinking."
    gain = f"{findings.amount(difference.value)} ({findings.span(difference)})"
    span = f"{gain} at {usual} steps against {fewest}"
    if not difference.is_distinguishable:
        return f"No effect of thinking on {name} was detected: {span}."
    effect = "improves" if difference.value > 0 else "gets worse"
    return f"{name} {effect} with thinking: {span}."


def _falls(findings: Findings, name: str) -> str:
    """Report in how many runs, each tested alone, more thinking is significantly worse."""
    if findings.usual[name] == "due":
        return ""
    sign = 1 if findings.comparison.plan.higher_is_better else -1
    runs = findings.results[name]
    found = [
        statistics.worst_fall(
            {k: sign * x for k, x in run.grades.items() if isinstance(k, int)}, run.questions
        )
        for run in runs
    ]
    falls = [fall for fall in found if fall is not None]
    if not falls:
        return ""
    worst = max(falls, key=lambda fall: fall.loss.value)
    loss = f"{findings.amount(worst.loss.value)} ({findings.span(worst.loss)})"
    return (
        f"{name} gets worse with more thinking in {len(falls)} of {len(runs)} runs, by at most "
        f"{loss}, from {worst.shallow} steps to {worst.deep}."
    )


def _off_budget(findings: Findings) -> list[str]:
    """Report the models that used more or less than the budget by over 1 %."""
    plan = findings.comparison.plan
    what = {"flops": "flops", "parameters": "updates", "seconds": "seconds"}[plan.match]
    sentences = []
    for name in findings.results:
        used = findings.mean_of(name, what)
        if used is not None and abs(used - plan.budget) > 0.01 * plan.budget:
            unit = UNITS[plan.match]
            sentences.append(f"{name} used {used:.3g} {unit}; the budget was {plan.budget:.3g}.")
    return sentences


def _grades(runs: Sequence[Result]) -> dict[Any, np.ndarray]:
    return {k: np.stack([run.grades[k] for run in runs]) for k in runs[0].grades}


def _curve(runs: Sequence[Result]) -> list[Point]:
    """Return the scores at the checkpoints that all seeds have; shortened runs have fewer."""
    number = min(len(run.points) for run in runs)
    flops = [np.mean([run.record["curve"][i]["flops"] for run in runs]) for i in range(number)]
    asked = runs[0].questions[: runs[0].points.shape[1]]
    return [
        (float(flops[i]), statistics.mean(np.stack([run.points[i] for run in runs]), asked))
        for i in range(number)
    ]


def between(interval: Interval) -> str:
    if not np.isfinite([interval.low, interval.high]).all():
        return "unknown"
    if interval.low == interval.high:
        return "no variance"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def signed(interval: Interval) -> str:
    span = between(interval)
    if span[0].isdigit() or span[0] == "-":
        span = f"{interval.low:+.3f} to {interval.high:+.3f}"
    return f"{interval.value:+.4f} ({span})"


def with_interval(interval: Interval) -> str:
    """Format a score and its interval."""
    return f"{interval.value:.4f} ({between(interval)})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
