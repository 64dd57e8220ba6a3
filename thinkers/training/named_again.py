"""Weights that a run names and its user has to name too: a run does not choose what is read."""

from pathlib import Path

from thinkers.config.experiment import Config
from thinkers.errors import usage_error
from thinkers.runs import checkpoint
from thinkers.user_paths import user_path

Given = str | Path | None


def check_resumed(config: Config, home: Path, init_from: Given, guide: Given) -> None:
    """Check the folders that are named again for a run that is resumed.

    Raises:
        UsageError: It would read weights that only its record names, or others are named.
    """
    recorded = config.training.init_from
    named = _absolute(init_from, "init_from")
    if named is not None and named != recorded:
        raise usage_error(
            f"--training.init_from {named} with --resume",
            f"{recorded}, as in config.json of the run",
            "leave it out",
        )
    if named is None and recorded is not None and not checkpoint.saved(home / "checkpoints"):
        raise usage_error(
            f"{home}, which has saved nothing yet and begins with the weights of {recorded}",
            "that you name these weights too: a run does not choose what is read",
            f"add --training.init_from {recorded}",
        )
    recorded, named = _guide_of(config), _absolute(guide, "guide")
    if named != recorded:
        raise usage_error(
            f"{home}, which is guided by {recorded or 'no run'}, and {named} as guide",
            "the same folder in both: a run does not choose what is read",
            "leave --grow.guide out" if recorded is None else f"add --grow.guide {recorded}",
        )


def check_reproduced(config: Config, folder: Path, init_from: Given, guide: Given) -> None:
    """Check the folders that are named again for a run that is reproduced.

    Raises:
        UsageError: They are not those that the run names.
    """
    for recorded, given, what, name in (
        (config.training.init_from, init_from, "began with the weights of", "init_from"),
        (_guide_of(config), guide, "is guided by", "guide"),
    ):
        named = _absolute(given, name)
        if named != recorded:
            raise usage_error(
                f"{folder}, which {what} {recorded}, and {named} as {name}",
                "the same folder in both: a run does not choose what is read",
                f"leave --{name} out" if recorded is None else f"add --{name} {recorded}",
            )


def _guide_of(config: Config) -> str | None:
    return None if config.grow is None else config.grow.guide


def _absolute(given: Given, name: str) -> str | None:
    return None if given is None else str(user_path(given, name).absolute())
