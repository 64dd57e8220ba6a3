"""Loss of saved work when a run is killed with SIGKILL at random moments and resumed each time.

    nohup python benchmarks/kill_resume.py --kills 3000 > runs/kill_resume.log &
    python benchmarks/kill_resume.py --page docs

The commands of a user run in forks of one process that has imported everything. The run saves every
other update and has a curriculum, an average of the weights and accumulated micro-batches. After
each kill the newest valid checkpoint must be no older than the last one that was acknowledged
("saved update=N"), and the next command must resume from it. Weights, state and metrics at the end
must equal those of an undisturbed run, bit for bit. A run that ends early is checked, and a new one
takes the remaining kills. It can be stopped and started again: kills add up, in a new run.
`--page FOLDER` writes the part `kills` of reliability.json.

Machine: the result does not depend on it. Asked: nothing is lost. Exit code 1 otherwise. Measured:
docs/reliability.md.
"""

import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands import Command, differences
from harness import parser, write_part

from thinkers.files import write_file
from thinkers.runs import checkpoint

RECIPE = [
    *("train", "add/decoder", "--model.dim=16", "--model.num_layers=1", "--task.curriculum=true"),
    *("--task.threshold=0.01", "--task.window=50", "--training.batch_size=10"),
    *("--training.accumulation=2", "--training.ema=0.9", "--training.checkpoint_every=2"),
    *("--training.evaluate_examples=10", "--training.keep_last=2", "--training.log_every=1"),
    "--training.device=cpu",
]
MOST_SECONDS = 3600.0


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=100)
    arguments.add_argument("--num_updates", type=int, default=400)
    arguments.add_argument("--out", type=Path, default=Path("runs/kill_resume"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    if options.page is not None:
        write_part(options.page, "kills", json.loads((options.out / "result.json").read_text()))
        return
    found = measure(options.kills, options.num_updates, options.out)
    print(f"{found['kills']} kills of {found['runs']} runs of {options.num_updates} updates")
    print("nothing was lost" if not found["lost"] else "lost:", *found["lost"], sep="\n")
    raise SystemExit(bool(found["lost"]))


def measure(kills: int, num_updates: int, out: Path) -> dict[str, Any]:
    """Kill runs until so many kills are done, those of earlier calls included."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "result.json"
    found: dict[str, Any] = {"kills": 0, "runs": 0, "num_updates": num_updates, "lost": []}
    if results.exists():
        found = json.loads(results.read_text())
    if found["num_updates"] != num_updates:
        raise SystemExit(f"{out} has runs of {found['num_updates']} updates; choose another --out")
    begin = [*RECIPE, f"--training.num_updates={num_updates}"]
    undisturbed, duration = make_undisturbed(begin, out)
    run, acknowledged = out / "killed", 0
    shutil.rmtree(run, ignore_errors=True)
    while (found["kills"] < kills or run.exists()) and not found["lost"]:
        rng = random.Random(found["kills"])
        resume = (run / "config.json").exists()
        arguments = ["train", f"--resume={run}"] if resume else [*begin, f"--out={run}"]
        command = Command(arguments, out / "log")
        is_killed = found["kills"] < kills
        if not command.ends_within(rng.uniform(0, 0.4 * duration) if is_killed else MOST_SECONDS):
            command.kill()
            found["kills"] += 1
            acknowledged = max(acknowledged, command.acknowledged())
            newest = checkpoint.newest(run / "checkpoints") if acknowledged else None
            if acknowledged and (newest is None or int(newest.name) < acknowledged):
                problem = f"saved {acknowledged}, the newest left is {newest}"
                found["lost"].append(f"kill {found['kills']}: {problem}")
        elif command.code != 0:
            found["lost"].append(f"after kill {found['kills']}: {command.output()[-500:]}")
        else:
            found["lost"] += [f"run {found['runs']}: {x}" for x in differences(run, undisturbed)]
            found["runs"], acknowledged = found["runs"] + 1, 0
            shutil.rmtree(run)
        write_file(results, (json.dumps(found) + "\n").encode())
    return found


def make_undisturbed(begin: Sequence[str], out: Path) -> tuple[Path, float]:
    """Make a run that is not killed; return its folder and its seconds."""
    shutil.rmtree(out / "undisturbed", ignore_errors=True)
    start = time.monotonic()
    command = Command([*begin, f"--out={out / 'undisturbed'}"], out / "log")
    assert command.ends_within(MOST_SECONDS) and command.code == 0, command.output()
    return out / "undisturbed", time.monotonic() - start


if __name__ == "__main__":
    main()
