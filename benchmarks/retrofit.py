"""A pretrained decoder with a looped core against itself, trained further with the same FLOPs.

    nohup python benchmarks/retrofit.py > runs/retrofit.log &
    python benchmarks/retrofit.py --cases fixed --seeds 1
    python benchmarks/retrofit.py --page docs

For each seed a decoder is trained on `cups`, exported for Hugging Face, loaded and retrofitted.
From there each case trains the core (and its gate) alone, with the same FLOPs: `one_step` is the
untouched model, `fixed` takes 4 steps, `random` 1 to 4, and `due` as many as an update's rows have
swaps; `open` is `fixed` with a gate of 1 at first. Finished runs are kept. One thread for each run.
`--page FOLDER` writes retrofit.json.

Machine: scores, which another machine's roundings change as another seed does; CPU minutes.
Asked: whether the loop gains anything; measured: docs/retrofit.md. Needs the extra hf.
"""

import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from harness import case_parser, flops_of, measured, one_thread, run_jobs
from state_tracking import train

import thinkers
from thinkers.comparison import budgets
from thinkers.config.experiment import Config
from thinkers.files import write_file
from thinkers.tasks.state_tracking import Cups

TASK = Cups.Config(max_length=16)
FLOPS = 1e12
LAYERS = (2, 4)
STEPS = (1, 2, 4, 8, 16)
SETTINGS: dict[str, Any] = {"checkpoint_every": 500, "evaluate_examples": 2000, "device": "cpu"}
DECODER = {"num_updates": 1500, "lr": 2e-3}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "one_step": (1, {}),
    "fixed": (4, {}),
    "random": (4, {"depth": "random", "random_steps": (1, 4)}),
    "due": (4, {"depth": "due"}),
    "open": (4, {}),
}
"""{case: steps of the model, and the settings of training that differ}."""


def main() -> None:
    options = case_parser(__doc__, list(CASES), "runs/retrofit").parse_args()
    if options.page is not None:
        return write_results(options.out, options.page)
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [(seed, options.cases or list(CASES), options.out) for seed in range(options.seeds)]
    run_jobs(run_job, jobs, options.workers)


def run_job(job: tuple[int, list[str], Path]) -> str:
    """Train and evaluate the cases of a seed whose results are not there; return their lines."""
    seed, names, out = job
    one_thread()
    home = out / f"decoder-{seed}"
    exported = home / "exported"
    base = measured(out / f"decoder-{seed}.json", partial(pretrain, seed, home))
    lines = [f"decoder seed {seed}: {base['scores']}"]
    for name in names:
        result = out / f"{name}-{seed}.json"
        found = measured(result, partial(measure, seed, name, out, exported))
        lines.append(f"{name} seed {seed}: {found['scores']} gate {found['gate']:.3f}")
    return "\n".join(lines)


def pretrain(seed: int, home: Path) -> dict[str, Any]:
    """Train a decoder, and export it for Hugging Face."""
    from thinkers.hf import from_model

    training = thinkers.Training(seed=seed, **SETTINGS | DECODER)
    sizes = {"dim": 64, "num_layers": 6, "num_heads": 4}
    config = Config.fit(thinkers.MODELS["decoder"], TASK, training, **sizes)
    start = time.process_time()
    run = train(config, home / "run")
    from_model(run.model).save_pretrained(home / "exported")
    rows = thinkers.evaluate(run, num_steps=[1], num_examples=2000)
    minutes = (time.process_time() - start) / 60
    return {"scores": {"1": rows[0]["exact"]}, "cpu_minutes": minutes}


def measure(seed: int, name: str, out: Path, exported: Path) -> dict[str, Any]:
    """Train core and gate of the exported decoder with the FLOPs that all cases have."""
    num_steps, settings = CASES[name]
    home = out / f"{name}-{seed}"
    model = thinkers.retrofit(exported, LAYERS, num_steps, max_steps=16)
    if name == "open":
        model.gate.data.fill_(1.0)
    model.save(home / "retrofitted")
    given = {"num_updates": 1, "lr": 1e-3, "warmup_updates": 50, "seed": seed}
    given |= {"init_from": str(home / "retrofitted"), "max_flops": FLOPS}
    config = Config(model.config, TASK, thinkers.Training(**SETTINGS | given | settings))
    config = config.with_updates(budgets.updates_for(config, FLOPS))
    start = time.process_time()
    if (home / "run/config.json").exists():
        run = thinkers.resume(home / "run", init_from=given["init_from"])
    else:
        run = thinkers.train(config, home / "run")
    minutes = (time.process_time() - start) / 60
    asked = [1] if name == "one_step" else [*STEPS, "due"]
    rows = thinkers.evaluate(run, num_steps=asked, num_examples=2000)
    return {
        "scores": {str(row["num_steps"]): row["exact"] for row in rows},
        "gate": run.model.gate.item(),
        "updates": config.training.num_updates,
        "flops": flops_of(home / "run"),
        "cpu_minutes": minutes,
    }


def write_results(out: Path, folder: Path) -> None:
    """Write retrofit.json, the results of all cases by seed; tools/docs_tables.py shows them."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("decoder", *CASES):
        files = sorted(out.glob(f"{name}-[0-9].json"))
        found[name] = {file.stem[-1]: json.loads(file.read_text()) for file in files}
        for steps in next(iter(found[name].values()))["scores"]:
            values = [x["scores"][steps] for x in found[name].values()]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{name} at {steps} steps: {statistics.mean(values):.3f} ± {spread:.3f}")
    write_file(folder / "retrofit.json", (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
