"""How long `inspect` takes for a long prompt, and how large its page is.

python benchmarks/inspect_speed.py [--length 200] [--num_steps 16] [--dim 128]

Each model is built, saved with its task as a run would be, and inspected in a process of its own,
three times; the time is that process's, from `thinkers.inspect` on and from its start on. Goals:
5 s and 2 MB for 200 tokens at 16 steps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

REPEATS = 3
SECONDS, BYTES = 5.0, 2_000_000
ONE_STEP = ("decoder", "deepsight")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--num_steps", type=int, default=16)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--once", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options)))
        return 0
    from thinkers import MODELS

    words = [f"--{k}={getattr(options, k)}" for k in ("length", "num_steps", "dim")]
    missed = 0
    print(f"{options.length} tokens, {options.num_steps} steps, width {options.dim}")
    print(f"{'model':<18} {'inspect, s':>20} {'process, s':>20} {'page, kB':>9}")
    for name in MODELS:
        command = [sys.executable, __file__, *words, "--once", name]
        runs = [
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(REPEATS)
        ]
        inside, whole = ([run[key] for run in runs] for key in ("inspect", "process"))
        size = runs[0]["bytes"]
        print(
            f"{name:<18} {spread(inside):>20} {spread(whole):>20} {size / 1000:>9.0f}", flush=True
        )
        missed += max(inside) > SECONDS or size > BYTES
    print("all within 5 s and 2 MB" if not missed else f"{missed} models missed 5 s or 2 MB")
    return int(missed > 0)


def spread(values: list[float]) -> str:
    return f"{min(values):.2f} .. {max(values):.2f}"


def once(options: argparse.Namespace) -> dict[str, float]:
    """Process seconds, and the size of the page."""
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
        steps = 1 if options.once in ONE_STEP else options.num_steps
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
        prompt = text.read_text()[: options.length]
        page = Path(folder) / "page.html"
        start = time.process_time()
        inspect((model, task), prompt, steps, page)
        seconds = time.process_time() - start
        return {
            "inspect": seconds,
            "process": time.process_time(),
            "bytes": page.stat().st_size,
        }


if __name__ == "__main__":
    raise SystemExit(main())
