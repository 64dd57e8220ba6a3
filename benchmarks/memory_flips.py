"""Flipped bits in every file of a memory: noticed, harmless, or silently wrong.

    nohup python benchmarks/memory_flips.py --rounds 1000 > runs/memory_flips.log &
    python benchmarks/memory_flips.py --page docs

A store of two levels and three topics, with an index, is flipped in two forms: closed, and as a
killed writer leaves it, with its log. Each round flips one random bit of one file, each file in
turn, database and log three times as often, and uses the store: topics, all blocks, searches, a
further write, clearing of a topic, and `verify`. A round is

    refused    an error of this library with exit code 4 or 6, as it was used
    rebuilt    an index that was made anew, as was said, and everything was right
    verified   everything was right, and `verify` lists the fault
    harmless   everything was right, and nothing is to be listed
    SILENT     something was wrong without an error: a block, a search, a topic, a byte that was
               left of what was cleared

Rounds add up until `--rounds`. `--page FOLDER` writes the part `flips` of memory_store.json.

Machine: the result does not depend on it. Asked: none is silent of 1,000. Exit code 1 otherwise.
"""

import contextlib
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import memory_blocks
import torch
from harness import one_thread, parser
from memory_blocks import SETTINGS, State

from thinkers.errors import ThinkersError
from thinkers.files import write_file
from thinkers.memory.sqlite import SqliteStore

TOPICS = {"topic a": 41, "topic b": 30, "topic c": 12}
CLEARED = "topic b"
MOST = ("memory.db", "memory.db-wal")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=1000)
    arguments.add_argument("--out", type=Path, default=Path("runs/memory_flips"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    results = options.out / "result.json"
    if options.page is not None:
        memory_blocks.write_part(options.page, "flips", json.loads(results.read_text()))
        return
    one_thread()
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(options.rounds, options.out, results)
    print(json.dumps(found))
    silent = found["silent"]
    print("none was silently wrong" if not silent else "silent:", *silent, sep="\n")
    raise SystemExit(bool(silent))


def measure(rounds: int, out: Path, results: Path) -> dict[str, Any]:
    """Flip bits until so many rounds are done, those of earlier calls included."""
    memory_blocks.index_early()
    found: dict[str, Any] = {"rounds": 0, "files": {}, "silent": []}
    if results.exists():
        found = json.loads(results.read_text())
    forms, state = make_stores(out)
    while found["rounds"] < rounds:
        rng = random.Random(found["rounds"])
        form = ("closed", "open")[found["rounds"] % 2]
        files = sorted(x for x in forms[form].iterdir() if x.stat().st_size)
        files += [x for x in files if x.name in MOST] * 2
        file = files[found["rounds"] // 2 % len(files)]
        target = out / "flipped"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(forms[form], target)
        bit = rng.randrange(8 * file.stat().st_size)
        content = bytearray(file.read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        (target / file.name).write_bytes(content)
        name = file.name if not file.name.startswith("index") else "index"
        outcome = use(target, state)
        if outcome.startswith("SILENT"):
            where = f"round {found['rounds']}, {form}: bit {bit} of {name}"
            found["silent"].append(f"{where}: {outcome}")
        counts = found["files"].setdefault(f"{name}, {form}", {})
        kind = outcome.partition(":")[0]
        counts[kind] = counts.get(kind, 0) + 1
        found["rounds"] += 1
        write_file(results, (json.dumps(found) + "\n").encode())
    return found


def make_stores(out: Path) -> tuple[dict[str, Path], State]:
    """Make the two forms of a store; return their folders, and what both hold."""
    forms = {form: out / form for form in ("closed", "open")}
    for folder in (*forms.values(), out / "work"):
        shutil.rmtree(folder, ignore_errors=True)
    store = SqliteStore.create(out / "work", **SETTINGS)
    state = State()
    operations = [{"do": "write", "topic": x, "count": n} for x, n in TOPICS.items()]
    for operation in operations[:2]:
        memory_blocks.perform(store, state, operation)
        state = state.after(operation)
    store.close()  # saves the index, and removes the log
    for operation in operations[2:]:
        memory_blocks.perform(store, state, operation)
        state = state.after(operation)
    shutil.copytree(out / "work", forms["open"])
    store.close()
    shutil.copytree(out / "work", forms["closed"])
    return forms, state


def use(folder: Path, state: State) -> str:
    """Use a store in every way; return what came of it."""
    torch.manual_seed(0)
    try:
        wrong, faults, is_rebuilt = _use(folder, state)
    except ThinkersError as error:
        if error.exit_code in (4, 6):
            return "refused"
        return f"SILENT: exit code {error.exit_code}: {error}"
    if wrong:
        return f"SILENT: {wrong}"
    if is_rebuilt:
        return "rebuilt"
    return "verified" if faults else "harmless"


def _use(folder: Path, state: State) -> tuple[list[str], list[str], bool]:
    """Return what was wrong, what `verify` listed, and True if an index was made anew."""
    store = SqliteStore(folder)
    faults = [str(fault) for fault in store.verify()]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), store.view() as view:
        wrong = memory_blocks.differences(view, state)
    is_rebuilt = "made anew" in said.getvalue()
    operation = {"do": "write", "topic": "topic a", "count": 3}
    memory_blocks.perform(store, state, operation)
    state = state.after(operation)
    cleared = state.topics[CLEARED]
    store.delete(CLEARED)
    state = state.cleared(CLEARED)
    with store.view() as view:
        wrong += memory_blocks.differences(view, state)
    wrong += [str(fault) for fault in store.verify() if not faults]
    store.close()
    left = b"".join(file.read_bytes() for file in sorted(folder.iterdir()))
    for id in (*cleared[0], *cleared[1]):
        vectors = memory_blocks.latents_of([id])[0], memory_blocks.keys_of([id])[0]
        traces = [x.half().numpy().tobytes() for x in vectors]
        if any(x in left for x in (*traces, memory_blocks.text_of(id).encode())):
            wrong.append(f"block {id} is left")
    return wrong, faults, is_rebuilt


if __name__ == "__main__":
    main()
