"""Sums of hundreds of digits after training on ten: add/long, what each part is worth, products.

    nohup python benchmarks/long_addition.py > runs/long_addition.log &
    python benchmarks/long_addition.py --cases add/long --seeds 1
    python benchmarks/long_addition.py --page docs

Answers are generated, and right to the end token. Questions are held out from all training, and
the numbers of a score have one number of digits; a share of them, as in training, have long
carries. It can be stopped and started again: finished runs are kept, others resume. One thread for
each run. `--page FOLDER` writes long_addition.json.

Machine: scores, which another machine's roundings change as another seed does; CPU minutes.
Asked and measured: docs/long_addition.md.
"""

import copy
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
from thinkers.files import write_file
from thinkers.models.base import Model
from thinkers.models.generation import Cached, eval_mode

SUMS = {10: 400, 20: 400, 100: 400, 300: 400, 1000: 50}
"""{digits: number of sums}."""
CONTROLS = {digits: count for digits, count in SUMS.items() if digits <= 300}
PRODUCTS = {10: 400, 20: 400, 40: 400}
CARRIES, NAMED = 300, 300
"""Digits of the sums that all have long carries, and of the sums of nines."""


@dataclass(frozen=True)
class Case:
    """A recipe with some settings changed, and {digits: number of questions}."""

    recipe: str
    flags: Sequence[str] = ()
    sizes: Any = None


CASES = {
    "add/long": Case("add/long", (), SUMS),
    "without window": Case("add/long", ["--model.window=null"], CONTROLS),
    # A window over tokens in order would hide the operands, so that it goes too.
    "without coupling": Case("add/long", ["--task.coupled=false", "--model.window=null"], CONTROLS),
    "tied head": Case("add/long", ["--model.tie_head=true"], CONTROLS),
    "multiply/long": Case("multiply/long", (), PRODUCTS),
}


def main() -> None:
    options = case_parser(__doc__, list(CASES), "runs/long_addition").parse_args()
    if options.page is not None:
        return write_results(options.out, options.page)
    names = options.cases or list(CASES)
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed, options.out) for name in names for seed in range(options.seeds)]
    run_jobs(run_job, jobs, options.workers)


def folder_of(name: str, seed: int | str, out: Path) -> Path:
    return out / f"{name.replace('/', '-').replace(' ', '_')}-{seed}"


def run_job(job: tuple[str, int, Path]) -> str:
    """Train and evaluate one seed of a case, unless its result is there; return a line."""
    name, seed, out = job
    one_thread()
    folder = folder_of(name, seed, out)
    found = measured(folder.with_suffix(".json"), lambda: measure(name, seed, folder))
    return f"{name} seed {seed}: {found['scores']} {found['cpu_minutes']:.2f} CPU minutes"


def measure(name: str, seed: int, folder: Path) -> dict[str, Any]:
    case = CASES[name]
    config = override(recipes.RECIPES[case.recipe](), flags=case.flags)
    config = replace(config, training=replace(config.training, seed=seed))
    begun = (folder / "config.json").exists()
    start = time.process_time()
    run = thinkers.resume(folder) if begun else thinkers.train(config, folder)
    minutes = (time.process_time() - start) / 60
    found = {
        "scores": scores(config, run.model, case.sizes),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "updates": config.training.num_updates,
        "cpu_minutes": minutes,
        "resumed": begun,
    }
    if name == "add/long":
        found |= {"named": named(run), "cache": cache(config, run.model)}
    return found


def task_of(config: Config, digits: int, **settings: Any) -> Any:
    """Return the task whose numbers have this number of digits."""
    sizes = {"min_digits": digits, "max_digits": digits, **settings}
    return tasks.from_config(replace(config.task, **sizes), config.training.seed)


def scores(config: Config, model: Model, sizes: dict[int, int]) -> dict[str, float]:
    """Return the share of right answers by number of digits."""
    found = {}
    for digits, count in sizes.items():
        found[str(digits)] = task_of(config, digits).score(model, "test", count)["exact"]
    if CARRIES in sizes:
        task = task_of(config, CARRIES, long_carries=1.0)
        found["long carries"] = task.score(model, "test", sizes[CARRIES])["exact"]
    return found


def named(run: Any) -> dict[str, bool]:
    """Return {sum picked by hand: it is right}."""
    nines = 10**NAMED - 1
    sums = {"nines + nines": (nines, nines), "nines + 1": (nines, 1), "1 + nines": (1, nines)}
    return {
        name: thinkers.answer(run, f"{a}+{b}").partition("=")[2] == str(a + b)
        for name, (a, b) in sums.items()
    }


def cache(config: Config, model: Model, digits: int = NAMED) -> dict[str, Any]:
    """Compare a cache with none in float64, and measure its size while a sum is written.

    Returns:
        difference: Largest difference of logits, relative to the largest of them.
        slots: Keys that there is room for: after the prompt, the most later, at the end.
    """
    model = copy.deepcopy(model).double()
    task = task_of(config, digits)
    batch = task.batch(0, 1, "test")
    length = int(batch.prompt_lengths[0])
    prompt, room = batch.tokens[:, :length], task.max_answer_length()
    given = {"positions": task.positions, "return_logits": True}
    (written, ours), (plain, whole) = (
        model.generate(prompt, room, use_cache=use, **given) for use in (True, False)
    )
    slots = []
    with eval_mode(model):
        writer = Cached(model, prompt, torch.tensor([length]), 1, False, room, task.positions)
        for token in written[:, length:].unbind(1):
            writer.logits()
            slots.append(writer.cache.data.shape[-2])
            writer.write(token)
    return {
        "equal_tokens": written.equal(plain),
        "difference": float((ours - whole).abs().max() / whole.abs().max()),
        "slots": [slots[0], max(slots[1:]), slots[-1]],
    }


def write_results(out: Path, folder: Path) -> None:
    """Write long_addition.json, the results of all cases by seed, and print their table."""
    found: dict[str, dict[str, Any]] = {}
    for name in CASES:
        files = sorted(out.glob(f"{folder_of(name, '[0-9]', out).name}.json"))
        if files:
            found[name] = {file.stem[-1]: json.loads(file.read_text()) for file in files}
    for name, seeds in found.items():
        minutes = max(one["cpu_minutes"] for one in seeds.values())
        print(f"{name} | {minutes:.1f} CPU minutes at most")
        for seed, one in seeds.items():
            print(f"  seed {seed} | {one['scores']} {one.get('named', '')} {one.get('cache', '')}")
    write_file(folder / "long_addition.json", (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
