"""The report of a search: its ledger as lines of text, and the judgement on the test split."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thinkers.research.ledger import Experiment, Ledger


def lines(folder: Path) -> list[str]:
    """Return the report of the search in a folder."""
    with Ledger(folder) as ledger:
        meta, experiments, judged = ledger.meta, ledger.experiments(), ledger.judgement()
    counts = {x: sum(y.status == x for y in experiments) for x in ("keep", "discard", "crash")}
    head = (
        f"{meta['recipe']}, {meta['minutes']:g} minutes each: {len(experiments)} experiments, "
        f"{counts['keep']} kept, {counts['discard']} discarded, {counts['crash']} crashed"
    )
    metric = f"valid {meta['metric']}"
    columns = ["", "", metric, "base", "updates", "seconds", "MiB", "seed", "change"]
    rows = [columns, *(row(x) for x in experiments)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(columns) - 1)]
    found = [head]
    for cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells[:-1], widths, strict=True)]
        found.append("  ".join([*padded, cells[-1]]).rstrip())
    return found + ([] if judged is None else judgement(judged, meta))


def row(one: Experiment) -> list[str]:
    """Return the cells of an experiment."""
    result = one.result
    memory = result.get("memory")
    return [
        str(one.number),
        one.status,
        "" if one.metric is None else f"{one.metric:.4f}",
        "" if one.base is None else str(one.base),
        f"{result['updates']:,}" if "updates" in result else "",
        f"{result['seconds']:.0f}" if "seconds" in result else "",
        f"{memory / 2**20:,.0f}" if memory else "",
        str(one.seed),
        text_of(one),
    ]


def text_of(one: Experiment) -> str:
    """Return the description of an experiment, its settings and files, and its error."""
    parts = [one.description, *one.change["flags"], *one.change["files"]]
    error = one.result.get("error")
    if error:
        parts.append(f"({error.splitlines()[0]})")
    return " ".join(x for x in parts if x)


def judgement(found: dict[str, Any], meta: dict[str, Any]) -> list[str]:
    """Return the result on the test split."""

    def interval(name: str, sign: str = "") -> str:
        value, low, high = (found[name][key] for key in ("value", "low", "high"))
        return f"{value:{sign}.4f} (99 % interval {low:{sign}.4f} to {high:{sign}.4f})"

    return [
        f"test {meta['metric']}, {found['seeds']} new seeds, used once:",
        f"  experiment {found['first']}: {interval('of_first')}",
        f"  experiment {found['best']}: {interval('of_best')}",
        f"  gain: {interval('of_gain', '+')}",
    ]


def line(one: Experiment, meta: dict[str, Any], before: Sequence[Experiment]) -> str:
    """Return the line that is printed as an experiment ends."""
    metric = "" if one.metric is None else f" {meta['metric']} {one.metric:.4f}"
    kept = [x for x in before if x.status == "keep" and x.number < one.number]
    against = f" (best before {kept[-1].metric:.4f})" if kept else ""
    began = datetime.datetime.fromtimestamp(one.started).strftime("%H:%M")
    return f"experiment {one.number}, begun {began}: {one.status}{metric}{against}: {text_of(one)}"
