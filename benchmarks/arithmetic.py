"""Products and chains: intermediate results in registers, written, and neither, over seeds.

    nohup python benchmarks/arithmetic.py > runs/arithmetic.log &
    python benchmarks/arithmetic.py --cases multiply/looped --seeds 1
    python benchmarks/arithmetic.py --page docs

A case is a recipe. It can be stopped and started again: finished runs are kept, others resume. One
thread for each run. `--page FOLDER` writes arithmetic.json, what was measured.

Machine: scores, which another machine's roundings change as another seed does; CPU minutes.
Asked and measured: docs/arithmetic.md.
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
from thinkers.evaluation.register_swap import swap_registers
from thinkers.files import write_file
from thinkers.models.generation import eval_mode

EXAMPLES = 2000
CASES = [
    name
    for name in recipes.RECIPES
    if name.partition("/")[0] in ("multiply", "arithmetic")
    and name not in ("multiply/thinker", "multiply/long", "arithmetic/calculator")
]


def main() -> None:
    options = case_parser(__doc__, CASES, "runs/arithmetic").parse_args()
    if options.page is not None:
        return write_results(options.out, options.page)
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.cases or CASES
    jobs = [(name, seed, options.out) for seed in range(options.seeds) for name in names]
    run_jobs(run_job, jobs, options.workers)


def run_job(job: tuple[str, int, Path]) -> str:
    """Train and evaluate one seed of a case, unless its result is there; return a line."""
    name, seed, out = job
    one_thread()
    folder = out / f"{name.replace('/', '-')}-{seed}"
    config = recipes.RECIPES[name]()
    config = replace(config, training=replace(config.training, seed=seed))
    found = measured(folder.with_suffix(".json"), lambda: measure(config, folder))
    return f"{name} seed {seed}: {found['scores']} {found['cpu_minutes']:.2f} CPU minutes"


def measure(config: Config, folder: Path) -> dict[str, Any]:
    begun = (folder / "config.json").exists()
    start = time.process_time()
    run = train(config, folder)
    minutes = (time.process_time() - start) / 60
    model, task = thinkers.open_run(run)
    steps = model.config.num_steps
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "scores": {"exact": task.score(model, "test", EXAMPLES)["exact"]},
        "by_operators": by_operators(model, task),
        "by_step": {
            k: task.score(model, "test", EXAMPLES, k)["exact"]
            for k in (range(1, steps + 3) if model.config.takes_steps else ())
        },
        "registers": read_outs(model, task),
        "answer": cost_of_an_answer(model, task),
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": max(line["flops"] for line in lines if "flops" in line),
        "updates": config.training.num_updates,
        "lr": config.training.lr,
        "cpu_minutes": minutes,
        "resumed": begun,
    }


def by_operators(model: Any, task: Any) -> dict[str, float]:
    """Return the exact score of the questions with the same operators."""
    grades = iter(task.grade(model, "test", EXAMPLES).tolist())
    kinds = defaultdict(list)
    for batch in task.evaluation_batches("test", EXAMPLES):
        for row, length in zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), strict=True):
            operators = re.sub("[^*+-]", "", task.decode(row[:length]))
            kinds[operators].append(next(grades))
    return {kind: sum(x) / len(x) for kind, x in sorted(kinds.items())}


def read_outs(model: Any, task: Any) -> dict[str, Any] | None:
    """Return the share of rows whose registers all read out right, and what answers read of them.

    See `thinkers.evaluation.register_swap` for the second.
    """
    if not task.registers:
        return None
    batch = next(task.evaluation_batches("test", 500))
    first = int(batch.prompt_lengths[0]) - len(task.registers)
    swap = swap_registers(model, task, batch)
    found: dict[str, Any] = {"swap": vars(swap)}
    if task.config.registers == "graded":
        held = slice(first, first + len(task.registers) - 1)
        with eval_mode(model):
            logits = model(batch.tokens, lengths=batch.lengths).logits
        right = logits.argmax(-1)[:, held] == batch.targets[:, held]
        found["right"] = float(right.all(1).double().mean())
    return found


def cost_of_an_answer(model: Any, task: Any) -> dict[str, float]:
    """Return the FLOPs of an answer and its passes one after another, mean over held-out rows."""
    batch = next(task.evaluation_batches("test", 500))
    rows = zip(batch.lengths.tolist(), batch.prompt_lengths.tolist(), strict=True)
    costs = [(model.flops(1, length), length - prompt + 1) for length, prompt in rows]
    flops, passes = (sum(column) / len(costs) for column in zip(*costs, strict=True))
    return {"flops": flops, "passes": passes}


def write_results(out: Path, folder: Path) -> None:
    """Write arithmetic.json, the results of all cases by seed; tools/docs_tables.py shows them."""
    found: dict[str, dict[str, Any]] = {}
    for name in CASES:
        files = sorted(out.glob(f"{name.replace('/', '-')}-[0-9].json"))
        if files:
            found[name] = {file.stem[-1]: json.loads(file.read_text()) for file in files}
            exact = [f"{x['scores']['exact']:.4f}" for x in found[name].values()]
            print(f"{name}: exact {', '.join(exact)}")
    write_file(folder / "arithmetic.json", (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
