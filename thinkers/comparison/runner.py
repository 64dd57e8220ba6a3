"""compare(task, models): train several models on one task with matched compute."""

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from thinkers.checks import check_int
from thinkers.comparison.one_run import Job, perform, write_failure
from thinkers.comparison.page import write_page
from thinkers.comparison.plan import Plan
from thinkers.comparison.results import RESULT, RUNS, Comparison, read, read_result
from thinkers.comparison.shards import WHOLE, Shard
from thinkers.comparison.subprocesses import progress_of, run_all
from thinkers.errors import Interrupted, LockedError, ThinkersError, UsageError, usage_error
from thinkers.files import own_folder, unlink
from thinkers.models import MODELS
from thinkers.optional import require
from thinkers.plugins import imported_files
from thinkers.process_state import one_thread
from thinkers.runs import folder as run_folder
from thinkers.runs import trackers
from thinkers.runs.trackers import Tracker, Tracking
from thinkers.tasks import TASKS
from thinkers.terminal import show
from thinkers.training.signals import Signals
from thinkers.user_paths import user_path


def compare(
    task: str | None = None,
    models: Sequence[str] = (),
    *,
    match: str | None = None,
    budget: str | float | None = None,
    seeds: int | None = None,
    lrs: Sequence[float] = (),
    controls: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    num_examples: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    workers: int = 1,
    tracking: Tracking | None = None,
    shard: str | None = None,
) -> Comparison:
    """Train models over several seeds with matched compute; evaluate all on the same examples.

    The folder holds report.html and the runs: see docs/compare.md.

    Args:
        models: Names in MODELS. The first is the baseline: the others get its size, and their
            scores are compared with its score.
        match: Quantity that is equal in all runs, besides size: flops, parameters (the number of
            updates is then equal) or seconds.
        budget: FLOPs, updates or seconds of each run; "5min" is 300 seconds.
        lrs: Candidates of a learning-rate search on the validation split; () skips the search.
        controls: Any of fillers, untied and wider.
        settings: Overrides for the task, all models and all trainings: {"task.max_digits": 2}.
        out: The folder; runs/compare-TASK if None.
        resume: Continue the comparison in `out`; its other arguments may be left out.
        workers: Number of runs at a time. 1 trains in this process; from 2 on each run is a
            subprocess with one thread.
        tracking: Store of the metrics of each run, and of the results and page of the comparison.
        shard: "I/N", part I of N of the runs, in a folder that all share; the last writes the page.

    Raises:
        UsageError: An argument is invalid, or a subprocess could not import a class.
        Interrupted: A stop request was received; finished work is kept.
    """
    asked: dict[str, Any] = dict(task=task, models=models, match=match, budget=budget)
    asked |= dict(
        seeds=seeds, lrs=lrs, controls=controls, settings=settings or {}, num_examples=num_examples
    )
    _check_environment(workers, tracking)
    plan = None if resume else Plan.of(**asked)
    if out is None and task is None:
        raise usage_error("no task", "a name of thinkers list tasks", "name one")
    folder = user_path(out, "out") if out is not None else Path("runs") / f"compare-{task}"
    part = WHOLE if shard is None else Shard.of(shard, lrs)
    owned = run_folder.owned(folder, new=not resume) if shard is None else nullcontext()
    with owned, one_thread():
        plan = plan if shard is None else part.plan(folder, plan, asked)
        plan = Plan.read(folder).extended(**asked) if plan is None else plan
        if workers > 1:
            _check_importable(plan)
        if shard is None:
            plan.write(folder)
        return _carry_out(folder, plan, workers, tracking, part)


def _check_environment(workers: int, tracking: Tracking | None) -> None:
    """Raise errors now that would otherwise occur after hours of training."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("compare must be run by one process, got several ranks")
    check_int("workers", workers, 1)
    for module in ("jinja2", "matplotlib"):
        require(module, "report", "a report")
    if tracking is not None:
        trackers.check(tracking)


def _check_importable(plan: Plan) -> None:
    """Raise UsageError for a class that a new process could not import."""
    names = {one.config.to_dict()["model"]["name"] for one in plan.contenders}
    for kind in [TASKS[plan.task], *(MODELS[name] for name in sorted(names))]:
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        is_ours = kind.__module__.partition(".")[0] == "thinkers"
        if not is_ours and (file is None or str(Path(file).resolve()) not in imported_files()):
            raise usage_error(
                f"{kind.__module__}.{kind.__qualname__} with several workers",
                "classes that a new process can import",
                "give their file with --import_module FILE (in Python: "
                "thinkers.plugins.import_file), or use one worker",
            )


def _carry_out(
    folder: Path,
    plan: Plan,
    workers: int,
    tracking: Tracking | None,
    shard: Shard,
) -> Comparison:
    """Perform the runs of a shard that are missing, and write the page after the last."""
    show(plan.table(workers))
    # Opened before the runs, so that concurrent runs find the database already created.
    tracker = None if tracking is None else _open_tracker(tracking, folder, plan)
    try:
        _perform_missing(folder, plan, workers, tracking, shard)
    except Interrupted as error:
        if tracker is not None:
            tracker.finish("KILLED")
        fix = f"continue with thinkers compare --out {folder} --resume"
        number = error.exit_code - 128
        raise Interrupted(f"interrupted; finished work is kept; {fix}", number) from None
    comparison = read(folder)
    if comparison.is_complete:
        with shard.writing(folder):
            write_page(comparison)
    if tracker is not None:
        if comparison.is_complete:  # with shards, whoever ends last sends the means of all
            tracker.send([{"update": plan.seeds, "test": comparison.mean_scores}])
        tracker.finish("FAILED" if comparison.failures else "FINISHED")
    return comparison


def _perform_missing(
    folder: Path, plan: Plan, workers: int, tracking: Tracking | None, shard: Shard
) -> None:
    """Perform runs without a result, seed by seed: an interruption leaves complete seeds."""
    names = [one.name for one in plan.contenders]
    jobs = [
        Job(str(folder), name, seed, tracking=tracking)
        for seed in range(plan.seeds)
        for name in names
    ]
    missing = [job for job in shard.share(jobs) if not _is_done(job)]

    def report(job: Job) -> None:
        print_line(_outcome(plan, job))

    with progress_of(folder / RUNS) as print_line:
        if plan.lrs:
            missing = _with_best_lr(missing, plan, workers, report)
        _perform(missing, workers, report)


def _with_best_lr(
    jobs: Sequence[Job], plan: Plan, workers: int, report: Callable[[Job], None]
) -> list[Job]:
    """Return the jobs with the learning rate that scores best on the validation split.

    A job for which training failed at every rate is recorded as failed and left out.
    """
    searches = {
        name: [Job(jobs[0].folder, name, None, lr) for lr in plan.lrs]
        for name in dict.fromkeys(job.name for job in jobs)
    }
    todo = [job for of_one in searches.values() for job in of_one if not _is_done(job)]
    _perform(todo, workers)
    found = []
    for job in jobs:
        records = [read_result(search.home) or {} for search in searches[job.name]]
        done = [record for record in records if record["status"] == "done"]
        if done:
            best = max(done, key=lambda record: record["score"])
            found.append(replace(job, lr=best["lr"]))
        else:
            rates = ", ".join(f"{lr:g}" for lr in plan.lrs)
            why = f"no learning rate of {rates} trains {job.name}: {records[-1]['error']}"
            write_failure(job, ThinkersError(why))
            report(job)
    return found


def _perform(
    jobs: Sequence[Job], workers: int, report: Callable[[Job], None] = lambda job: None
) -> None:
    """Perform jobs, here or in subprocesses, and report each when its result.json is there.

    Raises:
        Interrupted: A stop request was received; the running jobs have saved.
        LockedError: Another process owns a run.
    """
    for job in jobs:  # so that a job that dies does not leave an older result behind
        if own_folder(job.home.parent, make=True) and own_folder(job.home):
            unlink(job.home / RESULT)
    if workers == 1:
        with Signals() as signals:
            for job in jobs:
                signals.unless_stopped(partial(perform, job))
                if signals.number:
                    raise Interrupted("interrupted", signals.number)
                report(job)
    elif jobs:
        commands = [(job.command, job.log) for job in jobs]
        run_all(commands, workers, lambda index, code: _ended(jobs[index], code, report))


def _ended(job: Job, code: int, report: Callable[[Job], None]) -> None:
    """Ensure that a job whose subprocess has ended has a result, and report it."""
    if code == LockedError.exit_code:
        raise LockedError(f"{job.home} is owned by another process; {job.log} names it")
    if read_result(job.home) is None:
        killed = f"killed by signal {-code}, perhaps out of memory"
        ended = f"its process ended with code {code}; {job.log} has its error"
        write_failure(job, ThinkersError(killed if code < 0 else ended))
    report(job)


def _is_done(job: Job) -> bool:
    record = read_result(job.home)
    return record is not None and record["status"] == "done"


def _open_tracker(tracking: Tracking, folder: Path, plan: Plan) -> Tracker:
    """Open the tracker of the comparison itself; it receives settings now, results later."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    tracker = trackers.open_tracker(tracking, folder, {"run": name, "config": plan.asked()})
    assert tracker is not None
    return tracker


def _outcome(plan: Plan, job: Job) -> str:
    """Describe a finished run in one line."""
    record = read_result(job.home)
    assert record is not None
    who = f"{job.name}, seed {job.seed}"
    if record["status"] == "failed":
        return f"{who}: failed, {record['error']}"
    seconds = "" if record["seconds"] is None else f", {record['seconds']:.1f} s of process time"
    return f"{who}: {plan.primary_metric} {record['score']:.4f}{seconds}"
