"""Tables of docs/reliability.md, from the JSON files that its benchmarks wrote."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from measured_tables import ROOT, table

DOCS = ROOT / "docs"
NOT_MEASURED = "not measured"


class Row(NamedTuple):
    """A row of the table: a fault, what is promised, the figure, and how to repeat it.

    Args:
        figure: A text, or a function that makes it.
        repeat: A command in code quotes, or files of tests, separated by blanks.
    """

    fault: str
    promise: str
    figure: str | Callable[[], str]
    repeat: str


def promises() -> str:
    """The table of docs/reliability.md: a row for each kind of fault."""
    rows = []
    for number, row in enumerate(ROWS, 1):
        figure = row.figure if isinstance(row.figure, str) else row.figure()
        rows.append([str(number), row.fault, row.promise, figure, row.repeat])
    return table(["", "fault", "promise", "figure", "repeat by"], rows)


def _read(name: str) -> dict[str, Any]:
    file = DOCS / name
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _part(name: str, show: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """Return a function that shows a part of docs/reliability.json, if it was measured."""

    def shown() -> str:
        found = _read("reliability.json").get(name)
        return NOT_MEASURED if found is None else show(found)

    return shown


def _store(name: str, show: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """Return a function that shows a part of docs/memory_store.json."""
    return lambda: show(_read("memory_store.json")[name])


def faults(kind: str, noun: str) -> str:
    """What was lost in the trials of a kind, and the operations that were not tried at all places.

    Args:
        noun: What the table calls these trials.
    """
    found = {name: x[kind] for name, x in _read("faults.json").items() if kind in x}
    if not found:
        return NOT_MEASURED
    lost = sum(len(x["lost"]) for x in found.values())
    tried, of = (sum(x[name] for x in found.values()) for name in ("tried", "of"))
    shown = f"{lost} lost in {tried:,} of {of:,} {noun} of {len(found)} operations"
    left = {name: x for name, x in found.items() if x["tried"] < x["of"]}
    parts = ", ".join(f"{name}: {x['tried']:,} of {x['of']:,}" for name, x in left.items())
    return f"{shown} ({parts})" if parts else shown


def _million() -> str:
    found = next(iter(_read("memory_search.json").values()))
    return (
        f"open and search {found['open_s']:.2f} CPU s, recall@10 {found['recall']:.3f}, at most "
        f"{found['rebuild_rss_mb']:,.0f} MiB"
    )


def _parsers(found: dict[str, Any]) -> str:
    """The cases of all parsers, and those that failed."""
    failed = sum(len(x["failed"]) for x in found.values())
    least = min(x["cases"] for x in found.values())
    slowest, most = (max(x[name] for x in found.values()) for name in ("slowest", "mb"))
    return (
        f"{failed} failed of {sum(x['cases'] for x in found.values()):,} cases of {len(found)} "
        f"parsers, at least {least:,} each; at most {slowest:.2f} s and {most} MB"
    )


def _damage(found: dict[str, Any]) -> str:
    kinds = found["kinds"]
    flips = _read("memory_store.json")["flips"]
    return (
        f"{len(found['silent'])} silent of {kinds['flip']:,} flips, {kinds['cut']:,} cuts, "
        f"{kinds['zero']:,} zeroed pages, {kinds['swap']:,} swaps; {len(flips['silent'])} of "
        f"{flips['rounds']:,} further flips of a memory; cost: [measured.md](measured.md)"
    )


def _signals(found: dict[str, Any]) -> str:
    ends: Counter[str] = Counter()
    for counts in found["by_verb"].values():
        ends.update(counts)
    shown = ", ".join(f"{number} {name}" for name, number in sorted(ends.items()))
    return (
        f"{len(found['failed'])} failed of {found['rounds']} rounds ({shown}); the end came within "
        f"{found['slowest']:.1f} s"
    )


def _one_folder(found: dict[str, Any]) -> str:
    return (
        f"{len(found['failed'])} failed of {found['rounds']} rounds of 8; {found['refused']} "
        f"refused, within {found['slowest']:.2f} s of process time"
    )


def _bombs(found: dict[str, Any]) -> str:
    failed = sum(bool(x["problem"]) for x in found.values())
    slowest, most = (max(x[name] for x in found.values()) for name in ("seconds", "mb"))
    return (
        f"{failed} of {len(found)} files read, too slow or too large; at most {slowest:.2f} s and "
        f"{most} MB"
    )


def _soak(found: dict[str, Any]) -> str:
    return "; ".join(
        f"{part}: {x['minutes']:.0f} minutes, {x['slope']:.2f} MB per 1,000, "
        f"{x['growth']:+.1%} memory, {x['files']:+} files, {x['threads']:+} threads, "
        f"{x['disk']:+.1%} disk"
        for part, x in found.items()
    )


def _ranks(found: dict[str, Any]) -> str:
    events = ", ".join(f"{number} {name}" for name, number in found["events"].items())
    failed = len(found["failed"])
    return (
        f"{failed} failed of {found['rounds']} rounds ({events}); the end came within "
        f"{found['slowest']:.1f} s, with a timeout of 10 s in the place of 5 minutes"
    )


def _surroundings(found: dict[str, Any]) -> str:
    return f"{len(found['failed'])} of {found['cases']} surroundings differ"


def _tests(*names: str) -> str:
    return "<br>".join(f"`tests/{name}`" for name in names)


HELD = "tests"
"""The figure of a row all of whose cases are tests."""

ROWS = (
    Row(
        "a run is killed (`kill -9`) at any moment",
        "what `saved update=N` acknowledged is there; `--resume` ends with the same bits as a run "
        "that was not killed",
        _part(
            "kills", lambda x: f"{len(x['lost'])} lost in {x['kills']:,} kills of {x['runs']} runs"
        ),
        "`python benchmarks/kill_resume.py --kills 3000`",
    ),
    Row(
        "a process ends at any single operation on files",
        "the same for every operation of saving, resuming, importing, exporting, comparing, "
        "evaluating, of a research ledger and of a memory",
        lambda: faults("deaths", "deaths"),
        "`python benchmarks/faults.py`<br>"
        + _tests(
            "faults/test_operations.py",
            "faults/test_native.py",
            "training/test_recovery.py",
            "memory/test_store_faults.py",
        ),
    ),
    Row(
        "power fails: what was not synced is gone, torn or in another order",
        "the same",
        lambda: faults("images", "images of the disk"),
        "`python benchmarks/faults.py`<br>" + _tests("faults/test_power_loss.py"),
    ),
    Row(
        "the disk is full",
        "earlier saves are untouched, temporary files are removed; exit 6 with the path and the "
        "bytes that are needed and free",
        lambda: faults("full", "full disks"),
        "`python benchmarks/faults.py`<br>"
        + _tests("runs/test_checkpoint.py", "training/test_loop.py", "cli/test_memory_command.py"),
    ),
    Row(
        "the disk refuses an operation (EIO, EROFS, EACCES, EMFILE)",
        "exit 6; nothing that failed is acknowledged",
        lambda: faults("refusals", "refusals"),
        "`python benchmarks/faults.py`<br>"
        + _tests("faults/test_operations.py", "test_system_errors.py"),
    ),
    Row(
        "a file is flipped, cut, swapped, missing or of another run",
        "refused (exit 4) before a tensor is read; a damaged checkpoint is renamed and the newest "
        "intact one is used, which is said; weights are verified beside the building of the model",
        _part("damage", _damage),
        "`python benchmarks/damaged_files.py`<br>`python benchmarks/memory_flips.py`<br>"
        "`python benchmarks/file_checks.py`",
    ),
    Row(
        "a file holds a malicious pickle",
        "nothing that the library writes is a pickle, and none is read, but by `thinkers import`: "
        "tensors and plain values only, in a child process with limits",
        HELD,
        _tests("published/test_published.py", "runs/test_checkpoint.py"),
    ),
    Row(
        "a small file claims much memory: headers, shapes, keys, nesting, aliases",
        "refused within 1 s and 200 MB, with the exit code of its kind",
        _part("bombs", _bombs),
        "`python benchmarks/resource_bombs.py`<br>" + _tests("test_strict_json.py"),
    ),
    Row(
        "a configuration is wrong",
        "exit 2 within 3 s of process time, before anything is written; all problems at once, each "
        "with the flag, its value, the rule and the nearest name",
        HELD,
        _tests("cli/test_main.py", "config/test_all_problems.py", "test_types_of_settings.py"),
    ),
    Row(
        "a loss, gradient, weight or stored latent is not finite",
        "training ends before the step of the optimiser with exit 5; such weights are "
        "neither saved nor loaded, such a score is never the best",
        HELD,
        _tests("training/test_loop.py", "training/test_recovery.py", "memory/test_memory.py"),
    ),
    Row(
        "no target is graded",
        "a loss of 0 over 0 tokens, never NaN",
        HELD,
        _tests("models/test_models.py"),
    ),
    Row(
        "a text is empty, short, not UTF-8, of Windows, a folder, a pipe, unreadable, or changes",
        "exit 3 with file and byte, or a documented result; bad bytes are refused, replaced or "
        "skipped as `--task.bad_bytes` says, and counted",
        HELD,
        _tests("data/test_sources.py", "data/test_token_cache.py", "tasks/test_text.py"),
    ),
    Row(
        "tokens are out of range, of another type, too many, none",
        "`ValueError` or `TypeError` before any kernel, with value, place and limit",
        HELD,
        _tests("models/test_model_checks.py"),
    ),
    Row(
        "thinking steps or `top` are out of range",
        "refused with value and range before any work",
        HELD,
        _tests("models/test_model_checks.py", "memory/test_refusals.py"),
    ),
    Row(
        "SIGTERM or SIGINT at any moment, once or again",
        "exit 143 or 130 within 10 s after a checkpoint; `--resume` ends with the same bits; a "
        "second signal after 2 s kills at once, and loses nothing that was acknowledged",
        _part("signals", _signals),
        "`python benchmarks/interruptions.py`<br>" + _tests("training/test_signals.py"),
    ),
    Row(
        "several processes begin in one folder",
        "one wins; the others end with exit 7 and name its process and host; a lock dies with its "
        "owner; nothing is overwritten",
        _part("one_folder", _one_folder),
        "`python benchmarks/one_folder.py`<br>" + _tests("runs/test_folder.py"),
    ),
    Row(
        "the writer of a memory is killed",
        "no acknowledged block is lost, searches equal brute force, the next writer continues",
        _store(
            "kills",
            lambda x: (
                f"{len(x['lost'])} of {x['acknowledged']:,} blocks lost in {x['rounds']:,} kills"
            ),
        ),
        "`python benchmarks/memory_kills.py --rounds 3000`",
    ),
    Row(
        "a memory is read beside a writer that is killed",
        "each reader has a whole snapshot, at least as new as when it began",
        _store(
            "readers",
            lambda x: (
                f"{len(x['wrong'])} of {x['snapshots']:,} snapshots wrong, "
                f"{x['kills']} kills in {x['minutes']:.0f} minutes"
            ),
        ),
        "`python benchmarks/memory_readers.py --minutes 10`",
    ),
    Row(
        "a memory has a million blocks",
        "see [memory.md](memory.md)",
        _million,
        "`python benchmarks/memory_search.py`",
    ),
    Row(
        "hours of work",
        "memory, open files, threads and disk stay constant",
        _part("soak", _soak),
        "`python benchmarks/soak.py --minutes 20`",
    ),
    Row(
        "a rank dies, fails or stops",
        "all ranks end, within 5 minutes if one is frozen; `status.json` names the rank and the "
        "update at fault; `--resume` continues",
        _part("ranks", _ranks),
        "`python benchmarks/ranks.py`<br>" + _tests("training/test_ranks.py"),
    ),
    Row(
        "a run is resumed by another number of ranks",
        "each sample is seen once; float64: losses and weights within 1e-12 of one process",
        HELD,
        _tests("training/test_ranks.py", "training/test_sharding.py"),
    ),
    Row(
        "a run is resumed",
        "metrics, weights, optimiser and curriculum have the bits of an uninterrupted run",
        HELD,
        _tests("training/test_loop.py", "training/test_reproduce.py"),
    ),
    Row(
        "a batch is divided into micro-batches or over ranks",
        "float64: gradients within 1e-12, normalised by the counts of the global batch",
        HELD,
        _tests("training/test_loop.py", "models/test_collate.py"),
    ),
    Row(
        "a run is repeated",
        "the same bits with the same versions, threads and device, which the run records; a "
        "difference is announced",
        HELD,
        _tests("training/test_reproduce.py", "tasks/test_tasks.py"),
    ),
    Row(
        "another dtype, another backend, compiled code",
        "equal to the dense reference within the tolerance of the dtype, or refused",
        HELD,
        _tests("ops/test_dispatch.py", "ops/test_stop_grad.py", "training/test_compiled.py"),
    ),
    Row(
        "any bytes in any file, flag or request that is parsed",
        "only errors of the library, no case beyond 1 s, no process beyond 512 MB more, no changed "
        "byte accepted where there is a digest",
        _part("parsers", _parsers),
        "`python benchmarks/parsers.py --cases 100000`",
    ),
    Row(
        "files of an older or a newer version",
        "read as they were, or refused with exit 4 and what to do; nothing is renamed or deleted",
        HELD,
        _tests("runs/test_stored_files.py", "test_json_files.py", "runs/test_checkpoint.py"),
    ),
    Row(
        "locales, time zones, names of folders, umask, a HOME that cannot be written",
        "the same results; a name that is not UTF-8 is refused with exit 2",
        _part("surroundings", _surroundings),
        "`python benchmarks/surroundings.py`<br>" + _tests("cli/test_paths.py"),
    ),
    Row(
        "too little memory",
        "exit 6 with what to lower; saves are intact",
        f"{HELD} of the messages; under a limit: {NOT_MEASURED}",
        _tests("cli/test_failures.py"),
    ),
    Row(
        "a run of a comparison fails, dies or is killed with it",
        "the others finish; it is listed with its reason; `--resume` makes what is missing",
        HELD,
        _tests("comparison/test_runner.py", "comparison/test_subprocesses.py"),
    ),
    Row(
        "no network",
        "everything works but `hf:NAME` and trackers on other machines",
        _part("surroundings", _surroundings),
        '`python benchmarks/surroundings.py --cases "no network"`',
    ),
    Row(
        "a server has more requests than it can answer, or clients that hang up or stay",
        "limits with an answer of 4xx or 503; rows of a client that left leave with it; errors end "
        "their own request alone",
        HELD,
        _tests("serve/test_limits.py", "serve/test_batching.py", "serve/test_process.py"),
    ),
)
