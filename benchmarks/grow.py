"""A larger model guided by a smaller one: updates until it has the smaller one's score.

    nohup python benchmarks/grow.py > runs/grow.log &
    python benchmarks/grow.py --cases small "alone 800" --seeds 1
    python benchmarks/grow.py --page docs

`small` is `cups/looped` on rows of at most 8 swaps; the others are twice as wide. `alone N` trains
from random weights with N updates, over which the learning rate falls; `guided N` has the small
model of its seed as guide besides; `matched N` is alone with as many updates as have the FLOPs of
`guided N`, the guide's included. It can be stopped and started again: finished runs are kept,
others resume. One thread for each run. `--page FOLDER` writes grow.json.

Machine: scores, which another machine's roundings change as another seed does; CPU minutes.
Asked and measured: docs/grow.md.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from harness import case_parser, file_name, flops_of, measured, one_thread, run_jobs

import thinkers
from thinkers import recipes
from thinkers.config.experiment import Config
from thinkers.config.overrides import override
from thinkers.files import write_file
from thinkers.training import grow

RECIPE = "cups/looped"
TASK = ("--task.max_length=8", "--model.num_steps=8", "--model.max_steps=32")
SMALL_UPDATES = 800
WIDE = ("--model.dim=96", "--training.lr=1.5e-3")
GUIDANCE = ("--grow.weight=1", "--grow.decay=0.5")
"""Chosen on validation rows with seed 0, as the rate is: see docs/grow.md."""
CASES = ("small", "alone 800", "guided 400", "matched 400")
EXAMPLES = 2000


def main() -> None:
    options = case_parser(__doc__, CASES, "runs/grow").parse_args()
    if options.page is not None:
        return write_results(options.out, options.page)
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in CASES if name in (options.cases or CASES)]
    jobs = [(name, seed, options.out) for seed in range(options.seeds) for name in names]
    run_jobs(run_job, jobs, options.workers)


def run_job(job: tuple[str, int, Path]) -> str:
    """Train and score one seed of a case, unless its result is there; return a line."""
    name, seed, out = job
    one_thread()
    found = measured(result_of(*job), lambda: measure(name, seed, out))
    minutes = f"{found['cpu_minutes']:.2f} CPU minutes"
    return f"{name} seed {seed}: {found['exact']:.4f} {found['flops']:.4g} FLOPs {minutes}"


def result_of(name: str, seed: int, out: Path) -> Path:
    """Return the file of a result; the folder of its run is beside it."""
    return out / f"{file_name(name)}-{seed}.json"


def config_of(name: str, seed: int, out: Path) -> Config:
    """Return the configuration of a case."""
    kind, _, number = name.partition(" ")
    flags = [f"--training.seed={seed}", f"--training.num_updates={number or SMALL_UPDATES}"]
    if kind == "guided":
        small = result_of("small", seed, out).with_suffix("")
        return grow.configuration(small, [*flags, *WIDE, *GUIDANCE])
    wide = () if kind == "small" else WIDE
    if kind == "matched":
        alone, guided = (
            json.loads(result_of(x, seed, out).read_text())
            for x in ("alone 800", f"guided {number}")
        )
        updates = round(alone["updates"] * guided["flops"] / alone["flops"])
        flags[1] = f"--training.num_updates={updates}"
    return override(recipes.RECIPES[RECIPE](), flags=[*TASK, *flags, *wide])


def measure(name: str, seed: int, out: Path) -> dict[str, Any]:
    """Train one seed of a case, unless it was trained, and score it on questions held out."""
    folder, start = result_of(name, seed, out).with_suffix(""), time.process_time()
    begun = (folder / "config.json").exists()
    config = config_of(name, seed, out)
    guide = None if config.grow is None else config.grow.guide
    run = thinkers.resume(folder, guide=guide) if begun else thinkers.train(config, folder)
    minutes = (time.process_time() - start) / 60
    model, task = thinkers.open_run(run)
    assert task is not None
    with torch.no_grad():
        scores = task.score(model, "test", EXAMPLES)
    return {
        "exact": scores["exact"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "updates": config.training.num_updates,
        "flops": flops_of(folder),
        "cpu_minutes": minutes,
        "resumed": begun,
    }


def write_results(out: Path, folder: Path) -> None:
    """Write grow.json, the results of all cases by seed; tools/docs_tables.py shows them."""
    found: dict[str, dict[str, Any]] = {}
    for name in CASES:
        files = sorted(out.glob(f"{file_name(name)}-[0-9].json"))
        found[name] = {file.stem[-1]: json.loads(file.read_text()) for file in files}
        print(name, {seed: round(run["exact"], 4) for seed, run in found[name].items()})
    write_file(folder / "grow.json", (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
