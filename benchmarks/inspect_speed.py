"""Time of `inspect` for a long prompt, and the size of its page, for every model.

    python benchmarks/inspect_speed.py [--length 200] [--num_steps 16] [--dim 128]

Each model is built untrained and inspected in a process of its own, three times. Two process times
are shown: that of the call of `inspect`, and that of the whole process with its imports.

Machine: these are seconds, not ratios, and depend on it. Asked, for 200 tokens at 16 steps: at most
5 s for the call and 2 MB for the page. Exit code 1 if missed. Measured: docs/measured.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import parser

REPEATS = 3
MAX_SECONDS, MAX_BYTES = 5.0, 2_000_000


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--length", type=int, default=200)
    arguments.add_argument("--num_steps", type=int, default=16)
    arguments.add_argument("--dim", type=int, default=128)
    arguments.add_argument("--once", metavar="MODEL", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.once:
        print(json.dumps(once(options)))
        return 0
    from thinkers import MODELS

    flags = [f"--{k}={getattr(options, k)}" for k in ("length", "num_steps", "dim")]
    missed = 0
    print(f"{options.length} tokens, {options.num_steps} steps, width {options.dim}")
    print(f"{'model':<18} {'call, s':>20} {'process, s':>20} {'page, kB':>9}")
    for name in MODELS:
        command = [sys.executable, __file__, *flags, "--once", name]
        runs = [
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(REPEATS)
        ]
        call, process = ([run[key] for run in runs] for key in ("call", "process"))
        size = runs[0]["bytes"]
        print(
            f"{name:<18} {spread(call):>20} {spread(process):>20} {size / 1000:>9.0f}", flush=True
        )
        missed += max(call) > MAX_SECONDS or size > MAX_BYTES
    print(f"{missed} models exceed {MAX_SECONDS:g} s or {MAX_BYTES / 1e6:g} MB")
    return int(missed > 0)


def spread(values: list[float]) -> str:
    """The least and the largest value."""
    return f"{min(values):.2f} .. {max(values):.2f}"


def once(options: argparse.Namespace) -> dict[str, float]:
    """Inspect one model: process seconds of the call and of the process, and bytes of the page."""
    import time

    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    import thinkers
    from thinkers.inspection.inspect import inspect

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("".join(chr(97 + n * n % 23) + " " * (n % 5 == 0) for n in range(4000)))
        task = thinkers.build_task("text", path=str(text), vocabulary="character", context=64)
        model = thinkers.build_model(
            options.once,
            vocab_size=task.vocab_size,
            dim=options.dim,
            num_layers=2,
            num_heads=4,
            num_steps=4,
            max_steps=max(4, options.num_steps),
            max_length=max(256, options.length),
        )
        steps = options.num_steps if len(model.step_counts) > 1 else 1
        prompt = text.read_text()[: options.length]
        page = Path(folder) / "page.html"
        start = time.process_time()
        inspect((model, task), prompt, steps, page)
        seconds = time.process_time() - start
        return {
            "call": seconds,
            "process": time.process_time(),
            "bytes": page.stat().st_size,
        }


if __name__ == "__main__":
    raise SystemExit(main())
