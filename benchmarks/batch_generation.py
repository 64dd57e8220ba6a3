"""What does generation in a batch of 16 cost, against one row; and a token, against `flops`?

python benchmarks/batch_generation.py [--models a,b,c] [--rounds 7]

Width 128, 4 layers, 4 thinking steps, 64 tokens after a prompt of 16, on one thread, in processor
time. The rows must come out as they do alone. A token's operations are those that run, counted by
PyTorch, over 16 tokens (in which a thinker ends a section); `flops` predicts a whole row of them.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from thinkers.models import MODELS, Model, build_model

ROWS, PROMPT, NEW, COUNTED = 16, 16, 64, 16
TIMES, SHARE = 4.0, 1.1
FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    """Of the fused kernel of CPUs, which PyTorch's counter does not know."""
    return sdpa_flop_count(q, k, v)


def alternate(model: Model, tokens: Tensor, rounds: int) -> tuple[float, float]:
    """The median seconds of one row, and of all."""
    taken: dict[int, list[float]] = {1: [], ROWS: []}
    for _ in range(rounds):
        for n, seconds in taken.items():
            start = time.process_time()
            model.generate(tokens[:n], NEW)
            seconds.append(time.process_time() - start)
    return statistics.median(taken[1]), statistics.median(taken[ROWS])


def operations(model: Model, tokens: Tensor, new: int) -> int:
    """Those of generating so many tokens."""
    with FlopCounterMode(display=False, custom_mapping={FUSED: attention_flops}) as counter:
        model.generate(tokens, new)
    return counter.get_total_flops()


def measure(name: str, rounds: int) -> bool:
    """Whether both stay within their bounds; prints them."""
    torch.manual_seed(0)
    sizes = {"dim": 128, "num_layers": 4, "num_heads": 4, "num_steps": 4}
    model = build_model(name, vocab_size=65, max_length=PROMPT + NEW, **sizes).eval()
    tokens = torch.randint(65, (ROWS, PROMPT))
    whole = model.generate(tokens, NEW)
    for i in range(ROWS):
        assert torch.equal(model.generate(tokens[i : i + 1], NEW)[0], whole[i]), f"row {i} differs"

    one, all_rows = alternate(model, tokens, rounds)
    run = operations(model, tokens[:1], NEW) - operations(model, tokens[:1], NEW - COUNTED)
    length = PROMPT + NEW
    share = run / COUNTED / (model.flops(1, length) / length)
    print(
        f"{name}: {1000 * one:.0f} ms a row, {1000 * all_rows:.0f} ms for {ROWS}: "
        f"{all_rows / one:.2f}x (at most {TIMES}); a token {share:.3f} of flops (at most {SHARE})"
    )
    return all_rows <= TIMES * one and share <= SHARE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    within = [measure(name, given.rounds) for name in given.models.split(",")]
    raise SystemExit(not all(within))


if __name__ == "__main__":
    main()
