"""Exact accuracy of a small looped model on products of two digits by two, setting by setting.

    python benchmarks/product_settings.py
    python benchmarks/product_settings.py "one run twice"

The core of `arithmetic/direct` learns products alone, with one setting changed at a time. One seed,
so that small differences mean nothing.

Machine: accuracies, which another machine's roundings change as another seed does; the process time
of one thread stands beside them. Nothing is asked. Measured: docs/measured.md.
"""

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import one_thread, parser

import thinkers
from thinkers.models.looped import Looped
from thinkers.tasks.arithmetic import Multiply

SETTINGS: dict[str, dict[str, Any]] = {
    "as the recipe": {},
    "equal widths": dict(blanks=True),
    "two layers run twice": dict(num_layers=2, num_steps=2),
    "two layers run twice, equal widths": dict(num_layers=2, num_steps=2, blanks=True),
    "one run twice": dict(num_steps=2),
    "four run once": dict(num_layers=4, num_steps=1),
    "three layers 48 wide, run twice": dict(num_layers=3, num_steps=2, dim=48),
    "no prelude and coda": dict(num_prelude_layers=0, num_coda_layers=0, num_layers=2, num_steps=3),
    "feed-forwards 384 wide": dict(hidden=384),
    "rate 1e-2": dict(lr=1e-2),
    "batches of 32": dict(batch_size=32, num_updates=6000),
    "Muon": dict(optimizer="muon", lr=2e-2),
    "Muon, batches of 128": dict(optimizer="muon", lr=2e-2, batch_size=128, num_updates=2000),
}


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("settings", nargs="*", metavar="NAME", help="default: all")
    chosen = arguments.parse_args().settings or list(SETTINGS)
    if unknown := [name for name in chosen if name not in SETTINGS]:
        arguments.error(f"unknown settings {unknown[0]!r}; choose from {list(SETTINGS)}")
    one_thread()
    for name in chosen:
        start = time.process_time()
        exact = learn(**SETTINGS[name])
        print(f"{name:<36} {exact:.3f}   {time.process_time() - start:.0f} s", flush=True)
    return 0


def learn(blanks: bool = False, **own: Any) -> float:
    """Train with changed settings; return the share of held-out products that are exact."""
    model: dict[str, Any] = dict(dim=64, num_layers=1, num_steps=4)
    training: dict[str, Any] = dict(num_updates=3000, batch_size=64, lr=3e-3)
    training |= dict(betas=(0.9, 0.99), weight_decay=0.01, min_lr_ratio=0.01, device="cpu")
    known = thinkers.Training.__dataclass_fields__
    for key, value in own.items():
        (training if key in known else model)[key] = value
    task = Multiply.Config(max_digits=2, blanks=blanks)
    config = thinkers.Config.fit(Looped, task, thinkers.Training(**training), **model)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return thinkers.train(config, Path(folder) / "run").scores["exact"]


if __name__ == "__main__":
    raise SystemExit(main())
