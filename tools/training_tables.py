"""Tables of docs/ on trainings that are guided, from the JSON beside each page."""

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
