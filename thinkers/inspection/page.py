"""The page of an inspection: a table of answers, and a slider over the thinking steps."""

import base64
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from thinkers.inspection.results import TOLD, Ablation, Inspection, ReadOut, label
from thinkers.ops import masks
from thinkers.report import html
from thinkers.report.html import Section

MOST_CELLS = 800_000
"""Of all pictures of attention together; beyond it, neighbours share a cell."""
MOST_ELEMENTS = 48


def write(
    path: str | Path, seen: Inspection | None = None, ablation: Ablation | None = None
) -> None:
    """One HTML file that shows the inspection, the ablation, or both."""
    sections: list[Section] = []
    more: dict[str, Any] = {}
    title, lead = "Does the thought matter?", ""
    if seen is not None:
        labels = Labels(seen)
        markup = html.render("inspect.html", **contents(seen, labels))
        sections = [Section(markup=markup), Section(heading="The model", rows=facts(seen))]
        more = {"parts": ("inspect.css", "inspect.js"), "data": numbers(seen, labels)}
        title, lead = f"What it thinks of {shortened(seen.prompt)}", summary(seen, labels)
    if ablation is not None:
        sections.append(ablated(ablation, title if seen is None else "Does the thought matter?"))
        lead = lead or verdict(ablation)
    html.write_page(path, title, lead, sections, **more)


def told(seen: Inspection) -> list[str]:
    """The inspection in lines for a terminal."""
    labels = Labels(seen)
    lines = [f"{n:>5}  {said}" for n, said in enumerate(says(seen, labels), 1)]
    return [" step  would answer", *lines, summary(seen, labels)]


class Labels:
    """How tokens are shown, each looked up once."""

    def __init__(self, seen: Inspection):
        self.task, self.known = seen.task, {}  # type: ignore[var-annotated]
        self.other = next((x for x in seen.tokens if seen.task.decode([x])), seen.tokens[0])

    def __getitem__(self, token: int) -> str:
        if token not in self.known:
            self.known[token] = html.visible(label(self.task, token, self.other))
        return self.known[token]


def shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def summary(seen: Inspection, labels: Labels) -> str:
    """What the model says, and when it stopped changing its mind."""
    steps = seen.num_steps
    after = (
        f"After {steps} thinking step{'s' if steps > 1 else ''}" if seen.asked else "Unthinking,"
    )
    if seen.answer is not None:
        said = f"{after} {seen.model.name} answers {shortened(seen.answer) or 'nothing'}."
    else:
        best = labels[int(seen.answers.tokens[-1, -1, 0])]
        chance = float(seen.answers.probabilities[-1, -1, 0])
        said = f"{after} {seen.model.name} goes on with {best} (probability {chance:.2f})."
    settled = seen.settled[seen.first :]
    latest = int(settled.max())
    if steps == 1:
        return f"{said} It takes one step, so there is nothing to compare it with."
    if not seen.distance.any():
        return f"{said} The states that are read out are the same at every step."
    if latest == 1:
        return f"{said} No position changes its answer after the first step."
    changed = int((settled > 1).sum())
    return (
        f"{said} {changed} of {len(settled)} positions change their answer on the way, "
        f"the last of them at step {latest}."
    )


def contents(seen: Inspection, labels: Labels) -> dict[str, Any]:
    """The values of inspect.html."""
    prompted = seen.prompt_length is not None
    following = [labels[x] for x in seen.tokens[1:]] + [""]
    names = [labels[x] for x in seen.tokens]
    settled = seen.settled.tolist()
    rows = [
        row
        | {
            "given": position < seen.first,
            "begins": prompted and position == seen.first,
            "settled": settled[position],
            "next": following[position],
        }
        for position, row in enumerate(cells(seen.answers, labels, names, seen.flips))
    ]
    per_token = seen.model.mask(1, seen.num_steps).shape[0]
    pictured = max(2, MOST_ELEMENTS // per_token)
    pairs = seen.model.mask(pictured, seen.num_steps)
    cell = max(2, 288 // len(pairs))
    png = masks.png(masks.colours(pairs.cpu(), cell))
    return {
        "steps": seen.num_steps,
        "says": says(seen, labels),
        "told": "It would answer" if prompted else "After all of the prompt it would go on with",
        "answers": prompted,
        "over": "the positions of the answer" if prompted else "all positions",
        "rows": rows,
        "explained": f"{100 * sum(seen.explained):.0f} %",
        "attention": [(name, about(x), "") for name, x in seen.attention.items()],
        "others": [other(name, x, seen, labels) for name, x in seen.others.items()],
        "elements": seen.model.mask_caption,
        "pictured": pictured,
        "mask": "data:image/png;base64," + base64.b64encode(png).decode(),
        "size": cell * len(pairs),
    }


def cells(read: ReadOut, labels: Labels, names: Sequence[str], flips: Tensor | None) -> list[dict]:
    """The rows of a table of answers: one for each position, a cell for each step."""
    best, chances = read.tokens[..., 0].T.tolist(), read.probabilities[..., 0].T.tolist()
    changed = [[False] * len(best[0])] * len(best) if flips is None else flips.T.tolist()
    return [
        {
            "label": name,
            "cells": [
                {"label": labels[token], "kind": f"p{min(9, int(10 * chance))}{' f' * flip}"}
                for token, chance, flip in zip(*row, strict=True)
            ],
        }
        for name, *row in zip(names, best, chances, changed, strict=True)
    ]


def other(name: str, read: ReadOut, seen: Inspection, labels: Labels) -> dict[str, Any]:
    """The table of vectors that are not the states."""
    columns, rows, _ = read.tokens.shape
    parts = 1
    if name in seen.by_position:
        names = [labels[x] for x in seen.tokens]
        about, corner = "one for each position and column", "read"
    else:
        names = [str(n + 1) for n in range(rows)]
        about, corner = "a row for each, a column for each step", ""
        if columns > seen.num_steps:
            parts = columns // seen.num_steps
            about += f", from 1 to {seen.num_steps} for one part of the text after the other"
    return {
        "name": name,
        "about": about,
        "corner": corner,
        "columns": [n % max(columns // parts, 1) + 1 for n in range(columns)],
        "rows": cells(read, labels, names, None),
    }


def says(seen: Inspection, labels: Labels) -> list[str]:
    """What the model would answer after each step."""
    best = seen.answers.tokens[..., 0]
    if seen.answer is None:
        return [labels[int(row[-1])] for row in best]
    return [html.visible(seen.task.decode(row.tolist())) for row in best[:, seen.first :]]


def about(weights: Float[Tensor, "k t n"]) -> str:
    _, rows, columns = weights.shape
    what = "a column for each position" if columns == rows else f"{columns} columns"
    return f"({what}; the most is {float(weights.max()):.2f})"


def numbers(seen: Inspection, labels: Labels) -> dict[str, Any]:
    """What the script draws from."""
    read = seen.answers
    used = sorted(set(read.tokens.flatten().tolist()))
    index = {token: place for place, token in enumerate(used)}
    spread = seen.plane - seen.plane.mean((0, 1))
    return {
        "steps": seen.num_steps,
        "first": seen.first,
        "place": len(seen.tokens) - 1 if seen.prompt_length is None else seen.first,
        "positions": [labels[x] for x in seen.tokens],
        "labels": [labels[x] for x in used],
        "says": says(seen, labels),
        "tops": [[[index[x] for x in top] for top in row] for row in read.tokens.tolist()],
        "chances": rounded(read.probabilities, 3),
        "entropy": rounded(read.entropy, 3),
        "most_entropy": max(1e-9, float(read.entropy.max())),
        "distance": rounded(seen.distance, 3),
        "moved": rounded(seen.moved, 4),
        "most_moved": max(1e-9, float(seen.moved.max())),
        "cosine": rounded(seen.cosine, 4),
        "plane": rounded(spread / spread.abs().max().clamp(min=1e-12), 4),
        "attention": [picture(x, seen) for x in seen.attention.values()],
    }


def picture(weights: Float[Tensor, "k t n"], seen: Inspection) -> dict[str, Any]:
    """Square roots of the weights as bytes, packed; the share of each position besides."""
    shares = rounded(weights.sum(-1), 3)
    cells = sum(x.numel() for x in seen.attention.values())
    side = math.ceil(math.sqrt(cells / MOST_CELLS))
    k, t, n = weights.shape
    across = side if n == t else 1
    if side > 1:
        padded = F.pad(weights, (0, -n % across, 0, -t % side))
        weights = F.avg_pool2d(padded[:, None], (side, across))[:, 0] * across
    scaled = 255 * (weights / weights.max().clamp(min=1e-12)).clamp(0, 1).sqrt()
    packed = zlib.compress(scaled.round().byte().numpy().tobytes(), 9)
    return {
        "rows": weights.shape[1],
        "columns": weights.shape[2],
        "shares": shares,
        "weights": base64.b64encode(packed).decode(),
    }


def rounded(x: Tensor, digits: int) -> Any:
    """As nested lists, of numbers short enough to be many."""
    scale = 10**digits

    def short(value: Any) -> Any:
        return [short(part) for part in value] if isinstance(value, list) else value / scale

    return short((x.double().nan_to_num(0.0, 0.0, 0.0) * scale).round().long().tolist())


def facts(seen: Inspection) -> list[tuple[str, Any]]:
    model = seen.model
    size = sum(p.numel() for p in model.parameters())
    usual = model.check_steps(None)
    rows = [
        ("model", f"{model.name}, {size:,} parameters, {model.config.dim} wide"),
        ("thinking steps", f"{seen.asked}, as configured: {usual}"),
        ("prompt", seen.prompt),
        ("tokens read", len(seen.tokens)),
    ]
    if seen.answer is not None:
        rows.append(("answer", seen.answer))
    return [("run", seen.run), *rows] if seen.run else rows


# Ablation -------------------------------------------------------------------------------------


def verdict(found: Ablation) -> str:
    """What can be said of the thoughts, in a sentence."""
    effects = [effect for effect in found.effects if effect.lost.low > 0]
    head = f"{found.model} has {found.metric} {found.score:.3f} after {found.num_steps} steps"
    if not effects:
        return f"{head}; whatever its thoughts are replaced by, no loss can be distinguished."
    worst = max(effects, key=lambda effect: effect.lost.value)
    return f"{head}, and {worst.score:.3f} with its thoughts replaced ({worst.way})."


def told_of_ablation(found: Ablation) -> list[str]:
    """The ablation in lines for a terminal."""
    lines = [
        f"{found.metric} {found.score:.4f} at {found.num_steps} steps, of {found.num_examples} "
        "held-out examples; with other thoughts:",
        f"{'thoughts':<18} {found.metric:>9}  {'lost':>9}  99 % interval",
    ]
    for effect in found.effects:
        lost = effect.lost
        lines.append(
            f"{effect.way:<18} {effect.score:>9.4f}  {lost.value:>9.4f}  "
            f"{lost.low:.4f} .. {lost.high:.4f}  {effect.verdict}"
        )
    return lines


def ablated(found: Ablation, heading: str) -> Section:
    """The part of a page."""
    rows = [
        [
            effect.way,
            TOLD[effect.way],
            f"{effect.score:.4f}",
            f"{effect.lost.value:.4f}",
            f"{effect.lost.low:.4f} .. {effect.lost.high:.4f}",
            effect.verdict,
        ]
        for effect in found.effects
    ]
    return Section(
        heading=heading,
        text=f"What is lost of {found.metric} {found.score:.4f} (at {found.num_steps} steps, on "
        f"{found.num_examples:,} held-out examples) when every thought that one step hands on is "
        "replaced. The intervals are of 99 %, over questions in pairs: they say how other "
        "questions would have come out with these weights, not how other seeds would have learned.",
        drawing=losses(found),
        caption="; ".join(
            f"{e.way}: {e.lost.value:.4f} lost, {e.lost.low:.4f} to {e.lost.high:.4f}"
            for e in found.effects
        ),
        columns=("thoughts", "what they are", found.metric, "lost", "99 % interval", "so"),
        rows=rows,
    )


def losses(found: Ablation) -> Any:
    """Each loss with its interval, as a figure."""
    ink = html.INK
    height = 0.8 + 0.45 * len(found.effects)
    figure = html.figure(figsize=(5.2, height))
    axes = figure.add_subplot()
    for place, effect in enumerate(reversed(found.effects)):
        axes.plot([effect.lost.low, effect.lost.high], [place, place], color=html.PALE, lw=5)
        axes.plot([effect.lost.value], [place], "o", color=html.MARK)
    axes.axvline(0, color=ink, lw=0.8)
    axes.set_yticks(range(len(found.effects)), [e.way for e in reversed(found.effects)])
    axes.set_ylim(-0.6, len(found.effects) - 0.4)
    axes.set_xlabel(f"{found.metric} lost", color=ink)
    axes.tick_params(colors=ink)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=ink)
    return figure
