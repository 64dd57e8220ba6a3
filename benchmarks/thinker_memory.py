"""Thinking over a memory that is projected once, against projecting all of it at every step.

    python benchmarks/thinker_memory.py

64 steps of 16 latents, width 128, a block of 2 layers, 16 input vectors. First both give the same
state and gradients; then time of forward and backward (process time, one thread, in turn, median
of 7) and peak memory (each in a process of its own). To be reached: 1.5x faster, 2.5x less memory.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import torch

from thinkers.nn.latent_store import LatentStore, Memory
from thinkers.nn.processor import Process

STEPS, LATENTS, DIM, LAYERS, HEADS, INPUTS, BATCH = 64, 16, 128, 2, 4, 16, 4
HIDDEN, REPEATS = 344, 7


def setting(dtype: torch.dtype) -> tuple[Process, torch.Tensor, torch.Tensor]:
    """The block, the input and the first latents."""
    torch.manual_seed(0)
    process = Process(DIM, HEADS, HIDDEN, LAYERS).to(dtype)
    inputs = torch.randn(BATCH, INPUTS, DIM, dtype=dtype, requires_grad=True)
    latent = torch.randn(BATCH, LATENTS, DIM, dtype=dtype, requires_grad=True)
    return process, inputs, latent


def kept(process: Process, inputs: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """The state after all steps; keys and values are kept."""
    store = LatentStore(process, INPUTS + STEPS * LATENTS)
    store.write(inputs, "input")
    for _ in range(STEPS):
        latent = process(latent, store.read())
        store.write(latent)
    return latent


def projected_again(process: Process, inputs: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """The same from the definition: the whole memory is projected at every step and layer."""
    past = inputs
    for _ in range(STEPS):
        parts = process.project(past)
        latent = process(latent, Memory(parts[::2], parts[1::2]))
        past = torch.cat([past, latent], 1)
    return latent


WAYS = {"kept": kept, "projected_again": projected_again}


def check() -> None:
    """Both give the same state and the same gradients."""
    process, inputs, latent = setting(torch.float64)
    wanted = [inputs, latent, *process.parameters()]
    results = []
    for way in WAYS.values():
        out = way(process, inputs, latent)
        grads = torch.autograd.grad(out.square().sum(), wanted, allow_unused=True)
        results.append((out, *(g for g in grads if g is not None)))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max(), "the two ways differ"


def run_once(name: str) -> float:
    """Seconds of process time of one forward and backward pass."""
    process, inputs, latent = setting(torch.float32)
    start = time.process_time()
    WAYS[name](process, inputs, latent).square().sum().backward()
    return time.process_time() - start


def peak_memory(name: str) -> float:
    """MiB that one forward and backward pass adds to a process of its own, at most."""
    command = [sys.executable, __file__, name]
    small = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = dict(os.environ, OMP_NUM_THREADS="1", **small)
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(out.stdout)


def resident(field: str) -> int:
    """KiB, from the kernel."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


def measure_memory(name: str) -> None:
    """Print the growth of the peak."""
    process, inputs, latent = setting(torch.float32)
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    WAYS[name](process, inputs, latent).square().sum().backward()
    print((resident("VmHWM") - before) / 1024)


def main() -> None:
    torch.set_num_threads(1)
    check()
    for name in WAYS:
        run_once(name)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(REPEATS):
        for name in WAYS:
            times[name].append(run_once(name))
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    memory = {name: peak_memory(name) for name in WAYS}
    result = {
        "seconds": {name: round(statistics.median(x), 4) for name, x in times.items()},
        "times_faster": round(statistics.median(ratios), 2),
        "times_faster_from_to": [round(min(ratios), 2), round(max(ratios), 2)],
        "peak_mib": {name: round(x) for name, x in memory.items()},
        "times_less_memory": round(memory["projected_again"] / memory["kept"], 2),
    }
    print(json.dumps(result, indent=2))
    if result["times_faster"] < 1.5 or result["times_less_memory"] < 2.5:
        raise SystemExit("missed: 1.5 times faster and 2.5 times less memory")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        measure_memory(sys.argv[1])
    else:
        main()
