"""Measure the recipes over seeds, into thinkers/recipes/results.json.

    nohup python benchmarks/recipes.py > runs/recipes.log &
    python benchmarks/recipes.py add/thinker --seeds 1

It can be stopped and started again at any time: runs go on from their checkpoints, and what was
measured with the settings of today is not measured again. One thread, so that others can work.
"""

import argparse
import datetime
import hashlib
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import thinkers
from thinkers import recipes
from thinkers.checkpoints import write_file
from thinkers.runs import read_record


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for name in options.recipes or recipes.RECIPES:
            entry = recipes.results().get(name, {"seeds": {}})
            if str(seed) not in entry["seeds"]:
                record(name, seed, measure(name, seed, options))
                print(f"{name} seed {seed}: {recipes.score(name)}", flush=True)
    print("make format writes the scores into the README")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", help="all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=2000, help="held-out, for each score")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    options = parser.parse_args()
    for name in options.recipes:
        if name not in recipes.RECIPES:
            sys.exit(f"unknown recipe {name!r}; choose from {', '.join(recipes.RECIPES)}")
    return options


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What one seed of a recipe reaches, and how long it takes."""
    config = recipes.RECIPES[name]()
    config = replace(config, training=replace(config.training, seed=seed, device="cpu"))
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()
    folder = options.runs / f"{name.replace('/', '-')}-{seed}-{digest[:8]}"
    resumed = (folder / "config.json").exists()
    start = time.process_time()
    run = thinkers.train(resume=folder) if resumed else thinkers.train(config, out=folder)
    cpu_minutes = (time.process_time() - start) / 60
    rows = thinkers.evaluate(run, num_examples=options.examples)
    usual = [row for row in rows if row["num_steps"] == run.model.config.num_steps] or rows
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "scores": {metric: x for metric, x in usual[0].items() if metric != "num_steps"},
        "steps": rows,
        "minutes": round(max(line["minutes"] for line in lines if "minutes" in line), 2),
        "cpu_minutes": None if resumed else round(cpu_minutes, 2),
        "examples": options.examples,
        "date": datetime.date.today().isoformat(),
        "versions": read_record(folder)["versions"],
        "machine": f"{platform.machine()}, 1 thread",
    }


def record(name: str, seed: int, found: dict[str, Any]) -> None:
    """Put a measurement into results.json, in place of those with other settings."""
    everything = json.loads(recipes.RESULTS.read_text()) if recipes.RESULTS.exists() else {}
    config = recipes.RECIPES[name]()
    fresh = {
        "settings": recipes.settings_of(config),
        "headline": next(iter(found["scores"])),
        "seeds": {},
    }
    entry = recipes.results().get(name, fresh)
    entry["seeds"][str(seed)] = found
    everything[name] = entry
    text = json.dumps(everything, indent=1, sort_keys=True) + "\n"
    write_file(recipes.RESULTS, text.encode())


if __name__ == "__main__":
    main()
