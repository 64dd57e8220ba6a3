"""Handwritten digits: the size of a model, chosen by validation images, and its accuracy.

    python benchmarks/digits.py

Every size of examples/digits.py is trained with each seed and named by the mean accuracy on the
200 images of validation. The best is then judged, once, on the 400 of the test. It can be stopped
and started again. One thread for each run.

Machine: accuracies, which another machine's roundings change as another seed does; CPU seconds.
Asked: 95 %. Measured: docs/own_input.md.
"""

import runpy
import time
from pathlib import Path
from statistics import mean
from typing import Any

from harness import case_parser, file_name, measured, one_thread, run_jobs
from state_tracking import train

import thinkers

SIZES = {
    "dim 32": dict(dim=32),
    "dim 48": dict(dim=48),
    "dim 64": dict(dim=64),
    "dim 48, 8 latents": dict(dim=48, num_latents=8),
}
STEPS = [1, 2, 3, 6]


def main() -> None:
    options = case_parser(__doc__, list(SIZES), "runs/digits_sizes").parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.cases or list(SIZES)
    jobs = [(name, seed, options.out) for name in names for seed in range(options.seeds)]
    run_jobs(run_job, jobs, options.workers)
    seeds = range(options.seeds)
    valid = {name: mean(result(name, x, options.out)["valid"] for x in seeds) for name in names}
    best = max(valid, key=lambda name: valid[name])
    print(f"chosen: {best}, {valid[best]:.4f} on validation")
    run_jobs(run_test, [(best, seed, options.out) for seed in seeds], options.workers)


def run_job(job: tuple[str, int, Path]) -> str:
    """Train one seed of a size, and return a line with its accuracy on validation."""
    found = result(*job)
    return f"{job[0]} seed {job[1]}: valid {found['valid']:.4f}, {found['cpu_seconds']:.0f} CPU s"


def run_test(job: tuple[str, int, Path]) -> str:
    """Judge a trained seed on the test images, and return a line with its accuracy by steps."""
    name, seed, out = job
    rows = judge(out / folder_name(name, seed), "test", STEPS)
    return f"{name} seed {seed}: test " + ", ".join(
        f"{row['num_steps']} steps {row['exact']:.4f}" for row in rows
    )


def result(name: str, seed: int, out: Path) -> dict[str, Any]:
    """Train one seed of a size, unless its result is there."""
    folder = out / folder_name(name, seed)
    return measured(folder.with_suffix(".json"), lambda: measure(name, seed, folder))


def folder_name(name: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{file_name(name)}-{seed}"


def measure(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one seed of a size and judge it on validation."""
    start = time.process_time()
    train(example()["config"](seed=seed, **SIZES[name]), folder)
    seconds = time.process_time() - start
    (row,) = judge(folder, "valid", [3])
    return {"valid": row["exact"], "cpu_seconds": seconds}


def judge(folder: Path, split: str, num_steps: list[int]) -> list[dict[str, Any]]:
    """Return a row for each number of steps on all images of a split."""
    one_thread()
    example()
    return thinkers.evaluate(folder, split=split, num_steps=num_steps)


def example() -> dict[str, Any]:
    """Return the names of the example, which registers its model and task."""
    one_thread()
    return runpy.run_path(str(Path(__file__).parent.parent / "examples" / "digits.py"))


if __name__ == "__main__":
    main()
