"""Changed bytes in everything that is parsed: errors of the library alone, soon, in little memory.

    nohup python benchmarks/parsers.py --cases 100000 > runs/parsers.log &
    python benchmarks/parsers.py --page docs

`parser_cases.py` has the parsers. Case i of a parser is drawn from its name and i, from intact
files: bytes and pieces that mean something are flipped, inserted, deleted, repeated and joined; or
values are changed and the digest is made again, as somebody would who forges a file. A case fails
if anything but a `ThinkersError` escapes, if it takes more than 1 s of process time, if the process
has taken 512 MB since its parser began, or if a file with a digest is read although it has changed.
Each parser has a process of its own; a case is stopped after 5 s. Cases add up until `--cases`; the
first 20 that failed of a parser are kept under `--out` as they were parsed. States of tokenizers of
byte pairs are among the cases only where the extra `text` is installed. `--page FOLDER` writes the
part `parsers` of reliability.json.

Machine: the result does not depend on it. Asked: none of 100,000 of each fails. Exit code 1
otherwise.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from file_cases import Case, Slow
from harness import one_thread, parser, resident, write_part
from parser_cases import PARSERS

from thinkers.errors import ThinkersError
from thinkers.files import write_file

MOST_SECONDS, MOST_MB, KEPT = 1.0, 512, 20
STOPPED_AFTER = 5.0
"""Seconds of process time after which a case is ended."""
SAVED_EVERY = 2000


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cases", type=int, default=100_000, help="of each parser")
    arguments.add_argument("--parsers", nargs="*", choices=sorted(PARSERS), help="default: all")
    arguments.add_argument("--out", type=Path, default=Path("runs/parsers"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    results = options.out / "result.json"
    if options.page is not None:
        write_part(options.page, "parsers", json.loads(results.read_text()))
        return
    one_thread()
    failed = []
    for name in options.parsers or PARSERS:
        found = in_child(name, options.cases, options.out)
        failed += found["failed"]
        print(f"{name}: {found['cases']:,} cases, {len(found['failed'])} failed", flush=True)
    print("none failed" if not failed else "failed:", *failed, sep="\n")
    raise SystemExit(bool(failed))


def in_child(name: str, cases: int, out: Path) -> dict[str, Any]:
    """Run the cases of a parser in a fork, so that memory is its own; return what was found."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            measure(name, cases, out)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if status:
        raise RuntimeError(f"{name} ended with {os.waitstatus_to_exitcode(status)}")
    found: dict[str, Any] = json.loads((out / "result.json").read_text())[name]
    return found


def measure(name: str, cases: int, out: Path) -> dict[str, Any]:
    """Run cases of a parser until so many are done, those of earlier calls included."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "result.json"
    every = json.loads(results.read_text()) if results.exists() else {}
    found = every.setdefault(name, {"cases": 0, "slowest": 0.0, "mb": 0, "failed": []})
    with tempfile.TemporaryDirectory() as folder, quiet(), alarm():
        os.environ["THINKERS_CACHE"] = f"{folder}/cache"
        make = PARSERS[name](Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
        before = resident("VmHWM")
        while found["cases"] < cases:
            number = found["cases"]
            case = make(random.Random(f"{name} {number}"))
            reason, seconds = run(case)
            grown = resident("VmHWM") - before if number % 50 == 49 else 0.0
            if grown > MOST_MB:
                reason, before = f"{grown:.0f} MB were taken by one of 50 cases", resident("VmHWM")
            found["slowest"] = max(found["slowest"], round(seconds, 3))
            found["mb"] = max(found["mb"], round(grown))
            if reason is not None:
                found["failed"].append(f"{name} {number}: {reason}")
                if len(found["failed"]) <= KEPT:
                    (out / f"{name}-{number}").write_bytes(case.content)
            found["cases"] += 1
            if found["cases"] % SAVED_EVERY == 0 or found["cases"] == cases:
                write_file(results, (json.dumps(every) + "\n").encode())
    return dict(found)


def run(case: Case) -> tuple[str | None, float]:
    """Parse a case; return the reason why it failed, if it did, and its process time."""
    start, reason = time.process_time(), None
    signal.setitimer(signal.ITIMER_PROF, STOPPED_AFTER)
    try:
        case.parse()
        if case.must_be_refused:
            reason = "accepted, although it has changed"
    except ThinkersError:
        pass
    except Slow:
        reason = f"stopped after {STOPPED_AFTER:.0f} s"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        reason = f"{type(error).__name__} at {place}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - start
    if reason is None and seconds > MOST_SECONDS:
        reason = f"{seconds:.1f} s"
    return reason, seconds


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Let the timer of process time raise Slow."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Slow

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGPROF, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what is printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


if __name__ == "__main__":
    main()
