"""Write tests/runs/stored: a run, a comparison, a memory and a ledger as this version writes them.

    python tools/stored_files.py

Each goes into a folder named by its format, with what must be read from it in a file beside it.
A format that is there is not written again: later versions must read these files as they are, or
refuse them by their format. Run it after a format has changed; the older files stay.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import file_cases  # noqa: E402
import memory_blocks  # noqa: E402

import thinkers  # noqa: E402
from thinkers.comparison import plan, results  # noqa: E402
from thinkers.memory import rows  # noqa: E402
from thinkers.memory.sqlite import SqliteStore  # noqa: E402
from thinkers.research import ledger  # noqa: E402
from thinkers.runs import folder as run_folder  # noqa: E402

STORED = ROOT / "tests" / "runs" / "stored"
NOT_KEPT = (".lock", "*.log", "report.html", "*.usage.json")
PROMPT = "3+4="
OPERATIONS = (
    {"do": "write", "topic": "a", "count": 5},
    {"do": "write", "topic": "b", "count": 3},
    {"do": "clear", "topic": "a"},
    {"do": "write", "topic": "c", "count": 4},
)


def main() -> None:
    makers: dict[str, Callable[[Path], Any]] = {
        f"run-{run_folder.FORMAT}": make_run,
        f"comparison-{plan.FORMAT}": make_comparison,
        f"memory-{rows.FORMAT}": make_memory,
        f"ledger-{ledger.FORMAT}": make_ledger,
    }
    for name, make in makers.items():
        if (STORED / name).exists():
            print(f"{name} is there")
            continue
        with tempfile.TemporaryDirectory() as home:
            expected = make(Path(home) / "made")
            ignored = shutil.ignore_patterns(*NOT_KEPT)
            shutil.copytree(Path(home) / "made", STORED / name, ignore=ignored)
        (STORED / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")


def make_run(place: Path) -> dict[str, Any]:
    """A run of two updates, with an average of its weights."""
    with tempfile.TemporaryDirectory() as home:
        shutil.copytree(file_cases.make_run(Path(home)), place)
    return {"logits": logits(place), "update": 2}


def logits(run: Path) -> list[float]:
    """The logits after the last token of PROMPT."""
    model, task = thinkers.open_run(run)
    assert task is not None
    with torch.no_grad():
        found = model(torch.tensor([task.encode(PROMPT)])).logits[0, -1]
    return [round(x, 6) for x in found.tolist()]


def make_comparison(place: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home:
        shutil.copytree(file_cases.make_comparison(Path(home)), place)
    return {"scores": results.read(place).mean_scores}


def make_memory(place: Path) -> dict[str, Any]:
    """A memory whose blocks follow from their ids: see benchmarks/memory_blocks.py."""
    store, state = SqliteStore.create(place, **memory_blocks.SETTINGS), memory_blocks.State()
    for operation in OPERATIONS:
        memory_blocks.perform(store, state, operation)
        state = state.after(operation)
    store.close()
    return {"operations": OPERATIONS}


def make_ledger(place: Path) -> dict[str, Any]:
    place.mkdir()
    meta = {"recipe": "add/looped", "minutes": 1.0, "metric": "exact", "higher_is_better": True}
    with ledger.Ledger.create(place, {**meta, "task_flags": []}) as made:
        for base, status in ((None, "keep"), (1, "discard"), (1, "keep")):
            change: dict[str, list[str]] = {"flags": ["--model.dim=8"], "files": []}
            number = made.begin(base, "0" * 64, change, "wider", 0)
            made.end(number, status, {"metric": number / 10})  # type: ignore[arg-type]
        interval = {"value": 0.2, "low": 0.1, "high": 0.3}
        intervals = {name: interval for name in ledger.INTERVALS}
        made.judge({"seeds": 3, "first": 1, "best": 3, **intervals})
        chain = [x.number for x in made.chain(made.best())]
        return {"chain": chain, "judgement": made.judgement()}


if __name__ == "__main__":
    main()
