"""One experiment: train a changed recipe for a fixed time, and score it on the validation split.

    python -m thinkers.research.experiment JOB

does so in a process of its own, since a change may be any Python file; JOB is a `Job` as JSON.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from thinkers import tasks
from thinkers.comparison.budgets import nearest, seconds_per_update
from thinkers.comparison.one_run import EXAMPLES_SEED, usual_steps
from thinkers.comparison.process_usage import peak_memory, stop_with_parent
from thinkers.config.experiment import Config, resolve_sizes
from thinkers.config.overrides import override
from thinkers.devices import find_device
from thinkers.errors import Interrupted, LockedError, UsageError, describe, usage_error
from thinkers.files import exists, write_file
from thinkers.json_files import read_with_digest, with_digest
from thinkers.plugins import import_file
from thinkers.process_state import one_thread
from thinkers.recipes.pairs import find
from thinkers.runs import folder as run_folder
from thinkers.strict_json import Schema
from thinkers.tasks.base import example_groups
from thinkers.terminal import show
from thinkers.training.loop import resume, train

PLAN: Schema = {"num_updates": int}
NUM_EXAMPLES = 2000
"""Examples of the test split that a judgement grades."""
CHANGE = "change"
"""Function of a changed file that takes the Config, and returns another."""


@dataclass(frozen=True)
class Job:
    """An experiment to be made.

    Args:
        home: The folder of its run.
        recipe: The recipe that all experiments of the search change.
        minutes: CPU minutes of training of one thread; on a GPU, minutes.
        task_flags: Settings of the task, the same for the whole search: --task.path=FILE.
        files: Python files of the change and of those before it, in order.
        flags: Settings, of those before it too, in order: --model.dim=64.
        split: valid, or test for the judgement at the end.
    """

    home: str
    recipe: str
    minutes: float
    seed: int
    task_flags: Sequence[str] = ()
    files: Sequence[str] = ()
    flags: Sequence[str] = ()
    split: str = "valid"

    @property
    def command(self) -> list[str]:
        """The command that makes this experiment in another process."""
        return [
            sys.executable,
            "-P",
            "-m",
            "thinkers.research.experiment",
            json.dumps(asdict(self)),
        ]

    @property
    def log(self) -> Path:
        return Path(self.home).with_name(f"{Path(self.home).name}.log")

    @property
    def result(self) -> Path:
        return Path(self.home).with_name(f"{Path(self.home).name}.json")


def configuration(job: Job) -> Config:
    """Return the configuration of an experiment; its number of updates is not planned yet.

    Raises:
        UsageError: A file or a setting is not valid.
    """
    changes: list[Callable[[Config], Any]] = []
    for file in job.files:
        import_file(file)
        found = getattr(sys.modules[Path(file).stem], CHANGE, None)
        if found is not None:
            changes.append(found)
    config = recipe_of(job)
    for change in changes:
        config = change(config)
        if not isinstance(config, Config):
            raise usage_error(
                f"{CHANGE}(config) that returns a {type(config).__name__}",
                "a Config",
                "return dataclasses.replace(config, ..)",
            )
    config = override(config, flags=job.flags)
    return replace(config, training=replace(config.training, seed=job.seed), recipe="")


def recipe_of(job: Job) -> Config:
    """Return the configuration that the search began with; all are scored on its task."""
    return override(find(job.recipe), flags=job.task_flags)


def planned(job: Job, config: Config) -> Config:
    """Give a configuration as many updates as its minutes allow, by their measured time.

    The learning rate is scheduled over these. The plan is kept, since another measurement would
    give another number to a run that is continued.
    """
    file = Path(job.home).with_name(f"{Path(job.home).name}-plan.json")
    try:
        number = read_with_digest(file, PLAN)["num_updates"]
    except FileNotFoundError:
        sized = replace(config, model=resolve_sizes(config.model, tasks.from_config(config.task)))
        number = nearest(sized, 60 * job.minutes, seconds_per_update(sized))
        write_file(file, with_digest({"num_updates": number}))
    training = replace(config.training, num_updates=number, max_minutes=None, evaluate_every=None)
    warmup = min(training.warmup_updates, number // 4)
    return replace(config, training=replace(training, warmup_updates=warmup))


def perform(job: Job) -> None:
    """Make an experiment, or continue it, and write its result, also if it failed.

    Raises:
        Interrupted: A stop request was received; a later call continues.
        LockedError: Another process owns the run.
    """
    try:
        found = _measured(job)
    except (Interrupted, LockedError):
        raise
    except (Exception, SystemExit) as error:  # of a changed file, any
        what = str(error) if isinstance(error, UsageError) else describe(error)
        found = {"error": f"{type(error).__name__}: {what}"}
    write_file(job.result, with_digest(found))


def _measured(job: Job) -> dict[str, Any]:
    config, home = planned(job, configuration(job)), Path(job.home)
    start = time.process_time()
    # Never scored on the test split by training itself: the search must not see it.
    is_begun = exists(home / run_folder.RECORD)
    model = (resume(home) if is_begun else train(config, home, score_on="valid")).model
    found = {
        "seconds": time.process_time() - start,
        "memory": peak_memory(find_device(config.training.device)),
        "updates": config.training.num_updates,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    # By the task of the recipe: a change may have made the questions of its own task easier.
    task = tasks.from_config(recipe_of(job).task, EXAMPLES_SEED)
    steps = usual_steps(model, task)
    if job.split == "valid":
        number = config.training.evaluate_examples
        return found | {"metric": task.score(model, "valid", number, steps)[task.primary_metric]}
    grades = task.grade(model, "test", NUM_EXAMPLES, steps).numpy()
    questions = example_groups(task, "test", NUM_EXAMPLES, grades)
    return found | {
        "metric": float(grades.mean()),
        "grades": grades.tolist(),
        "questions": None if questions is None else questions.tolist(),
    }


def main(words: str) -> int:
    """Make an experiment in this process and return its exit code, 0 for one that failed too."""
    stop_with_parent()
    try:
        with one_thread():
            perform(Job(**json.loads(words)))
    except (Interrupted, LockedError) as error:
        show(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
