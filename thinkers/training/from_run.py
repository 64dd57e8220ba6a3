"""Trainings that begin with a finished run: its folder, its settings, and what its ids mean."""

from collections.abc import Sequence
from pathlib import Path

from thinkers import tasks
from thinkers.config.experiment import Config, check_vocabulary
from thinkers.errors import usage_error
from thinkers.runs import folder as run_folder
from thinkers.runs.result import Run, check_meanings
from thinkers.user_paths import user_path


def folder_of(run: Run | str | Path) -> Path:
    """Return the folder of a run.

    Raises:
        UsageError: It is neither a run nor a path.
    """
    if not isinstance(run, Run | str | Path):
        raise usage_error(
            f"a {type(run).__name__} instead of a run",
            "a Run, or its folder",
            "pass the folder of the run that trained the model",
        )
    return user_path(run.folder if isinstance(run, Run) else run, "run")


def recorded(folder: Path, expected: str, fix: str) -> Config:
    """Return the configuration of the run in `folder`.

    Args:
        expected: The rule in the error where there is no run.
        fix: The remedy in that error.

    Raises:
        UsageError: There is no such run.
    """
    if not run_folder.is_run(folder):
        raise usage_error(f"{folder}, which is no run", expected, fix)
    return Config.from_dict(run_folder.read_record(folder)["config"])


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
