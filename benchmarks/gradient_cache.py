"""Time and memory of a gradient through the compression of a long document, without its graph.

    python benchmarks/gradient_cache.py [--sections 4096] [--repeats 5] [--page docs]

A loss of 8 questions about one document, sections of 32 tokens, blocks of 4 latents, width 64, and
its gradient: with the whole graph, and with one that is built again for 64 sections at a time. Both
must give the same gradients in float64 before anything is timed; memory is the growth of the peak
in a process of its own, time that of the process. `--page FOLDER` writes gradient_cache.json.

Machine: the ratios depend little on it. Asked: at most 40 % of the memory and twice the time. Exit
code 1 if missed. Measured: docs/memory.md.
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness import in_new_process, one_thread, parser, peak_growth, process_seconds

from thinkers.files import write_file
from thinkers.models import Batch, Model, build_model, thinker_memory
from thinkers.models.batch import IGNORED

TOKENS, QUESTIONS, VOCAB = 32, 8, 64
MOST_MEMORY, MOST_TIME = 0.4, 2.0
WHOLE = 10**9
WAYS = {"whole": WHOLE, "cached": thinker_memory.REPLAYED_SECTIONS}
"""{name: sections of a document above which its graph is not kept}."""


def setting(sections: int, dtype: torch.dtype) -> tuple[Model, Batch]:
    """Return a model, and questions about one document of this number of sections."""
    torch.manual_seed(0)
    sizes = dict(dim=64, num_heads=4, num_layers=1, num_latents=2, num_steps=2, mixing=4)
    memory = dict(memory="blocks", memory_section=TOKENS, block_latents=4)
    model = build_model("thinker", vocab_size=VOCAB, max_length=4, **(sizes | memory))
    tokens = torch.randint(VOCAB, (QUESTIONS, 3))
    lengths = torch.full((QUESTIONS,), 3)
    targets = tokens.where(torch.arange(3) == 2, IGNORED)
    batch = Batch(
        tokens,
        targets,
        lengths,
        lengths,
        sections=torch.randint(VOCAB, (1, sections, TOKENS)),
        section_lengths=torch.full((1, sections), TOKENS),
        document=torch.zeros(QUESTIONS, dtype=torch.int64),
        document_keys=torch.zeros(1, dtype=torch.int64),
    )
    return model.to(dtype), batch


def prepared(way: str, sections: int, dtype: torch.dtype = torch.float32) -> Callable[[], Model]:
    """Return a function that computes the gradients in this way."""
    model, batch = setting(sections, dtype)

    def run() -> Model:
        thinker_memory.REPLAYED_SECTIONS = WAYS[way]
        model.zero_grad(set_to_none=True)
        model.loss(batch).total.backward()
        return model

    return run


def check(sections: int) -> float:
    """Return the largest relative difference of the gradients in the two ways, in float64.

    The pieces of both are of 64 sections, so that only the graph differs.
    """
    grads = []
    for way in WAYS:
        model = prepared(way, sections, torch.float64)()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    worst = 0.0
    for name, expected in grads[0].items():
        found = grads[1][name]
        assert (found is None) == (expected is None), name
        if expected is not None and found is not None:
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    assert worst <= 1e-12, f"the gradients differ by {worst:.1e}"
    return worst


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sections", type=int, default=4096)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--page", type=Path, help="write the results into this folder")
    arguments.add_argument("--memory", choices=WAYS, help="print the growth of the peak, and end")
    options = arguments.parse_args()
    one_thread()
    if options.memory:
        print(peak_growth(prepared(options.memory, options.sections)))
        return
    found: dict[str, object] = {"sections": options.sections, "difference": check(256)}
    growth = {
        way: in_new_process(__file__, "--memory", way, "--sections", options.sections)
        for way in WAYS
    }
    calls = [prepared(way, options.sections) for way in WAYS]
    pairs = [[process_seconds(call) for call in calls] for _ in range(options.repeats)]
    ratios = [cached / whole for whole, cached in pairs]
    seconds = [statistics.median(column) for column in zip(*pairs, strict=True)]
    found |= {"MiB": growth, "seconds": dict(zip(WAYS, seconds, strict=True))}
    found |= {"memory": growth["cached"] / growth["whole"], "time": statistics.median(ratios)}
    found["times"] = [min(ratios), max(ratios)]
    print(json.dumps(found))
    if options.page is not None:
        file = options.page / "gradient_cache.json"
        write_file(file, (json.dumps(found, indent=1) + "\n").encode())
    missed = found["memory"] > MOST_MEMORY or found["time"] > MOST_TIME  # type: ignore[operator]
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
