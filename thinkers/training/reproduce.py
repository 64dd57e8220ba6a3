"""`reproduce`: train a run again from its config.json, and compare every metric."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import torch

from thinkers import tasks
from thinkers.config.experiment import Config, check_vocabulary
from thinkers.distillation.guide import guide_weights
from thinkers.errors import UsageError, usage_error
from thinkers.files import open_file
from thinkers.process_state import keep_process_state
from thinkers.runs import checkpoint
from thinkers.runs import folder as run_folder
from thinkers.runs.metrics import read_kept
from thinkers.runs.result import weights_digest
from thinkers.strict_json import check_schema, parse_json
from thinkers.training.loop import resume, train
from thinkers.training.named_again import check_reproduced
from thinkers.training.state import initial_weights
from thinkers.user_paths import user_path

TIMED = ("minutes",)
"""Keys of metrics that depend on the clock and may differ."""


@dataclass(frozen=True)
class Reproduction:
    """The result of training a run again.

    Args:
        folder: The folder of the new run.
        last: The last update that was compared.
        num_lines: The number of lines of metrics.jsonl that were compared.
        difference: A description of the first line that differs; None if all are equal bit for bit.
        weights_equal: True if the final weights are equal bit for bit; None if the run was not
            finished, so that its saved model is of an earlier update.
        changes: Descriptions of versions, threads, device and ranks that differ from the run's.
    """

    folder: Path
    last: int
    num_lines: int
    difference: str | None
    weights_equal: bool | None
    changes: list[str]

    @property
    def equal(self) -> bool:
        """Return True if metrics and weights are equal."""
        return self.difference is None and self.weights_equal is not False


@keep_process_state()
def reproduce(
    run: str | Path,
    out: str | Path | None = None,
    *,
    init_from: str | Path | None = None,
    guide: str | Path | None = None,
) -> Reproduction:
    """Train again from the config.json of `run`, up to the last update that it recorded.

    A limit of minutes is ignored, since it would stop at another update. A run that was extended
    is extended at the same updates, since the learning rate depends on the planned number.

    Args:
        out: The folder of the new run; that of the old one with "-again" if None.
        init_from: The folder that the run began with; a run does not choose what is read.
        guide: The run that guided it, in the same way.

    Raises:
        UsageError: The run lacks metrics or plans, or began with weights not named here.
        DamagedError: Its record or metrics cannot be read, or have changed.
        FormatError: Another version wrote it.
    """
    folder = user_path(run, "run")
    record = run_folder.read_record(folder)
    before = read_metrics(folder)
    last = before[-1]["update"]
    plans = _plans_of(record, folder)
    config = Config.from_dict(record["config"])
    check_reproduced(config, folder, init_from, guide)
    initial_weights(config.training.init_from, record)
    guide_weights(config.grow, record)
    _verify_metrics(folder)
    target = run_folder.beside(folder, "again") if out is None else user_path(out, "out")
    # A run may be untrusted: its task may read only files that it was trained on.
    task = tasks.from_run(config.task, config.training.seed, folder)
    check_vocabulary(config.model.vocab_size, task, folder)
    task.save_to_run(folder)
    torch.set_num_threads(record["threads"])
    precision = record.get("precision", config.training.precision)
    training = replace(config.training, max_minutes=None, precision=precision)
    again = replace(config, training=training).with_updates(plans[0]["num_updates"])
    ends = [after["from"] for _, after in pairwise(plans)] + [last]
    train(again, target, until=ends[0], score_on=(split := record.get("score_on", "test")))
    for plan, end in zip(plans[1:], ends[1:], strict=True):
        if plan["from"] < end:
            resume(target, num_updates=plan["num_updates"], until=end, guide=guide)

    made = run_folder.read_record(target)
    here = {key: made.get(key) for key in ("versions", "threads", "device", "ranks")}
    finished = any(_is_final(line, split, last) for line in before)
    # The new run has finished; without this, its final score would have no counterpart.
    after = [x for x in read_metrics(target) if finished or not _is_final(x, split, last)]
    return Reproduction(
        target,
        last,
        len(before),
        first_difference(before, after),
        _same_weights(folder, target) if finished else None,
        run_folder.changes(record, here),
    )


def _plans_of(record: Mapping[str, Any], folder: Path) -> list[dict[str, int]]:
    """Return the planned numbers of updates of a run, and the updates that they held from."""
    plans = record.get("plans", [])
    if not plans or plans[0]["from"] != 0:
        raise usage_error(
            f"{folder}, whose config.json does not hold the planned updates",
            "plans, from update 0 on",
            "train it again; runs of this version can be reproduced",
        )
    return plans


def _is_final(line: Mapping[str, Any], split: str, last: int) -> bool:
    """Return True for the line of the score at the end."""
    return split in line and line["update"] == last


def _verify_metrics(folder: Path) -> None:
    """Compare metrics.jsonl with its digest in the newest checkpoint, if there is one.

    Raises:
        DamagedError: It has changed since it was saved.
    """
    saved = checkpoint.saved(folder / "checkpoints")
    kept = checkpoint.metrics_digest(saved[-1]) if saved else None
    if kept is not None:
        read_kept(folder / "metrics.jsonl", kept)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl.

    Raises:
        UsageError: The run has no metrics.
        DamagedError: A line is not a metric.
    """
    file = folder / "metrics.jsonl"
    try:
        with open_file(file) as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
        lines = []
    if not lines:
        raise UsageError(f"{folder} must be a run that recorded metrics, and has none yet")
    found = []
    for number, line in enumerate(lines, 1):
        measured = parse_json(line, f"{file}, line {number}")
        check_schema(measured, {"update": int}, f"{file}, line {number}")
        found.append(measured)
    return found


def first_difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str | None:
    """Describe the first difference of two lists of metrics, the clock aside; None if equal."""
    for old, new in zip_longest(before, after):
        if old is None or new is None:
            where = (old or new)["update"]
            which = "the original run" if old is None else "the new run"
            return f"update {where}: {which} has no line for it"
        for key in dict.fromkeys([*old, *new]):
            if key not in TIMED and old.get(key) != new.get(key):
                return f"update {old['update']}: {key} was {old.get(key)} and is {new.get(key)}"
    return None


def _same_weights(folder: Path, other: Path) -> bool:
    digest = weights_digest(folder)
    return digest is not None and digest == weights_digest(other)
