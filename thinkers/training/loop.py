"""`train` and `resume`: from a configuration to a trained and scored model, on one rank or many.

One turn of the loop: batch, step, log, maybe evaluate, maybe save. A resumed run equals an
uninterrupted one bit for bit: a checkpoint holds all of `TrainState`, and batches, thinking steps
and dropout are functions of the seed and the update, so that they are drawn again, not restored. On
SIGINT or SIGTERM the loop finishes its update, saves a checkpoint and raises `Interrupted`.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from thinkers.checks import check_int
from thinkers.config.experiment import Config
from thinkers.config.training import PRECISIONS
from thinkers.devices import find_device
from thinkers.distillation.guide import guide_weights
from thinkers.errors import Interrupted, UsageError, usage_error
from thinkers.models.base import Model
from thinkers.models.batch import Batch
from thinkers.models.halt import halt_option
from thinkers.models.weights_file import sizes_within
from thinkers.process_state import keep_process_state
from thinkers.runs import checkpoint, trackers
from thinkers.runs import folder as run_folder
from thinkers.runs.metrics import MetricsWriter
from thinkers.runs.result import Run
from thinkers.runs.trackers import Tracking
from thinkers.tasks.base import check_split
from thinkers.terminal import show
from thinkers.training import status
from thinkers.training.compiled import CompiledLayers
from thinkers.training.distributed import Ranks, is_first, join
from thinkers.training.named_again import check_resumed
from thinkers.training.record import write_record
from thinkers.training.sharding import is_sharded, with_weights
from thinkers.training.signals import Signals
from thinkers.training.state import TrainState, build_on, initial_weights
from thinkers.training.step import (
    StepResult,
    autocast,
    faster_precision,
    loss_module,
    over_budget,
    parts_of_batch,
    require_finite,
    step,
    thinking_steps,
    uses_all_parameters,
)
from thinkers.user_paths import user_path

Callback = Callable[[TrainState, StepResult], Any]
"""f(state, result): reads both and changes nothing."""


def train(
    config: Config,
    out: str | Path | None = None,
    *,
    until: int | None = None,
    overrides: Sequence[str] = (),
    tracking: Tracking | None = None,
    callbacks: Sequence[Callback] = (),
    score_on: str = "test",
) -> Run:
    """Train the model of `config` on its task in a new run folder, then score it.

    Args:
        out: The folder of the run; runs/<recipe>-<seed> if None.
        until: Stop after this update, as if the time were used up; the learning-rate schedule still
            covers all updates.
        overrides: Changes of the recipe, as they were typed; kept in config.json.
        tracking: Store of the metrics in addition to metrics.jsonl.
        callbacks: Functions f(state, result), called in order after each update, on the first rank.
            They change nothing. An error in one ends the run, which can be resumed.
        score_on: The split that is scored at the end; a search must not see the test split.

    Raises:
        UsageError: The settings do not fit each other, or the folder is in use.
        NonFiniteError: A loss or gradient is infinite or not a number; the weights are as before.
        Interrupted: SIGINT or SIGTERM was received; the last update is saved.
        LockedError: Another process owns the folder.
        ResourceError: The disk is full; everything saved before is intact.
    """
    if not isinstance(config, Config):
        raise UsageError(
            f"config must be a Config, got {type(config).__name__}; "
            'build one, such as thinkers.RECIPES["add/thinker"](), or continue a run by resume'
        )
    if tracking is not None:
        trackers.check(tracking)
    _check_callbacks(callbacks)
    _check_overrides(overrides)
    folder = user_path(out, "out") if out is not None else run_folder.default_folder(config)
    record = run_folder.new_record(config, overrides)
    record |= {"tracking": tracking} if tracking is not None else {}
    record |= {"score_on": score_on} if check_split(score_on) != check_split("test") else {}
    with _owned(folder, new=True):
        return _join_and_train(config, folder, record, until, callbacks)


def resume(
    folder: str | Path,
    *,
    num_updates: int | None = None,
    until: int | None = None,
    tracking: Tracking | None = None,
    init_from: str | Path | None = None,
    guide: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Continue a run from its newest intact checkpoint, then score it.

    The result equals that of a run that was never interrupted, bit for bit.

    Args:
        num_updates: The updates to extend the run to; at least as many as were planned.
        until, callbacks: As in `train`; a run does not keep its callbacks.
        tracking: As in `train`. What is named in the folder is not used unless it is named again:
            whoever wrote the folder does not choose what is sent elsewhere.
        init_from: The folder that the training began with, for a run that has saved nothing yet.
        guide: The run that guides this one, for a run of `grow`.

    Raises:
        DamagedError: No checkpoint of the run is intact, or config.json was edited.
        UsageError, NonFiniteError, Interrupted, LockedError, ResourceError: As in `train`.
    """
    _check_callbacks(callbacks)
    home = user_path(folder, "folder")
    with _owned(home, new=False):
        record = run_folder.read_record(home)
        config = Config.from_dict(record["config"])
        check_resumed(config, home, init_from, guide)
        if tracking is None and "tracking" in record and is_first():
            name = record["tracking"]
            show(f"the metrics are not sent to {name} unless you add --tracking {name}")
        record = {key: x for key, x in record.items() if key != "tracking"}
        if tracking is not None:
            trackers.check(tracking)
            record["tracking"] = tracking
        if num_updates is not None:
            config = _extended(config, num_updates)
        return _join_and_train(config, home, record, until, callbacks)


@contextmanager
def _owned(folder: Path, new: bool) -> Iterator[None]:
    """Lock the folder on the first rank, which writes for all."""
    with run_folder.owned(folder, new) if is_first() else nullcontext():
        yield


def _extended(config: Config, num_updates: int) -> Config:
    planned = config.training.num_updates
    if check_int("num_updates", num_updates, 1) < planned:
        raise usage_error(
            f"--training.num_updates {num_updates}",
            f"at least {planned}, for which the run was planned",
            "leave it out to train as planned",
        )
    return config.with_updates(num_updates)


def _check_overrides(overrides: Any) -> None:
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise usage_error(
            f"overrides {overrides!r}", 'texts, such as ["training.lr=0.001"]', "change overrides"
        )


def _check_callbacks(callbacks: Sequence[Callback]) -> None:
    if not isinstance(callbacks, Sequence):
        raise UsageError(f"callbacks must be a sequence of functions, got {callbacks!r}")
    for found in callbacks:
        if not callable(found):
            raise UsageError(f"callbacks must be functions f(state, result), got {found!r}")


def _join_and_train(
    config: Config,
    folder: Path,
    record: dict[str, Any],
    until: int | None,
    callbacks: Sequence[Callback],
) -> Run:
    num_updates = config.training.num_updates
    last = num_updates if until is None else min(num_updates, check_int("until", until, 1))
    if is_first():  # before the other ranks have joined, so that a failure of theirs stays
        status.clear(folder)
    with (
        keep_process_state(find_device(config.training.device)),
        warnings.catch_warnings(),
        join(config.training.device) as ranks,
        status.FailureRecord(folder, ranks) as failure,
    ):
        # Under autocast the weight of a norm stays in float32, as it should.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        # A separate function, so that on an error `join` can clear its frame and free the model.
        return _train(config, folder, record, ranks, last, callbacks, failure)


def _train(
    config: Config,
    folder: Path,
    record: dict[str, Any],
    ranks: Ranks,
    last: int,
    callbacks: Sequence[Callback],
    failure: status.FailureRecord,
) -> Run:
    """Train from the newest checkpoint, if there is one, to update `last`; then score."""
    state, precision, kept, make_update = _prepare(config, folder, record, ranks)
    settings, task, failure.state = config.training, state.task, state
    home, split = folder if ranks.is_writer else None, record.get("score_on", "test")
    tracker = trackers.open_tracker(record.get("tracking"), folder, record) if home else None
    loss = ranks.data_parallel(loss_module(state), lambda: _uses_all(state))

    with (
        MetricsWriter(home, state.update, last, tracker, kept) as metrics,
        Signals() as signals,
    ):
        start = time.monotonic() - 60 * state.minutes
        stop = over_budget(state)
        while state.update < last and not stop:
            batch = task.batch(state.update, settings.batch_size)
            state.minutes = (time.monotonic() - start) / 60
            result = make_update(state, batch, loss, precision, ranks, signals.received())
            done = result.update
            progress = partial(task.progress, batch, result.values())
            if done % settings.log_every == 0 or not result.is_finite:
                spent = {"flops": state.flops, "minutes": state.minutes}
                metrics.log(done, **{**result.values(), **progress(), **spent})
            require_finite(result, state.model)
            metrics.show(done, result.loss, progress)
            for call in callbacks if ranks.is_writer else ():
                call(state, result)
            score = None
            if settings.evaluate_every and done % settings.evaluate_every == 0:
                # All ranks evaluate together: if one left early, the others would wait for it.
                alone = ranks.world == 1
                if scores := signals.unless_stopped(lambda: evaluate_split(state, "valid"), alone):
                    metrics.log(done, valid=scores)
                    score = task.objective(scores)
            is_best = score is not None and _is_better(score, state.best)
            state.best = score if is_best else state.best

            # Of several ranks, a signal counts once all know of it: it travelled with the step.
            signal = result.signal or (signals.number if ranks.world == 1 else 0)
            stop = result.over_budget or signal != 0 or done == last
            if stop or is_best or done % settings.checkpoint_every == 0:
                save(state, folder, record["run"], score, metrics, ranks)
            if signal:
                raise _interrupted(done, folder, signal)

        scores = signals.unless_stopped(lambda: evaluate_split(state, split))
        if scores is None:
            raise _interrupted(state.update, folder, signals.number)
        metrics.log(state.update, **{split: scores})
    return Run(state.result.eval(), scores, folder)


def _prepare(
    config: Config, folder: Path, record: dict[str, Any], ranks: Ranks
) -> tuple[TrainState, str, Mapping[str, Any] | None, Callable[..., StepResult]]:
    """Return the state of the newest intact checkpoint, or a new one, and the precision.

    The third is the digest of metrics.jsonl at that checkpoint, the fourth makes an update: `step`,
    with compiled layers if the settings ask for them.
    """
    settings = config.training
    parts = parts_of_batch(config, ranks)
    update = ranks.from_first(_newest(folder, record["run"]) if ranks.is_writer else 0)
    path = folder / "checkpoints" / f"{update:08d}"
    run = folder if "precision" in record else None  # which training adds as it begins
    # Settings that come with a run can ask for any size; its weights cannot.
    record_file = str(folder / run_folder.RECORD)
    with sizes_within(checkpoint.sizes(path), record_file) if update else nullcontext():
        task, model = build_on(ranks.device, config, initialize=update == 0, run=run)
    record |= {} if update else initial_weights(settings.init_from, record)
    record |= guide_weights(config.grow, record)
    precision = record.get("precision", settings.precision)
    if precision == "auto":
        rows = task.batch(0, settings.batch_size).rows(slice(ranks.rank, None, parts))
        precision = _agreed_precision(model, rows, ranks)
    if precision == "float64":
        model.double()
    make_update = step
    if settings.compile:
        layers = CompiledLayers(model)
        make_update = layers.used()(step)
        # Before the state is loaded: a curriculum would give another batch.
        first = task.batch(0, settings.batch_size)
        rows = first.rows(slice(ranks.rank, None, parts)).to(ranks.device)
        with autocast(precision, ranks.device):
            layers.warm_up(rows, thinking_steps(0, settings, first))
    in_shards = settings.sharding == "full" and ranks.world > 1
    state = TrainState.new(config, task, model, in_shards)
    kept = None
    if update:
        state.load_state_dict(checkpoint.read(path, record["run"]))
        kept = checkpoint.metrics_digest(path)
    result = state.result  # on every rank, which gather it
    if ranks.is_writer:
        write_record(folder, record, state, update, precision, ranks)
        if update:
            # A run that was killed after the checkpoint has the model of an earlier one, or none.
            run_folder.write_model(folder, result)
    return state, precision, kept, make_update


def _agreed_precision(model: Model, rows: Batch, ranks: Ranks) -> str:
    """Measure on every rank, since they wait for each other, and take the choice of the first."""
    return PRECISIONS[ranks.from_first(PRECISIONS.index(faster_precision(model, rows)))]


def _newest(folder: Path, run_id: str) -> int:
    """Return the update of the newest intact checkpoint; 0 if there is none."""
    path = checkpoint.newest(folder / "checkpoints", run_id)
    return 0 if path is None else int(path.name)


def evaluate_split(state: TrainState, split: str) -> dict[str, float]:
    """Score the resulting model: {metric: value}, the same on every rank."""
    model = state.result.eval()
    task, num_examples = state.task, state.config.training.evaluate_examples
    rule = halt_option(None if state.config.reinforce is None else "policy")
    scores = task.score(model, split, num_examples, task.judged_at, **rule)
    state.model.train()
    return scores


def save(
    state: TrainState,
    folder: Path,
    run_id: str,
    score: float | None,
    metrics: MetricsWriter,
    ranks: Ranks,
) -> None:
    """Write a checkpoint and the folder model/, and print one line once both are on the disk."""
    content = state.state_dict()  # on every rank: all must fail alike if a weight is not finite
    if not ranks.is_writer:
        return
    # Metrics first: a resumed run drops lines beyond its checkpoint, and cannot restore lost ones.
    metrics.flush()
    checkpoint.save(folder / "checkpoints", content, run_id, score, metrics.digest())
    kept = content.tensors.get("ema", content.tensors["weights"])
    sharded = is_sharded(state.model)
    run_folder.write_model(folder, with_weights(state.model, kept) if sharded else state.result)
    metrics.print(f"saved update={content.update}")
    checkpoint.prune(folder / "checkpoints", state.config.training.keep_last, run_id)


def _uses_all(state: TrainState) -> bool:
    """Return True if every parameter has a gradient at the fewest steps, and so at any number."""
    settings = state.config.training
    fewest = {"fixed": None, "random": (settings.random_steps or (1,))[0], "due": 1}
    return uses_all_parameters(state.model, state.task.batch(0, 1), fewest[settings.depth])


def _is_better(score: float, best: float | None) -> bool:
    return math.isfinite(score) and (best is None or score > best)


def _interrupted(update: int, folder: Path, signal: int) -> Interrupted:
    what = f"interrupted and saved after update {update}; continue with --resume {folder}"
    return Interrupted(what, signal)
