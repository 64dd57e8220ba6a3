"""The page of an inspection and of an ablation, and the lines of an inspection for the terminal."""

import base64
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from thinkers.files import write_file
from thinkers.inspection.ablation_page import ablation_section, verdict
from thinkers.inspection.memory_page import memory_flags, memory_lines, memory_section
from thinkers.inspection.results import Ablation, Inspection, ReadOut
from thinkers.models.halt import rule_name
from thinkers.ops import masks
from thinkers.report import html
from thinkers.report.html import Section
from thinkers.strict_json import to_json

MOST_CELLS = 800_000
"""Limit on the cells of all attention pictures together; above it, neighbours share a cell."""
MOST_ELEMENTS = 48
"""Limit on the rows of the picture of the mask."""

LONGEST_LINE = 100
"""Characters of a line of tokens."""


def write(
    path: str | Path, seen: Inspection | None = None, ablation: Ablation | None = None
) -> None:
    """Write one HTML file that shows the inspection, the ablation, or both; or FILE.json."""
    if Path(path).suffix == ".json":
        write_json(Path(path), seen, ablation)
        return
    sections: list[Section] = []
    more: dict[str, Any] = {}
    title, lead = "Does the thought matter?", ""
    if seen is not None:
        labels = Labels(seen)
        markup = html.render("inspect.html", **contents(seen, labels))
        rows = facts(seen, Path(path).absolute().parent)
        read = [] if seen.memory is None else [memory_section(seen.memory)]
        sections = [Section(markup=markup), *read, Section(heading="The model", rows=rows)]
        more = {"parts": ("inspect.css", "inspect.js"), "data": numbers(seen, labels)}
        title, lead = f"Thinking steps on {shortened(seen.prompt)}", summary(seen, labels)
    if ablation is not None:
        sections.append(
            ablation_section(ablation, title if seen is None else "Does the thought matter?")
        )
        lead = lead or verdict(ablation)
    html.write_page(path, title, lead, sections, **more)


def write_json(path: Path, seen: Inspection | None, ablation: Ablation | None) -> None:
    """Write the numbers of the inspection, the ablation, or both."""
    found: dict[str, Any] = {} if seen is None else {"inspection": seen.record()}
    if ablation is not None:
        found["ablation"] = asdict(ablation)
    write_file(path, to_json(found))


class Labels:
    """Display texts of tokens, each looked up once."""

    def __init__(self, seen: Inspection):
        self.seen = seen
        self.known: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        if token not in self.known:
            self.known[token] = html.visible(self.seen.label(token))
        return self.known[token]


def inspection_lines(seen: Inspection) -> list[str]:
    """Format the inspection for a terminal."""
    labels = Labels(seen)
    lines = [f"{n:>5}  {text}" for n, text in enumerate(predictions(seen), 1)]
    lines = [" step  prediction", *lines, *steps_lines(seen, labels)]
    if seen.memory is not None:
        lines += memory_lines(seen.memory)
    return [*lines, summary(seen, labels)]


def steps_lines(seen: Inspection, labels: Labels) -> list[str]:
    """Format the tokens, and under each the steps that it took; nothing if none may halt."""
    if seen.halt is None:
        return []
    if seen.blocks:
        return ["blocks  " + " ".join(blocks) for blocks in seen.blocks]
    lines = [["token"], ["steps"]]
    for token, taken in zip(seen.tokens, seen.taken.tolist(), strict=True):
        width = max(len(labels[token]), len(str(taken)))
        if sum(len(word) + 1 for word in lines[-1]) + width > LONGEST_LINE:
            lines += [["token"], ["steps"]]
        lines[-2].append(labels[token].rjust(width))
        lines[-1].append(str(taken).rjust(width))
    return [" ".join(words) for words in lines]


def shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def summary(seen: Inspection, labels: Labels) -> str:
    """Write the answer, and the step from which predictions stay the same."""
    steps = seen.num_steps
    after = f"After {steps} thinking step{'s' if steps > 1 else ''}"
    if seen.halt is not None:
        after = f"After at most {steps} thinking steps, {seen.mean_steps:.2f} in the mean,"
    if seen.blocks and len(seen.blocks) == 1:
        number = sum(block != "output" for block in seen.blocks[0])
        after = f"After {number} of {steps} blocks"
    after = after if seen.requested_steps else "Without thinking,"
    if seen.answer is not None:
        text = f"{after} {seen.model.name} answers {shortened(seen.answer) or 'nothing'}."
    else:
        best = labels[int(seen.answers.tokens[-1, -1, 0])]
        chance = float(seen.answers.probabilities[-1, -1, 0])
        text = f"{after} {seen.model.name} predicts {best} (probability {chance:.2f})."
    settled = seen.settled[seen.first :]
    latest = int(settled.max())
    if steps == 1:
        return f"{text} There is one step, so nothing changes."
    if not seen.distance.any():
        return f"{text} The states are the same at every step."
    if latest == 1:
        return f"{text} No position changes its prediction after the first step."
    changed = int((settled > 1).sum())
    return (
        f"{text} {changed} of {len(settled)} positions change their prediction after the first "
        f"step, the last of them at step {latest}."
    )


def contents(seen: Inspection, labels: Labels) -> dict[str, Any]:
    """Return the values of inspect.html."""
    prompted = seen.prompt_length is not None
    following = [labels[x] for x in seen.tokens[1:]] + [""]
    names = [labels[x] for x in seen.tokens]
    settled, taken = seen.settled.tolist(), seen.taken.tolist()
    rows = [
        row
        | {
            "given": position < seen.first,
            "begins": prompted and position == seen.first,
            "settled": settled[position],
            "taken": taken[position],
            "next": following[position],
        }
        for position, row in enumerate(cells(seen.answers, labels, names, seen.flips))
    ]
    for row, number in zip(rows, taken, strict=True):
        for cell in row["cells"][number:]:
            cell["kind"] += " h"
    per_token = seen.model.mask(1, seen.num_steps).shape[0]
    pictured = max(2, MOST_ELEMENTS // per_token)
    pairs = seen.model.mask(pictured, seen.num_steps)
    cell = max(2, 288 // len(pairs))
    png = masks.png(masks.colours(pairs.cpu(), cell))
    return {
        "steps": seen.num_steps,
        "predictions": predictions(seen),
        "predicted": "answer" if prompted else "next token after the prompt",
        "prompted": prompted,
        "halts": seen.halt is not None,
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
    """Return the rows of a table of predictions: a row for each position, a cell for each step."""
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
    """Return the table of predictions of the further vectors: thoughts, plans or latents."""
    columns, rows, _ = read.tokens.shape
    parts = 1
    if name in seen.by_position:
        names = [labels[x] for x in seen.tokens]
        about, corner = "one for each position and column", "token"
    else:
        names = [str(n + 1) for n in range(rows)]
        about, corner = "one for each row, at the step of each column", ""
        if columns > seen.num_steps:
            parts = columns // seen.num_steps
            about += f", steps 1 to {seen.num_steps} for each section of the text in turn"
    return {
        "name": name,
        "about": about,
        "corner": corner,
        "columns": [n % max(columns // parts, 1) + 1 for n in range(columns)],
        "rows": cells(read, labels, names, None),
    }


def predictions(seen: Inspection) -> list[str]:
    """Return the prediction after each step, as displayed."""
    return [html.visible(text) for text in seen.predictions]


def about(weights: Float[Tensor, "k t n"]) -> str:
    _, rows, columns = weights.shape
    what = "a column for each position" if columns == rows else f"{columns} columns"
    return f"({what}; largest {float(weights.max()):.2f})"


def numbers(seen: Inspection, labels: Labels) -> dict[str, Any]:
    """Return the data of the script."""
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
        "predictions": predictions(seen),
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
    """Pack square roots of the weights as bytes, with the sum of each position's weights."""
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
    """Return nested lists of rounded numbers, which take little room as JSON."""
    scale = 10**digits

    def short(value: Any) -> Any:
        return [short(part) for part in value] if isinstance(value, list) else value / scale

    return short((x.double().nan_to_num(0.0, 0.0, 0.0) * scale).round().long().tolist())


def facts(seen: Inspection, folder: Path) -> list[tuple[str, Any]]:
    """Return the table of the model and its input; `folder` is that of the page."""
    model = seen.model
    size = sum(p.numel() for p in model.parameters())
    usual = model.check_steps(None)
    steps = f"{seen.requested_steps} (configured: {usual})"
    if seen.blocks:
        steps = f"{' | '.join(' '.join(blocks) for blocks in seen.blocks)}; at most {steps}"
    elif seen.halt is not None:
        rule = rule_name(seen.halt)
        steps = f"at most {steps}, {seen.mean_steps:.2f} in the mean with {rule}"
    rows = [
        ("model", f"{model.name}, {size:,} parameters, width {model.config.dim}"),
        ("thinking steps", steps),
        ("prompt", seen.prompt),
        ("input tokens", len(seen.tokens)),
    ]
    if seen.answer is not None:
        rows.append(("answer", seen.answer))
    if seen.memory is not None and seen.memory.folder:
        place = html.link(seen.memory.folder, os.path.relpath(seen.memory.folder, folder))
        rows.append(("memory", place))
    if not seen.run:
        return rows
    words = ["thinkers", "inspect", seen.run, f"--prompt={seen.prompt}"]
    words += [f"--num_steps={seen.requested_steps}"]
    if seen.halt is not None:
        words.append("--policy" if seen.halt == "policy" else f"--halt={seen.halt}")
    if seen.tools:
        words.append(f"--tools={','.join(map(str, seen.tools))}")
    if seen.memory is not None:
        words += memory_flags(seen.memory)
    words.append("--out=report.html")
    run = html.link(seen.run, os.path.relpath(seen.run, folder))
    rows = [("run", run), *rows]
    # A tool that was given as an object, or a memory without a folder, has no name for a command.
    named = all(isinstance(tool, str) for tool in seen.tools)
    named &= seen.memory is None or bool(seen.memory.folder)
    return [*rows, ("command to repeat it", html.command(words))] if named else rows
