"""reproduce(run): train again what a run's config.json describes, and compare every metric."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import torch

from thinkers.config.experiment import Config
from thinkers.errors import DamagedError, UsageError
from thinkers.runs import folder as run_folder
from thinkers.training.loop import resume, train

TIMED = ("minutes",)
"""What a line tells of the clock: the only part that may differ."""


@dataclass(frozen=True)
class Reproduction:
    """What came of training a run again.

    Args:
        folder: Of the new run.
        last: The update up to which both were compared.
        num_lines: How many lines of metrics.jsonl were compared.
        difference: The first line that differs, in words; None if all are equal bit for bit.
        weights_equal: Whether both models are the same bit for bit; None if the run was not
            finished, and its model is of an earlier update.
        changes: How these surroundings differ from those of the run: versions, threads, device.
    """

    folder: Path
    last: int
    num_lines: int
    difference: str | None
    weights_equal: bool | None
    changes: list[str]

    @property
    def equal(self) -> bool:
        """Whether metrics and weights are the same."""
        return self.difference is None and self.weights_equal is not False


def reproduce(run: str | Path, out: str | Path | None = None) -> Reproduction:
    """Train again from the config.json of `run` to the last update that it recorded.

    Limits of time do not count: the new run ends where the old one did. A run that was extended
    is extended at the same update again.

    Args:
        out: The folder of the new run; that of the old one with "-again" if None.
    """
    folder = Path(run)
    record = run_folder.read_record(folder)
    before = read_metrics(folder)
    last = before[-1]["update"]
    plans = record.get("plans", [])
    if not plans or plans[0]["from"] != 0:
        raise UsageError(
            f"found: {folder}, whose config.json does not tell how far each part was planned\n"
            "expected: plans, from update 0 on\n"
            "fix: train it anew; runs of this version can be reproduced"
        )
    config = Config.from_dict(record["config"])
    target = Path(out) if out is not None else folder.with_name(f"{folder.name}-again")
    torch.set_num_threads(record["threads"])
    precision = record.get("precision", config.training.precision)
    training = replace(
        config.training,
        num_updates=plans[0]["num_updates"],
        max_minutes=None,
        precision=precision,
    )
    ends = [after["from"] for _, after in pairwise(plans)] + [last]
    train(replace(config, training=training), target, until=ends[0])
    for plan, end in zip(plans[1:], ends[1:], strict=True):
        if plan["from"] < end:
            resume(target, num_updates=plan["num_updates"], until=end)
    made = run_folder.read_record(target)
    here = {key: made.get(key) for key in ("versions", "threads", "device", "ranks")}
    after = read_metrics(target)
    finished = any("test" in line for line in before)
    if not finished:  # the new run was, and its score has nothing to be compared with
        after = [line for line in after if "test" not in line]
    return Reproduction(
        target,
        last,
        len(before),
        first_difference(before, after),
        _same_weights(folder, target) if finished else None,
        run_folder.changes(record, here),
    )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.

    Raises:
        UsageError: There are none to compare with.
        DamagedError: A line is not one of ours.
    """
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    if not lines:
        raise UsageError(f"{folder} must be a run that recorded metrics, and has none yet")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            measured = json.loads(line)
            found.append(measured | {"update": int(measured["update"])})
        except (ValueError, TypeError, LookupError) as error:
            raise DamagedError(f"{file}, line {number} is not a metric: {error}") from None
    return found


def first_difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str | None:
    """In words, where two lists of metrics part, the clock aside; None if nowhere."""
    for old, new in zip_longest(before, after):
        if old is None or new is None:
            where = (old or new)["update"]
            told = ("it again has no", "first had no")[old is None]
            return f"update {where}: the run {told} line for it"
        for key in dict.fromkeys([*old, *new]):
            if key not in TIMED and old.get(key) != new.get(key):
                return f"update {old['update']}: {key} was {old.get(key)} and is {new.get(key)}"
    return None


def _same_weights(folder: Path, other: Path) -> bool:
    files = [x / "model" / "model.safetensors" for x in (folder, other)]
    return all(file.exists() for file in files) and len({x.read_bytes() for x in files}) == 1
