"""What does a written token cost? Cached decoding against reading the whole context again.

python benchmarks/deepsight_decode.py

The published size: width 150, 5 heads, 13 + 13 layers, 50,257 words. The published way runs both
halves over the context for every token and reads out the last position alone; so does the slow
way here. Both must write the same tokens before anything is timed. Process time of one thread,
both in turn, medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from thinkers import build_model
from thinkers.models import Model

AT_LEAST = 5.0


def make(vocab_size: int, layers: int) -> Model:
    """The published encoder-decoder, untrained."""
    torch.manual_seed(0)
    model = build_model(
        "deepsight",
        variant="published",
        vocab_size=vocab_size,
        dim=150,
        num_heads=5,
        num_layers=layers,
        max_length=400,
        horizon=11,
    )
    # Larger embeddings set the logits apart, so that rounding decides no token.
    with torch.no_grad():
        for x in model.parameters():
            x.mul_(3 if x.shape[0] == vocab_size else 1)
    return model.eval()


@torch.no_grad()
def read_again(model: Model, tokens: Tensor, number: int) -> Tensor:
    """So many more tokens, each from a run over all that is there."""
    for _ in range(number):
        states = model.run(tokens)[-1]  # type: ignore[operator]
        following = model.read_out(states[:, -1:]).argmax(-1)
        tokens = torch.cat([tokens, following], 1)
    return tokens


def seconds(work: Callable[[], object]) -> float:
    """The process time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocab_size", type=int, default=50257)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make(options.vocab_size, options.layers)
    prompt = torch.randint(options.vocab_size, (1, 16))
    ways = (
        lambda: read_again(model, prompt, options.tokens),
        lambda: model.generate(prompt, options.tokens),
    )
    if not torch.equal(*(way() for way in ways)):
        raise SystemExit("the cache writes other tokens than the model without it")
    times = [[seconds(way) for way in ways] for _ in range(options.repeats)]
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"read again {slow:6.2f} s   cached {fast:6.2f} s   {slow / fast:.1f}x", end="   ")
    print(f"(at least {AT_LEAST:g}x)")
    return int(slow / fast < AT_LEAST)


if __name__ == "__main__":
    raise SystemExit(main())
