"""Scores of the recipes over seeds, written to thinkers/recipes/results.json.

    nohup python benchmarks/recipes.py > runs/recipes.log &
    python benchmarks/recipes.py add/thinker --seeds 1
    python benchmarks/recipes.py shakespeare/decoder --text tinyshakespeare.txt

It can be stopped and started again at any time: runs resume from their checkpoints, and a recipe
that was measured with its current settings is not measured again. One thread.

Machine: scores, which another machine's roundings change as another seed does; minutes are of the
machine that is recorded with them. Asked, by recipe: docs/measured.md. Measured: README.md.
"""

import argparse
import datetime
import hashlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import one_thread, parser

import thinkers
from thinkers import recipes
from thinkers.config.overrides import override
from thinkers.data.sources import find_source
from thinkers.files import write_file
from thinkers.runs.folder import read_record


def main() -> None:
    options = parse()
    one_thread()
    text = None if options.text is None else find_source(str(options.text)).digest()
    for seed in range(options.seeds):
        for name in options.recipes or recipes.RECIPES:
            if reason := missing_requirement(name, options):
                print(f"{name}: {reason}", flush=True)
            elif str(seed) not in measured(name, text)["seeds"]:
                record(name, seed, measure(name, seed, options), text)
                print(f"{name} seed {seed}: {recipes.score(name)}", flush=True)
    print("run make format to write the scores into the README")


def parse() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("recipes", nargs="*", help="default: all")
    arguments.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    arguments.add_argument("--num_examples", type=int, default=2000, help="held-out, per score")
    arguments.add_argument("--text", type=Path, help="the text of recipes that need one")
    arguments.add_argument("--out", type=Path, default=Path("runs/recipes"), help="run folders")
    options = arguments.parse_args()
    for name in options.recipes:
        if name not in recipes.RECIPES:
            sys.exit(f"unknown recipe {name!r}; choose from {', '.join(recipes.RECIPES)}")
    return options


def missing_requirement(name: str, options: argparse.Namespace) -> str:
    """The requirement of a recipe that is not met here; empty if all are."""
    if recipes.needs_gpu(name) and not torch.cuda.is_available():
        return "needs a GPU"
    return "needs --text FILE" if recipes.needs_text(name) and options.text is None else ""


def measured(name: str, text: str | None) -> dict[str, Any]:
    """Measurements of a recipe with its current settings and, if it needs one, this text."""
    fresh = {"settings": recipes.settings_of(recipes.RECIPES[name]()), "seeds": {}}
    if recipes.needs_text(name):
        fresh["text"] = text
    found = recipes.results().get(name, fresh)
    return found if found.get("text") == fresh.get("text") else fresh


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one seed of a recipe: scores, minutes, versions, machine."""
    flags = [f"--training.seed={seed}"]
    if not recipes.needs_gpu(name):
        flags.append("--training.device=cpu")
    if recipes.needs_text(name):
        flags.append(f"--task.path={options.text}")
    config = override(recipes.RECIPES[name](), flags=flags)
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()
    folder = options.out / f"{name.replace('/', '-')}-{seed}-{digest[:8]}"
    resumed = (folder / "config.json").exists()
    start = time.process_time()
    run = thinkers.resume(folder) if resumed else thinkers.train(config, out=folder)
    cpu_minutes = (time.process_time() - start) / 60
    rows = thinkers.evaluate(run, num_examples=options.num_examples)
    _, task = thinkers.open_run(run)
    judged = task.judged_at or run.model.config.num_steps
    default = [row for row in rows if row["num_steps"] == judged] or rows
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "scores": {metric: x for metric, x in default[0].items() if metric in run.scores},
        "steps": rows,
        "minutes": round(max(line["minutes"] for line in lines if "minutes" in line), 2),
        "cpu_minutes": None if resumed else round(cpu_minutes, 2),
        "examples": options.num_examples,
        "date": datetime.date.today().isoformat(),
        "versions": read_record(folder)["versions"],
        "machine": machine(config.training.device),
    }


def machine(device: str) -> str:
    """The hardware that the minutes were measured on."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, 1 thread"


def record(name: str, seed: int, found: dict[str, Any], text: str | None) -> None:
    """Write a measurement to results.json; those with other settings are dropped."""
    everything = json.loads(recipes.RESULTS.read_text()) if recipes.RESULTS.exists() else {}
    entry = {"primary_metric": next(iter(found["scores"]))} | measured(name, text)
    entry["seeds"][str(seed)] = found
    everything[name] = entry
    text = json.dumps(everything, indent=1, sort_keys=True) + "\n"
    write_file(recipes.RESULTS, text.encode())


if __name__ == "__main__":
    main()
