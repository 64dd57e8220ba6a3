"""`reinforce`: from a trained run to one whose model chooses its next block."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from thinkers import tasks
from thinkers.config.experiment import (
    DEPTH_SETTINGS,
    OPTIONAL_PART,
    Config,
    build_part,
    check_vocabulary,
)
from thinkers.config.overrides import override
from thinkers.config.reinforce import Reinforce
from thinkers.errors import usage_error
from thinkers.runs import folder as run_folder
from thinkers.runs.result import Run, check_meanings
from thinkers.runs.trackers import Tracking
from thinkers.training.loop import train
from thinkers.user_paths import user_path

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
    check_task(_folder_of(run), config, flags)
    target = run_folder.beside(_folder_of(run), "policy") if out is None else out
    return train(config, target, tracking=tracking)


def configuration(
    run: Run | str | Path, flags: Sequence[str] = (), settings: dict[str, Any] | None = None
) -> Config:
    """Return the configuration of the run that `reinforce` trains.

    Raises:
        UsageError: There is no such run, or the settings do not fit.
    """
    folder = _folder_of(run)
    if not run_folder.is_run(folder):
        raise usage_error(
            f"{folder}, which is no run",
            "the folder of a run of a thinker with policy",
            "train one, such as mixed/thinker",
        )
    # The policy decides the depth, and meets all sizes of questions from the start.
    config = Config.from_dict(run_folder.read_record(folder)["config"])
    own = build_part(Reinforce, dict(settings or {}), OPTIONAL_PART)
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


def check_task(folder: Path, config: Config, flags: Sequence[str]) -> None:
    """Check that ids mean in the task of `config` what they meant in that of the run in `folder`.

    Raises:
        DataError: Files of the task are not those that the run was trained on, and none are named.
        UsageError: Flags give ids another meaning.
    """
    before = Config.from_dict(run_folder.read_record(folder)["config"])
    seed, named = before.training.seed, [flag for flag in flags if flag.startswith("--task.")]
    own = tasks.from_run(before.task, seed, folder)
    check_vocabulary(before.model.vocab_size, own, folder)
    if not any(flag.startswith("--task.path=") for flag in named):
        own.save_to_run(folder)  # which compares the files, as a resumed run does
    if named:
        check_meanings(tasks.from_config(config.task, seed), own, named)


def _folder_of(run: Run | str | Path) -> Path:
    """Return the folder of a run.

    Raises:
        UsageError: It is neither a run nor a path.
    """
    if not isinstance(run, Run | str | Path):
        raise usage_error(
            f"a {type(run).__name__} instead of a run",
            "a Run, or its folder: the new run begins with its settings and weights",
            "pass the folder of the run that trained the model",
        )
    return user_path(run.folder if isinstance(run, Run) else run, "run")
