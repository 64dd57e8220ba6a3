"""train(config): from a configuration to a trained and scored model, on one rank or many."""

import copy
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from thinkers.checks import check_int
from thinkers.config.experiment import Config, build
from thinkers.config.training import PRECISIONS
from thinkers.errors import Interrupted, UsageError, usage_error
from thinkers.models.base import Model
from thinkers.runs import checkpoint, trackers
from thinkers.runs import folder as run_folder
from thinkers.runs.metrics import MetricsWriter
from thinkers.runs.result import Run, load
from thinkers.runs.trackers import Tracking
from thinkers.training import optim
from thinkers.training.distributed import Ranks, is_first, join
from thinkers.training.signals import Signals
from thinkers.training.step import (
    Learner,
    LossOf,
    capture,
    check_random_steps,
    faster_precision,
    gradients,
    move_average,
    require_finite,
    restore,
    shorten,
    thinking_steps,
    uses_all,
)


def train(
    config: Config | None = None,
    out: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    num_updates: int | None = None,
    until: int | None = None,
    overrides: Sequence[str] = (),
    tracking: Tracking | None = None,
) -> Run:
    """Train what `config` describes, or go on with a run that was left; then score it.

    Args:
        out: The folder of the new run; runs/<recipe>-<seed> if None.
        resume: The folder of a run to go on with, from its newest whole checkpoint.
        num_updates: With `resume`: train up to so many instead.
        until: Stop after this update, as if there was no more time; the plan stays as it is.
        overrides: Of the recipe, as they were typed; kept in config.json.
        tracking: Where metrics go beside metrics.jsonl; a resumed run remembers.

    Raises:
        NonFiniteError: A loss or gradient is infinite or no number; the weights are as before it.
        Interrupted: SIGINT or SIGTERM came; the finished update is saved.
        LockedError: Another run owns the folder.
        DamagedError: No checkpoint of the run is whole.
        ResourceError: The disk is full; all that was saved before is there.
    """
    if until is not None:
        check_int("until", until, 1)
    if tracking is not None:
        trackers.check(tracking)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Under autocast a norm's weight stays in float32, as it should.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        if resume is not None and config is None:
            folder = Path(resume)
            if is_first():
                stack.enter_context(run_folder.owned(folder, new=False))
            record = run_folder.read_record(folder)
            config = Config.from_dict(record["config"])
            if num_updates is not None:
                _check_longer(num_updates, config.training.num_updates)
                longer = replace(config.training, num_updates=num_updates)
                config = replace(config, training=longer)
        elif isinstance(config, Config) and resume is None and num_updates is None:
            folder = Path(out) if out is not None else run_folder.default_folder(config)
            record = run_folder.new_record(config, overrides)
            if tracking is not None:
                record["tracking"] = tracking
            if is_first():
                stack.enter_context(run_folder.owned(folder, new=True))
        else:
            raise UsageError(
                "train must be given a configuration, or a run to resume, "
                f"got {type(resume if config is None else config).__name__}"
            )
        if resume is not None and tracking not in (None, record.get("tracking")):
            raise UsageError("tracking must be left to the run when it is resumed")
        last = min(config.training.num_updates, until or config.training.num_updates)
        ranks = stack.enter_context(join(config.training.device))
        return _train(config, folder, record, ranks, last)


def _train(config: Config, folder: Path, record: dict[str, Any], ranks: Ranks, last: int) -> Run:
    """The way of the data, top to bottom."""
    settings = config.training
    learner, precision = _prepare(config, folder, record, ranks)
    sink = trackers.open_tracker(record.get("tracking"), folder, record) if ranks.writes else None
    forward = ranks.share(LossOf(learner.model), ranks.world == 1 or _uses_all(learner))

    with (
        MetricsWriter(folder if ranks.writes else None, learner.update, last, sink) as tracker,
        Signals() as signals,
    ):
        before = time.monotonic() - 60 * learner.minutes
        stop = _is_cut(learner)
        while learner.update < last and not stop:
            batch = learner.task.batch(learner.update, settings.batch_size)
            num_steps = thinking_steps(learner.update, settings)
            lr = optim.learning_rate(learner.update, settings)
            learner.flops += learner.model.batch_flops(batch, num_steps, training=True)
            learner.minutes = (time.monotonic() - before) / 60
            wishes = [_is_cut(learner), *signals.came()]

            told = gradients(forward, learner, batch, num_steps, precision, wishes, ranks)
            done = learner.update = learner.update + 1
            accuracy = float(told.correct.float().mean())
            facts = dict(lr=lr, norm=told.norm, flops=learner.flops, minutes=learner.minutes)
            if done % settings.log_every == 0 or not told.is_finite:
                tracker.log(done, loss=told.loss, accuracy=accuracy, **told.parts, **facts)
            require_finite(told, learner)
            if told.norm > settings.clip:
                shorten(learner, settings.clip / told.norm)
            optim.step(learner.optimizers, lr)
            move_average(learner, settings.ema)
            learner.task.observe(told.correct)
            tracker.show(done, told.loss, accuracy)

            score = None
            if settings.evaluate_every and done % settings.evaluate_every == 0:
                alone = ranks.world == 1
                if scores := signals.unless_stopped(lambda: score_of(learner, "valid"), alone):
                    tracker.log(done, valid=scores)
                    score = learner.task.objective(scores)
            is_best = score is not None and _is_better(score, learner.best)
            learner.best = score if is_best else learner.best
            signal = told.signal or (signals.number if ranks.world == 1 else 0)
            stop = told.is_cut or signal != 0 or done == last
            if stop or is_best or done % settings.checkpoint_every == 0:
                save(learner, folder, record["run"], score, tracker, ranks)
            if signal:
                raise Interrupted(_farewell(done, folder), signal)

        scores = signals.unless_stopped(lambda: score_of(learner, "test"))
        if scores is None:
            raise Interrupted(_farewell(learner.update, folder), signals.number)
        tracker.log(learner.update, test=scores)
    return Run(learner.result.eval(), scores, folder)


def _prepare(
    config: Config, folder: Path, record: dict[str, Any], ranks: Ranks
) -> tuple[Learner, str]:
    """A learner, new or as its newest whole checkpoint has it, and its precision."""
    settings = config.training
    parts = ranks.world * settings.accumulation
    if settings.batch_size % parts:
        rule = f"a multiple of ranks x accumulation, {parts}"
        raise UsageError(f"batch_size must be {rule}, got {settings.batch_size}")
    update = ranks.first(_newest(folder, record["run"]) if ranks.writes else 0)
    torch.manual_seed(settings.seed)
    task, model = build(config)
    config = replace(config, model=model.config)
    model = model.to(ranks.device)
    check_random_steps(model, settings)
    task.check(model)
    task.batch(0, settings.batch_size)  # what cannot be made is found before anything is written
    if settings.init_from is not None and not update:
        start_from(model, settings.init_from)
    precision = record.get("precision", settings.precision)
    if precision == "auto":
        batch = task.batch(0, settings.batch_size).rows(slice(ranks.rank, None, parts))
        precision = PRECISIONS[ranks.first(PRECISIONS.index(faster_precision(model, batch)))]
    if precision == "float64":
        model.double()
    average = copy.deepcopy(model) if settings.ema is not None else None
    learner = Learner(config, model, average, optim.build(model, settings), task)

    plans = [plan for plan in record.get("plans", []) if plan["from"] < update]
    if not plans or plans[-1]["num_updates"] != settings.num_updates:
        plans.append({"from": update, "num_updates": settings.num_updates})
    here = {"precision": precision, "device": str(ranks.device), "ranks": ranks.world}
    here |= run_folder.surroundings()
    if ranks.writes:
        for change in run_folder.changes(record, here) if "precision" in record else ():
            print(f"{change}: the last bits may differ", flush=True)
        record |= here | {"config": config.to_dict(), "plans": plans}
        run_folder.write_record(folder, record)
        task.save_to_run(folder)
    if update:
        restore(learner, checkpoint.read(folder / "checkpoints" / f"{update:08d}", record["run"]))
    return learner, precision


def _newest(folder: Path, run_id: str) -> int:
    """The update of the newest whole checkpoint; 0 if nothing was saved."""
    path = checkpoint.newest(folder / "checkpoints", run_id)
    return 0 if path is None else int(path.name)


def start_from(model: Model, folder: str) -> None:
    """Give `model` the weights of a model folder."""
    if not Path(folder).is_dir():
        raise usage_error(
            f"--training.init_from {folder}",
            "the folder that Model.save wrote, or that of a run",
            "change --training.init_from",
        )
    given = load(folder).state_dict()
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | given.keys()):
        shapes = [tuple(x[name].shape) if name in x else None for x in (wanted, given)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"init_from must hold the weights of this model: {name} must have shape "
                f"{shapes[0]}, got {shapes[1]} in {folder}"
            )
    model.load_state_dict(given)


def score_of(learner: Learner, split: str) -> dict[str, float]:
    """{metric: value} of the resulting model; every rank computes the same."""
    model = learner.result.eval()
    scores = learner.task.score(model, split, learner.config.training.evaluate_examples)
    learner.model.train()
    return scores


def save(
    learner: Learner,
    folder: Path,
    run_id: str,
    score: float | None,
    tracker: MetricsWriter,
    ranks: Ranks,
) -> None:
    """A checkpoint of everything, model/ as it is now, and one line that acknowledges both."""
    made = capture(learner)
    if not ranks.writes:
        return
    tracker.flush()
    checkpoint.save(folder / "checkpoints", made, run_id, score)
    tracker.say(f"saved update={made.update}")
    run_folder.write_model(folder, learner.result)
    checkpoint.prune(folder / "checkpoints", learner.config.training.keep_last)


def _uses_all(learner: Learner) -> bool:
    """Whether every parameter has a gradient at the fewest steps, and so at any number."""
    steps = learner.config.training.random_steps
    return uses_all(learner.model, learner.task.batch(0, 1), None if steps is None else steps[0])


def _is_cut(learner: Learner) -> bool:
    """Whether the time or the operations that were allowed are used up."""
    settings = learner.config.training
    minutes, flops = settings.max_minutes or math.inf, settings.max_flops or math.inf
    return learner.minutes >= minutes or learner.flops >= flops


def _is_better(score: float, best: float | None) -> bool:
    return math.isfinite(score) and (best is None or score > best)


def _farewell(update: int, folder: Path) -> str:
    return f"interrupted and saved after update {update}; go on with --resume {folder}"


def _check_longer(num_updates: int, planned: int) -> None:
    if num_updates < planned:
        raise usage_error(
            f"--training.num_updates {num_updates}",
            f"at least {planned}, for which the run was planned",
            "leave it out to go on as planned",
        )
