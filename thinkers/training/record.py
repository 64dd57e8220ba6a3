"""config.json of a run whose training begins or continues."""

from pathlib import Path
from typing import Any

from thinkers.runs import folder as run_folder
from thinkers.terminal import show
from thinkers.training.distributed import Ranks
from thinkers.training.state import TrainState


def write_record(
    folder: Path,
    record: dict[str, Any],
    state: TrainState,
    update: int,
    precision: str,
    ranks: Ranks,
) -> None:
    """Complete config.json: resolved settings, plans, device; and report changes on a resume."""
    num_updates = state.config.training.num_updates
    plans = [plan for plan in record.get("plans", []) if plan["from"] < update]
    if not plans or plans[-1]["num_updates"] != num_updates:
        plans.append({"from": update, "num_updates": num_updates})
    here = {"precision": precision, "device": str(ranks.device), "ranks": ranks.world}
    here |= run_folder.surroundings()
    for change in run_folder.changes(record, here) if "precision" in record else ():
        show(f"{change}: the last bits may differ")
    record |= here | {"config": state.config.to_dict(), "plans": plans}
    state.task.save_to_run(folder)  # first: a run with a record can be resumed
    run_folder.write_record(folder, record)
