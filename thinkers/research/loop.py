"""The search: one experiment at a time against the best so far, and one judgement at the end.

An experiment changes the settings or the code of the experiment that was kept last, trains for the
same time, and is kept if its score on the validation split is better. The test split is used once:
by `judge`, for the first experiment and the last that was kept, over seeds that the search did not
use.
"""

import hashlib
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from thinkers.checks import check_int
from thinkers.comparison.arguments import setting_text
from thinkers.comparison.subprocesses import progress_of, run_all
from thinkers.config.experiment import build
from thinkers.config.overrides import override
from thinkers.errors import UsageError, usage_error
from thinkers.evaluation.statistics import difference, mean
from thinkers.files import (
    exists,
    list_folder,
    make_folders,
    own_folder,
    read_file,
    unlink,
    write_file,
)
from thinkers.json_files import read_with_digest, with_digest
from thinkers.problems import Collector
from thinkers.recipes.pairs import find
from thinkers.research.experiment import Job, configuration
from thinkers.research.ledger import LEDGER, LEFTOVERS, Experiment, Ledger
from thinkers.runs import folder as run_folder

CHANGES, RUNS, JUDGED = "changes", "runs", "judged"
LARGEST_CHANGE = 10_000_000
"""Bytes of a changed file."""
FIRST_JUDGED_SEED = 1000
"""The seeds of a judgement count from here; those of experiments are below."""


def experiment(
    recipe: str,
    out: Path,
    minutes: float,
    *,
    files: Sequence[Path] = (),
    flags: Sequence[str] = (),
    description: str = "",
    seed: int = 0,
) -> list[Experiment]:
    """Make an experiment in the folder of a search, after a first one of the recipe unchanged.

    An experiment of the same change that was interrupted is continued.

    Args:
        recipe: A recipe or TASK/MODEL, the same in all experiments of a folder.
        minutes: Time of training, the same in all experiments of a folder.
        files: Python files that are imported before the recipe is built. What they add to MODELS,
            TASKS or RECIPES can be named; a function change(config) in one returns the Config.
        flags: Settings: --model.dim=64. Those of the task, such as --task.path, are given with
            the first experiment, and hold for all.

    Returns:
        The experiments that were made, with their results.

    Raises:
        UsageError: The recipe or the time differs from that of the folder, the same change was
            made before, or the test split is the validation split.
        Interrupted: A stop request was received; the same call continues.
        LockedError: Another process makes experiments in this folder.
    """
    meta = check(recipe, out, minutes, files=files, flags=flags, description=description, seed=seed)
    contents = [read_file(path, LARGEST_CHANGE) for path in files]
    flags = [flag for flag in flags if not _is_of_task(flag)]
    with _owned(out):
        if not exists(out / LEDGER):
            Ledger.create(out, meta).close()
        with Ledger(out) as ledger:
            _require_same(ledger, meta, out)
            made = []
            if ledger.best() is None:
                made.append(_make(ledger, out, "the recipe, unchanged", seed))
                if made[0].status == "crash":
                    return made
            if files or flags:
                named = _kept_files(out, files, contents)
                made.append(_make(ledger, out, description, seed, named, list(flags)))
            elif not made:
                raise usage_error(
                    "no change",
                    "a file or a setting that differs from the best experiment",
                    "add --change FILE.py, or a setting such as --model.dim 64",
                )
            return made


def check(
    recipe: str,
    out: Path,
    minutes: float,
    *,
    files: Sequence[Path] = (),
    flags: Sequence[str] = (),
    description: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Check the arguments of `experiment`, and return what all experiments have in common.

    Settings of a new search are checked before the recipe is trained unchanged, unless there are
    files: what they add to MODELS is known to the process of an experiment alone.

    Raises:
        UsageError: Arguments are invalid, all of which are named; or the test split of a new search
            is the validation split.
    """
    problems, is_new = Collector(), not exists(out / LEDGER)
    with problems:
        if not 0 < minutes < 1e6:
            raise UsageError(f"minutes must be above 0 and below 1e6, got {minutes}")
    with problems:
        check_int("seed", seed, 0, FIRST_JUDGED_SEED - 1)
    with problems:
        try:
            description.encode()
        except UnicodeEncodeError:
            raise UsageError(f"description must be UTF-8, got {ascii(description)}") from None
    of_task: list[str] = []
    for name, _, value in (flag.partition("=") for flag in flags if _is_of_task(flag)):
        with problems:
            of_task.append(f"{name}={setting_text(name.removeprefix('--'), value)}")
    if not is_new and not of_task:
        with Ledger(out) as ledger:
            of_task = ledger.meta["task_flags"]
    with problems:
        if is_new and not files:
            override(find(recipe), flags=flags)
        meta = _meta(recipe, minutes, of_task, is_new)
    problems.raise_all()
    return meta


def _is_of_task(flag: str) -> bool:
    return flag.startswith("--task.")


def _meta(recipe: str, minutes: float, of_task: list[str], is_new: bool) -> dict[str, Any]:
    """Return what all experiments of a search have in common; check the splits of a new one."""
    task, _ = build(override(find(recipe), flags=of_task))
    if is_new and not task.has_own_test():
        raise usage_error(
            f"{recipe}, whose test split is its validation split",
            "a test split that the search does not see",
            "add --task.test_path FILE, with another text than that of --task.valid_path",
        )
    return {
        "recipe": recipe,
        "minutes": minutes,
        "task_flags": of_task,
        "metric": task.primary_metric,
        "higher_is_better": task.higher_is_better,
    }


@contextmanager
def _owned(out: Path) -> Iterator[None]:
    """Lock the folder of a search, which is new, or holds a ledger."""
    make_folders(out)
    known = {LEDGER, run_folder.LOCK, CHANGES, RUNS, JUDGED, *LEFTOVERS, "report.html"}
    others = {x.name for x in list_folder(out)} - known - {f"{LEDGER}-journal"}
    if others and not exists(out / LEDGER):
        raise usage_error(
            f"--out {out}, which holds {sorted(others)[0]}",
            "a new folder, or one of a search",
            "name another folder",
        )
    with run_folder.locked(out):
        yield


def _require_same(ledger: Ledger, meta: dict[str, Any], out: Path) -> None:
    for name in ("recipe", "minutes", "task_flags"):
        if ledger.meta[name] != meta[name]:
            raise usage_error(
                f"{name} {meta[name]}",
                f"{ledger.meta[name]}, as in all experiments of {out}",
                f"change {name}, or begin another folder with --out",
            )


def _kept_files(out: Path, files: Sequence[Path], contents: Sequence[bytes]) -> list[str]:
    """Copy changed files into the folder, under names by their content; return the names."""
    names = []
    for path, content in zip(files, contents, strict=True):
        digest = hashlib.sha256(content).hexdigest()
        # A name that nothing else imports; experiments of the same file share it.
        name = f"change_{path.stem}_{digest[:12]}.py"
        own_folder(out / CHANGES, make=True)
        if not exists(out / CHANGES / name):
            write_file(out / CHANGES / name, content)
        names.append(name)
    return names


def _make(
    ledger: Ledger,
    out: Path,
    description: str,
    seed: int,
    files: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Experiment:
    """Make or continue an experiment, and write what became of it."""
    best = ledger.best()
    change = {"flags": list(flags), "files": list(files)}
    base = None if best is None else best.number
    text = json.dumps([base, seed, change])
    digest = hashlib.sha256(text.encode()).hexdigest()
    same = [x for x in ledger.experiments() if x.digest == digest and x.status != "crash"]
    before = same[-1] if same else None
    if before is not None and before.status != "running":
        raise usage_error(
            f"the change of experiment {before.number}, again",
            "a change of the best experiment that was not tried with this seed",
            "change it, or add --seed",
        )
    chain = ledger.chain(best)
    if not any(x["files"] for x in (change, *(y.change for y in chain))):
        # A mistyped setting is no experiment. With files the names are known to their process only.
        configuration(job_of(ledger, out, chain, change, seed, out))
    number = before.number if before else ledger.begin(base, digest, change, description, seed)
    own_folder(out / RUNS, make=True)
    job = job_of(ledger, out, chain, change, seed, out / RUNS / f"{number:04d}")
    (found,) = _results([job], out / RUNS)
    status = "crash" if "error" in found else "keep"
    if best is not None and status == "keep":
        better = found["metric"] > best.metric
        if not ledger.meta["higher_is_better"]:
            better = found["metric"] < best.metric
        status = "keep" if better else "discard"
    ledger.end(number, status, found)  # type: ignore[arg-type]
    return ledger.experiments()[number - 1]


def job_of(
    ledger: Ledger,
    out: Path,
    chain: Sequence[Experiment],
    change: dict[str, list[str]],
    seed: int,
    home: Path,
    split: str = "valid",
) -> Job:
    """Return the job of a change of the last experiment of a chain."""
    changes = [*(x.change for x in chain), change]
    files = [str((out / CHANGES / x).resolve()) for each in changes for x in each["files"]]
    flags = [x for each in changes for x in each["flags"]]
    return Job(
        home=str(home.resolve()),
        recipe=ledger.meta["recipe"],
        minutes=ledger.meta["minutes"],
        seed=seed,
        task_flags=ledger.meta["task_flags"],
        files=list(dict.fromkeys(files)),  # in the order of the chain, each once
        flags=flags,
        split=split,
    )


def _results(jobs: Sequence[Job], logs: Path) -> list[dict[str, Any]]:
    """Make these experiments in processes of their own, one after another.

    One whose process is killed has failed, as one that raises: repeated, it would be killed again.
    """

    def ended(index: int, code: int) -> None:
        job = jobs[index]
        if exists(job.result):
            return
        if code > 0 or job.split != "valid":  # of its folder, not of the change; or a judgement
            raise UsageError(f"the process of an experiment ended with {code}; see {job.log}")
        if not code:  # by os._exit
            write_file(job.result, with_digest({"error": "ended before its training did"}))
            return
        error = f"killed by signal {-code}, {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            error += ", as when memory runs out"
        write_file(job.result, with_digest({"error": error}))

    todo = [job for job in jobs if not exists(job.result)]
    jobs, every = todo, jobs
    with progress_of(logs):
        run_all([(job.command, job.log) for job in todo], 1, ended)
    return [read_with_digest(job.result, {}) for job in every]


def judge(out: Path, seeds: int = 3) -> dict[str, Any]:
    """Train the first experiment and the best with new seeds, and grade both on the test split.

    This is done once for a search; a second call returns what the first has found.

    Raises:
        UsageError: Nothing was kept after the first experiment.
    """
    check_int("seeds", seeds, 2, 100)
    Ledger(out).close()  # where there is none, no folder is made
    with _owned(out), Ledger(out) as ledger:
        if (known := ledger.judgement()) is not None:
            return known
        chain = ledger.chain(ledger.best())
        if len(chain) < 2:
            raise usage_error(
                f"{out}, where {'only the first' if chain else 'no'} experiment was kept",
                "a better one, whose gain is to be judged",
                "make more experiments first",
            )
        own_folder(out / JUDGED, make=True)
        empty: dict[str, list[str]] = {"flags": [], "files": []}
        jobs = [
            job_of(ledger, out, part, empty, seed, out / JUDGED / f"{name}-{seed}", "test")
            for name, part in (("first", chain[:1]), ("best", chain))
            for seed in range(FIRST_JUDGED_SEED, FIRST_JUDGED_SEED + seeds)
        ]
        found = _results(jobs, out / JUDGED)
        failed = [(job, x["error"]) for job, x in zip(jobs, found, strict=True) if "error" in x]
        for job, _ in failed:
            unlink(job.result)  # another call trains it again
        if failed:
            raise UsageError(f"an experiment failed with a new seed: {failed[0][1]}")
        result = compared(found[:seeds], found[seeds:])
        result |= {"first": chain[0].number, "best": chain[-1].number, "seeds": seeds}
        ledger.judge(result)
        return result


def compared(first: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of both, and of their difference, with 99 % intervals.

    Grades are of the same examples; those of other seeds are independent.
    """
    grades = [np.array([run["grades"] for run in runs]) for runs in (first, best)]
    asked = first[0]["questions"]
    questions = None if asked is None else np.array(asked)
    found = {"first": mean(grades[0], questions), "best": mean(grades[1], questions)}
    found["gain"] = difference(grades[1], grades[0], questions)
    return {f"of_{name}": asdict(interval) for name, interval in found.items()}
