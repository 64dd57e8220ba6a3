"""The plan of a comparison: its settings, its contenders, the configuration of each run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from types import NoneType
from typing import Any

from thinkers.comparison import budgets
from thinkers.comparison.arguments import check_arguments, text_of
from thinkers.comparison.contenders import Contender, read_contenders
from thinkers.comparison.matching import BEGIN, contenders, parameters
from thinkers.config.experiment import Config
from thinkers.errors import DamagedError, UsageError, usage_error
from thinkers.files import read_file
from thinkers.json_files import LARGEST_JSON, read_with_digest
from thinkers.runs import folder as run_folder
from thinkers.strict_json import Schema, parse_json
from thinkers.tasks import TASKS

FORMAT = 2
SCHEMA: Schema = {
    "format": int,
    "comparison": dict,
    "contenders": list,
    "seconds_per_update": (dict, NoneType),
}
"""Types of config.json."""
POINTS = 10
"""Checkpoints of each run; all of them are evaluated."""
LAST_EXAMPLES = 100
"""Examples of the score at the end of training, which a comparison does not use."""


@dataclass(frozen=True)
class Plan:
    """The settings of a comparison, and the contenders that follow from them.

    Args:
        budget: Budget of each run: FLOPs, updates or seconds, depending on `match`.
        seconds_per_update: {contender: process time}, measured before the first run.
        seconds_per_policy_update: The same of updates of a policy, of contenders that have one.
    """

    task: str
    models: tuple[str, ...]
    match: str
    budget: float
    seeds: int
    lrs: tuple[float, ...]
    controls: tuple[str, ...]
    settings: Mapping[str, Any]
    num_examples: int
    contenders: tuple[Contender, ...] = ()
    seconds_per_update: Mapping[str, float] | None = None
    seconds_per_policy_update: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(**asked: Any) -> "Plan":
        """Make a new plan; a setting that is None has its default."""
        plan = Plan(**check_arguments(**asked))
        flags = [f"--{key}={value}" for key, value in plan.settings.items()]
        found = tuple(contenders(plan.task, plan.models, plan.controls, flags))
        timed = budgets.TIMED if plan.match == "seconds" else budgets.ESTIMATED
        rates = {one.name: budgets.seconds_per_update(one.config, timed) for one in found}
        plan = replace(
            plan,
            contenders=found,
            seconds_per_update={name: costs[0] for name, costs in rates.items()},
            seconds_per_policy_update={k: costs[1] for k, costs in rates.items() if costs[1:]},
        )
        for one in found:
            plan.config(one, 0)  # refuses a budget below one update before any run begins
        return plan

    def extended(self, **asked: Any) -> "Plan":
        """Return this plan, with more seeds if `wanted` has more.

        Raises:
            UsageError: A setting differs from that of the plan.
        """
        given = {k: x for k, x in asked.items() if x not in (None, [], (), {})}
        mine = {key: getattr(self, key) for key in given}
        wanted = Plan(**check_arguments(**{**self.asked(), **given}))
        self._check_named_again(wanted.settings if "settings" in given else {})
        if BEGIN in self.settings and wanted.settings.keys() == {BEGIN}:
            given.pop("settings")  # named again, as it must be, and nothing else
        for key in given:
            if key != "seeds" and getattr(wanted, key) != mine[key]:
                raise usage_error(
                    f"--{key} {_shown(given[key])} with --resume",
                    f"{_shown(mine[key])}, as in the comparison of the folder",
                    "leave it out, or start another comparison with --out",
                )
        if wanted.seeds < self.seeds:
            raise usage_error(
                f"--seeds {wanted.seeds} with --resume",
                f"at least {self.seeds}, which the comparison in the folder has",
                "leave it out",
            )
        return replace(self, seeds=wanted.seeds)

    def _check_named_again(self, settings: Mapping[str, Any]) -> None:
        """Raise a UsageError if runs would begin with weights that only the folder names."""
        for one in self.contenders:
            begin = one.config.training.init_from
            if begin is not None and begin != settings.get(BEGIN):
                raise usage_error(
                    f"a comparison whose runs begin with the weights of {begin}",
                    "that you name these weights too: a folder does not choose what is read",
                    f"add --{BEGIN} {begin}",
                )

    def asked(self) -> dict[str, Any]:
        """Return the settings that the user chose, in the types of JSON."""
        everything = {name: getattr(self, name) for name in ASKED}
        return json.loads(json.dumps(everything))

    def config(self, one: Contender, seed: int, lr: float | None = None) -> Config:
        """Return the configuration of a run, whose learning-rate schedule ends with its budget."""
        training = replace(one.config.training, seed=seed, lr=lr or one.config.training.lr)
        config = replace(one.config, training=training)
        if self.match == "flops":
            num_updates = budgets.updates_for(config, self.budget)
        elif self.match == "parameters":
            num_updates = int(self.budget)
        else:
            num_updates = budgets.nearest(config, self.budget, self._seconds(one))
        _check_policy_updates(one, num_updates)
        training = replace(
            training,
            max_flops=self.budget if self.match == "flops" else None,
            max_minutes=None,
            warmup_updates=min(training.warmup_updates, num_updates // 10),
            evaluate_every=None,
            evaluate_examples=min(LAST_EXAMPLES, self.num_examples),
            checkpoint_every=ceil(num_updates / POINTS),
            keep_last=10 * POINTS,  # room for checkpoints of interruptions
        )
        return replace(config, training=training).with_updates(num_updates)

    def _seconds(self, one: Contender) -> budgets.Costs:
        """Return the process time of an update of each kind."""
        assert self.seconds_per_update is not None
        rates = (self.seconds_per_update, self.seconds_per_policy_update)
        return tuple(rate[one.name] for rate in rates if one.name in rate)

    @property
    def primary_metric(self) -> str:
        return TASKS[self.task].primary_metric

    @property
    def higher_is_better(self) -> bool:
        return TASKS[self.task].higher_is_better

    def write(self, folder: Path) -> None:
        """Write config.json."""
        record = {
            "format": FORMAT,
            "comparison": self.asked(),
            "contenders": [
                {"name": one.name, "what": one.what, "config": one.config.to_dict()}
                for one in self.contenders
            ],
            **{name: getattr(self, name) for name in RATES},
            "git_commit": run_folder.git_commit(),
            **run_folder.surroundings(),
        }
        run_folder.write_record(folder, record)

    @staticmethod
    def read(folder: Path) -> "Plan":
        """Read the plan of the comparison in `folder`."""
        file = folder / run_folder.RECORD
        try:
            found = parse_json(read_file(file, LARGEST_JSON), str(file))
        except FileNotFoundError:
            raise UsageError(
                f"{folder} must be the folder of a comparison, and has no config.json"
            ) from None
        if not isinstance(found, dict) or "comparison" not in found:
            raise UsageError(
                f"{folder} must be the folder of a comparison; its config.json is of another kind"
            )
        record = read_with_digest(file, SCHEMA, FORMAT)
        asked, found = record["comparison"], read_contenders(record["contenders"], str(file))
        if asked.keys() != set(ASKED):
            raise DamagedError(f"{file}: comparison must have {ASKED}, got {sorted(asked)}")
        plan, names = Plan(**check_arguments(**asked)), [one.name for one in found]
        # The names are those of folders too.
        if names != [*plan.models, *plan.controls]:
            raise DamagedError(f"{file}: contenders must be its models and controls, got {names}")
        rates = {name: record[name] for name in RATES if name in record}
        return replace(plan, contenders=found, **rates)

    def minutes(self, one: Contender) -> float:
        """Estimate the minutes of one run."""
        config = self.config(one, 0)
        return budgets.total(config, config.training.num_updates, self._seconds(one)) / 60

    def contender(self, name: str) -> Contender:
        """Return the contender of this name."""
        return next(one for one in self.contenders if one.name == name)

    def table(self, workers: int = 1) -> str:
        """Format sizes, updates and estimated minutes, with `workers` runs at a time."""
        runs_each = self.seeds + len(self.lrs)
        lines = [f"{'model':<18}{'parameters':>11}{'updates':>9}{'lr':>9}{'minutes':>9}"]
        for one in self.contenders:
            size, updates = parameters(one.config.model), self.config(one, 0).training.num_updates
            lr = "search" if self.lrs else f"{one.config.training.lr:g}"
            lines.append(f"{one.name:<18}{size:>11,}{updates:>9,}{lr:>9}{self.minutes(one):>9.1f}")
        number = len(self.contenders) * runs_each
        total = sum(self.minutes(one) for one in self.contenders) * runs_each
        at_once = min(workers, number)
        what = f"{number} runs" if number > 1 else "1 run"
        what += f", {at_once} at once" if at_once > 1 else ""
        lines.append(f"{what}, about {total / at_once:.0f} minutes in all")
        return "\n".join(lines)


RATES = ("seconds_per_update", "seconds_per_policy_update")
DERIVED = ("contenders", *RATES)
ASKED = tuple(name for name in Plan.__dataclass_fields__ if name not in DERIVED)


def _check_policy_updates(one: Contender, num_updates: int) -> None:
    """Raise a UsageError if the budget ends before the first update of a policy."""
    settings = one.config.reinforce
    if settings is not None and not settings.counts(num_updates)[1]:
        raise usage_error(
            f"{num_updates} updates for {one.name}, none of which trains its policy",
            f"more than reinforce.supervised_updates, {settings.supervised_updates}",
            "increase --budget, or set fewer --reinforce.supervised_updates",
        )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={text_of(x)}" for key, x in sorted(value.items()))
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
