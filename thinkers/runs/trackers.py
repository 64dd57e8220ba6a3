"""Where metrics go beside metrics.jsonl: to MLflow, or to TensorBoard."""

import importlib
import json
import logging
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from thinkers.errors import UsageError
from thinkers.optional import require

Tracking = Literal["mlflow", "tensorboard"]
Line = Mapping[str, Any]
STORE = "sqlite:///mlflow.db"
"""Where `mlflow ui` looks if it is told nothing; MLFLOW_TRACKING_URI names another."""
AT_ONCE = 1000
"""Metrics that MLflow takes in one call, and ten times as many as it takes parameters."""


Status = Literal["FINISHED", "KILLED", "FAILED"]


class Tracker(ABC):
    """Takes the lines of metrics.jsonl, in order, once they are on the disk."""

    module: ClassVar[str]
    """What it is imported from."""

    @abstractmethod
    def send(self, lines: Sequence[Line]) -> None:
        """Pass on what was not yet passed on; lines that are there already do no harm."""

    @abstractmethod
    def finish(self, status: Status) -> None:
        """Pass on what the folder holds now; nothing is sent afterwards."""


class MLflow(Tracker):
    """One MLflow run for each run folder, found again by its tag when the run is resumed.

    Args:
        record: config.json; its settings become parameters.
    """

    module = "mlflow.tracking"

    def __init__(self, folder: Path, record: Mapping[str, Any]):
        tracking = require(self.module, "mlflow", "--tracking mlflow")
        for name in ("mlflow", "alembic"):  # which tell of every table they make
            logging.getLogger(name).setLevel(logging.WARNING)
        self._entities = importlib.import_module("mlflow.entities")
        self._client = tracking.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", STORE))
        self._folder = folder
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "thinkers")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        same = f"tags.`thinkers.run` = '{record['run']}'"
        old = self._client.search_runs([experiment], same, max_results=1)
        self._last = -1
        if old:
            self._run = old[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            history = self._client.get_metric_history(self._run, "loss")
            self._last = max((metric.step for metric in history), default=-1)
        else:
            tags = {"thinkers.run": record["run"], "thinkers.folder": str(folder.resolve())}
            made = self._client.create_run(experiment, tags=tags, run_name=folder.name)
            self._run = made.info.run_id
        self._describe(old[0].data.params if old else {}, record["config"])

    def _describe(self, known: Mapping[str, str], config: Mapping[str, Any]) -> None:
        """Settings as parameters; MLflow lets none change, so what a resume changes is a tag."""
        settings = {key: json.dumps(value) for key, value in _flat(config, ".")}
        new = [self._entities.Param(k, v) for k, v in settings.items() if k not in known]
        for part in _parts(new, AT_ONCE // 10):
            self._client.log_batch(self._run, params=part)
        for key, value in settings.items():
            if known.get(key, value) != value:
                self._client.set_tag(self._run, f"resumed with {key}", value)

    def send(self, lines: Sequence[Line]) -> None:
        now = int(1000 * time.time())
        new = [line for line in lines if line["update"] > self._last or "test" in line]
        metrics = [
            self._entities.Metric(key, value, now, line["update"])
            for line in new
            for key, value in numbers(line)
        ]
        for part in _parts(metrics, AT_ONCE):
            self._client.log_batch(self._run, metrics=part)
        self._last = max([self._last, *(line["update"] for line in new if "loss" in line)])

    def finish(self, status: Status) -> None:
        for file in sorted(self._folder.iterdir()):
            if file.suffix in (".json", ".jsonl", ".html"):
                self._client.log_artifact(self._run, str(file))
        if (self._folder / "model").is_dir():
            self._client.log_artifacts(self._run, str(self._folder / "model"), "model")
        self._client.set_terminated(self._run, status)


class TensorBoard(Tracker):
    """Event files in the folder `tensorboard` of a run, written anew when it is resumed."""

    module = "torch.utils.tensorboard"

    def __init__(self, folder: Path, record: Mapping[str, Any]):
        boards = require(self.module, "tensorboard", "--tracking tensorboard")
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self._writer = boards.SummaryWriter(str(folder / "tensorboard"))
        settings = json.dumps(record["config"], indent=1)
        # Markdown shows what is indented by four as it is.
        self._writer.add_text("config", "    " + settings.replace("\n", "\n    "))

    def send(self, lines: Sequence[Line]) -> None:
        for line in lines:
            for key, value in numbers(line):
                self._writer.add_scalar(key, value, line["update"])
        self._writer.flush()

    def finish(self, status: Status) -> None:
        self._writer.close()


TRACKERS: dict[str, type[MLflow] | type[TensorBoard]] = {
    "mlflow": MLflow,
    "tensorboard": TensorBoard,
}


def open_tracker(name: str | None, folder: Path, record: Mapping[str, Any]) -> Tracker | None:
    """What `--tracking` names, for the run in `folder`.

    Raises:
        UsageError: there is none of this name, its extra is missing, or it cannot be reached.
    """
    if name is None:
        return None
    check(name)
    try:
        return TRACKERS[name](folder, record)
    except UsageError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        raise UsageError(
            f"found: --tracking {name} cannot be opened ({type(error).__name__}: {what})\n"
            "fix: set MLFLOW_TRACKING_URI to a store that can be reached, or leave it out"
        ) from error


def check(name: str) -> None:
    """UsageError if nothing is called so, or if it is not installed."""
    if name not in TRACKERS:
        raise UsageError(f"found: --tracking {name}\nexpected: one of {', '.join(TRACKERS)}")
    require(TRACKERS[name].module, name, f"--tracking {name}")


def numbers(line: Line) -> Iterator[tuple[str, float]]:
    """("valid/exact", 0.5) for each number of a line; "nan" and "inf" are numbers again."""
    for key, value in _flat(line, "/"):
        if key != "update":
            yield key, float(value)


def _flat(value: Mapping[str, Any], joint: str, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, x in value.items():
        if isinstance(x, Mapping):
            yield from _flat(x, joint, f"{before}{key}{joint}")
        else:
            yield before + key, x


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
