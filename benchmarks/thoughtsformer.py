"""Is a train of thought as cheap as its arithmetic? Time and memory against dense recompute.

python benchmarks/thoughtsformer.py

The published way runs the whole sequence of (step + 1) * length elements through torch's
TransformerEncoderLayer at every step, under a mask (built beforehand here, and not timed). Ours
must give the same logits and gradients before anything is measured. Process time of one thread,
both in turn; memory in processes of their own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers import build_model, published
from thinkers.models import Model

WIDTH, HEADS, WORDS = 384, 6, 65
SPEEDS = {(128, 4, 4): 2.5, (256, 8, 2): 7.0, (256, 16, 1): 18.0}
"""(length, steps, batch): how many times faster ours has to be."""
STEPS = (1, 2, 4, 8, 16)
SLOWDOWN, LESS_MEMORY, GROWTH = 20.0, 8.0, 2.2


class Dense(nn.Module):
    """The published model: at every step, every element that exists is computed anew."""

    def __init__(self, model: Model):
        super().__init__()
        config = model.config
        layer = nn.TransformerEncoderLayer(
            config.dim, config.num_heads, config.hidden or config.dim, 0.0, batch_first=True
        )
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.pos_embedding = nn.Parameter(torch.empty(config.max_length, config.dim))
        self.time_embedding = nn.Parameter(torch.empty(config.num_steps, config.dim))
        self.transformer_layer = layer
        self.output = nn.Linear(config.dim, config.vocab_size)
        self.masks: dict[tuple[int, int], Tensor] = {}
        self.to(model.embedding.weight.dtype)  # type: ignore[union-attr, arg-type]
        self.load_state_dict(published.dump(model))

    def forward(self, tokens: Tensor) -> Tensor:
        t = tokens.shape[1]
        elements = [self.embedding(tokens) + self.pos_embedding[:t]]
        for step in range(len(self.time_embedding)):
            coded = [x + self.time_embedding[i] for i, x in enumerate(elements)]
            mask = self.mask(t, step + 1)
            x = self.transformer_layer(torch.cat(coded, 1), src_mask=mask)
            elements.append(x[:, -t:])
        return self.output(elements[-1])

    def mask(self, t: int, number: int) -> Tensor:
        """True where an element may not look, of `number` elements at each of t positions."""
        if (t, number) not in self.masks:
            place = torch.arange(t).repeat(number)
            step = torch.arange(number).repeat_interleave(t)
            base = (step == 0) & (place <= place[:, None])
            own = (place == place[:, None]) & (step <= step[:, None])
            self.masks[t, number] = ~(base | own)
        return self.masks[t, number]


def make(steps: int, length: int, dtype: torch.dtype = torch.float32) -> tuple[Model, Dense]:
    """Our model and the published one, with the same weights."""
    torch.manual_seed(0)
    model = build_model(
        "thoughtsformer",
        vocab_size=WORDS,
        dim=WIDTH,
        num_layers=1,
        num_heads=HEADS,
        num_steps=steps,
        max_length=length,
        variant="published",
    ).to(dtype)
    return model, Dense(model)


def learn(model: nn.Module, tokens: Tensor) -> Tensor:
    """Forward and backward of next-token prediction; the logits."""
    model.zero_grad()
    logits = model(tokens)
    logits = logits if isinstance(logits, Tensor) else logits.logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return logits.detach()


def check(steps: int, length: int, batch: int, dtype: torch.dtype, tolerance: float) -> None:
    """AssertionError unless both ways give the same logits and the same gradients."""
    model, dense = make(steps, length, dtype)
    tokens = torch.randint(WORDS, (batch, length))
    pairs = {"logits": (learn(model, tokens), learn(dense, tokens))}
    gradients = published.dump(model, grads=True)
    pairs |= {name: (gradients[name], p.grad) for name, p in dense.named_parameters()}
    for name, (ours, theirs) in pairs.items():
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        assert error <= tolerance, f"{name} differs by {error:.1e} of its largest entry"


def alternate(ways: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of process time of each way, run in turn after one warm-up."""
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds + 1):
        for way, kept in zip(ways, times, strict=True):
            start = time.process_time()
            way()
            if turn:
                kept.append(time.process_time() - start)
    return [statistics.median(kept) for kept in times]


def peak(which: str, length: int, steps: int, batch: int) -> float:
    """MiB that forward and backward take on top, in a process of its own."""
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--peak", which, *map(str, (length, steps, batch))]
    run = subprocess.run(command, env=os.environ | settings, check=True, stdout=subprocess.PIPE)
    return float(run.stdout)


def measure_peak(which: str, length: int, steps: int, batch: int) -> float:
    """See `peak`: the highest resident memory, less what was resident before."""
    ours, dense = make(steps, length)
    model = ours if which == "ours" else dense
    learn(model, torch.randint(WORDS, (1, 3)))
    tokens = torch.randint(WORDS, (batch, length))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = resident("VmRSS")
    learn(model, tokens)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MiB, from the kernel's account of this process."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines[field].split()[0]) / 1024


def compare_times(rounds: int) -> list[str]:
    """What was not reached."""
    missed = []
    for (length, steps, batch), wanted in SPEEDS.items():
        check(steps, length, batch, torch.float32, 1e-4)
        model, dense = make(steps, length)
        tokens = torch.randint(WORDS, (batch, length))
        ways = [partial(learn, m, tokens) for m in (model, dense)]
        ours, theirs = alternate(ways, rounds)
        ratio = theirs / ours
        print(
            f"length {length}, {steps:2} steps, batch {batch}: {theirs:.3f} s recomputed, "
            f"{ours:.3f} s ours: {ratio:.1f}x (at least {wanted})",
            flush=True,
        )
        missed += [f"{length}, {steps}: {ratio:.1f}x"] * (ratio < wanted)
    return missed


def compare_steps(rounds: int) -> list[str]:
    """What was not reached."""
    tokens = torch.randint(WORDS, (1, 256))
    times = alternate([partial(learn, make(n, 256)[0], tokens) for n in STEPS], rounds)
    shown = ", ".join(f"{n} {x * 1000:.0f}" for n, x in zip(STEPS, times, strict=True))
    ratio = times[-1] / times[0]
    print(f"ms by steps: {shown}; 16 cost {ratio:.1f}x of 1 (at most {SLOWDOWN})", flush=True)
    return [f"16 steps cost {ratio:.1f}x"] * (ratio > SLOWDOWN)


def compare_memory() -> list[str]:
    """What was not reached."""
    ours, theirs = peak("ours", 256, 16, 1), peak("dense", 256, 16, 1)
    ratio = theirs / ours
    print(f"MiB at 256, 16: {theirs:.0f} and {ours:.0f}: {ratio:.1f}x (at least {LESS_MEMORY})")
    grown = [peak("ours", 256, n, 4) for n in STEPS]
    shown = ", ".join(f"{n} {x:.0f}" for n, x in zip(STEPS, grown, strict=True))
    growth = max(b / a for a, b in zip(grown, grown[1:], strict=False))
    print(f"MiB by steps: {shown}; twice the steps take {growth:.2f}x (at most {GROWTH})")
    missed = [f"{ratio:.1f}x less memory"] * (ratio < LESS_MEMORY)
    return missed + [f"memory growth {growth:.2f}"] * (growth > GROWTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        which, *sizes = arguments.peak
        length, steps, batch = map(int, sizes)
        print(measure_peak(which, length, steps, batch))
        return
    check(5, 31, 3, torch.float64, 1e-9)
    rounds = arguments.rounds
    missed = compare_times(rounds) + compare_steps(rounds) + compare_memory()
    print("all reached" if not missed else "NOT REACHED: " + "; ".join(missed))
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
