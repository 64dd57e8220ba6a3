"""`grow`: a larger model, trained from random weights and guided by the model of a finished run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thinkers.config.experiment import Config, build_part
from thinkers.config.grow import Grow
from thinkers.config.overrides import override
from thinkers.errors import UsageError, usage_error
from thinkers.runs import folder as run_folder
from thinkers.runs.result import Run
from thinkers.runs.trackers import Tracking
from thinkers.training.from_run import check_task, folder_of, recorded
from thinkers.training.loop import train

EXPECTED = "the folder of a run, whose model guides the larger one"
FIX = "train one, such as cups/looped"


def grow(
    run: Run | str | Path,
    *,
    out: str | Path | None = None,
    flags: Sequence[str] = (),
    tracking: Tracking | None = None,
    **settings: Any,
) -> Run:
    """Train another model from random weights, guided by the model of a run; then score it.

    It has the settings of the run except those that `flags` change, such as --model.dim=128. The
    loss is that of the task, plus a weight that falls to 0 times the divergence from the guide: see
    `thinkers.distillation.guide`. The operations of the guide count in the run's `flops`. `resume`
    continues the new run bit for bit, while the guide stays as it is.

    Args:
        run: The finished run.
        out: The folder of the new run; that of the old one with "-grown" if None.
        flags: Settings of model, task and training to change.
        tracking: As in `train`.
        settings: weight and decay, as in `thinkers.config.grow.Grow`.

    Raises:
        UsageError: The models read different tokens, the guide has a memory, or settings do
            not fit.
        DataError: The run has saved no model, or files of the task are not those that it was
            trained on.
        NonFiniteError: A weight of the guide, a loss or a gradient is infinite or not a number.
    """
    folder = folder_of(run)
    config = configuration(run, flags, settings)
    check_task(folder, config, flags)
    target = run_folder.beside(folder, "grown") if out is None else out
    return train(config, target, tracking=tracking)


def configuration(
    run: Run | str | Path, flags: Sequence[str] = (), settings: dict[str, Any] | None = None
) -> Config:
    """Return the configuration of the run that `grow` trains.

    Raises:
        UsageError: There is no such run, or the settings do not fit.
    """
    folder = folder_of(run)
    config = recorded(folder, EXPECTED, FIX)
    if config.reinforce is not None:
        raise usage_error(
            f"{folder}, a run of reinforce, which began with the weights of another run",
            "a run that was trained from random weights, whose settings the larger model takes",
            "grow from the run that reinforce began with",
        )
    given = dict(settings or {})
    if "guide" in given:
        raise UsageError(f"guide must be left out, since the run guides, got {given['guide']!r}")
    config = replace(
        config,
        recipe="",
        grow=build_part(Grow, given | {"guide": str(folder)}, "grow"),
        # Limits of the run before are its own.
        training=replace(config.training, init_from=None, max_minutes=None, max_flops=None),
    )
    found = override(config, (), flags)
    assert config.grow is not None and found.grow is not None
    if found.grow.guide != config.grow.guide:
        raise usage_error(
            f"--grow.guide {found.grow.guide}",
            f"{config.grow.guide}, the run that was named",
            "leave --grow.guide out",
        )
    return found
