"""Tools as actions: chains with a calculator, and hops over a table outside the prompt, over seeds.

    nohup python benchmarks/tools.py > runs/tools.log &
    python benchmarks/tools.py --cases arithmetic/calculator --seeds 1
    python benchmarks/tools.py --page docs

A case is a recipe; `1200_updates` is `arithmetic/calculator` with fewer updates than it has, and
`direct` that on rows without calls. It can be stopped and started again: finished runs are kept,
others resume. One thread for each run. `--page FOLDER` writes tools.json, what was measured.

Machine: scores, which another machine's roundings change as another seed does; CPU minutes.
Asked and measured: docs/tools.md.
"""

import json
import re
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import case_parser, measured, one_thread, run_jobs
from state_tracking import train

import thinkers
from thinkers import recipes
from thinkers.config.experiment import Config
from thinkers.config.overrides import override
from thinkers.files import write_file

EXAMPLES = 10_000
CASES = {
    "arithmetic/calculator": ("arithmetic/calculator", ()),
    "1200_updates": ("arithmetic/calculator", ("--training.num_updates=1200",)),
    "direct": ("arithmetic/calculator", ("--task.calculator=false", "--training.num_updates=1200")),
    "lookup/looped": ("lookup/looped", ()),
}
"""{case: its recipe, and the settings that differ from it}."""


def main() -> None:
    options = case_parser(__doc__, list(CASES), "runs/tools").parse_args()
    if options.page is not None:
        return write_results(options.out, options.page)
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.cases or list(CASES)
    jobs = [(name, seed, options.out) for seed in range(options.seeds) for name in names]
    run_jobs(run_job, jobs, options.workers)


def run_job(job: tuple[str, int, Path]) -> str:
    """Train and evaluate one seed of a case, unless its result is there; return a line."""
    name, seed, out = job
    one_thread()
    folder = out / f"{name.replace('/', '-')}-{seed}"
    recipe, flags = CASES[name]
    config = override(recipes.RECIPES[recipe](), flags=flags)
    config = replace(config, training=replace(config.training, seed=seed))
    found = measured(folder.with_suffix(".json"), lambda: measure(config, folder))
    return f"{name} seed {seed}: {found['scores']} {found['cpu_minutes']:.2f} CPU minutes"


def measure(config: Config, folder: Path) -> dict[str, Any]:
    begun = (folder / "config.json").exists()
    start = time.process_time()
    run = train(config, folder)
    minutes = (time.process_time() - start) / 60
    model, task = thinkers.open_run(run)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {
        "scores": task.score(model, "test", EXAMPLES),
        "by_kind": by_kind(model, task),
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": max(line["flops"] for line in lines if "flops" in line),
        "updates": config.training.num_updates,
        "cpu_minutes": minutes,
        "resumed": begun,
    }
    if task.scored_with:
        found["without the tool"] = task.score(model, "test", EXAMPLES, tools=())["exact"]
    return found


def by_kind(model: Any, task: Any) -> dict[str, dict[str, float]]:
    """Return exact and calls of the questions with the same operators, or as many hops.

    `due` is the number of calls that a question needs: its products, or its hops.
    """
    rows: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    graded = task.graded_rows(model, "test", EXAMPLES, None)
    for some in graded:
        columns = (
            x.tolist() for x in (some.tokens, some.prompt_lengths, some.lengths, some.grades)
        )
        for row, prompt, length, grade in zip(*columns, strict=True):
            question, answer = task.decode(row[:prompt]), task.decode(row[prompt:length])
            kind = re.sub("[^*+-]", "", question) or re.sub("[^0-9]", "", question)
            due = int(kind) if kind.isdigit() else kind.count("*")
            rows[kind].append((grade, answer.count("["), due))
    names = ("exact", "calls", "due")
    found = {}
    for kind, values in sorted(rows.items()):
        means = (sum(column) / len(values) for column in zip(*values, strict=True))
        equal = sum(calls == due for _, calls, due in values) / len(values)
        found[kind] = dict(zip(names, means, strict=True)) | {"equal": equal, "rows": len(values)}
    return found


def write_results(out: Path, folder: Path) -> None:
    """Write tools.json, the results of all cases by seed; tools/docs_tables.py shows them."""
    found: dict[str, dict[str, Any]] = {}
    for name in CASES:
        files = sorted(out.glob(f"{name.replace('/', '-')}-[0-9].json"))
        found[name] = {file.stem[-1]: json.loads(file.read_text()) for file in files}
        exact = [f"{x['scores']['exact']:.4f}" for x in found[name].values()]
        print(f"{name}: exact {', '.join(exact)}")
    write_file(folder / "tools.json", (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
