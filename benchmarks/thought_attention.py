"""What does one thinking step of attention cost? Time and memory as thoughts are added.

python benchmarks/thought_attention.py [--device cuda] [--out docs]

256 positions, 6 heads of width 64, float32: a train of thinking steps, each of which reads bases
and the thoughts so far, forward and backward, from one `Chain`. Beside it: the same through
`thought_attention` over a chain that is concatenated anew at every step, the dense definition, and
plain attention over the bases alone, the floor. Process time of one thread, in turn, median;
memory is the growth of the peak of a process of its own.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from thinkers.ops import Chain, dense, thought_attention

POSITIONS, HEADS, WIDTH = 256, 6, 64
Read = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_chain(steps: int) -> Read:
    chain = Chain(steps)

    def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = chain.attend(q, k, v)
        chain.append(out, out)
        return out

    return read


def by_concatenation(attend: Callable[..., Tensor]) -> Read:
    thoughts: list[Tensor] = []

    def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chain = torch.stack(thoughts, 3) if thoughts else q[:, :, :, None][:, :, :, :0]
        out = attend(q, k, v, chain, chain)
        thoughts.append(out)
        return out

    return read


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


WAYS: dict[str, Callable[[int], Read]] = {
    "chain": by_chain,
    "concatenated": lambda steps: by_concatenation(thought_attention),
    "dense": lambda steps: by_concatenation(dense.thought_attention),
    "bases alone": lambda steps: plain,
}


def think(name: str, steps: int, device: str) -> None:
    """Forward and backward of a train: every step reads what the step before it found."""
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    shape = (1, HEADS, POSITIONS, WIDTH)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3))
    read, x = WAYS[name](steps), q
    for _ in range(steps):
        x = x + read(x, k, v)
    torch.autograd.grad(x.sum(), (q, k, v))
    if device != "cpu":
        torch.cuda.synchronize()


def times(steps: int, repeats: int, device: str) -> dict[str, float]:
    """Median milliseconds by way, taken in turn."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    names = [name for name in WAYS if name != "dense" or steps <= 8]
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names:
            start = clock()
            think(name, steps, device)
            if turn:
                taken[name].append(1e3 * (clock() - start))
    return {name: statistics.median(x) for name, x in taken.items()}


def grown(name: str, steps: int) -> float:
    """MiB by which one forward and backward raises the peak of this process."""
    think(name, 1, "cpu")
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    think(name, steps, "cpu")
    return peak() - before


def peak() -> float:
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def memory(name: str, steps: int) -> float:
    limit = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--memory", name, "--steps", str(steps)]
    done = subprocess.run(
        command, env=os.environ | limit, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def plot(rows: list[dict], path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for axis, kind, unit in zip(axes, ("ms", "MiB"), ("milliseconds", "MiB"), strict=True):
        for name in WAYS:
            points = [(row["steps"], row[kind][name]) for row in rows if name in row[kind]]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="thinking steps", ylabel=unit)
        axis.set_xticks([row["steps"] for row in rows], [str(row["steps"]) for row in rows])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="1,2,4,8,16,32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder for the plot and the figures")
    parser.add_argument("--memory", help="print the memory of one way, and nothing else")
    options = parser.parse_args()
    counts = [int(x) for x in options.steps.split(",")]
    torch.set_num_threads(1)
    if options.memory:
        print(grown(options.memory, counts[0]))
        return
    rows = []
    for steps in counts:
        row = {"steps": steps, "ms": times(steps, options.repeats, options.device), "MiB": {}}
        if options.device == "cpu":
            row["MiB"] = {name: memory(name, steps) for name in row["ms"]}
        rows.append(row)
        shown = [f"{name} {ms:.1f} ms" for name, ms in row["ms"].items()]
        shown += [f"{name} {mib:.1f} MiB" for name, mib in row["MiB"].items()]
        print(f"{steps} steps: " + ", ".join(shown))
    if options.out:
        name = options.out / f"thought_attention_{options.device}"
        name.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        plot(rows, name.with_suffix(".png"))


if __name__ == "__main__":
    main()
