"""What does tracking cost a training? Seconds inside the sink against seconds of all of it.

python benchmarks/tracking_cost.py

Trains `add/decoder` for 1,000 updates, with a line of metrics every 10 and a checkpoint every 500,
as recipes have it, and times every call that a sink gets. Opening it (the import, and once the
tables of a new store) is told apart: it happens once, whatever the length of the run. Wall time of
one thread.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import thinkers
from thinkers.runs import trackers

AT_MOST = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_updates", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0.0
    for name in trackers.TRACKERS:
        opening, sending, training = measure(name, options.num_updates)
        share = sending / training
        worst = max(worst, share)
        print(
            f"{name:<12} training {training:6.1f} s   sending {sending:6.3f} s, {share:.2%}   "
            f"(at most {AT_MOST:.0%})   opening {opening:.1f} s, once"
        )
    return int(worst > AT_MOST)


def measure(name: str, num_updates: int) -> tuple[float, float, float]:
    """Seconds of opening the sink, of all that it is sent, and of the training."""
    spent: dict[str, float] = {"__init__": 0.0, "send": 0.0, "finish": 0.0}

    def timed(method: str) -> Any:
        real = getattr(trackers.TRACKERS[name], method)

        def call(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return real(*args)
            finally:
                spent[method] += time.perf_counter() - start

        return call

    base = trackers.TRACKERS[name]
    current_record = type(base.__name__, (base,), {method: timed(method) for method in spent})
    home = os.getcwd()
    trackers.TRACKERS[name] = current_record
    config = thinkers.RECIPES["add/decoder"]()
    training = replace(config.training, num_updates=num_updates, device="cpu")
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # where MLflow puts its files
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
            start = time.perf_counter()
            thinkers.train(
                replace(config, training=training),
                Path(folder) / "run",
                tracking=name,  # type: ignore[arg-type]
            )
            whole = time.perf_counter() - start
            os.chdir(home)
    finally:
        trackers.TRACKERS[name] = base
    return spent["__init__"], spent["send"] + spent["finish"], whole - spent["__init__"]


if __name__ == "__main__":
    raise SystemExit(main())
