"""What does stopping gradients pair by pair cost? Time and memory against plain attention.

python benchmarks/stop_grad_attention.py [--device cuda] [--out docs]

Queries, keys and values of 8 heads of width 64, causal, float32; a reasoning token after each
token, whose keys and values take no gradient from the next 64 time steps. All ways are taken in
turn in one process with one thread, in process time, and the median counts; memory is the growth
of the peak of a process of its own. The package self-reasoning-tokens-pytorch is measured where it
is installed. On a GPU: bfloat16, against FlexAttention over the same visible pairs, by device
events.
"""

import argparse
import importlib.util
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

from thinkers.ops import dense, masks, stop_grad_attention

HEADS, WIDTH, WINDOW = 8, 64, 64
NEAR = masks.reasoning_near(1, WINDOW)
PUBLISHED = importlib.util.find_spec("self_reasoning_tokens_pytorch") is not None
LIMITS = {"rule / plain": 1.6, "key only / plain": 1.1, "published / rule": 2.2}


def inputs(n: int, device: str = "cpu") -> list[Tensor]:
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    shape = (1, HEADS, n, WIDTH)
    return [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)]


def ways(n: int, device: str) -> dict[str, Callable[..., Tensor]]:
    """Attention of q, k, v by name, without what would not fit in memory."""
    key = (torch.arange(n, device=device) % 2 == 1)[None]
    found: dict[str, Callable[..., Tensor]] = {
        "plain": lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        "rule": lambda *x: stop_grad_attention(*x, causal=True, stop_k=NEAR, stop_v=NEAR),
        "key only": lambda *x: stop_grad_attention(*x, causal=True, stop_k=key, stop_v=key),
    }
    if n <= 2048:
        found["dense"] = lambda *x: dense.stop_grad_attention(
            *x, causal=True, stop_k=NEAR, stop_v=NEAR
        )
    if PUBLISHED and n <= 4096 and device == "cpu":
        found["published"] = published(n)
    if device != "cpu":
        found["flex"] = flex(n, device)
    return found


def published(n: int) -> Callable[..., Tensor]:
    """The package's attention; all three masks, because it fails where one is absent."""
    from self_reasoning_tokens_pytorch import stop_graddable_attn

    near = masks.table(NEAR, n).expand(HEADS, n, n).contiguous()
    none = torch.zeros_like(near)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return stop_graddable_attn(
            *(q, k, v),
            causal=True,
            q_stop_grad_mask=none,
            k_stop_grad_mask=near,
            v_stop_grad_mask=near,
        )

    return attend


def flex(n: int, device: str) -> Callable[..., Tensor]:
    """FlexAttention over the same visible pairs; it has no gradient factors."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(masks.causal, None, None, n, n, device=device)
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def once(attend: Callable[..., Tensor], tensors: list[Tensor], weight: Tensor) -> None:
    torch.autograd.grad(attend(*tensors), tensors, weight)


def check(device: str) -> None:
    """Before anything is measured: our gradients are the dense ones, every output the plain one."""
    tensors, found = inputs(512, device), ways(512, device)
    weight = torch.randn_like(tensors[0])
    ours, oracle = (
        torch.autograd.grad(found[name](*tensors), tensors, weight) for name in ("rule", "dense")
    )
    tolerance = 1e-4 if device == "cpu" else 5e-2
    for x, y in zip(ours, oracle, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        for attend in found.values():
            torch.testing.assert_close(
                attend(*tensors), found["plain"](*tensors), rtol=tolerance, atol=tolerance
            )


def times(n: int, repeats: int, device: str) -> dict[str, float]:
    """Median milliseconds of forward and backward, by way, taken in turn."""
    tensors, found = inputs(n, device), ways(n, device)
    weight = torch.randn_like(tensors[0])
    for attend in found.values():
        once(attend, tensors, weight)
    taken: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats):
        for name, attend in found.items():
            taken[name].append(clock(lambda a=attend: once(a, tensors, weight), device))
    return {name: statistics.median(x) for name, x in taken.items()}


def clock(run: Callable[[], None], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        run()
        return 1e3 * (time.process_time() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def peak() -> float:
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def grown(name: str, n: int) -> float:
    """MiB by which one forward and backward raises the peak of this process."""
    small, weight = inputs(64), torch.randn(1, HEADS, 64, WIDTH)
    once(ways(64, "cpu")[name], small, weight)
    tensors, attend = inputs(n), ways(n, "cpu")[name]
    weight = torch.randn_like(tensors[0])
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    once(attend, tensors, weight)
    return peak() - before


def memory(name: str, n: int) -> float:
    limit = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--memory", name, "--lengths", str(n)]
    done = subprocess.run(
        command, env=os.environ | limit, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def plot(rows: list[dict], path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for axis, kind, unit in zip(axes, ("ms", "MiB"), ("milliseconds", "MiB"), strict=True):
        for name in sorted({name for row in rows for name in row[kind]}):
            points = [(row["n"], row[kind][name]) for row in rows if name in row[kind]]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=unit)
        axis.set_xticks([row["n"] for row in rows], [str(row["n"]) for row in rows])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="512,1024,2048,4096")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder for the plot and the figures")
    parser.add_argument("--memory", help="print the memory of one way, and nothing else")
    options = parser.parse_args()
    lengths = [int(x) for x in options.lengths.split(",")]
    torch.set_num_threads(1)
    if options.memory:
        print(grown(options.memory, lengths[0]))
        return
    check(options.device)
    rows = []
    for n in lengths:
        row = {"n": n, "ms": times(n, options.repeats, options.device), "MiB": {}}
        if options.device == "cpu":
            row["MiB"] = {name: memory(name, n) for name in row["ms"]}
        rows.append(row)
        shown = [f"{name} {ms:.1f} ms" for name, ms in row["ms"].items()]
        shown += [f"{name} {mib:.0f} MiB" for name, mib in row["MiB"].items()]
        print(f"{n}: " + ", ".join(shown))
        for ratio, limit in LIMITS.items():
            over, under = ratio.split(" / ")
            if over in row["ms"]:
                value = row["ms"][over] / row["ms"][under]
                print(f"    {ratio}: {value:.2f} (to reach at 2048: {limit})")
    if options.out:
        name = options.out / f"stop_grad_attention_{options.device}"
        name.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        plot(rows, name.with_suffix(".png"))


if __name__ == "__main__":
    main()
