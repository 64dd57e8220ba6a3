"""Trackers: MLflow, TensorBoard and those of users, stores of metrics besides metrics.jsonl."""

import importlib
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from thinkers.errors import ResourceError, UsageError, exit_code, usage_error
from thinkers.files import own_folder
from thinkers.optional import require

Tracking = str
"""A name in TRACKERS."""
Line = Mapping[str, Any]
STORE = "sqlite:///mlflow.db"
"""The default store of `mlflow ui`; MLFLOW_TRACKING_URI names another."""
EVENTS = ".thinkers"
"""End of the names of TensorBoard's files that are written here."""
METRICS_PER_CALL = 1000
"""MLflow's limit of metrics per log_batch; its limit of parameters is a tenth of that."""


Status = Literal["FINISHED", "KILLED", "FAILED"]


class Tracker(ABC):
    """A store that receives the lines of metrics.jsonl, in order, once they are on the disk.

    To add one, subclass this, and enter the class in `thinkers.TRACKERS` under the name that
    `tracking` and --tracking then take.

    One is made for each training and each resume, on the first rank. A line is {"update": 3,
    "loss": 2.5, ..}; scores are in a mapping, {"update": 3, "valid": {..}}, and numbers that JSON
    lacks are "nan", "inf" and "-inf": see `numbers`. An error in `send` or `finish` is printed, the
    training continues, and the lines are sent again later.

    Args:
        folder: The folder of the run.
        record: The content of its config.json.
    """

    module: ClassVar[str] = ""
    """Module whose import shows that an extra is installed; empty if none is needed."""

    def __init__(self, folder: Path, record: Mapping[str, Any]):
        self.folder = folder
        self.record = record

    @abstractmethod
    def send(self, lines: Sequence[Line]) -> None:
        """Store the lines that are not stored yet; skip those that are."""

    @abstractmethod
    def finish(self, status: Status) -> None:
        """Store the files of the folder and the status; nothing is sent afterwards."""


class MLflow(Tracker):
    """One MLflow run per run folder, found by its tag when the run is resumed.

    Args:
        record: The content of config.json; its settings become parameters.
    """

    module = "mlflow.tracking"

    def __init__(self, folder: Path, record: Mapping[str, Any]):
        super().__init__(folder, record)
        tracking = require(self.module, "mlflow", "--tracking mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        with _quiet("mlflow", "alembic"):  # they log each table that they create
            self._open(tracking, folder, record)

    def _open(self, tracking: Any, folder: Path, record: Mapping[str, Any]) -> None:
        """Find or create the MLflow run of this folder."""
        self._client = tracking.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", STORE))
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
        """Store settings as parameters; MLflow lets none change, so a changed one becomes a tag."""
        settings = {key: json.dumps(value) for key, value in _flat(config, ".")}
        new = [self._entities.Param(k, v) for k, v in settings.items() if k not in known]
        for part in _chunks(new, METRICS_PER_CALL // 10):
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
        for part in _chunks(metrics, METRICS_PER_CALL):
            self._client.log_batch(self._run, metrics=part)
        self._last = max([self._last, *(line["update"] for line in new if "loss" in line)])

    def finish(self, status: Status) -> None:
        # Plain files alone: a link could send any file of this computer.
        for folder, place in ((self.folder, None), (self.folder / "model", "model")):
            for file in sorted(folder.iterdir()) if own_folder(folder) else ():
                is_plain = file.is_file() and not file.is_symlink()
                if is_plain and file.suffix in (".json", ".jsonl", ".html", ".safetensors"):
                    self._client.log_artifact(self._run, str(file), place)
        self._client.set_terminated(self._run, status)


class TensorBoard(Tracker):
    """Event files in the folder `tensorboard` of a run, written again when it is resumed."""

    module = "torch.utils.tensorboard"

    def __init__(self, folder: Path, record: Mapping[str, Any]):
        super().__init__(folder, record)
        boards = require(self.module, "tensorboard", "--tracking tensorboard")
        place = folder / "tensorboard"
        # Event files can only be appended to, and lines after the checkpoint will come again. Files
        # that others have put beside them stay.
        for file in place.glob(f"events.out.tfevents.*{EVENTS}") if own_folder(place) else ():
            if not file.is_dir():
                file.unlink()
        self._writer = boards.SummaryWriter(str(place), filename_suffix=EVENTS)
        settings = json.dumps(record["config"], indent=1)
        # Markdown shows lines indented by four verbatim.
        self._writer.add_text("config", "    " + settings.replace("\n", "\n    "))

    def send(self, lines: Sequence[Line]) -> None:
        for line in lines:
            for key, value in numbers(line):
                self._writer.add_scalar(key, value, line["update"])
        self._writer.flush()

    def finish(self, status: Status) -> None:
        self._writer.close()


TRACKERS: dict[str, type[Tracker]] = {"mlflow": MLflow, "tensorboard": TensorBoard}
"""{name: class}; users add their own."""


def open_tracker(name: str | None, folder: Path, record: Mapping[str, Any]) -> Tracker | None:
    """Open the tracker of this name for the run in `folder`; None opens none.

    Raises:
        UsageError: The name is unknown, its extra is missing, or the store cannot be reached.
    """
    if name is None:
        return None
    check(name)
    try:
        return TRACKERS[name](folder, record)
    except Exception as error:
        if isinstance(error, UsageError) or exit_code(error) == ResourceError.exit_code:
            raise
        what = " ".join(str(error).split())[:200]
        raise usage_error(
            f"--tracking {name}: {type(error).__name__}: {what}",
            "a store that can be reached",
            "set MLFLOW_TRACKING_URI to one, or leave --tracking out",
        ) from error


def check(name: str) -> None:
    """Raise a UsageError unless there is a tracker of this name, and it is installed."""
    if not isinstance(name, str) or name not in TRACKERS:
        raise usage_error(
            f"--tracking {name}", f"one of {', '.join(TRACKERS)}", "change --tracking"
        )
    module = TRACKERS[name].module
    if module:
        require(module, name, f"--tracking {name}")


def numbers(line: Line) -> Iterator[tuple[str, float]]:
    """Yield ("valid/exact", 0.5) for each number of a line; "nan" and "inf" become numbers."""
    for key, value in _flat(line, "/"):
        if key != "update":
            yield key, float(value)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Let these loggers report warnings and errors only, then restore their levels."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _flat(value: Mapping[str, Any], joint: str, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, x in value.items():
        if isinstance(x, Mapping):
            yield from _flat(x, joint, f"{before}{key}{joint}")
        else:
            yield before + key, x


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
