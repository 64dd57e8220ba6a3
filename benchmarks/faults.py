"""Each operation of the disk fails in turn, and the power at any moment: what is lost.

    nohup python benchmarks/faults.py > runs/faults.log &
    python benchmarks/faults.py --page docs

The operations are the cases of tests/fault_cases.py: saving, resuming, importing, a memory and
others. A trial of one of them is of a kind:

    deaths    the process is killed before the Nth change of the disk
    full      the Nth change fails with ENOSPC, or with EDQUOT
    refusals  the Nth operation, which may only read, fails with EIO, EACCES, EMFILE and others
    images    the power fails: one of the contents that the disk may then have (tests/power_loss.py)

After it what was acknowledged must be there; an error must have exit code 6, a path and a remedy.
Then the operation is repeated (of images: one in 40), which must come to what it comes to when
nothing fails, and must leave nothing behind.

Trials have a fixed order, in which each place fails once before any fails again. They add up under
`--out` until all are done, or `--most` of each operation and kind. `--page FOLDER` writes
faults.json.

Machine: the result does not depend on it. Asked: nothing is lost. Exit code 1 otherwise.
"""

import contextlib
import io
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from harness import file_name, one_thread, parser

from thinkers.files import write_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from fault_cases import CASES, WRITING, quick_pages  # noqa: E402
from faulty_disk import ERRORS, KILL, Case, count, quick_folder, trial  # noqa: E402
from power_loss import RECOVERED, find_sites, images, loss, recorded  # noqa: E402

FULL = ("ENOSPC", "EDQUOT")
FAULTS = {
    "deaths": (KILL,),
    "full": FULL,
    "refusals": tuple(name for name in ERRORS if name not in FULL),
}
MIXES = 10
"""Images of random choices at each moment, beyond those of a fixed kind."""
KINDS = {kind.name: kind for kind in dict.fromkeys((*CASES, *WRITING))}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--operations", nargs="*", choices=KINDS, default=list(KINDS))
    arguments.add_argument("--most", type=int, help="trials of each operation and kind in all")
    arguments.add_argument("--out", type=Path, default=Path("runs/faults"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    if options.page is not None:
        write_page(options.out, options.page)
        return
    one_thread()
    lost = []
    for name in options.operations:
        for part in measure(KINDS[name], options.out, options.most).values():
            lost += part["lost"]
    print("nothing was lost" if not lost else "lost:", *lost, sep="\n")
    raise SystemExit(bool(lost))


def write_page(out: Path, page: Path) -> None:
    """Write the results of all operations into one file."""
    files = {name: out / f"{file_name(name)}.json" for name in KINDS}
    found = {name: json.loads(x.read_text()) for name, x in files.items() if x.exists()}
    write_file(page / "faults.json", (json.dumps(found, indent=1) + "\n").encode())


def measure(kind: type[Case], out: Path, most: int | None = None) -> dict[str, Any]:
    """Try an operation until so many trials of each kind are done, those of earlier calls included.

    Returns:
        {kind: how many trials there are, how many are done, and what was lost in them}.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = out / f"{file_name(kind.name)}.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    if found and all(x["tried"] >= min(x["of"], most or x["of"]) for x in found.values()):
        return found
    with (
        tempfile.TemporaryDirectory(dir=quick_folder()) as place,
        mock.patch("os.fsync", lambda _: None),  # each is called; what it waits for is left out
        quick_pages(),
    ):
        attempts = trials(kind, Path(place))
        for name, (places, rounds, _) in attempts.items():
            if found.get(name, {}).get("of") != places * rounds:  # new, or of another edition
                found[name] = {"of": places * rounds, "tried": 0, "lost": []}
        for name, (places, _, attempt) in attempts.items():
            part, of = found[name], found[name]["of"]
            order = random.Random(0).sample(range(places), places)
            for number in range(part["tried"], min(of, most or of)):
                part["lost"] += attempt(order[number % places], number // places)
                part["tried"] += 1
                write_file(results, (json.dumps(found) + "\n").encode())
            lost = len(part["lost"])
            print(f"{kind.name}, {name}: {lost} lost in {part['tried']} of {of}", flush=True)
        write_file(results, (json.dumps(found) + "\n").encode())
    return found


Attempt = Callable[[int, int], list[str]]
"""A trial at a place, in one of the rounds over all places; it returns what was lost."""


def trials(kind: type[Case], place: Path) -> dict[str, tuple[int, int, Attempt]]:
    """Return the places, the rounds over them and the trials of an operation, by their kind."""
    found = {}
    if kind in CASES:
        case, begun = kind(), place / "begun"
        begun.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            case.begin(begun)
        count(case, begun, place, changes=False)  # which imports what is imported late
        for name, faults in FAULTS.items():
            changes = name != "refusals"
            if case.loses_power or not changes:
                number, expected = count(case, begun, place, changes)
                attempt = failing(case, begun, faults, expected, changes)
                found[name] = number, len(faults), attempt
    if kind in WRITING:
        sites = find_sites(ROOT / "thinkers")
        with contextlib.redirect_stdout(io.StringIO()):
            case, root, events, expected = recorded(kind(), place, sites)
        kept = list(images(root, events, MIXES))
        found["images"] = len(kept), 1, losing_power(case, kept, place / "image", expected)
    return found


def failing(
    case: Case, begun: Path, faults: Sequence[str], expected: Any, changes: bool
) -> Attempt:
    """Return trials of an operation that fails at a place; faults take turns over the places."""

    def attempt(place: int, turn: int) -> list[str]:
        fault = faults[(place + turn) % len(faults)]
        try:
            ended = trial(case, begun, begun.parent, place + 1, fault, expected, changes)
        except Exception as error:
            return [f"{case.name}, {fault} at {place + 1}: {type(error).__name__}: {error}"]
        missed = "" if ended.failed else f"{case.name}, {fault} at {place + 1}: nothing failed"
        return [x for x in (ended.text, missed) if x]

    return attempt


def losing_power(
    case: Case, kept: Sequence[tuple[str, dict[str, Any]]], folder: Path, expected: Any
) -> Attempt:
    """Return trials of an operation whose disk has one of these images."""

    def attempt(place: int, _: int) -> list[str]:
        said, tree = kept[place]
        is_continued = place % RECOVERED == RECOVERED - 1
        wrong = loss(case, said, tree, folder, expected if is_continued else None)
        return [f"{case.name}, image {place} of {len(kept)}: {wrong}"] if wrong else []

    return attempt


if __name__ == "__main__":
    main()
