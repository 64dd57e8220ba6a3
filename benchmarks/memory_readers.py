"""Four readers of a memory beside one writer, which is killed with SIGKILL every five seconds.

    nohup python benchmarks/memory_readers.py --minutes 10 > runs/memory_readers.log &
    python benchmarks/memory_readers.py --page docs

The writer writes, clears, compacts and rebuilds without a pause, and puts the generation of what is
done into shared memory. A reader begins one snapshot after the other. Each must be at least as new
as what was done when it began; hold as many blocks as it says; every block whole, with the content
that follows from its id; and find by search what brute force finds over its own keys, also when it
searches again at its end. Every fiftieth snapshot is of a store that is opened anew. Minutes add up
over calls. `--page FOLDER` writes the part `readers` of memory_store.json.

Machine: the result does not depend on it. Asked: no torn and no missing block, no exception, in 10
minutes. Exit code 1 otherwise.
"""

import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import memory_blocks
import memory_kills
import torch
from harness import one_thread, parser
from memory_blocks import SETTINGS, State

from thinkers.files import write_file
from thinkers.memory.sqlite import SqliteStore
from thinkers.memory.views import SqliteView

READERS, SECONDS, REOPENED = 4, 5.0, 50
GENERATION, STOP = struct.Struct("<q"), struct.Struct("<q")


class Shared:
    """Numbers that all processes share: the generation that is done, and a request to stop."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 16)

    @property
    def generation(self) -> int:
        return int(GENERATION.unpack_from(self.memory, 0)[0])

    @generation.setter
    def generation(self, value: int) -> None:
        GENERATION.pack_into(self.memory, 0, value)

    @property
    def stops(self) -> bool:
        return bool(STOP.unpack_from(self.memory, 8)[0])

    def stop(self) -> None:
        STOP.pack_into(self.memory, 8, 1)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--out", type=Path, default=Path("runs/memory_readers"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    results = options.out / "result.json"
    if options.page is not None:
        memory_blocks.write_part(options.page, "readers", json.loads(results.read_text()))
        return
    one_thread()
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(options.minutes, options.out, results)
    print(json.dumps(found))
    wrong = found["wrong"]
    print("nothing was torn or missing" if not wrong else "wrong:", *wrong, sep="\n")
    raise SystemExit(bool(wrong))


def measure(minutes: float, out: Path, results: Path, seconds: float = SECONDS) -> dict[str, Any]:
    """Read beside a writer until so many minutes are done, those of earlier calls included."""
    memory_blocks.index_early()
    found: dict[str, Any] = {"minutes": 0.0, "kills": 0, "snapshots": 0, "generations": 0}
    found["wrong"] = []
    if results.exists():
        found = json.loads(results.read_text())
    folder, shared = out / "store", Shared()
    shutil.rmtree(folder, ignore_errors=True)
    SqliteStore.create(folder, **SETTINGS).close()
    logs = [out / f"reader-{number}.json" for number in range(READERS)]
    readers = [fork(lambda n=n: read(folder, shared, logs[n], n)) for n in range(READERS)]
    rng, start = random.Random(int(60 * found["minutes"])), time.monotonic()
    while time.monotonic() - start < 60 * (minutes - found["minutes"]):
        seed = rng.randrange(2**32)
        writer = fork(lambda seed=seed: write(folder, shared, seed))
        time.sleep(seconds * rng.uniform(0.8, 1.2))
        os.kill(writer, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) != -signal.SIGKILL:
            found["wrong"].append("the writer ended by itself")
            break
        found["kills"] += 1
    shared.stop()
    for process, log in zip(readers, logs, strict=True):
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        found["wrong"] += [f"a reader ended with {code}"] * (code != 0)
        own = json.loads(log.read_text())
        found["snapshots"] += own["snapshots"]
        found["wrong"] += own["wrong"]
    found["wrong"] += [str(fault) for fault in SqliteStore(folder).verify()]
    found["minutes"] += (time.monotonic() - start) / 60
    found["generations"] += shared.generation
    write_file(results, (json.dumps(found) + "\n").encode())
    return found


def fork(call: Callable[[], None]) -> int:
    """Run a function in a forked process, which ends with it; return the process."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        call()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def write(folder: Path, shared: Shared, seed: int) -> None:
    """Change a store until killed."""
    rng = random.Random(seed)
    store = SqliteStore(folder)
    with store.view() as view:
        state = state_of(view)
    while True:
        kinds = ("write", "write", "write", "clear", "compact", "rebuild")
        operation = memory_kills.draw(rng, state, rng.choice(kinds))
        memory_blocks.perform(store, state, operation)
        state = state.after(operation)
        shared.generation = store.meta.generation


def state_of(view: SqliteView) -> State:
    """Return the state that a snapshot is in."""
    topics: dict[str, Any] = {}
    for level in (1, 2):
        blocks = view.fetch(view.ids(level))
        for i, topic in enumerate(blocks.topics):
            sections, upper = topics.get(topic, ((), {}))
            id = int(blocks.ids[i])
            if level == 1:
                sections += (id,)
            elif blocks.levels[i] == 2:
                upper = upper | {id: blocks.children[i]}
            topics[topic] = sections, upper
    return State(view.meta.last, topics)


def read(folder: Path, shared: Shared, log: Path, number: int) -> None:
    """Read snapshots until asked to stop; write their number and what was wrong."""
    torch.manual_seed(number)
    store, snapshots, wrong = SqliteStore(folder), 0, list[str]()
    while not shared.stops and len(wrong) < 10:
        snapshots += 1
        try:
            if snapshots % REOPENED == 0:
                store.close()
                store = SqliteStore(folder)
            done = shared.generation
            with store.view() as view:
                if view.meta.generation < done:
                    wrong.append(f"generation {view.meta.generation}, where {done} was done")
                wrong += memory_blocks.differences(view, state_of(view))
                ids = view.ids().tolist()
                if len(ids) != len(view):
                    wrong.append(f"{len(ids)} blocks of {len(view)}")
                wrong += memory_blocks.wrong_searches(view)
        except Exception:
            wrong.append(traceback.format_exc())
    log.write_text(json.dumps({"snapshots": snapshots, "wrong": wrong}))


if __name__ == "__main__":
    main()
