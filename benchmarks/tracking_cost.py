"""Share of a training's time that each tracker takes.

    python benchmarks/tracking_cost.py [--num_updates 1000]

`add/decoder` is trained for 1,000 updates, with a line of metrics every 10 and a checkpoint every
500, as recipes have it, and every call of the tracker is timed. Opening it (its import, and the
tables of a new store) is reported apart: it happens once, whatever the length of the run.

Machine: a share of wall time on one thread, which depends little on it. Asked: at most 1 %. Exit
code 1 if missed. Measured: docs/measured.md.
"""

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import one_thread, parser

import thinkers
from thinkers.runs import trackers

MAX_SHARE = 0.01


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--num_updates", type=int, default=1000)
    options = arguments.parse_args()
    one_thread()
    worst = 0.0
    for name in trackers.TRACKERS:
        opening, sending, training = measure(name, options.num_updates)
        share = sending / training
        worst = max(worst, share)
        print(
            f"{name:<12} training {training:6.1f} s   sending {sending:6.3f} s, {share:.2%}   "
            f"(at most {MAX_SHARE:.0%})   opening {opening:.1f} s, once"
        )
    return int(worst > MAX_SHARE)


def measure(name: str, num_updates: int) -> tuple[float, float, float]:
    """Seconds of opening a tracker, of its other calls, and of the training with them."""
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
    timed_tracker = type(base.__name__, (base,), {method: timed(method) for method in spent})
    home = os.getcwd()
    trackers.TRACKERS[name] = timed_tracker
    config = thinkers.RECIPES["add/decoder"]()
    training = replace(config.training, num_updates=num_updates, device="cpu")
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # MLflow writes some files beside its store
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
            start = time.perf_counter()
            thinkers.train(
                replace(config, training=training),
                Path(folder) / "run",
                tracking=name,  # type: ignore[arg-type]
            )
            total = time.perf_counter() - start
            os.chdir(home)
    finally:
        trackers.TRACKERS[name] = base
    return spent["__init__"], spent["send"] + spent["finish"], total - spent["__init__"]


if __name__ == "__main__":
    raise SystemExit(main())
