"""Cost of generating a batch of 16 rows, against one row, and FLOPs of a token, against `flops`.

    python benchmarks/batch_generation.py [--models decoder thinker] [--repeats 7]

Every model at width 128, 4 layers and 4 thinking steps generates 64 tokens after a prompt of 16.
Each row of the batch must equal the row generated alone. The FLOPs of a token are those that run,
counted by PyTorch over 16 tokens (in which a thinker ends a section); `model.flops` predicts a
whole row.

Machine: both times are of one process in turn, and the FLOPs are counted, so the ratios depend
little on it. Asked: 16 rows at most 4 times one row; at most 1.1 times the predicted FLOPs. Exit
code 1 if missed. Measured: docs/measured.md.
"""

import torch
from harness import alternate, one_thread, parser
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from thinkers.models import MODELS, Model, build_model

ROWS, PROMPT, NEW, COUNTED = 16, 16, 64, 16
MAX_TIME_RATIO, MAX_FLOPS_RATIO = 4.0, 1.1
FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    """FLOPs of the fused CPU kernel, which PyTorch's counter does not know."""
    return sdpa_flop_count(q, k, v)


def generation_flops(model: Model, tokens: Tensor, new: int) -> int:
    """FLOPs of generating `new` tokens."""
    with FlopCounterMode(display=False, custom_mapping={FUSED: attention_flops}) as counter:
        model.generate(tokens, new)
    return counter.get_total_flops()


def measure(name: str, repeats: int) -> bool:
    """Print both ratios of a model; return True if they are within their bounds."""
    torch.manual_seed(0)
    sizes = {"dim": 128, "num_layers": 4, "num_heads": 4, "num_steps": 4}
    model = build_model(name, vocab_size=65, max_length=PROMPT + NEW, **sizes).eval()
    tokens = torch.randint(65, (ROWS, PROMPT))
    batch = model.generate(tokens, NEW)
    for i in range(ROWS):
        assert torch.equal(model.generate(tokens[i : i + 1], NEW)[0], batch[i]), f"row {i} differs"

    one, all_rows = alternate(
        [lambda n=n: model.generate(tokens[:n], NEW) for n in (1, ROWS)], repeats
    )
    flops = generation_flops(model, tokens[:1], NEW)
    flops -= generation_flops(model, tokens[:1], NEW - COUNTED)
    length = PROMPT + NEW
    flops_ratio = flops / COUNTED / (model.flops(1, length) / length)
    print(
        f"{name}: one row {1000 * one:.0f} ms, {ROWS} rows {1000 * all_rows:.0f} ms: "
        f"{all_rows / one:.2f}x (at most {MAX_TIME_RATIO}x); FLOPs of a token / predicted: "
        f"{flops_ratio:.3f} (at most {MAX_FLOPS_RATIO})",
        flush=True,
    )
    return all_rows <= MAX_TIME_RATIO * one and flops_ratio <= MAX_FLOPS_RATIO


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments.add_argument("--repeats", type=int, default=7)
    options = arguments.parse_args()
    one_thread()
    reached = [measure(name, options.repeats) for name in options.models]
    raise SystemExit(not all(reached))


if __name__ == "__main__":
    main()
