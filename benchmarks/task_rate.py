"""Time to make a batch of every task, against the time of an update of a small model.

    python benchmarks/task_rate.py [--text tinyshakespeare.txt]

Process time on one thread, the median of several alternations. The claim: a batch of 64 rows costs
less than a twentieth of the update on it. The exit code is 1 if it does not hold.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import thinkers
from thinkers.data.tokenizers import KINDS

ANY_BASE = dict(min_in_base=2, max_in_base=16, min_out_base=2, max_out_base=16)
ROWS, UPDATES = 64, 64


def process_ms(call: Callable[[int], object], count: int) -> float:
    """Return the mean process time of call(0) .. call(count - 1), in milliseconds."""
    start = time.process_time()
    for update in range(count):
        call(update)
    return 1000 * (time.process_time() - start) / count


def training_update(task: thinkers.Task) -> Callable[[int], None]:
    """Return a function that updates a small decoder on batches that are already made."""
    torch.manual_seed(0)
    model = thinkers.build_model(
        "decoder",
        vocab_size=task.vocab_size,
        max_length=task.max_length,
        dim=64,
        num_layers=2,
        num_heads=4,
        num_steps=1,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [task.batch(update, ROWS) for update in range(4)]

    def update_once(update: int) -> None:
        optimizer.zero_grad()
        model.loss(batches[update % len(batches)]).total.backward()
        optimizer.step()

    return update_once


def measure(name: str, own: dict[str, Any], rounds: int) -> tuple[float, float]:
    """Return the milliseconds to make a batch, and those of an update on it."""
    made, updated = [], []
    update_once = training_update(thinkers.build_task(name, **own))
    process_ms(update_once, 3)
    for i in range(rounds):
        task = thinkers.build_task(name, seed=i, **own)
        made.append(process_ms(lambda update, task=task: task.batch(update, ROWS), UPDATES))
        updated.append(process_ms(update_once, 8))
    return statistics.median(made), statistics.median(updated)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--text", help="measure batches of this text only")
    options = parser.parse_args()
    rounds = options.rounds
    torch.set_num_threads(1)
    cases: list[tuple[str, dict[str, Any]]] = [(x, {}) for x in thinkers.TASKS if x != "text"]
    cases += [(name, ANY_BASE) for name in ("sort", "add", "arithmetic", "factorise")]
    cases += [("multiply", dict(min_digits=40, max_digits=40)), ("add", dict(max_digits=100))]
    if options.text is not None:
        kinds = [(kind, context) for kind in KINDS for context in (64, 256)]
        cases = [("text", dict(vocabulary=x, context=n, path=options.text)) for x, n in kinds]
    print("task         settings                 width   make ms update ms   ratio")
    ratios = []
    for name, own in cases:
        made, updated = measure(name, own, rounds)
        ratios.append(updated / made)
        shown = [f"{k}={v}" for k, v in own.items() if k != "path"]
        what = "any base" if own is ANY_BASE else ", ".join(shown)
        width = thinkers.build_task(name, **own).max_length - 1
        print(
            f"{name:12} {what:24} {width:5} {made:9.3f} {updated:9.2f} {updated / made:7.0f}",
            flush=True,
        )
    print(f"least ratio {min(ratios):.0f}, claimed 20")
    return int(min(ratios) < 20)


if __name__ == "__main__":
    raise SystemExit(main())
