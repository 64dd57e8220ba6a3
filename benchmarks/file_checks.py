"""Cost of checks: digests when a run is loaded, finiteness in every update and when it is saved.

    python benchmarks/file_checks.py [--repeats 15]

Loading is `open_run` of a saved run of each recipe below, and of a model folder of 25 M parameters;
its verification is the time inside of `verify` of the weights and of `read_with_digest`, the files
read by them included. Weights are verified in a thread beside the building of the model, so that
with a second core the share of the time waited for is smaller. A save looks
at every tensor of weights, average and optimiser; that is shared by the updates between two saves
at the default of `checkpoint_every`.

Machine: shares of process time on one thread, which depend little on it. Asked: at most 10 % of
loading, at most 1 % of an update. Exit code 1 if missed. Measured: docs/measured.md.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from harness import one_thread, parser, process_seconds

import thinkers
from thinkers import models
from thinkers.config.training import Training
from thinkers.models import weights_file
from thinkers.models.base import Model
from thinkers.runs import folder as run_folder
from thinkers.training import loop, state, step

RECIPES = ("add/looped", "add/thinker", "multiply/thinker")
MAX_LOADING, MAX_UPDATE = 0.10, 0.01
NUM_UPDATES = 20
LARGE = dict(vocab_size=256, dim=512, num_layers=8, num_heads=8, num_steps=1, max_length=256)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=15)
    options = arguments.parse_args()
    one_thread()
    every = Training(num_updates=1).checkpoint_every
    print(f"{'':<18}{'parameters':>12}{'loading':>12}{'verifying':>18}{'waited':>8}", end="")
    print(f"{'an update':>12}{f'a save, of {every}':>18}{'each update':>18}{'its norm':>18}")
    missed = False
    for name in RECIPES:
        with tempfile.TemporaryDirectory() as home:
            missed |= measure(name, Path(home) / "run", options.repeats, every)
    with tempfile.TemporaryDirectory() as home:
        model = thinkers.build_model("decoder", **LARGE)
        model.save(home)
        missed |= show_loading("decoder, 100 MB", model, Path(home), options.repeats)
        print()
    return int(missed)


def measure(name: str, folder: Path, repeats: int, every: int) -> bool:
    """Print the row of a recipe; return True if a limit is exceeded."""
    ends: list[float] = []
    saves: list[float] = []
    tests: list[float] = []
    norms: list[float] = []
    config = thinkers.RECIPES[name]()
    settings = replace(config.training, num_updates=NUM_UPDATES, evaluate_examples=1)
    is_finite = step.StepResult.is_finite.fget
    assert is_finite is not None
    with (
        mock.patch.object(state, "first_not_finite", timed(state.first_not_finite, saves)),
        mock.patch.object(step.StepResult, "is_finite", property(timed(is_finite, tests))),
        mock.patch.object(loop, "require_finite", timed(loop.require_finite, tests)),
        mock.patch.object(step, "get_total_norm", timed(step.get_total_norm, norms)),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        run = thinkers.train(
            replace(config, training=settings),
            folder,
            callbacks=[lambda *_: ends.append(time.process_time())],
        )
    update = statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False))
    # `require_finite` asks `is_finite` once more, which is counted twice: an upper bound.
    parts = [sum(saves) / every, sum(tests) / NUM_UPDATES, sum(norms) / NUM_UPDATES]
    missed = show_loading(name, run.model, folder, repeats)
    print(f"{1e3 * update:>9.1f} ms", end="")
    for part in parts:
        print(f"{1e3 * part:>8.4f} ms {part / update:>6.3%}", end="")
    print()
    return missed or sum(parts) / update > MAX_UPDATE


def show_loading(name: str, model: Model, folder: Path, repeats: int) -> bool:
    """Print how long loading takes and its verification; return True if the limit is exceeded."""
    verified: list[float] = []
    waited: list[float] = []
    loads = []
    for _ in range(repeats):
        del verified[:], waited[:]
        start = time.perf_counter()
        with (
            mock.patch.object(models, "ThreadPoolExecutor", lambda n: TimedPool(n, waited)),
            mock.patch.object(models, "verify", timed(weights_file.verify, verified)),
            mock.patch.object(models, "read_with_digest", timed(models.read_with_digest, verified)),
            mock.patch.object(
                run_folder, "read_with_digest", timed(run_folder.read_with_digest, verified)
            ),
        ):
            loading = process_seconds(lambda: thinkers.open_run(folder))
        elapsed = time.perf_counter() - start
        loads.append((loading, sum(verified), sum(waited) / elapsed))
    loading, verifying, share = (statistics.median(x) for x in zip(*loads, strict=True))
    size = sum(p.numel() for p in model.parameters())
    print(f"{name:<18}{size:>12,}{1e3 * loading:>9.1f} ms{1e3 * verifying:>8.2f} ms ", end="")
    print(f"{verifying / loading:>6.1%}{share:>8.1%}", end="")
    return verifying / loading > MAX_LOADING


class TimedPool(ThreadPoolExecutor):
    """A pool that adds the elapsed time for which its results are waited for to `waited`."""

    def __init__(self, workers: int, waited: list[float]):
        super().__init__(workers)
        self.waited = waited

    def submit(self, *given: Any, **named: Any) -> Any:
        future: Any = super().submit(*given, **named)
        result = future.result

        def wait() -> Any:
            start = time.perf_counter()
            try:
                return result()
            finally:
                self.waited.append(time.perf_counter() - start)

        future.result = wait
        return future


def timed(real: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return a function that adds the time of its own thread in each call to `spent`.

    Weights are verified in a thread while the model is built: process time would count both.
    """

    def call(*given: Any, **named: Any) -> Any:
        start = time.thread_time()
        try:
            return real(*given, **named)
        finally:
            spent.append(time.thread_time() - start)

    return call


if __name__ == "__main__":
    raise SystemExit(main())
