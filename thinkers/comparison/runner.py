"""compare(task, models): the same task, the same work, several models, and what can be said."""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thinkers import tasks
from thinkers.checks import check_int
from thinkers.comparison import matching
from thinkers.comparison.following import Following
from thinkers.comparison.metering import metered, one_thread
from thinkers.comparison.page import write_page
from thinkers.comparison.plan import Plan
from thinkers.comparison.results import RESULTS, Comparison, read, write_grades
from thinkers.comparison.workers import run_each
from thinkers.config.experiment import Config
from thinkers.devices import find_device
from thinkers.errors import Interrupted, LockedError, ThinkersError, UsageError
from thinkers.files import append_line, read_lines
from thinkers.models.base import Model
from thinkers.optional import require
from thinkers.runs import checkpoint, trackers
from thinkers.runs import folder as run_folder
from thinkers.runs.result import load
from thinkers.runs.trackers import Tracker, Tracking
from thinkers.tasks.base import example_groups
from thinkers.training.loop import train

SEARCH, SITTINGS = "search.jsonl", "sittings.jsonl"
POINT_EXAMPLES = 500
"""On how many examples each checkpoint of a run is judged."""
SEARCH_SEED = 2**31
"""Of the runs that find a learning rate, which are no part of the result."""
JUDGED_SEED = 0
"""All are judged on the examples of this seed: none is trained on, whatever the run's seed."""


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
) -> Comparison:
    """Train every model over several seeds with equal means, judge all on the same examples.

    DIR holds results.jsonl, report.html, the runs and all else; see docs/compare.md.

    Args:
        models: Names in MODELS; the others are brought to the size of the first, and judged by it.
        match: What runs have equal, beside their size: flops, parameters (updates) or seconds.
        budget: FLOPs, updates or seconds of each run; "5min" is 300 seconds.
        lrs: Learning rates, of which the best on the validation split is taken; () is the recipe's.
        controls: Of pause, untied and wider.
        settings: {"task.max_digits": 2}: of the task, and of all models and trainings.
        out: The folder, runs/compare-TASK if None.
        resume: Go on with the comparison in `out`; what it was asked for may be left out.
        workers: How many runs are trained at once, each by one thread of a process of its own.
        tracking: Where each run is told of, and the comparison, with its page, when it has ended.

    Raises:
        Interrupted: A signal came; what was finished is kept.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("compare must be run by one process, got several ranks")
    asked = dict(
        task=task,
        models=list(models),
        match=match,
        budget=budget,
        seeds=seeds,
        lrs=[float(lr) for lr in lrs],
        controls=list(controls),
        settings=dict(settings or {}),
        num_examples=num_examples,
    )
    for module in ("jinja2", "matplotlib"):
        require(
            module, "report", "a report"
        )  # what the page needs is missed before hours of training
    if tracking is not None:
        trackers.check(tracking)
    check_int("workers", workers, 1)
    plan = None if resume else Plan.of(**asked)
    if out is None and task is None:
        raise UsageError("found: no task\nexpected: a name of thinkers list tasks")
    folder = Path(out) if out is not None else Path("runs") / f"compare-{task}"
    with run_folder.owned(folder, new=not resume), one_thread():
        if plan is None:
            plan = Plan.read(folder).extended(**asked)
        plan.write(folder)
        print(plan.table(workers), flush=True)
        # Opened before the runs, which then find a new data base finished.
        sink = None if tracking is None else _open_sink(tracking, folder, plan)
        try:
            _run_all(folder, plan, workers, tracking)
        except Interrupted as error:
            if sink is not None:
                sink.finish("KILLED")
            todo = f"go on with thinkers compare --out {folder} --resume"
            number = error.exit_code - 128
            raise Interrupted(f"interrupted, and what was done is kept; {todo}", number) from None
        comparison = read(folder)
        write_page(comparison)
        if sink is not None:
            _tell(sink, comparison)
        return comparison


def _run_all(folder: Path, plan: Plan, workers: int, tracking: Tracking | None) -> None:
    """Everything that is missing, seed by seed, so that a part of it can be judged early."""
    done = {
        (line["model"], line["seed"])
        for line in read_lines(folder / RESULTS)
        if line["status"] == "done"
    }
    names = [one.name for one in plan.contenders]
    missing = [(x, seed) for seed in range(plan.seeds) for x in names if (x, seed) not in done]
    seekers = list(dict.fromkeys(name for name, _ in missing)) if plan.lrs else []
    rates: dict[str, Any] = dict.fromkeys(names)
    with Following(folder / "runs") as following:
        for place, found in run_each(_find_rate, [(folder, name) for name in seekers], workers):
            rates[seekers[place]] = found
        jobs = [(folder, name, seed, rates[name], tracking) for name, seed in missing]
        for place, line in run_each(_finish, jobs, workers):
            if isinstance(line, LockedError):
                raise line
            if isinstance(line, Exception):  # told in the results, on the page, by the exit code
                line = {"status": "failed", **_told(line)}
            name, seed = missing[place]
            line = {"model": name, "seed": seed, **line}
            append_line(folder / RESULTS, line)
            following.say(_news(plan, line))


def _finish(
    folder: Path, name: str, seed: int, lr: float | Exception | None, tracking: Tracking | None
) -> dict[str, Any]:
    """Train one run and judge it; its line in the results.

    Args:
        lr: The exception that the search for it ended with is what the run ends with.
    """
    if isinstance(lr, Exception):
        raise lr
    plan = Plan.read(folder)
    config = plan.config(plan.contender(name), seed, lr)
    home = folder / "runs" / f"{name}-{seed}"
    seconds, memory = _train(folder, home, config, tracking)
    model = load(home).to(find_device(config.training.device))
    task = tasks.from_config(config.task, JUDGED_SEED)
    grades = {k: task.grade(model, "test", plan.num_examples, k).numpy() for k in model.step_counts}
    usual = usual_steps(model)
    curve, points = _curve(home, model, task, min(POINT_EXAMPLES, plan.num_examples))
    questions = example_groups(task, "test", plan.num_examples, grades[usual])
    write_grades(home, grades, points, questions)
    checkpoint.prune(home / "checkpoints", 1)
    return {
        "status": "done",
        "score": float(grades[usual].mean()),
        "num_steps": usual,
        "scores": {str(k): float(x.mean()) for k, x in grades.items()},
        "answer_flops": {str(k): matching.answer_flops(config, k) for k in grades},
        "curve": curve,
        "parameters": sum(p.numel() for p in model.parameters()),
        "updates": curve[-1]["update"],
        "flops": curve[-1]["flops"],
        "lr": config.training.lr,
        "seconds": seconds,
        "memory": memory,
        "run": home.relative_to(folder).as_posix(),
    }


def _find_rate(folder: Path, name: str) -> float:
    """The best of the learning rates on the validation split.

    Raises:
        ThinkersError: No rate could be trained with.
    """
    plan = Plan.read(folder)
    one = plan.contender(name)
    found = {line["lr"]: line for line in read_lines(folder / SEARCH) if line["model"] == name}
    for lr in plan.lrs:
        if lr in found:
            continue
        config = plan.config(one, SEARCH_SEED, lr)
        home = folder / "runs" / f"{name}-search-{lr:g}"
        try:
            seconds, _ = _train(folder, home, config)
            task = tasks.from_config(config.task, JUDGED_SEED)
            model = load(home).to(find_device(config.training.device))
            scores = task.score(model, "valid", plan.num_examples)
            told = {"merit": task.objective(scores), "seconds": seconds}
        except (Interrupted, LockedError):
            raise
        except Exception as error:  # a rate too high to train with is not the best
            told = _told(error)
        found[lr] = {"model": name, "lr": lr, **told}
        append_line(folder / SEARCH, found[lr])
    usable = [lr for lr in plan.lrs if "merit" in found[lr]]
    if not usable:
        raise ThinkersError(f"no rate of {plan.lrs} trains {name}: {found[lr]['error']}")
    return max(usable, key=lambda lr: found[lr]["merit"])


def _train(
    folder: Path, home: Path, config: Config, tracking: Tracking | None = None
) -> tuple[float | None, int | None]:
    """Train, or go on training; (process seconds, memory), None where they are not known."""
    name = home.relative_to(folder).as_posix()
    home.parent.mkdir(exist_ok=True)
    append_line(folder / SITTINGS, {"run": name})
    matching.warm_up(config)
    meter = None
    try:
        with (
            (home.parent / f"{home.name}.log").open("a") as log,
            contextlib.redirect_stdout(log),
            metered(find_device(config.training.device)) as meter,
        ):
            is_begun = (home / run_folder.RECORD).exists()
            train(resume=home) if is_begun else train(config, home, tracking=tracking)
    finally:
        if meter is not None:
            end = {"run": name, "seconds": meter.seconds, "memory": meter.memory}
            append_line(folder / SITTINGS, end)
    mine = [line for line in read_lines(folder / SITTINGS) if line["run"] == name]
    ends = [line for line in mine if "seconds" in line]
    seconds = [line["seconds"] for line in ends]
    memory = [line["memory"] for line in ends]
    # Of a sitting that was killed no seconds are known.
    was_killed = 2 * len(ends) != len(mine)
    return (
        None if was_killed else sum(seconds),
        None if None in memory else max(memory),
    )


def _open_sink(tracking: Tracking, folder: Path, plan: Plan) -> Tracker:
    """Where the comparison is told of, as a run is: its settings now, the rest when it ends."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    sink = trackers.open_tracker(tracking, folder, {"run": name, "config": plan.asked()})
    assert sink is not None
    return sink


def _tell(sink: Tracker, comparison: Comparison) -> None:
    """The mean scores, and the page."""
    scores = {
        name: float(np.mean([result.line["score"] for result in results]))
        for name, results in comparison.results.items()
        if results
    }
    sink.send([{"update": comparison.plan.seeds, "test": scores}])
    sink.finish("FAILED" if comparison.failures else "FINISHED")


def _curve(
    home: Path, model: Model, task: Any, num_examples: int
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """([{update, flops, score}], grades) of each checkpoint of a run, oldest first.

    What an interruption saved is left out: other runs have no point there.
    """
    curve, points = [], []
    paths = checkpoint.saved(home / "checkpoints")
    every = run_folder.read_record(home)["config"]["training"]["checkpoint_every"]
    for path in [x for x in paths if int(x.name) % every == 0 or x == paths[-1]]:
        saved = checkpoint.read(path)
        model.load_state_dict(saved.tensors.get("ema", saved.tensors["weights"]))
        grades = task.grade(model, "test", num_examples).numpy()
        flops = saved.state["flops"]
        curve.append({"update": saved.update, "flops": flops, "score": float(grades.mean())})
        points.append(grades)
    return curve, np.stack(points)


def usual_steps(model: Model) -> int:
    """The depth that a model is known by: the one it was built for, as one of `step_counts`."""
    counts = model.step_counts
    return model.config.num_steps if model.config.num_steps in counts else counts[0]


def _told(error: Exception) -> dict[str, Any]:
    """What a line says of an error."""
    code = error.exit_code if isinstance(error, ThinkersError) else 1
    message = " ".join(str(error).split())
    return {"error": f"{type(error).__name__}: {message}"[:500], "exit_code": code}


def _news(plan: Plan, line: Mapping[str, Any]) -> str:
    who = f"{line['model']}, seed {line['seed']}"
    if line["status"] == "failed":
        return f"{who}: failed, {line['error']}"
    seconds = "" if line["seconds"] is None else f", {line['seconds']:.1f} s of process time"
    return f"{who}: {plan.primary_metric} {line['score']:.4f}{seconds}"
