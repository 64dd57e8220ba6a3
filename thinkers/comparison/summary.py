"""What a comparison found, how sure it is, and sentences about it that claim no more."""

from collections.abc import Sequence

import numpy as np

from thinkers.comparison.results import Comparison, Result
from thinkers.evaluation import statistics
from thinkers.evaluation.statistics import Interval

UNITS = {"flops": "FLOPs", "parameters": "updates", "seconds": "seconds of process time"}
Point = tuple[float, Interval]


class Findings:
    """The numbers of a comparison, each with how sure it is.

    Attributes:
        scores: {contender: {thinking steps: score}}.
        differences: {contender: by how much it is better than the first}, of all but the first.
        thinking: {contender: by how much the usual number of steps is better than the fewest}.
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
        self.first = comparison.plan.contenders[0].name
        self.differences = {
            name: self._better(self.at_usual(name), self.at_usual(self.first))
            for name in self.results
            if name != self.first and self.first in self.results
        }
        self.thinking = {
            name: self._better(x[self.usual[name]], x[min(x)], same_runs=True)
            for name, x in self.grades.items()
            if min(x) < self.usual[name]
        }
        self.curves = {name: _curve(runs) for name, runs in self.results.items()}

    @property
    def fewest_runs(self) -> int:
        """Of a model that was judged at all."""
        return min(len(runs) for runs in self.results.values())

    def at_usual(self, name: str) -> np.ndarray:
        return self.grades[name][self.usual[name]]

    def score(self, name: str) -> Interval:
        return self.scores[name][self.usual[name]]

    def mean_of(self, name: str, what: str) -> float | None:
        """Return the mean over runs of a number in their results; None if one has it not."""
        values = [run.record[what] for run in self.results[name]]
        return None if None in values else float(np.mean(values))

    def amount(self, value: float) -> str:
        """A difference in words: of a share, in points of a hundred."""
        return f"{100 * value:.1f} points" if self._is_share else f"{value:.4f}"

    def span(self, interval: Interval) -> str:
        """Where the difference lies."""
        factor, digits = (100, 1) if self._is_share else (1, 4)
        return f"{factor * interval.low:.{digits}f} to {factor * interval.high:.{digits}f}"

    @property
    def _is_share(self) -> bool:
        return self.comparison.plan.higher_is_better

    def _better(self, a: np.ndarray, b: np.ndarray, same_runs: bool = False) -> Interval:
        if not self.comparison.plan.higher_is_better:
            a, b = b, a
        return statistics.difference(a, b, self.questions, same_runs=same_runs)


def verdict(difference: Interval) -> str:
    """What an interval of a difference says."""
    if not difference.is_distinguishable:
        return "not distinguishable"
    return "better" if difference.value > 0 else "worse"


def conclusion(findings: Findings) -> str:
    """What can be concluded, in one sentence or two."""
    if findings.first not in findings.results:
        return f"Nothing can be concluded: no run of {findings.first} could be judged."
    unjudged = [
        x.name for x in findings.comparison.plan.contenders if x.name not in findings.results
    ]
    missing = f" No run of {_listed(unjudged)} could be judged." if unjudged else ""
    if findings.fewest_runs < 2:
        return (
            "Nothing can be concluded from one seed: another might have learned otherwise."
            f"{missing}"
        )
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for name, difference in findings.differences.items():
        groups[verdict(difference)].append(name)
    parts = [
        f"{_listed(groups[word])} {_is(groups[word])} {word} than {findings.first}"
        for word in ("better", "worse")
        if groups[word]
    ]
    if unclear := groups["not distinguishable"]:
        parts.append(f"{_listed(unclear)} cannot be told apart from {findings.first}")
    if not parts:
        return (
            f"{findings.first} alone was judged: {told(findings.score(findings.first))}.{missing}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}.{missing}"


def limits(findings: Findings) -> list[str]:
    """What cannot be concluded, a sentence each."""
    plan, told = findings.comparison.plan, []
    if findings.differences and findings.fewest_runs > 1:
        widest = max(max(x.high - x.value, x.value - x.low) for x in findings.differences.values())
        if 0 < widest < np.inf:
            told.append(
                f"With {findings.fewest_runs} seeds and {examples(findings)} a "
                f"difference is seen if it is larger than about {findings.amount(widest)} in the "
                "least certain pair here; what is not distinguishable is not shown to be equal. "
                "More seeds see more."
            )
        number = len(findings.differences)
        told.append(
            f"Each interval holds the truth in 99 of 100 comparisons; {number} "
            f"{'pair is' if number == 1 else 'pairs are'} judged here, so about "
            f"{number} in 100 such pages {'shows' if number == 1 else 'show'} a difference "
            "that is none."
        )
    for name, difference in findings.thinking.items():
        told.append(_thinking(findings, name, difference))
    told += [sentence for name in findings.results if (sentence := _falls(findings, name))]
    told.append(
        f"All of this holds for {plan.task} as set here, for models of this size and for this "
        "budget; another learning rate, task or budget may turn it round."
    )
    return told + _unequal(findings)


def examples(findings: Findings) -> str:
    """How many there are, and how many of them differ."""
    number, different = len(findings.questions), len(np.unique(findings.questions))
    told = f" ({different:,} different ones, by which intervals are drawn)"
    return f"{number:,} examples{told * (different < number)}"


def _thinking(findings: Findings, name: str, difference: Interval) -> str:
    fewest, usual = min(findings.grades[name]), findings.usual[name]
    if len(findings.results[name]) < 2:
        return f"Whether {name} gains by thinking cannot be told from one seed."
    gain = f"{findings.amount(difference.value)} ({findings.span(difference)})"
    span = f"{gain} at {usual} steps against {fewest}"
    if not difference.is_distinguishable:
        return f"{name} is not shown to gain by thinking: {span}."
    gains = "gains" if difference.value > 0 else "loses"
    return f"{name} {gains} by thinking: {span}."


def _falls(findings: Findings, name: str) -> str:
    """In how many runs more thinking answers worse, each judged by itself."""
    sign = 1 if findings.comparison.plan.higher_is_better else -1
    runs = findings.results[name]
    found = [
        statistics.worst_fall({k: sign * x for k, x in run.grades.items()}, run.questions)
        for run in runs
    ]
    falls = [fall for fall in found if fall is not None]
    if not falls:
        return ""
    worst = max(falls, key=lambda fall: fall.loss.value)
    loss = f"{findings.amount(worst.loss.value)} ({findings.span(worst.loss)})"
    return (
        f"{name} gets worse with more thinking in {len(falls)} of {len(runs)} runs, at most by "
        f"{loss} from {worst.shallow} steps to {worst.deep}."
    )


def _unequal(findings: Findings) -> list[str]:
    """Where runs did not get what they were to have, by more than a hundredth."""
    plan = findings.comparison.plan
    what = {"flops": "flops", "parameters": "updates", "seconds": "seconds"}[plan.match]
    told = []
    for name in findings.results:
        used = findings.mean_of(name, what)
        if used is not None and abs(used - plan.budget) > 0.01 * plan.budget:
            told.append(
                f"{name} used {used:.3g} {UNITS[plan.match]}, not the {plan.budget:.3g} allowed."
            )
    return told


def _grades(runs: Sequence[Result]) -> dict[int, np.ndarray]:
    return {k: np.stack([run.grades[k] for run in runs]) for k in runs[0].grades}


def _curve(runs: Sequence[Result]) -> list[Point]:
    """Where seeds have as many checkpoints, which they do unless their work was cut."""
    number = min(len(run.points) for run in runs)
    flops = [np.mean([run.record["curve"][i]["flops"] for run in runs]) for i in range(number)]
    asked = runs[0].questions[: runs[0].points.shape[1]]  # the first of them
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


def told(interval: Interval) -> str:
    """A score and its interval."""
    return f"{interval.value:.4f} ({between(interval)})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
