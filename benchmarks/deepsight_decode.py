"""Time of cached decoding by DeepSight, against a run over the whole context for every token.

    python benchmarks/deepsight_decode.py [--tokens 256] [--repeats 5]

The published size: width 150, 5 heads, 13 + 13 layers, 50,257 words. The published implementation
runs both halves over the context for every token and reads out the last position alone, as the
baseline here does. Both must generate the same tokens before anything is timed.

Machine: the ratio depends little on it; with a busy memory bus it falls, since decoding reads all
weights for each token. Asked: at least 5 times faster. Exit code 1 if missed. Measured:
docs/measured.md.
"""

import torch
from harness import alternate, one_thread, parser
from torch import Tensor

from thinkers import build_model
from thinkers.models import Model

MIN_SPEEDUP = 5.0


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
def generate_uncached(model: Model, tokens: Tensor, number: int) -> Tensor:
    """Append `number` tokens, each from a run over the whole context."""
    for _ in range(number):
        states = model.run(tokens)[-1]  # type: ignore[operator]
        following = model.read_out(states[:, -1:]).argmax(-1)
        tokens = torch.cat([tokens, following], 1)
    return tokens


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--tokens", type=int, default=256)
    arguments.add_argument("--vocab_size", type=int, default=50257)
    arguments.add_argument("--layers", type=int, default=13)
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    one_thread()
    model = make(options.vocab_size, options.layers)
    prompt = torch.randint(options.vocab_size, (1, 16))
    decoders = (
        lambda: generate_uncached(model, prompt, options.tokens),
        lambda: model.generate(prompt, options.tokens),
    )
    if not torch.equal(*(decode() for decode in decoders)):
        raise SystemExit("the cached model generates other tokens than the model without a cache")
    slow, fast = alternate(decoders, options.repeats)
    print(f"uncached {slow:6.2f} s   cached {fast:6.2f} s   {slow / fast:.1f}x", end="   ")
    print(f"(at least {MIN_SPEEDUP:g}x)")
    return int(slow / fast < MIN_SPEEDUP)


if __name__ == "__main__":
    raise SystemExit(main())
