"""Measure the recipes over seeds, into thinkers/recipes/results.json.

    nohup python benchmarks/recipes.py > runs/recipes.log &
    python benchmarks/recipes.py add/thinker --seeds 1
    python benchmarks/recipes.py shakespeare/decoder --text tinyshakespeare.txt

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
from pathlib import Path
from typing import Any

import torch

import thinkers
from thinkers import recipes
from thinkers.config.overrides import override
from thinkers.data.sources import find_source
from thinkers.files import write_file
from thinkers.runs.folder import read_record


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    text = None if options.text is None else find_source(str(options.text)).digest()
    for seed in range(options.seeds):
        for name in options.recipes or recipes.RECIPES:
            if why := cannot(name, options):
                print(f"{name}: {why}", flush=True)
            elif str(seed) not in measured(name, text)["seeds"]:
                record(name, seed, measure(name, seed, options), text)
                print(f"{name} seed {seed}: {recipes.score(name)}", flush=True)
    print("make format writes the scores into the README")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", help="all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=2000, help="held-out, for each score")
    parser.add_argument("--text", type=Path, help="what recipes on a text learn from")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    options = parser.parse_args()
    for name in options.recipes:
        if name not in recipes.RECIPES:
            sys.exit(f"unknown recipe {name!r}; choose from {', '.join(recipes.RECIPES)}")
    return options


def cannot(name: str, options: argparse.Namespace) -> str:
    """Why a recipe cannot be measured here, if it cannot."""
    if recipes.needs_gpu(name) and not torch.cuda.is_available():
        return "needs a GPU"
    return "needs --text FILE" if recipes.needs_text(name) and options.text is None else ""


def measured(name: str, text: str | None) -> dict[str, Any]:
    """What is known of a recipe, with the settings of today and, if it needs one, this text."""
    fresh = {"settings": recipes.settings_of(recipes.RECIPES[name]()), "seeds": {}}
    if recipes.needs_text(name):
        fresh["text"] = text
    found = recipes.results().get(name, fresh)
    return found if found.get("text") == fresh.get("text") else fresh


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What one seed of a recipe reaches, and how long it takes."""
    flags = [f"--training.seed={seed}"]
    if not recipes.needs_gpu(name):
        flags.append("--training.device=cpu")
    if recipes.needs_text(name):
        flags.append(f"--task.path={options.text}")
    config = override(recipes.RECIPES[name](), flags=flags)
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()
    folder = options.runs / f"{name.replace('/', '-')}-{seed}-{digest[:8]}"
    resumed = (folder / "config.json").exists()
    start = time.process_time()
    run = thinkers.resume(folder) if resumed else thinkers.train(config, out=folder)
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
        "machine": machine(config.training.device),
    }


def machine(device: str) -> str:
    """What the minutes are of."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, 1 thread"


def record(name: str, seed: int, found: dict[str, Any], text: str | None) -> None:
    """Put a measurement into results.json, in place of those with other settings."""
    everything = json.loads(recipes.RESULTS.read_text()) if recipes.RESULTS.exists() else {}
    entry = {"primary_metric": next(iter(found["scores"]))} | measured(name, text)
    entry["seeds"][str(seed)] = found
    everything[name] = entry
    text = json.dumps(everything, indent=1, sort_keys=True) + "\n"
    write_file(recipes.RESULTS, text.encode())


if __name__ == "__main__":
    main()
