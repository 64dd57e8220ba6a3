"""One run of a comparison: train it, evaluate it, write its result.json.

    python -m thinkers.comparison.one_run JOB

does so in a separate process; JOB is a `Job` as JSON.
"""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import numpy as np

from thinkers import tasks
from thinkers.comparison import budgets, matching, results
from thinkers.comparison.contenders import Contender
from thinkers.comparison.plan import Plan
from thinkers.comparison.process_usage import peak_memory, reset_peak, stop_with_parent
from thinkers.config.experiment import Config
from thinkers.devices import find_device
from thinkers.errors import Interrupted, LockedError
from thinkers.evaluation.halting import measure_effort
from thinkers.files import exists, open_log, own_folder, write_file
from thinkers.json_files import read_with_digest, with_digest
from thinkers.models.base import Model
from thinkers.models.documents import step_counts_of
from thinkers.models.halt import Halt, halt_option, rule_record
from thinkers.plugins import import_file, imported_files
from thinkers.process_state import one_thread
from thinkers.runs import checkpoint, folder
from thinkers.runs.result import load
from thinkers.runs.trackers import Tracking
from thinkers.strict_json import Schema
from thinkers.tasks.base import Task, example_groups
from thinkers.tasks.due import Steps
from thinkers.terminal import show
from thinkers.training.loop import resume, train

USAGE: Schema = {"seconds": (float, NoneType), "memory": (int, NoneType)}
POINT_EXAMPLES = 500
"""Examples that each checkpoint of a run is graded on."""
SEARCH_SEED = 2**31
"""Seed of the learning-rate search, whose runs are not part of the result."""
EXAMPLES_SEED = 0
"""Seed of the examples that all runs are graded on, independent of the seed of a run."""


@dataclass(frozen=True)
class Job:
    """A run to be trained and evaluated.

    Args:
        folder: The folder of the comparison.
        name: The contender.
        seed: None for a run of the learning-rate search.
        lr: Learning rate; None means that of the recipe.
        tracking: Store of the run's metrics in addition to metrics.jsonl.
    """

    folder: str
    name: str
    seed: int | None
    lr: float | None = None
    tracking: Tracking | None = None

    @property
    def home(self) -> Path:
        """The folder of the run."""
        number = f"search-{self.lr:g}" if self.seed is None else self.seed
        return Path(self.folder) / results.RUNS / f"{self.name}-{number}"

    @property
    def log(self) -> Path:
        return self.home.with_name(f"{self.home.name}.log")

    @property
    def command(self) -> list[str]:
        """The command that performs this job in another process."""
        words = json.dumps({"job": asdict(self), "files": imported_files()})
        return [sys.executable, "-P", "-m", "thinkers.comparison.one_run", words]


def perform(job: Job) -> None:
    """Train, or resume, and evaluate; write result.json, also if the run failed.

    Raises:
        Interrupted: A stop request was received; a later call resumes.
        LockedError: Another process owns the run.
    """
    try:
        found = _search(job) if job.seed is None else _evaluated(job)
        results.write_result(job.home, {"status": "done", **_identity(job), **found})
    except (Interrupted, LockedError):
        raise
    except Exception as error:  # any error: it must not stop the other runs
        write_failure(job, error)


def write_failure(job: Job, error: Exception) -> None:
    """Write the result.json of a run that failed."""
    results.write_result(job.home, results.failure(error) | _identity(job))


def _identity(job: Job) -> dict[str, Any]:
    return {"model": job.name, "seed": job.seed}


def _evaluated(job: Job) -> dict[str, Any]:
    """Train a run, and grade it on the test split at every number of steps and checkpoint.

    On a task that is judged at due steps, the score and the checkpoints are graded at them.
    """
    plan = Plan.read(Path(job.folder))
    assert job.seed is not None
    one = plan.contender(job.name)
    config = plan.config(one, job.seed, job.lr)
    usage = _train(job, config)
    model = load(job.home).to(find_device(config.training.device))
    task = tasks.from_config(config.task, EXAMPLES_SEED)
    usual = usual_steps(model, task, one.halt)
    counts: dict[Steps, None] = dict.fromkeys([usual, *step_counts_of(model, task.section_length)])
    grades, measured = _graded(model, task, plan, one, list(counts))
    number = min(POINT_EXAMPLES, plan.num_examples)
    curve, points = _curve(job.home, model, task, number, usual, one.halt)
    questions = example_groups(task, "test", plan.num_examples, grades[usual])
    digest = results.write_grades(job.home, grades, points, questions)
    checkpoint.prune(job.home / "checkpoints", 1)
    return {
        "score": float(grades[usual].mean()),
        "num_steps": usual,
        "grades": digest,
        "scores": {str(k): float(x.mean()) for k, x in grades.items()},
        **measured,
        "curve": curve,
        "parameters": sum(p.numel() for p in model.parameters()),
        "updates": curve[-1]["update"],
        "flops": curve[-1]["flops"],
        "lr": config.training.lr,
        "run": job.home.relative_to(job.folder).as_posix(),
        **usage,
    }


def _graded(
    model: Model, task: Task, plan: Plan, one: Contender, counts: Sequence[Steps]
) -> tuple[dict[Steps, np.ndarray], dict[str, Any]]:
    """Grade a model on the test split after these numbers of steps; return also its FLOPs.

    Where tokens halt, or a policy chooses, they are those that were done, with the mean number of
    steps, or of blocks, and the share of the FLOPs of all steps.
    """
    work = {str(k): matching.answer_flops(one.config, k) for k in counts}
    if one.halt is None:
        grades = {k: task.grade(model, "test", plan.num_examples, k).numpy() for k in counts}
        return grades, {"answer_flops": work}
    efforts = {
        k: measure_effort(model, task, "test", plan.num_examples, k, one.halt)
        for k in counts
        if k != "due"
    }
    shares = {str(k): effort.flops_share for k, effort in efforts.items()}
    return {k: effort.grades.numpy() for k, effort in efforts.items()}, {
        "answer_flops": {k: work[k] * share for k, share in shares.items()},
        **rule_record(one.halt),
        "mean_steps": {str(k): effort.mean_steps for k, effort in efforts.items()},
        "flops_share": shares,
    }


def _search(job: Job) -> dict[str, Any]:
    """Train a run of the learning-rate search, and score it on the validation split."""
    plan = Plan.read(Path(job.folder))
    one = plan.contender(job.name)
    config = plan.config(one, SEARCH_SEED, job.lr)
    usage = _train(job, config)
    task = tasks.from_config(config.task, EXAMPLES_SEED)
    model = load(job.home).to(find_device(config.training.device))
    steps, options = usual_steps(model, task, one.halt), halt_option(one.halt)
    scores = task.score(model, "valid", plan.num_examples, steps, **options)
    return {"lr": job.lr, "score": task.objective(scores), **usage}


def _train(job: Job, config: Config) -> dict[str, float | None]:
    """Train or resume; return process seconds and peak memory in bytes, None if not known.

    Both cover all sessions of the run and are kept in a file beside it. During a session the file
    says "not known": the use of a killed session is lost, and a sum without it would be wrong.
    """
    file = job.home.with_name(f"{job.home.name}.usage.json")
    device = find_device(config.training.device)
    budgets.warm_up(config)
    try:
        before = read_with_digest(file, USAGE)
    except FileNotFoundError:
        before = {"seconds": 0.0, "memory": 0}
    own_folder(file.parent, make=True)
    own_folder(job.home)
    write_file(file, with_digest({"seconds": None, "memory": None}))
    is_begun = exists(job.home / folder.RECORD)
    with open_log(job.log) as log, contextlib.redirect_stdout(log):
        resets, start = reset_peak(device), time.process_time()
        try:
            if is_begun:
                # The weights were named for the whole comparison.
                begin = config.training.init_from
                resume(job.home, tracking=job.tracking, init_from=begin)
            else:
                train(config, job.home, tracking=job.tracking)
        finally:
            now = time.process_time() - start, peak_memory(device) if resets else None
            known = {key: before[key] is not None for key in before}
            usage = {
                "seconds": before["seconds"] + now[0] if known["seconds"] else None,
                "memory": max(before["memory"], now[1]) if known["memory"] and now[1] else None,
            }
            write_file(file, with_digest(usage))
    return usage


def _curve(
    home: Path, model: Model, task: Task, num_examples: int, num_steps: Steps, halt: Halt
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return ([{update, flops, score}], grades) of each checkpoint of a run, oldest first.

    Checkpoints saved by an interruption are skipped: other runs have no point there.
    """
    curve, points = [], []
    paths = checkpoint.saved(home / "checkpoints")
    every = folder.read_record(home)["config"]["training"]["checkpoint_every"]
    for path in [x for x in paths if int(x.name) % every == 0 or x == paths[-1]]:
        saved = checkpoint.read(path)
        model.load_state_dict(saved.tensors.get("ema", saved.tensors["weights"]))
        grades = task.grade(model, "test", num_examples, num_steps, **halt_option(halt)).numpy()
        flops = saved.state["flops"]
        curve.append({"update": saved.update, "flops": flops, "score": float(grades.mean())})
        points.append(grades)
    return curve, np.stack(points)


def usual_steps(model: Model, task: Task, halt: Halt = None) -> int | Literal["due"]:
    """Return "due" if the task is judged so, else the steps of the model, one of `step_counts`.

    With `halt` the model itself stops at what would be due, which is then the limit; that of a
    policy is the number of steps that its roll-outs took.
    """
    counts = step_counts_of(model, task.section_length)
    if halt != "policy" and task.judged_at == "due" and model.config.takes_steps:
        return "due" if halt is None else model.check_steps(task.max_due)
    return model.config.num_steps if model.config.num_steps in counts else counts[0]


def main(words: str) -> int:
    """Perform a job in this process and return its exit code, which is 0 for a failed run too."""
    stop_with_parent()
    given = json.loads(words)
    for file in given["files"]:
        import_file(file)
    try:
        with one_thread():
            perform(Job(**given["job"]))
    except (Interrupted, LockedError) as error:
        show(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
