"""What a comparison shows and says: its table, its page, and sentences that claim no more."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thinkers import intervals, reports
from thinkers.comparing import PAGE, Comparison, Result
from thinkers.intervals import Interval
from thinkers.reports import INK, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    *("#2f7fc4", "#d1702a", "#3a9a5b", "#b0508f", "#8a7a1f", "#7a6bd0"),
    *("#c24b4b", "#2a9c9c", "#808890"),
)
MARKERS = "osD^vPX*h"
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
        self.usual = {name: runs[0].line["num_steps"] for name, runs in self.results.items()}
        self.grades = {name: _grades(runs) for name, runs in self.results.items()}
        self.scores = {
            name: {k: intervals.mean(x) for k, x in by_steps.items()}
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

    def at_usual(self, name: str) -> np.ndarray:
        return self.grades[name][self.usual[name]]

    def score(self, name: str) -> Interval:
        return self.scores[name][self.usual[name]]

    def mean_of(self, name: str, what: str) -> float | None:
        """The mean over runs of a number in their lines; None if it is not known of all."""
        values = [run.line[what] for run in self.results[name]]
        return None if None in values else float(np.mean(values))

    def _better(self, a: np.ndarray, b: np.ndarray, same_runs: bool = False) -> Interval:
        if not self.comparison.plan.higher_is_better:
            a, b = b, a
        return intervals.difference(a, b, same_runs=same_runs)


def verdict(difference: Interval) -> str:
    """What an interval of a difference says."""
    if not difference.is_distinguishable:
        return "not distinguishable"
    return "better" if difference.value > 0 else "worse"


def conclusion(findings: Findings) -> str:
    """What can be concluded, in one sentence or two."""
    plan = findings.comparison.plan
    if findings.first not in findings.results:
        return f"Nothing can be concluded: no run of {findings.first} could be judged."
    if plan.seeds < 2:
        return "Nothing can be concluded from one seed: another might have learned otherwise."
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
        return f"{findings.first} alone was judged: {_percent(findings.score(findings.first))}."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def limits(findings: Findings) -> list[str]:
    """What cannot be concluded, a sentence each."""
    plan, told = findings.comparison.plan, []
    if findings.differences and plan.seeds > 1:
        widest = max((x.high - x.low) / 2 for x in findings.differences.values())
        told.append(
            f"With {plan.seeds} seeds and {plan.num_examples:,} examples a difference is seen if "
            f"it is larger than about {_points(widest)} in the least certain pair here; what is "
            "not distinguishable is not shown to be equal."
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


def _thinking(findings: Findings, name: str, difference: Interval) -> str:
    fewest, usual = min(findings.grades[name]), findings.usual[name]
    if findings.comparison.plan.seeds < 2:
        return f"Whether {name} gains by thinking cannot be told from one seed."
    span = f"{_points(difference.value)} ({_span(difference)}) at {usual} steps against {fewest}"
    if not difference.is_distinguishable:
        return f"{name} is not shown to gain by thinking: {span}."
    gains = "gains" if difference.value > 0 else "loses"
    return f"{name} {gains} by thinking: {span}."


def _falls(findings: Findings, name: str) -> str:
    sign = 1 if findings.comparison.plan.higher_is_better else -1
    grades = {k: sign * x for k, x in findings.grades[name].items()}
    fall = intervals.worst_fall(grades)
    if fall is None:
        return ""
    return (
        f"{name} gets worse with more thinking: {_points(fall.loss.value)} ({_span(fall.loss)}) "
        f"worse at {fall.deep} steps than at {fall.shallow}."
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


def terminal_table(comparison: Comparison) -> str:
    """Scores and differences, and what they say."""
    findings = Findings(comparison)
    rows = [("model", comparison.plan.headline, "99 % interval", f"against {findings.first}", "")]
    for name in findings.results:
        score, difference = findings.score(name), findings.differences.get(name)
        told = ("", "") if difference is None else (_signed(difference), verdict(difference))
        rows.append((name, f"{score.value:.4f}", _between(score), *told))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    failed = [f"{x['model']}, seed {x['seed']}: failed, {x['error']}" for x in comparison.failures]
    return "\n".join([*(line.rstrip() for line in lines), *failed, conclusion(findings)])


def write_page(comparison: Comparison) -> None:
    """DIR/report.html, one file that needs nothing else."""
    findings, plan = Findings(comparison), comparison.plan
    names = ", ".join(findings.results)
    sections = [
        scores_section(findings),
        figure_section(
            "Score against training",
            curve_figure(findings),
            "The score of each model while it was trained, over the FLOPs used until then, on the "
            "first held-out examples; bands are 99 % intervals over seeds and examples.",
            f"Score of {names} against training FLOPs",
        ),
        figure_section(
            "Score against the work of an answer",
            steps_figure(findings, by_flops=True),
            "FLOPs of reading and answering one row, at every number of thinking steps. A model "
            "that does not think is one point.",
            f"Score of {names} against inference FLOPs",
        ),
        figure_section(
            "Score against thinking steps",
            steps_figure(findings, by_flops=False),
            "The same weights, asked to think for longer or shorter; the larger mark is the "
            "number of steps that the model was built for.",
            f"Score of {names} against thinking steps",
        ),
        Section(heading="What can and cannot be concluded", text=conclusion(findings)),
        *(Section(text=sentence) for sentence in limits(findings)),
        sizes_section(findings),
        costs_section(findings),
        settings_section(findings),
    ]
    if comparison.failures:
        rows = [(x["model"], x["seed"], x["error"]) for x in comparison.failures]
        failed = Section(heading="Runs that failed", columns=("model", "seed", "why"), rows=rows)
        sections.insert(1, failed)
    reports.write_page(
        comparison.folder / PAGE,
        title=f"Does thinking help? {plan.task}: {', '.join(x.name for x in plan.contenders)}",
        lead=conclusion(findings),
        sections=sections,
    )


def scores_section(findings: Findings) -> Section:
    """The table of scores and of differences to the first."""
    plan, rows = findings.comparison.plan, []
    for name in findings.results:
        score, difference = findings.score(name), findings.differences.get(name)
        told = ("", "") if difference is None else (_signed(difference), verdict(difference))
        seeds = ", ".join(f"{run.line['score']:.3f}" for run in findings.results[name])
        rows.append((name, f"{score.value:.4f}", _between(score), *told, seeds))
    return Section(
        text=f"Each model was trained over {plan.seeds} seeds with equal "
        f"{_equal(plan.match)} and judged on the same {plan.num_examples:,} held-out examples, at "
        "the number of thinking steps it was built for. Brackets are 99 % intervals over seeds "
        "and examples.",
        columns=(
            "model",
            plan.headline,
            "interval",
            f"better than {findings.first} by",
            "verdict",
            "each seed",
        ),
        rows=rows,
    )


def sizes_section(findings: Findings) -> Section:
    """What was compared."""
    rows = []
    for one in findings.comparison.plan.contenders:
        if one.name in findings.results:
            line, model = findings.results[one.name][0].line, one.config.model
            work = line["answer_flops"][str(line["num_steps"])]
            width = f"{model.dim} and {getattr(model, 'hidden', None) or 'usual'}"
            size, steps = f"{line['parameters']:,}", line["num_steps"]
            rows.append((one.name, size, width, steps, f"{work:.3g}"))
    return Section(
        heading="What was compared",
        text="The feed-forward's width, then the model's, bring all to one number of parameters; "
        "controls have the work of an answer equal instead. The work is that of the matrix "
        "products of reading one row and writing its answer.",
        columns=("model", "parameters", "width and feed-forward", "steps", "FLOPs of an answer"),
        rows=rows,
    )


def costs_section(findings: Findings) -> Section:
    """What runs took, means over seeds."""
    rows = []
    for name, runs in findings.results.items():
        seconds, memory = (findings.mean_of(name, x) for x in ("seconds", "memory"))
        rows.append(
            (
                name,
                f"{findings.mean_of(name, 'flops'):.3g}",
                f"{findings.mean_of(name, 'updates'):,.0f}",
                f"{runs[0].line['lr']:g}",
                "not measured" if seconds is None else f"{seconds:,.1f}",
                "not measured" if memory is None else f"{memory / 2**20:,.0f} MiB",
            )
        )
    return Section(
        heading="What a run took",
        text="Means over seeds. Process seconds of one thread include checkpoints; memory is the "
        "whole process at its highest.",
        columns=("model", "training FLOPs", "updates", "lr", "process seconds", "memory"),
        rows=rows,
    )


def settings_section(findings: Findings) -> Section:
    plan = findings.comparison.plan
    task = plan.contenders[0].config.to_dict()["task"]
    rows = [
        ("task", ", ".join(f"{key} {value}" for key, value in task.items())),
        ("equal", f"{_equal(plan.match)}: {plan.budget:g} {UNITS[plan.match]} a run"),
        ("seeds", plan.seeds),
        ("learning rates", _rates(findings)),
        ("settings for all", ", ".join(f"{k} {v}" for k, v in plan.settings.items()) or "none"),
        *((one.name, one.what) for one in plan.contenders if one.what),
        ("record", "config.json, results.jsonl and runs/, beside this page"),
    ]
    return Section(heading="How it was made", rows=rows)


def _rates(findings: Findings) -> str:
    plan = findings.comparison.plan
    if not plan.lrs:
        return "of each model's recipe"
    tried = ", ".join(f"{lr:g}" for lr in plan.lrs)
    return (
        f"the best of {tried} on the validation split, for every model: {len(plan.lrs)} more runs "
        f"of {plan.budget:g} {UNITS[plan.match]} each, none of which is part of the result"
    )


def figure_section(heading: str, figure: "Figure", text: str, caption: str) -> Section:
    return Section(heading=heading, text=text, drawing=figure, caption=caption)


def curve_figure(findings: Findings) -> "Figure":
    """Score against training FLOPs."""
    figure, axes = _axes(findings, "training FLOPs")
    for i, (name, points) in enumerate(findings.curves.items()):
        _line(axes, i, name, points)
    _finish(figure, axes)
    return figure


def steps_figure(findings: Findings, by_flops: bool) -> "Figure":
    """Score against inference FLOPs, or against thinking steps."""
    label = "FLOPs of an answer" if by_flops else "thinking steps"
    figure, axes = _axes(findings, label)
    axes.set_xscale("log", base=10 if by_flops else 2)
    ticks = set()
    for i, (name, scores) in enumerate(findings.scores.items()):
        flops = findings.results[name][0].line["answer_flops"]
        # A step count of 0 has no place on a scale of doublings.
        places = {k: flops[str(k)] if by_flops else max(k, 0.5) for k in scores}
        _line(axes, i, name, [(places[k], scores[k]) for k in sorted(scores)])
        usual = findings.usual[name]
        axes.plot(
            [places[usual]],
            [scores[usual].value],
            MARKERS[i % len(MARKERS)],
            color=COLOURS[i % len(COLOURS)],
            markersize=9,
        )
        ticks |= set(scores)
    if not by_flops:
        axes.set_xticks([max(k, 0.5) for k in sorted(ticks)], [str(k) for k in sorted(ticks)])
        axes.minorticks_off()
    _finish(figure, axes)
    return figure


def _axes(findings: Findings, label: str) -> tuple["Figure", "Axes"]:
    figure = reports._report("matplotlib.figure").Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(label, color=INK)
    axes.set_ylabel(findings.comparison.plan.headline, color=INK)
    axes.tick_params(colors=INK, which="both")
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=INK)
    return figure, axes


def _line(axes: "Axes", i: int, name: str, points: Sequence[Point]) -> None:
    colour = COLOURS[i % len(COLOURS)]
    x = [place for place, _ in points]
    values = [score.value for _, score in points]
    axes.plot(
        x, values, f"{MARKERS[i % len(MARKERS)]}-", color=colour, label=name, markersize=4.5, lw=1.6
    )
    if all(np.isfinite([score.low, score.high]).all() for _, score in points):
        low, high = ([getattr(s, end) for _, s in points] for end in ("low", "high"))
        if len(points) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        else:
            axes.vlines(x, low, high, color=colour, alpha=0.5)


def _finish(figure: "Figure", axes: "Axes") -> None:
    # Bands of few seeds may be so wide that nothing else could be seen.
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    room = max(0.02, 0.15 * float(np.ptp(values)))
    axes.set_ylim(float(values.min()) - room, float(values.max()) + room)
    legend = figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _grades(runs: Sequence[Result]) -> dict[int, np.ndarray]:
    return {k: np.stack([run.grades[k] for run in runs]) for k in runs[0].grades}


def _curve(runs: Sequence[Result]) -> list[Point]:
    """Where seeds have as many checkpoints, which they do unless their work was cut."""
    number = min(len(run.points) for run in runs)
    flops = [np.mean([run.line["curve"][i]["flops"] for run in runs]) for i in range(number)]
    return [
        (float(flops[i]), intervals.mean(np.stack([run.points[i] for run in runs])))
        for i in range(number)
    ]


def _equal(match: str) -> str:
    return {
        "flops": "parameters and training FLOPs",
        "parameters": "parameters and updates",
        "seconds": "parameters and process time",
    }[match]


def _between(interval: Interval) -> str:
    if not np.isfinite([interval.low, interval.high]).all():
        return "unknown"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _signed(interval: Interval) -> str:
    span = (
        "unknown"
        if not np.isfinite(interval.low)
        else f"{interval.low:+.3f} to {interval.high:+.3f}"
    )
    return f"{interval.value:+.4f} ({span})"


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"


def _span(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} ({_between(interval)})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
