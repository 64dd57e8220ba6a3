"""Time and memory of training a ThoughtsFormer, against recomputing every element at every step.

    python benchmarks/thoughtsformer.py [--repeats 5]

The published implementation runs the whole sequence of (step + 1) * length elements through
torch's TransformerEncoderLayer at every step, under a mask (built beforehand here, and not timed).
Ours must give the same logits and gradients before anything is timed. Memory is the growth of the
peak in a process of its own.

Machine: the ratios depend little on it. Asked: the speedups in MIN_SPEEDUP; 16 steps at most 20
times the time of one; 8 times less memory; at most 2.2 times the memory for twice the steps. Exit
code 1 if missed. Measured: docs/measured.md.
"""

import argparse
from functools import partial

import torch
from harness import alternate, in_new_process, one_thread, parser, peak_growth
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers import build_model, published
from thinkers.models import Model

WIDTH, HEADS, WORDS = 384, 6, 65
MIN_SPEEDUP = {(128, 4, 4): 2.5, (256, 8, 2): 7.0, (256, 16, 1): 18.0}
"""(length, steps, batch): the least ratio of their time to ours."""
STEPS = (1, 2, 4, 8, 16)
MAX_SLOWDOWN, MIN_MEMORY_RATIO, MAX_GROWTH = 20.0, 8.0, 2.2


class Dense(nn.Module):
    """The published model, which recomputes every element at every step."""

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
        """True where an element may not attend, for `number` elements at each of t positions."""
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


def forward_backward(model: nn.Module, tokens: Tensor) -> Tensor:
    """Run forward and backward of next-token prediction; return the logits."""
    model.zero_grad()
    logits = model(tokens)
    logits = logits if isinstance(logits, Tensor) else logits.logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return logits.detach()


def check(steps: int, length: int, batch: int, dtype: torch.dtype, tolerance: float) -> None:
    """Raise AssertionError unless both models give the same logits and the same gradients."""
    model, dense = make(steps, length, dtype)
    tokens = torch.randint(WORDS, (batch, length))
    pairs = {"logits": (forward_backward(model, tokens), forward_backward(dense, tokens))}
    gradients = published.dump(model, grads=True)
    pairs |= {name: (gradients[name], p.grad) for name, p in dense.named_parameters()}
    for name, (ours, theirs) in pairs.items():
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        assert error <= tolerance, f"{name} differs by {error:.1e} of its largest entry"


def peak(name: str, length: int, steps: int, batch: int) -> float:
    """MiB by which forward and backward raise the peak of a new process."""
    return in_new_process(__file__, "--peak", name, length, steps, batch)


def measure_peak(name: str, length: int, steps: int, batch: int) -> float:
    """MiB by which forward and backward raise the peak of this process."""
    ours, dense = make(steps, length)
    model = ours if name == "ours" else dense
    forward_backward(model, torch.randint(WORDS, (1, 3)))  # what is loaded once does not count
    tokens = torch.randint(WORDS, (batch, length))
    return peak_growth(partial(forward_backward, model, tokens))


def times(models: list[nn.Module], tokens: Tensor, repeats: int) -> list[float]:
    """Median seconds of forward and backward of each model, after one warm-up."""
    calls = [partial(forward_backward, model, tokens) for model in models]
    for call in calls:
        call()
    return alternate(calls, repeats)


def compare_times(repeats: int) -> list[str]:
    """Print times beside dense recomputation; return what was missed."""
    missed = []
    for (length, steps, batch), least in MIN_SPEEDUP.items():
        check(steps, length, batch, torch.float32, 1e-4)
        model, dense = make(steps, length)
        tokens = torch.randint(WORDS, (batch, length))
        ours, theirs = times([model, dense], tokens, repeats)
        ratio = theirs / ours
        print(
            f"length {length}, {steps:2} steps, batch {batch}: {theirs:.3f} s recomputed, "
            f"{ours:.3f} s ours: {ratio:.1f}x (at least {least}x)",
            flush=True,
        )
        missed += [f"{length}, {steps}: {ratio:.1f}x"] * (ratio < least)
    return missed


def compare_steps(repeats: int) -> list[str]:
    """Print times by number of steps; return what was missed."""
    tokens = torch.randint(WORDS, (1, 256))
    seconds = times([make(n, 256)[0] for n in STEPS], tokens, repeats)
    shown = ", ".join(f"{n} {x * 1000:.0f}" for n, x in zip(STEPS, seconds, strict=True))
    ratio = seconds[-1] / seconds[0]
    print(
        f"ms by steps: {shown}; 16 take {ratio:.1f}x the time of 1 (at most {MAX_SLOWDOWN}x)",
        flush=True,
    )
    return [f"16 steps take {ratio:.1f}x"] * (ratio > MAX_SLOWDOWN)


def compare_memory() -> list[str]:
    """Print peaks beside dense recomputation and by number of steps; return what was missed."""
    ours, theirs = peak("ours", 256, 16, 1), peak("dense", 256, 16, 1)
    ratio = theirs / ours
    print(
        f"MiB at 256, 16: {theirs:.0f} and {ours:.0f}: {ratio:.1f}x (at least {MIN_MEMORY_RATIO}x)"
    )
    grown = [peak("ours", 256, n, 4) for n in STEPS]
    shown = ", ".join(f"{n} {x:.0f}" for n, x in zip(STEPS, grown, strict=True))
    growth = max(b / a for a, b in zip(grown, grown[1:], strict=False))
    print(f"MiB by steps: {shown}; twice the steps take {growth:.2f}x (at most {MAX_GROWTH}x)")
    missed = [f"{ratio:.1f}x less memory"] * (ratio < MIN_MEMORY_RATIO)
    return missed + [f"memory growth {growth:.2f}"] * (growth > MAX_GROWTH)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    one_thread()
    if options.peak:
        name, *sizes = options.peak
        length, steps, batch = map(int, sizes)
        print(measure_peak(name, length, steps, batch))
        return
    check(5, 31, 3, torch.float64, 1e-9)
    repeats = options.repeats
    missed = compare_times(repeats) + compare_steps(repeats) + compare_memory()
    print("all reached" if not missed else "missed: " + "; ".join(missed))
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
