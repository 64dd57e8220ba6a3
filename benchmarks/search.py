"""Searches of 20 experiments of 3 minutes each, by `thinkers research`, judged on the test split.

    nohup python benchmarks/search.py > runs/search.log &
    python benchmarks/search.py --cases cups
    python benchmarks/search.py --page docs

The changes of a search are written down before it begins, and made in this order, each on top of
what was kept. It can be stopped and started again. Then the first experiment and the best are
trained with three seeds that the search did not use. `shakespeare` needs its text, by
--shakespeare FILE: of its bytes the first 80 % are for training, 10 % for validation, the last for
the test. `--page FOLDER` writes search.json.

Machine: scores; how many updates fit into 3 CPU minutes depends on it, and on what runs beside.
Asked: ledgers, and the improvement on the test split. Measured: docs/research.md.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from harness import parser

from thinkers.files import exists, write_file
from thinkers.research import loop, report
from thinkers.research.ledger import LEDGER, Ledger

MINUTES, SEEDS = 3, 3


@dataclass(frozen=True)
class Search:
    """A recipe, and the changes that are tried: (description, settings)."""

    recipe: str
    changes: tuple[tuple[str, str], ...]


SEARCHES = {
    "cups": Search(
        "cups/thoughtsformer",
        (
            ("twice the learning rate", "--training.lr=0.006"),
            ("Muon", "--training.optimizer=muon --training.muon_lr=0.02"),
            ("half the batch, more updates", "--training.batch_size=32"),
            ("a third of the batch or less", "--training.batch_size=16"),
            ("no spare steps", "--training.spare_steps=0"),
            ("one layer", "--model.num_layers=1"),
            ("a wider hidden layer", "--model.hidden=288"),
            ("width 64", "--model.dim=64"),
            ("two heads", "--model.num_heads=2"),
            ("eight heads", "--model.num_heads=8"),
            ("no weight decay", "--training.weight_decay=0"),
            ("a short warm-up", "--training.warmup_updates=20"),
            ("a final rate of a tenth", "--training.min_lr_ratio=0.1"),
            ("the average of weights", "--training.ema=0.99"),
            ("a tied head", "--model.tie_head=true"),
            ("half the learning rate", "--training.lr=0.0015"),
            ("a stricter limit of gradients", "--training.clip=0.3"),
            ("three layers", "--model.num_layers=3"),
            ("a quarter of weight decay", "--training.weight_decay=0.025"),
            ("more spare steps", "--training.spare_steps=4"),
        ),
    ),
    "shakespeare": Search(
        "shakespeare/looped",
        (
            ("twice the learning rate", "--training.lr=0.002"),
            ("four times the learning rate", "--training.lr=0.004"),
            ("Muon", "--training.optimizer=muon --training.muon_lr=0.02"),
            ("twice the batch", "--training.batch_size=24"),
            ("half the batch", "--training.batch_size=6"),
            ("two steps", "--model.num_steps=2"),
            ("four steps", "--model.num_steps=4"),
            ("one looped layer", "--model.num_layers=1"),
            ("three looped layers", "--model.num_layers=3"),
            ("half the width of the hidden layer", "--model.hidden=160"),
            ("twice the width of the hidden layer", "--model.hidden=646"),
            ("width 96", "--model.dim=96"),
            ("eight heads", "--model.num_heads=8"),
            ("the loss of every step", "--model.step_loss=every"),
            ("the step as a code", "--model.time_code=true"),
            ("no weight decay", "--training.weight_decay=0"),
            ("a short warm-up", "--training.warmup_updates=20"),
            ("a final rate of a hundredth", "--training.min_lr_ratio=0.01"),
            ("the average of weights", "--training.ema=0.99"),
            ("an untied head", "--model.tie_head=false"),
        ),
    ),
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cases", nargs="*", choices=list(SEARCHES), help="default: all")
    arguments.add_argument("--out", type=Path, default=Path("runs/search"))
    arguments.add_argument("--shakespeare", type=Path, help="text of the search of this name")
    arguments.add_argument("--page", type=Path, help="write the ledgers into this folder, and end")
    options = arguments.parse_args()
    if options.page is not None:
        return write_results(options.out, options.page)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.cases or list(SEARCHES):
        of_task = split(options.shakespeare, options.out) if name == "shakespeare" else []
        search(SEARCHES[name], options.out / name, of_task)
        print("\n".join(report.lines(options.out / name)), flush=True)


def split(text: Path, out: Path) -> list[str]:
    """Write the three parts of a text, and return the settings that name them."""
    content = text.read_bytes()
    cuts = len(content) * 8 // 10, len(content) * 9 // 10
    parts = {
        "path": content[: cuts[0]],
        "valid_path": content[cuts[0] : cuts[1]],
        "test_path": content[cuts[1] :],
    }
    for name, part in parts.items():
        write_file(out / f"shakespeare_{name}.txt", part)
    return [f"--task.{name}={out / f'shakespeare_{name}.txt'}" for name in parts]


def search(plan: Search, out: Path, of_task: list[str]) -> None:
    """Make the experiments that are missing, and the judgement."""
    for description, settings in plan.changes[ended(out) :]:
        flags = [*settings.split(), *of_task]
        given = dict(flags=flags, description=description)
        for found in loop.experiment(plan.recipe, out, MINUTES, **given):
            print(" ".join(report.row(found)), flush=True)
    loop.judge(out, SEEDS)


def ended(out: Path) -> int:
    """Return the number of changes that were made: all experiments but the first."""
    if not exists(out / LEDGER):
        return 0
    with Ledger(out) as ledger:
        return max(0, sum(x.status != "running" for x in ledger.experiments()) - 1)


def write_results(out: Path, folder: Path) -> None:
    """Write search.json, the ledgers of all searches."""
    found = {}
    for name in SEARCHES:
        if exists(out / name / LEDGER):
            with Ledger(out / name) as ledger:
                rows = [
                    dict(zip(COLUMNS, report.row(x), strict=True)) for x in ledger.experiments()
                ]
                found[name] = {"experiments": rows, "judgement": ledger.judgement(), **ledger.meta}
    for each in found.values():  # of this machine
        del each["task_flags"]
    write_file(folder / "search.json", (json.dumps(found, indent=1) + "\n").encode())


COLUMNS = ("number", "status", "metric", "base", "updates", "seconds", "MiB", "seed", "change")


if __name__ == "__main__":
    main()
