"""`reinforce`: from a trained run to one whose model chooses its next block."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from thinkers.config.experiment import (
    DEPTH_SETTINGS,
    Config,
    build_part,
)
from thinkers.config.overrides import override
from thinkers.config.reinforce import Reinforce
from thinkers.runs import folder as run_folder
from thinkers.runs.result import Run
from thinkers.runs.trackers import Tracking
from thinkers.training.from_run import check_task, folder_of, recorded
from thinkers.training.loop import train

EXPECTED = "the folder of a run of a thinker with policy"
FIX = "train one, such as mixed/thinker"
LR_SHARE = 0.1
"""The learning rates of the model, as a share of those of its run."""


def reinforce(
    run: Run | str | Path,
    *,
    out: str | Path | None = None,
    flags: Sequence[str] = (),
    tracking: Tracking | None = None,
    **settings: Any,
) -> Run:
    """Train the model of a run and its policy in turn, in a new run folder, then score it.

    Supervised updates train the model under blocks that its policy draws; policy updates train the
    policy alone, by the reward of its roll-outs: see `thinkers.policies.loss`. `resume` continues
    the new run bit for bit.

    Args:
        run: A run of a Thinker with `policy`, whose newest model is the beginning.
        out: The folder of the new run; that of the old one with "-policy" if None.
        flags: Other settings to change, such as --training.lr=1e-3; without, the learning rate of
            the model is a tenth of that of its run.
        tracking: As in `train`.
        settings: Fields of `thinkers.config.reinforce.Reinforce`.

    Raises:
        UsageError: The model has no policy, the task has no questions, or settings do not fit.
        DataError: Files of the task are not those that the run was trained on.
        NonFiniteError: A loss, a gradient or a reward is infinite or not a number.
    """
    config = configuration(run, flags, settings)
    check_task(folder_of(run), config, flags)
    target = run_folder.beside(folder_of(run), "policy") if out is None else out
    return train(config, target, tracking=tracking)


def configuration(
    run: Run | str | Path, flags: Sequence[str] = (), settings: dict[str, Any] | None = None
) -> Config:
    """Return the configuration of the run that `reinforce` trains.

    Raises:
        UsageError: There is no such run, or the settings do not fit.
    """
    folder = folder_of(run)
    # The policy decides the depth, and meets all sizes of questions from the start.
    config = recorded(folder, EXPECTED, FIX)
    own = build_part(Reinforce, dict(settings or {}), "reinforce")
    before = config.training
    config = replace(
        config,
        recipe="",
        reinforce=own,
        training=replace(
            before,
            lr=LR_SHARE * before.lr,
            muon_lr=before.muon_lr and LR_SHARE * before.muon_lr,
            init_from=str(folder),
            **DEPTH_SETTINGS,
            # Limits of the run before are its own, and roll-outs are not compiled.
            max_minutes=None,
            max_flops=None,
            compile=False,
        ),
    )
    if "curriculum" in {field.name for field in fields(config.task)}:
        config = replace(config, task=replace(config.task, curriculum=False))
    return override(config.with_updates(own.num_updates), (), flags)
