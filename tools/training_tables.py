"""Tables of docs/ on guided trainings, searches and claims, from the JSON beside each page."""

import json
import statistics

from measured_tables import ROOT, table


def grow_scores() -> str:
    """The results of benchmarks/grow.py: a row for each case, its scores by seed."""
    found = json.loads((ROOT / "docs" / "grow.json").read_text())
    rows = []
    for name, by_seed in found.items():
        runs = list(by_seed.values())
        minutes = [run["cpu_minutes"] for run in runs if not run["resumed"]]
        updates = sorted({run["updates"] for run in runs})
        rows.append(
            [
                name,
                f"{runs[0]['parameters']:,}",
                " or ".join(map(str, updates)),
                f"{statistics.mean(run['flops'] for run in runs):.3g}",
                ", ".join(f"{run['exact']:.4f}" for run in runs),
                f"{statistics.mean(run['exact'] for run in runs):.4f}",
                f"{statistics.mean(minutes):.2f}" if minutes else "-",
            ]
        )
    columns = ["model", "parameters", "updates", "FLOPs", "by seed", "mean", "CPU minutes"]
    return table(columns, rows)


def search_cups() -> str:
    return _search("cups")


def search_shakespeare() -> str:
    return _search("shakespeare")


def _search(name: str) -> str:
    """The experiments of a search of benchmarks/search.py, and what the test split says."""
    found = json.loads((ROOT / "docs" / "search.json").read_text())[name]
    names = ("number", "status", "change", "updates", "metric", "base")
    rows = [[each[x] for x in names] for each in found["experiments"]]
    columns = ["", "", "change", "updates", f"{found['metric']}, validation", "built on"]
    judged = found["judgement"]

    def interval(key: str, sign: str = "") -> str:
        value, low, high = (judged[key][x] for x in ("value", "low", "high"))
        return f"{value:{sign}.4f} ({low:{sign}.4f} to {high:{sign}.4f})"

    return (
        f"{table(columns, rows)}\n\nOn the test split, mean of {judged['seeds']} new seeds and 99 "
        f"% interval, {found['metric']}: experiment {judged['first']} {interval('of_first')}, "
        f"experiment {judged['best']} {interval('of_best')}, gain {interval('of_gain', '+')}."
    )


def claims_scores() -> str:
    """The test losses of benchmarks/claims.py: a row for each case, three seeds for each text."""
    found = json.loads((ROOT / "docs" / "claims.json").read_text())
    rows = []
    for name in next(iter(found.values())):
        first = found["shakespeare"][name]["0"]
        losses = [[run["loss"] for run in found[text][name].values()] for text in found]
        rows.append(
            [
                name,
                f"{first['parameters']:,}",
                f"{first['updates']:,}",
                *(f"{statistics.mean(x):.4f} ± {statistics.stdev(x):.4f}" for x in losses),
            ]
        )
    columns = ["case", "parameters", "updates", *(f"{text}, loss" for text in found)]
    return table(columns, rows)


COMPARED = (
    ("deepsight", "decoder"),
    ("deepsight, fewer parameters", "decoder"),
    ("deepsight", "deepsight, no planning loss"),
    ("thoughtsformer, 2 thoughts", "thoughtsformer, 1 thought"),
    ("thoughtsformer, 4 thoughts", "thoughtsformer, 1 thought"),
    ("thoughtsformer, 2 thoughts", "universal, 2 steps"),
    ("thoughtsformer, 4 thoughts", "universal, 4 steps"),
    ("reasoning tokens", "fillers"),
    ("reasoning tokens", "decoder"),
)
"""Pairs of cases whose losses are compared seed by seed: the first is claimed to be lower."""


def claims_differences() -> str:
    """Differences of losses by seed, for each claim and each text."""
    found = json.loads((ROOT / "docs" / "claims.json").read_text())
    rows = []
    for name, other in COMPARED:
        cells = []
        for text in found:
            runs, others = found[text][name], found[text][other]
            by_seed = [runs[seed]["loss"] - others[seed]["loss"] for seed in runs]
            cells.append(", ".join(f"{x:+.4f}" for x in by_seed))
        rows.append([f"{name} − {other}", *cells])
    return table(["difference of losses", *(f"{text}, by seed" for text in found)], rows)
