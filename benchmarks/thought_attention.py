"""Time and memory of thinking steps over a growing chain of thoughts.

    python benchmarks/thought_attention.py [--steps 1 2 4] [--device cuda] [--out docs]

Forward and backward of 256 positions, 6 heads of width 64, float32. Every step attends to bases and
to the thoughts so far, from one `Chain`. Contenders beside it: `thought_attention` over a chain
that is concatenated anew at every step, the dense definition, and plain attention over the bases
alone, as the lower bound. Memory is the growth of the peak in a process of its own.

Machine: the ratios depend little on it. Asked: memory that grows linearly in the steps, read off
the lines; there is no exit code for it. Measured: docs/attention.md.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import alternate, in_new_process, one_thread, parser, peak_growth, process_seconds
from torch import Tensor
from torch.nn import functional

from thinkers.ops import Chain, dense, thought_attention

POSITIONS, HEADS, WIDTH = 256, 6, 64
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_chain(steps: int) -> Attend:
    chain = Chain(steps)

    def attend_step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = chain.attend(q, k, v)
        chain.append(out, out)
        return out

    return attend_step


def by_concatenation(attend: Callable[..., Tensor]) -> Attend:
    thoughts: list[Tensor] = []

    def attend_step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chain = torch.stack(thoughts, 3) if thoughts else q[:, :, :, None][:, :, :, :0]
        out = attend(q, k, v, chain, chain)
        thoughts.append(out)
        return out

    return attend_step


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


CONTENDERS: dict[str, Callable[[int], Attend]] = {
    "chain": by_chain,
    "concatenated": lambda steps: by_concatenation(thought_attention),
    "dense": lambda steps: by_concatenation(dense.thought_attention),
    "bases alone": lambda steps: plain,
}


def think(name: str, steps: int, device: str) -> None:
    """Forward and backward of a chain: every step attends with what the step before it returned."""
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    shape = (1, HEADS, POSITIONS, WIDTH)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3))
    attend, x = CONTENDERS[name](steps), q
    for _ in range(steps):
        x = x + attend(x, k, v)
    torch.autograd.grad(x.sum(), (q, k, v))
    if device != "cpu":
        torch.cuda.synchronize()


def times(steps: int, repeats: int, device: str) -> dict[str, float]:
    """Median milliseconds by contender, all of them in turn."""
    names = [name for name in CONTENDERS if name != "dense" or steps <= 8]
    calls = [lambda name=name: think(name, steps, device) for name in names]
    for call in calls:
        call()
    medians = alternate(calls, repeats, process_seconds if device == "cpu" else wall_seconds)
    return {name: 1e3 * x for name, x in zip(names, medians, strict=True)}


def wall_seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def memory(name: str, steps: int) -> float:
    """MiB by which one forward and backward raises the peak of this process."""
    think(name, 1, "cpu")  # so that what is loaded once does not count
    return peak_growth(lambda: think(name, steps, "cpu"))


def plot(rows: list[dict], path: Path) -> None:
    """Draw time and memory by number of steps to a PNG."""
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for axis, kind, unit in zip(axes, ("ms", "MiB"), ("milliseconds", "MiB"), strict=True):
        for name in CONTENDERS:
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
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--out", type=Path, help="folder for the plot and the figures")
    arguments.add_argument("--memory", metavar="NAME", help="print one contender's memory alone")
    options = arguments.parse_args()
    one_thread()
    if options.memory:
        print(memory(options.memory, options.steps[0]))
        return
    rows = []
    for steps in options.steps:
        row = {"steps": steps, "ms": times(steps, options.repeats, options.device), "MiB": {}}
        if options.device == "cpu":
            row["MiB"] = {
                name: in_new_process(__file__, "--memory", name, "--steps", steps)
                for name in row["ms"]
            }
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
