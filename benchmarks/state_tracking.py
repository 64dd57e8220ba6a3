"""Where thinking pays: cups, automaton and links, thinking models and their controls, over seeds.

    nohup python benchmarks/state_tracking.py > runs/state_tracking.log &
    python benchmarks/state_tracking.py --cases cups/looped --seeds 1
    python benchmarks/state_tracking.py --page docs

The recipes of a task have equal training FLOPs, within 3 %; a name says what has more. The learning
rate of deep decoders is searched on validation rows with seed 0. It can be stopped and
started again: finished runs are kept, others resume. One thread for each run. `--page FOLDER`
writes state_tracking.json and the figures of what was measured.

Machine: scores, which another machine's roundings change as another seed does; CPU minutes.
Asked and measured: docs/state_tracking.md.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import case_parser, measured, one_thread, run_jobs

import thinkers
from thinkers import recipes, tasks
from thinkers.config.experiment import Config
from thinkers.config.overrides import override
from thinkers.evaluation.by_step import accuracy_by_step
from thinkers.files import write_file
from thinkers.models.base import Model
from thinkers.report import html

RATES = (6e-3, 3e-3, 1e-3, 5e-4)
EXAMPLES = 2000
CUPS = (4, 8, 12, 16)
UPDATES = (1, 2, 4, 8, 12, 16)
DEPTHS = (4, 8, 12)
FIGURES = {
    "cups.png": {"cups/looped": "swaps", "cups/decoder": "swaps"},
    "state_tracking.png": {
        "cups/looped": "swaps",
        "automaton/looped": "updates",
        "links/looped": "links",
    },
}
"""{file: {case: its difficulty}} of the heat maps."""


@dataclass(frozen=True)
class Case:
    """A contender: a recipe, its updates as a share of the recipe's, the rates to choose from."""

    recipe: str
    share: float = 1.0
    rates: Sequence[float] = ()
    flags: Sequence[str] = ()
    rate_of: str = ""
    """The case whose best rate it takes; empty for its own."""


CASES = {
    "cups/looped": Case("cups/looped"),
    "cups/decoder": Case("cups/decoder"),
    "cups/deep_decoder": Case("cups/deep_decoder", rates=RATES),
    "cups/deep_decoder_3x": Case("cups/deep_decoder", 3.0, rate_of="cups/deep_decoder"),
    "cups/written": Case("cups/written"),
    "cups/thinker": Case("cups/thinker"),
    "cups/thoughtsformer": Case("cups/thoughtsformer"),
    "cups/looped_last": Case("cups/looped", flags=("--model.step_loss=last",)),
    "automaton/looped": Case("automaton/looped"),
    "automaton/decoder": Case("automaton/decoder"),
    "automaton/deep_decoder": Case("automaton/deep_decoder", rates=RATES),
    "links/looped": Case("links/looped"),
    "links/decoder": Case("links/decoder"),
}


def main() -> None:
    options = case_parser(__doc__, list(CASES), "runs/state_tracking").parse_args()
    if options.page is not None:
        return write_results(options.out, options.page)
    names = options.cases or list(CASES)
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed, options.out) for seed in range(options.seeds) for name in names]
    run_jobs(run_job, jobs, options.workers)


def run_job(job: tuple[str, int, Path]) -> str:
    """Train and evaluate one seed of a case, unless its result is there; return a line."""
    name, seed, out = job
    one_thread()
    folder = out / f"{name.replace('/', '-')}-{seed}"
    result = folder.with_suffix(".json")
    found = measured(result, lambda: measure(config_of(name, seed, out), folder))
    return f"{name} seed {seed}: {found['scores']} {found['cpu_minutes']:.2f} CPU minutes"


def config_of(name: str, seed: int, out: Path) -> Config:
    """Return the configuration of a case: its share of the updates, and its best rate."""
    case = CASES[name]
    if case.rate_of:
        config = config_of(case.rate_of, seed, out)
        updates = round(case.share * config.training.num_updates)
        return replace(config, training=replace(config.training, num_updates=updates))
    config = override(recipes.RECIPES[case.recipe](), flags=case.flags)
    updates = round(case.share * config.training.num_updates)
    config = replace(config, training=replace(config.training, num_updates=updates, seed=0))
    if case.rates:
        rate = best_rate(config, name, out)
        config = replace(config, training=replace(config.training, lr=rate))
    return replace(config, training=replace(config.training, seed=seed))


def best_rate(config: Config, name: str, out: Path) -> float:
    """Return the rate with the best score on validation rows, of trainings with seed 0."""
    file = out / f"{name.replace('/', '-')}-rates.json"
    rates = CASES[name].rates
    known = json.loads(file.read_text()) if file.exists() else {}
    for rate in rates:
        if str(rate) not in known:
            trained = replace(config, training=replace(config.training, lr=rate))
            folder = out / f"{name.replace('/', '-')}-rate-{rate:g}"
            run = train(trained, folder)
            _, task = thinkers.open_run(run)
            known[str(rate)] = task.score(run.model, "valid", EXAMPLES)[task.primary_metric]
            write_file(file, (json.dumps(known) + "\n").encode())
    return max(rates, key=lambda rate: known[str(rate)])


def train(config: Config, folder: Path) -> Any:
    begun = (folder / "config.json").exists()
    return thinkers.resume(folder) if begun else thinkers.train(config, folder)


def measure(config: Config, folder: Path) -> dict[str, Any]:
    begun = (folder / "config.json").exists()
    start = time.process_time()
    run = train(config, folder)
    minutes = (time.process_time() - start) / 60
    model = run.model
    task = config.recipe.partition("/")[0]
    scores, by_step = {"cups": cups, "automaton": automaton, "links": links}[task](config, model)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "scores": scores,
        "by_step": by_step,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": max(line["flops"] for line in lines if "flops" in line),
        "updates": config.training.num_updates,
        "lr": config.training.lr,
        "cpu_minutes": minutes,
        "resumed": begun,
    }


def task_with(config: Config, **settings: Any) -> Any:
    """Return the task with other settings, and other rows than those of training."""
    return tasks.from_config(replace(config.task, **settings), config.training.seed)


def steps_of(model: Model, steps: int) -> int | None:
    return min(steps, model.config.max_steps) if model.config.takes_steps else None


def cups(config: Config, model: Model) -> tuple[dict[str, float], list[list[float]]]:
    """Score the last answers of rows of so many swaps, at the trained and at more steps."""
    scores = {}
    for swaps in CUPS:
        task = task_with(config, min_length=swaps, max_length=swaps)
        scores[f"{swaps}"] = task.score(model, "test", EXAMPLES, steps_of(model, 16))["exact"]
    longer = task_with(config, min_length=24, max_length=24)
    scores["24"] = longer.score(model, "test", EXAMPLES, steps_of(model, 26))["exact"]
    if config.task.written or config.task.targets == "last":
        return scores, []
    batch, choices = longer.batch(0, EXAMPLES, "test"), longer.num_output_tokens
    cells = accuracy_by_step(model, [batch], steps_of(model, 26), num_output_tokens=choices)
    return scores, cells[:, 1:].tolist()


def automaton(config: Config, model: Model) -> tuple[dict[str, float], list[list[float]]]:
    """Score whole rows by number of updates, each at as many steps as updates, and at others."""
    scores, matrix = {}, []
    rows = {
        n: task_with(config, min_updates=n, max_updates=n).batch(0, EXAMPLES, "test")
        for n in range(1, 17)
    }
    for n in UPDATES:
        task = task_with(config, min_updates=n, max_updates=n)
        scores[f"{n}"] = task.score(model, "test", EXAMPLES, "due")["exact"]
    for batch in rows.values():
        cells = accuracy_by_step(model, [batch.rows(slice(0, 500))], steps_of(model, 16))
        matrix.append(cells[:, 2:].mean(1).tolist())
    return scores, [list(column) for column in zip(*matrix, strict=True)]


def links(config: Config, model: Model) -> tuple[dict[str, float], list[list[float]]]:
    """Score answers by their depth, at as many steps as links, and at fixed numbers of steps."""
    task = task_with(config, max_depth=16)
    matrix = []
    for steps in range(1, 25) if model.config.takes_steps else (None,):
        found = task.by_due(model, "test", 500, steps)
        matrix.append([found.get(n, float("nan")) for n in range(1, 17)])
    trained = task_with(config)
    fixed = trained.by_due(model, "test", EXAMPLES, steps_of(model, config.task.max_depth))
    scores = {f"{n} at {config.task.max_depth} steps": fixed[n] for n in DEPTHS if n in fixed}
    for n in DEPTHS:
        step = matrix[n - 1 if model.config.takes_steps else 0]
        scores[f"{n}"] = step[n - 1]
    return scores, matrix


def mean_by_step(seeds: dict[str, dict[str, Any]]) -> list[list[float]]:
    """Return the accuracy by step and difficulty, mean over seeds."""
    tables = [torch.tensor(x["by_step"], dtype=torch.float64) for x in seeds.values()]
    mean = torch.stack(tables).mean(0)
    return mean[:, ~mean.isnan().any(0)].tolist()  # a difficulty that no row has is left out


def write_results(out: Path, folder: Path) -> None:
    """Write state_tracking.json, the results of all cases by seed, and print their table.

    The figures show the accuracy by step and difficulty, mean over seeds.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in CASES:
        files = sorted(out.glob(f"{name.replace('/', '-')}-[0-9]*.json"))
        if files:
            found[name] = {file.stem[-1]: json.loads(file.read_text()) for file in files}
    for name, seeds in found.items():
        first = next(iter(seeds.values()))
        row = [name, f"{first['parameters']:,}", f"{first['flops']:.3g}"]
        for key in first["scores"]:
            values = torch.tensor([x["scores"][key] for x in seeds.values()], dtype=torch.float64)
            spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
            row.append(f"{key}: {values.mean():.3f}{spread}")
        minutes = [x["cpu_minutes"] for x in seeds.values() if not x["resumed"]]  # whole ones
        row.append(f"{max(minutes):.1f} CPU minutes at most" if minutes else "resumed")
        print(" | ".join(row))
    for file, cases in FIGURES.items():
        sizes = [size for name, size in cases.items() if name in found]
        maps = {name: mean_by_step(found[name]) for name in cases if name in found}
        if maps:
            html.write_png(html.heat_figure(maps, sizes, ink="black"), folder / file)
    kept: dict[str, dict[str, Any]] = {}
    for name, seeds in found.items():
        kept[name] = {seed: dict(one, by_step=None) for seed, one in seeds.items()}
    write_file(folder / "state_tracking.json", (json.dumps(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
