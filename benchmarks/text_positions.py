"""Mean held-out loss of runs on a text, by position in the context.

python benchmarks/text_positions.py RUN [RUN ..] --part 16

The context is cut into parts of equal length. For each position of a part the loss is printed for
the first part, which has no context before it, and for all later parts together.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

import thinkers
from thinkers.runs.result import open_with_task

BATCHES, ROWS = 8, 50


@torch.no_grad()
def losses(folder: Path) -> torch.Tensor:
    """Return the mean loss at each position over held-out windows, (t,)."""
    model, task = thinkers.load(folder), open_with_task(folder)[1]
    found = []
    for number in range(BATCHES):
        batch = task.batch(number, ROWS, "valid")
        logits = model(batch.tokens, lengths=batch.lengths, prompt_lengths=batch.prompt_lengths)
        found.append(F.cross_entropy(logits.logits.mT, batch.targets, reduction="none"))
    return torch.cat(found).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--part", type=int, default=16, help="tokens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for folder in options.runs:
        loss = losses(folder)
        parts = loss[: len(loss) // options.part * options.part].reshape(-1, options.part)
        print(f"{folder}: {loss.mean():.3f}")
        for what, row in (("first part", parts[0]), ("later", parts[1:].mean(0))):
            print(f"  {what:<11}", " ".join(f"{x:.2f}" for x in row.tolist()))


if __name__ == "__main__":
    main()
