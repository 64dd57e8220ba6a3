"""Time and memory of thinking over a memory projected once, against projecting it at every step.

    python benchmarks/thinker_memory.py [--repeats 7]

Forward and backward of 64 steps of 16 latents, width 128, a block of 2 layers, 16 input vectors.
Both must give the same state and gradients before anything is timed; memory is the growth of the
peak in a process of its own.

Machine: the ratios depend little on it. Asked: 1.5 times faster, 2.5 times less memory. Exit code 1
if missed. Measured: docs/measured.md.
"""

import json
import statistics
from collections.abc import Callable

import torch
from harness import in_new_process, one_thread, parser, peak_growth, process_seconds

from thinkers.nn.latent_store import LatentStore, Memory
from thinkers.nn.processor import Process

STEPS, LATENTS, DIM, LAYERS, HEADS, INPUTS, BATCH = 64, 16, 128, 2, 4, 16, 4
HIDDEN = 344
MIN_SPEEDUP, MIN_MEMORY_RATIO = 1.5, 2.5


def setting(dtype: torch.dtype) -> tuple[Process, torch.Tensor, torch.Tensor]:
    """The block, the input and the initial latents."""
    torch.manual_seed(0)
    process = Process(DIM, HEADS, HIDDEN, LAYERS).to(dtype)
    inputs = torch.randn(BATCH, INPUTS, DIM, dtype=dtype, requires_grad=True)
    latent = torch.randn(BATCH, LATENTS, DIM, dtype=dtype, requires_grad=True)
    return process, inputs, latent


def stored(process: Process, inputs: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """The state after all steps; keys and values are projected once and stored."""
    store = LatentStore(process, INPUTS + STEPS * LATENTS)
    store.write(inputs, "input")
    for _ in range(STEPS):
        latent = process(latent, store.read())
        store.write(latent)
    return latent


def projected_again(process: Process, inputs: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """The same by definition: the whole memory is projected at every step and layer."""
    past = inputs
    for _ in range(STEPS):
        parts = process.project(past)
        latent = process(latent, Memory(parts[::2], parts[1::2]))
        past = torch.cat([past, latent], 1)
    return latent


CONTENDERS = {"stored": stored, "projected_again": projected_again}


def check() -> None:
    """Raise AssertionError unless both give the same state and the same gradients."""
    process, inputs, latent = setting(torch.float64)
    wanted = [inputs, latent, *process.parameters()]
    results = []
    for think in CONTENDERS.values():
        out = think(process, inputs, latent)
        grads = torch.autograd.grad(out.square().sum(), wanted, allow_unused=True)
        results.append((out, *(g for g in grads if g is not None)))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max(), (
            "the two computations differ"
        )


def prepared(name: str) -> Callable[[], None]:
    """One forward and backward pass, its block and inputs made beforehand."""
    process, inputs, latent = setting(torch.float32)
    return lambda: CONTENDERS[name](process, inputs, latent).square().sum().backward()


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--memory", metavar="NAME", help="print one contender's memory alone")
    options = arguments.parse_args()
    one_thread()
    if options.memory:
        print(peak_growth(prepared(options.memory)))
        return
    check()
    for name in CONTENDERS:
        prepared(name)()
    times = {name: [] for name in CONTENDERS}
    for _ in range(options.repeats):
        for name, seconds in times.items():
            seconds.append(process_seconds(prepared(name)))
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    memory = {name: in_new_process(__file__, "--memory", name) for name in CONTENDERS}
    result = {
        "seconds": {name: round(statistics.median(x), 4) for name, x in times.items()},
        "times_faster": round(statistics.median(ratios), 2),
        "times_faster_from_to": [round(min(ratios), 2), round(max(ratios), 2)],
        "peak_mib": {name: round(x) for name, x in memory.items()},
        "times_less_memory": round(memory["projected_again"] / memory["stored"], 2),
    }
    print(json.dumps(result, indent=2))
    if result["times_faster"] < MIN_SPEEDUP or result["times_less_memory"] < MIN_MEMORY_RATIO:
        raise SystemExit(f"missed: {MIN_SPEEDUP}x faster, {MIN_MEMORY_RATIO}x less memory")


if __name__ == "__main__":
    main()
