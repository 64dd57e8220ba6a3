"""How much faster is cached generation than running the whole text again for every token?

python benchmarks/thoughtsformer_generation.py

112 tokens after prompts of 16, 4 steps, width 384: rows of 128, four at once, as in training; one
at a time is shown beside it. There the weights have to be fetched anew for every single vector, so
the ratio is smaller the busier the machine. The published way computes every element of every
train anew for every token; it runs here in the faster of its two modes (torch's encoder layer has
a path of its own for evaluation). Both must write the same tokens first.
"""

import argparse
from functools import partial

import torch
from thoughtsformer import WORDS, Dense, alternate, make
from torch import Tensor

from thinkers.models import Model

PROMPT, NEW, STEPS, BATCH, WANTED = 16, 112, 4, 4, 20.0


@torch.no_grad()
def write(dense: Dense, tokens: Tensor, training: bool) -> Tensor:
    """The tokens with the likeliest `NEW` ones behind them."""
    dense.train(training)
    for _ in range(NEW):
        tokens = torch.cat([tokens, dense(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


def measure(model: Model, dense: Dense, tokens: Tensor, rounds: int) -> float:
    """How many times faster the cache is; prints the seconds."""
    ways = [
        partial(model.generate, tokens, NEW),
        partial(write, dense, tokens, False),
        partial(write, dense, tokens, True),
    ]
    written = [way() for way in ways]
    assert all(torch.equal(written[0], other) for other in written), "other tokens were written"
    ours, eval_mode, training = alternate(ways, rounds)
    ratio = min(eval_mode, training) / ours
    print(
        f"{NEW} tokens, {STEPS} steps, batch {len(tokens)}: {ours:.3f} s cached; recomputed "
        f"{eval_mode:.2f} s in evaluation mode, {training:.2f} s in training mode: {ratio:.1f}x",
        flush=True,
    )
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model, dense = make(STEPS, PROMPT + NEW)
    tokens = torch.randint(WORDS, (BATCH, PROMPT))
    measure(model, dense, tokens[:1], rounds)
    reached = measure(model, dense, tokens, rounds) >= WANTED
    print(f"{'reached' if reached else 'NOT REACHED'}: at least {WANTED}x at batch {BATCH}")
    raise SystemExit(not reached)


if __name__ == "__main__":
    main()
