"""The table of a comparison for the terminal, and its HTML page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thinkers.comparison.contenders import CHOOSES, HALT, HALTS, suffix_of
from thinkers.comparison.results import PAGE, Comparison
from thinkers.comparison.summary import (
    UNITS,
    Findings,
    Point,
    between,
    by_steps,
    conclusion,
    limits,
    signed,
    verdict,
)
from thinkers.plugins import imported_files
from thinkers.report import html
from thinkers.report.html import INK, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    *("#2f7fc4", "#d1702a", "#3a9a5b", "#b0508f", "#8a7a1f", "#7a6bd0"),
    *("#c24b4b", "#2a9c9c", "#808890"),
)
MARKERS = "osD^vPX*h"


def terminal_table(comparison: Comparison) -> str:
    """Format scores, differences and the conclusion."""
    findings = Findings(comparison)
    rows = [
        (
            "model",
            comparison.plan.primary_metric,
            "99 % interval",
            f"against {findings.baseline}",
            "",
        )
    ]
    for name in findings.results:
        score, difference = findings.score(name), findings.differences.get(name)
        against = ("", "") if difference is None else (signed(difference), verdict(difference))
        rows.append((name, f"{score.value:.4f}", between(score), *against))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    failed = [f"{x['model']}, seed {x['seed']}: failed, {x['error']}" for x in comparison.failures]
    return "\n".join([*(line.rstrip() for line in lines), *failed, conclusion(findings)])


def write_page(comparison: Comparison) -> None:
    """Write report.html into the folder of the comparison."""
    findings, plan = Findings(comparison), comparison.plan
    sections = [
        scores_section(findings),
        *(figure_sections(findings) if findings.results else ()),
        Section(
            heading="What can and cannot be concluded",
            text=conclusion(findings),
            notes=limits(findings),
            half=True,
        ),
        sizes_section(findings),
        costs_section(findings),
        settings_section(findings),
    ]
    if comparison.failures:
        rows = [(x["model"], x["seed"], x["error"]) for x in comparison.failures]
        failed = Section(heading="Failed runs", columns=("model", "seed", "error"), rows=rows)
        sections.insert(1, failed)
    html.write_page(
        comparison.folder / PAGE,
        title=f"Does thinking help? {plan.task}: {', '.join(x.name for x in plan.contenders)}",
        lead=conclusion(findings),
        sections=sections,
    )


def scores_section(findings: Findings) -> Section:
    """The table of scores and of differences from the baseline."""
    plan, rows = findings.comparison.plan, []
    number = "one seed" if plan.seeds == 1 else f"{plan.seeds} seeds"
    failed = len(findings.comparison.failures)
    number += f" ({failed} {'run' if failed == 1 else 'runs'} failed)" if failed else ""
    lower = "" if plan.higher_is_better else f" Lower {plan.primary_metric} is better."
    for name in findings.results:
        score, difference = findings.score(name), findings.differences.get(name)
        against = ("", "") if difference is None else (signed(difference), verdict(difference))
        seeds = html.render(
            "list.html",
            parts=[
                html.link(f"{run.record['score']:.3f}", f"{run.record['run']}/")
                for run in findings.results[name]
            ],
        )
        rows.append((name, f"{score.value:.4f}", between(score), *against, seeds))
    return Section(
        text=f"Each model was trained with {number}, with equal {_equal(plan.match)}, and "
        f"evaluated on the same {len(findings.questions):,} held-out examples at its configured "
        f"number of thinking steps.{lower} Intervals are 99 % confidence intervals over seeds and "
        "questions.",
        columns=(
            "model",
            plan.primary_metric,
            "99 % interval",
            f"improvement over {findings.baseline}",
            "verdict",
            "each seed",
        ),
        rows=rows,
    )


def sizes_section(findings: Findings) -> Section:
    """The table of sizes, with the steps that were taken where a contender stops by itself."""
    rows: list[tuple[str, ...]] = []
    rules: set[str] = set()
    for one in findings.comparison.plan.contenders:
        if one.name not in findings.results:
            continue
        runs, model = findings.results[one.name], one.config.model
        record = runs[0].record
        steps = str(record["num_steps"])
        work = by_steps(runs, "answer_flops")[steps]
        width = f"{model.dim}, {getattr(model, 'hidden', None) or 'default'}"
        size, mean, share = f"{record['parameters']:,}", steps, "100 %"
        if one.halt is not None:
            rules.add(suffix_of(one.name))
            mean = f"{by_steps(runs, 'mean_steps')[steps]:.2f}"
            share = f"{100 * by_steps(runs, 'flops_share')[steps]:.0f} %"
            steps = f"at most {steps}"
        rows.append((one.name, size, width, steps, mean, share, f"{work:.3g}"))
    text = (
        "Widths of feed-forwards, and of models where needed, were chosen for an equal number "
        "of parameters; those of controls for equal FLOPs per answer. FLOPs per answer are those "
        "of the matrix products in reading one row and writing its answer."
    )
    names = ("model", "parameters", "width, feed-forward", "steps")
    if HALTS in rules:
        text += (
            f" Tokens of models with {HALTS} halt where their gate is above {HALT}: mean steps are "
            "those of all tokens of held-out rows but the first."
        )
    if CHOOSES in rules:
        text += (
            f" Models with {CHOOSES} choose the block of each step, and when to answer: mean steps "
            "are the blocks before the answer of a held-out question."
        )
    if rules:
        text += " The share is that of the FLOPs of all steps."
        names += ("mean steps", "share of FLOPs")  # type: ignore[assignment]
    else:
        rows = [(*row[:4], row[-1]) for row in rows]  # type: ignore[misc]
    return Section(heading="Models", text=text, columns=(*names, "FLOPs per answer"), rows=rows)


def costs_section(findings: Findings) -> Section:
    """The table of costs, means over seeds."""
    rows = []
    for name, runs in findings.results.items():
        seconds, memory = (findings.mean_of(name, x) for x in ("seconds", "memory"))
        rows.append(
            (
                name,
                f"{findings.mean_of(name, 'flops'):.3g}",
                f"{findings.mean_of(name, 'updates'):,.0f}",
                f"{runs[0].record['lr']:g}",
                "not measured" if seconds is None else f"{seconds:,.1f}",
                "not measured" if memory is None else f"{memory / 2**20:,.0f} MiB",
            )
        )
    return Section(
        heading="Cost of a run",
        text="Means over seeds. Process seconds are those of training with one thread, checkpoints "
        "included; memory is the peak of the whole process.",
        columns=("model", "training FLOPs", "updates", "lr", "process seconds", "memory"),
        rows=rows,
    )


def settings_section(findings: Findings) -> Section:
    plan = findings.comparison.plan
    task = plan.contenders[0].config.to_dict()["task"]
    rows = [
        ("task", ", ".join(f"{key} {value}" for key, value in task.items())),
        ("matched", f"{_equal(plan.match)}: {plan.budget:g} {UNITS[plan.match]} a run"),
        ("seeds", plan.seeds),
        ("learning rates", _rates(findings)),
        (
            "settings of all models",
            ", ".join(f"{k} {v}" for k, v in plan.settings.items()) or "none",
        ),
        *((one.name, one.what) for one in plan.contenders if one.what),
        ("record", html.link("config.json", "config.json")),
        ("runs", html.link("runs/", "runs/")),
        ("command to repeat it", html.command(command(findings.comparison))),
    ]
    return Section(heading="Settings", rows=rows)


def command(comparison: Comparison) -> list[str]:
    """Return the command that repeats this comparison in a folder of its own."""
    plan = comparison.plan
    flags = {
        "models": ",".join(plan.models),
        "match": plan.match,
        "budget": f"{plan.budget:.15g}",
        "seeds": plan.seeds,
        "lrs": ",".join(f"{lr:g}" for lr in plan.lrs),
        "controls": ",".join(plan.controls),
        "num_examples": plan.num_examples,
        **plan.settings,
        "out": f"{comparison.folder}-again",
    }
    words = [f"--import_module={file}" for file in imported_files()]
    words += [f"--{name}={value}" for name, value in flags.items() if value not in ("", None)]
    return ["thinkers", "compare", plan.task, *words]


def _rates(findings: Findings) -> str:
    plan = findings.comparison.plan
    if not plan.lrs:
        return "from the recipe of each model"
    tried = ", ".join(f"{lr:g}" for lr in plan.lrs)
    return (
        f"the best of {tried} on the validation split, for every model: {len(plan.lrs)} more runs "
        f"of {plan.budget:g} {UNITS[plan.match]} each, which are not part of the result"
    )


def figure_sections(findings: Findings) -> list[Section]:
    """The figures of score by compute."""
    names = ", ".join(findings.results)
    return [
        Section(
            heading="Score by training compute",
            text="Score of checkpoints by the training FLOPs used until then, on a part of the "
            "held-out examples; bands are 99 % intervals over seeds and questions.",
            drawing=curve_figure(findings),
            caption=f"Score of {names} by training FLOPs",
            half=True,
        ),
        Section(
            heading="Score by inference compute",
            text="FLOPs of reading and answering one row at each number of thinking steps. A model "
            "without thinking steps is one point.",
            drawing=steps_figure(findings, by_flops=True),
            caption=f"Score of {names} by inference FLOPs",
            half=True,
        ),
        Section(
            heading="Score by thinking steps",
            text="The same weights with fewer or more steps; the larger mark is the configured "
            "number of steps.",
            drawing=steps_figure(findings, by_flops=False),
            caption=f"Score of {names} by thinking steps",
            half=True,
        ),
    ]


def curve_figure(findings: Findings) -> "Figure":
    """Score by training FLOPs."""
    figure, axes = _axes(findings, "training FLOPs")
    for i, (name, points) in enumerate(findings.curves.items()):
        _line(axes, i, name, points)
    _finish(figure, axes, findings.comparison.plan.higher_is_better)
    return figure


def steps_figure(findings: Findings, by_flops: bool) -> "Figure":
    """Score by inference FLOPs, or against thinking steps."""
    label = "FLOPs per answer" if by_flops else "thinking steps"
    figure, axes = _axes(findings, label)
    axes.set_xscale("log", base=10 if by_flops else 2)
    ticks = set()
    for i, (name, scores) in enumerate(findings.scores.items()):
        flops = by_steps(findings.results[name], "answer_flops")
        counts, usual = sorted(k for k in scores if k != "due"), findings.usual[name]
        # 0 steps have no place on a logarithmic scale.
        places = {k: flops[str(k)] if by_flops else max(k, 0.5) for k in counts}
        _line(axes, i, name, [(places[k], scores[k]) for k in counts])
        if by_flops or usual != "due":  # due steps differ by row: no one place among the numbers
            axes.plot(
                [flops[str(usual)] if by_flops else places[usual]],
                [scores[usual].value],
                MARKERS[i % len(MARKERS)],
                color=COLOURS[i % len(COLOURS)],
                markersize=9,
            )
        ticks |= set(counts)
    drawn = np.concatenate([line.get_xdata() for line in axes.lines])
    if drawn.min() == drawn.max():
        # The width that matplotlib chooses around one place is rounding error for some numbers.
        axes.set_xlim(drawn.min() / 2, drawn.max() * 2)
    if by_flops:
        low, high = axes.get_xlim()
        marks = [digit * 10.0**power for power in range(20) for digit in (1, 2, 5)]
        shown = [mark for mark in marks if low <= mark <= high]
        every = -(-len(shown) // 6) or 1  # more than six labels would touch each other
        axes.set_xticks(
            shown[::every], [f"{mark:.0e}".replace("e+0", "e") for mark in shown[::every]]
        )
    else:
        axes.set_xticks([max(k, 0.5) for k in sorted(ticks)], [str(k) for k in sorted(ticks)])
    axes.minorticks_off()
    _finish(figure, axes, findings.comparison.plan.higher_is_better)
    return figure


def _axes(findings: Findings, label: str) -> tuple["Figure", "Axes"]:
    figure = html.figure(figsize=(5.6, 3.6))
    axes = figure.add_subplot()
    axes.set_xlabel(label, color=INK)
    axes.set_ylabel(findings.comparison.plan.primary_metric, color=INK)
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
            # With caps: a bare line would look like a curve that falls.
            axes.vlines(x, low, high, color=colour, alpha=0.5, lw=1)
            axes.scatter(2 * x, [*low, *high], marker="_", s=40, color=colour, alpha=0.5)


def _finish(figure: "Figure", axes: "Axes", is_share: bool) -> None:
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    low, high = float(values.min()), float(values.max())
    if is_share and 0 <= low and high <= 1:
        # The whole range of shares, so that pages can be compared; marks on the border are drawn.
        axes.set_ylim(0, 1)
        for line in axes.lines:
            line.set_clip_on(False)
    else:
        # Bands of few seeds can be so wide that the lines would look flat.
        room = max(0.02, 0.15 * float(np.ptp(values)))
        axes.set_ylim(low - room, high + room)
    legend = figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _equal(match: str) -> str:
    return {
        "flops": "parameters and training FLOPs",
        "parameters": "parameters and updates",
        "seconds": "parameters and process time",
    }[match]
