"""Loss of acknowledged blocks when the writer of a memory is killed with SIGKILL.

    nohup python benchmarks/memory_kills.py --rounds 1000 > runs/memory_kills.log &
    python benchmarks/memory_kills.py --page docs

Each round forks a writer, which writes, clears, compacts and rebuilds, and prints what it begins
and what is done. It is killed at a random moment of one kind of operation, each kind in turn. Then
the store must verify, and hold what was done, or that and all of the operation that was begun:
every block with its content, its topic and its children; and searches must equal brute force. The
next writer goes on with the same store. It can be stopped and started again: rounds add up, in a
new store. `--page FOLDER` writes the part `kills` of memory_store.json.

Machine: the result does not depend on it. Asked: nothing is lost in 1,000 kills. Exit code 1
otherwise.
"""

import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

import memory_blocks
import torch
from harness import one_thread, parser
from memory_blocks import SETTINGS, State

from thinkers.files import write_file
from thinkers.memory.sqlite import SqliteStore

KINDS = ("write", "clear", "compact", "rebuild")
MOST = 300
"""Sections beyond which the writer clears all."""
ENOUGH = 40
"""Operations of a kind whose durations are kept."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=1000)
    arguments.add_argument("--out", type=Path, default=Path("runs/memory_kills"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    results = options.out / "result.json"
    if options.page is not None:
        memory_blocks.write_part(options.page, "kills", json.loads(results.read_text()))
        return
    one_thread()
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(options.rounds, options.out / "store", results)
    print(json.dumps(found))
    print("nothing was lost" if not found["lost"] else "lost:", *found["lost"], sep="\n")
    raise SystemExit(bool(found["lost"]))


def measure(rounds: int, folder: Path, results: Path) -> dict[str, Any]:
    """Kill writers until so many rounds are done, those of earlier calls included."""
    memory_blocks.index_early()
    found: dict[str, Any] = {"rounds": 0, "acknowledged": 0, "completed": 0, "lost": []}
    found["killed_during"] = dict.fromkeys((*KINDS, "nothing"), 0)
    if results.exists():
        found = json.loads(results.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    SqliteStore.create(folder, **SETTINGS).close()
    state = State()
    durations: dict[str, list[float]] = defaultdict(lambda: [0.02])
    while found["rounds"] < rounds and not found["lost"]:
        kind = KINDS[found["rounds"] % len(KINDS)]
        seed = found["rounds"]
        state, begun, done = kill_once(folder, state, kind, random.Random(seed), durations)
        found["acknowledged"] += done
        found["killed_during"]["nothing" if begun is None else begun["do"]] += 1
        problems, state, is_completed = check(folder, state, begun)
        found["completed"] += is_completed
        found["lost"] += [f"round {seed}, during {begun}: {x}" for x in problems]
        found["rounds"] += 1
        write_file(results, (json.dumps(found) + "\n").encode())
    return found


def kill_once(
    folder: Path,
    state: State,
    kind: str,
    rng: random.Random,
    durations: dict[str, list[float]],
) -> tuple[State, dict[str, Any] | None, int]:
    """Run a writer and kill it in an operation of this kind.

    Returns:
        The state that was acknowledged, the operation that had begun, and the blocks acknowledged.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            churn(folder, state, kind, rng.randrange(2**32), writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    left, begun, since, done = rng.randint(1, 4), None, 0.0, 0
    with os.fdopen(reading) as lines:
        for line in lines:
            operation = json.loads(line)
            if begun is None:
                begun, since = operation, time.monotonic()
                left -= operation["do"] == kind
                if left == 0:
                    typical = statistics.median(durations[kind])
                    time.sleep(rng.uniform(0, 1.5 * typical))
                    os.kill(process, signal.SIGKILL)
            else:
                durations[begun["do"]] = [*durations[begun["do"]], time.monotonic() - since]
                durations[begun["do"]] = durations[begun["do"]][-ENOUGH:]
                before, state, begun = state.last, state.after(begun), None
                done += state.last - before
    _, status = os.waitpid(process, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise RuntimeError(f"the writer ended with {os.waitstatus_to_exitcode(status)}")
    return state, begun, done


def churn(folder: Path, state: State, kind: str, seed: int, pipe: int) -> None:
    """Change a store until killed; write a line as an operation begins, and as it is done."""
    rng = random.Random(seed)
    store = SqliteStore(folder)
    while True:
        operation = draw(rng, state, rng.choice(("write", "write", kind)))
        line = (json.dumps(operation) + "\n").encode()
        os.write(pipe, line)
        memory_blocks.perform(store, state, operation)
        os.write(pipe, line)
        state = state.after(operation)
        if rng.random() < 0.1:
            store.close()


def draw(rng: random.Random, state: State, do: str) -> dict[str, Any]:
    """Return an operation of this kind with random arguments; a large store is cleared instead."""
    if state.sections() > MOST:
        return {"do": "clear", "topic": None}
    if do == "clear":
        return {"do": do, "topic": rng.choice([*state.topics, None])}
    if do == "write":
        topic = f"topic {rng.randrange(memory_blocks.TOPICS)}"
        return {"do": do, "topic": topic, "count": rng.randint(1, 40)}
    return {"do": do}


def check(
    folder: Path, state: State, begun: dict[str, Any] | None
) -> tuple[list[str], State, bool]:
    """Return what is wrong with a store, its state, and True if what was begun is in it."""
    torch.manual_seed(state.last)
    store = SqliteStore(folder)
    problems = [str(fault) for fault in store.verify()]
    is_completed = False
    with store.view() as view:
        wrong = memory_blocks.differences(view, state)
        if wrong and begun is not None:
            after = state.after(begun)
            wrong_after = memory_blocks.differences(view, after)
            if not wrong_after:
                wrong, state, is_completed = [], after, True
        problems += wrong
    store.close()
    return problems, state, is_completed


if __name__ == "__main__":
    main()
