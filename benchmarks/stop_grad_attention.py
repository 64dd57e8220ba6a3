"""Time and memory of stop-gradient attention, against plain attention.

    python benchmarks/stop_grad_attention.py [--lengths 512 1024] [--out docs]
    python benchmarks/stop_grad_attention.py --device cuda --lengths 8192

Forward and backward of 8 heads of width 64, causal, float32; a reasoning token after each token,
whose keys and values take no gradient from the next 64 time steps. Contenders: plain attention, the
stop by rule, a stop that depends on the key alone, the dense definition, and the package
self-reasoning-tokens-pytorch where it is installed. Memory is the growth of the peak in a process
of its own. On a GPU: bfloat16, against FlexAttention over the same visible pairs, by device events.
Gradients and outputs are compared before anything is timed.

Machine: the ratios depend little on it. Asked, at 2,048 tokens: the ratios in LIMITS at most, and
memory that grows linearly. Measured: docs/attention.md.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import torch
from harness import alternate, in_new_process, one_thread, parser, peak_growth
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


def contenders(n: int, device: str) -> dict[str, Callable[..., Tensor]]:
    """Attention functions of (q, k, v) by name, without those that would not fit in memory."""
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
    """The package's attention, with all three masks: it fails where one is absent."""
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


def forward_backward(attend: Callable[..., Tensor], tensors: list[Tensor], weight: Tensor) -> None:
    torch.autograd.grad(attend(*tensors), tensors, weight)


def check(device: str) -> None:
    """Raise AssertionError unless our gradients equal dense ones, and outputs the plain one."""
    tensors, found = inputs(512, device), contenders(512, device)
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
    """Median milliseconds of forward and backward by contender, all of them in turn."""
    tensors, found = inputs(n, device), contenders(n, device)
    weight = torch.randn_like(tensors[0])
    calls = [lambda a=attend: forward_backward(a, tensors, weight) for attend in found.values()]
    for call in calls:
        call()
    medians = alternate(calls, repeats) if device == "cpu" else alternate(calls, repeats, cuda_time)
    return {name: 1e3 * x for name, x in zip(found, medians, strict=True)}


def cuda_time(call: Callable[[], object]) -> float:
    """Seconds of a call on the GPU, between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def memory(name: str, n: int) -> float:
    """MiB by which one forward and backward raises the peak of this process."""
    # A small call first, so that what is loaded once does not count.
    small, weight = inputs(64), torch.randn(1, HEADS, 64, WIDTH)
    forward_backward(contenders(64, "cpu")[name], small, weight)
    tensors, attend = inputs(n), contenders(n, "cpu")[name]
    weight = torch.randn_like(tensors[0])
    return peak_growth(lambda: forward_backward(attend, tensors, weight))


def plot(rows: list[dict], path: Path) -> None:
    """Draw time and memory by length to a PNG."""
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
    arguments = parser(__doc__)
    arguments.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--out", type=Path, help="folder for the plot and the figures")
    arguments.add_argument("--memory", metavar="NAME", help="print one contender's memory alone")
    options = arguments.parse_args()
    one_thread()
    if options.memory:
        print(memory(options.memory, options.lengths[0]))
        return
    check(options.device)
    rows = []
    for n in options.lengths:
        row = {"n": n, "ms": times(n, options.repeats, options.device), "MiB": {}}
        if options.device == "cpu":
            row["MiB"] = {
                name: in_new_process(__file__, "--memory", name, "--lengths", n)
                for name in row["ms"]
            }
        rows.append(row)
        shown = [f"{name} {ms:.1f} ms" for name, ms in row["ms"].items()]
        shown += [f"{name} {mib:.0f} MiB" for name, mib in row["MiB"].items()]
        print(f"{n}: " + ", ".join(shown))
        for ratio, limit in LIMITS.items():
            over, under = ratio.split(" / ")
            if over in row["ms"]:
                value = row["ms"][over] / row["ms"][under]
                print(f"    {ratio}: {value:.2f} (at most {limit} at 2048)")
    if options.out:
        name = options.out / f"stop_grad_attention_{options.device}"
        name.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        plot(rows, name.with_suffix(".png"))


if __name__ == "__main__":
    main()
