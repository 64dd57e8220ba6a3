"""Trackers: MLflow, TensorBoard, W&B, trackio and those of users: stores beside metrics.jsonl."""

import contextvars
import importlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from thinkers.errors import ResourceError, UsageError, exit_code, usage_error
from thinkers.files import own_folder
from thinkers.optional import require
from thinkers.process_state import quiet_loggers
from thinkers.runs.wandb_files import logged_rows, wait_for_end

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
    extra: ClassVar[str] = ""
    """Name of this extra; empty if it is that of the tracker."""
    fix: ClassVar[str] = "leave --tracking out"
    """How to mend a store that cannot be opened."""

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
    fix = "set MLFLOW_TRACKING_URI to one, or leave --tracking out"

    def __init__(self, folder: Path, record: Mapping[str, Any]):
        super().__init__(folder, record)
        tracking = require(self.module, "mlflow", "--tracking mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        with quiet_loggers("mlflow", "alembic"):  # they log each table that they create
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
        for file, place in files_of(self.folder):
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


class WandB(Tracker):
    """One W&B run per run folder, whose id is that of the folder.

    All numbers of an update are one row, and `update` is the axis of the charts. W&B's own steps
    only count rows, since it drops those that are logged at an earlier step: scores of an update
    that is stored already would be lost.

    Args:
        record: The content of config.json; its settings become the config of the run.
    """

    module = "wandb"
    extra = "wandb"
    fix = "run wandb login, set WANDB_MODE=offline, or leave --tracking out"

    def __init__(self, folder: Path, record: Mapping[str, Any]):
        super().__init__(folder, record)
        self._package = require(self.module, self.extra, f"--tracking {self.module}")
        self._last = -1
        self._open()

    def _open(self) -> None:
        """Begin or continue the run of this folder."""
        self._run = self._package.init(
            project=os.environ.get("WANDB_PROJECT", "thinkers"),
            name=self.folder.resolve().name,
            id=self.record["run"],
            resume="allow",
            reinit="create_new",  # the caller's own run, or that of a comparison, goes on
            settings=self._package.Settings(console="off"),  # or it would replace sys.stdout
        )
        # After the run is resumed: as an argument, a setting that has changed would be refused.
        self._run.config.update(self.record["config"], allow_val_change=True)
        self._run.define_metric("update", hidden=True)
        self._run.define_metric("*", step_metric="update")
        if self._run.offline:
            place = Path(self._run.settings.sync_dir).parent
            rows = [row["update"] for row in logged_rows(place, self._run.id) if "update" in row]
            self._last = max(rows, default=-1)
        elif self._run.resumed:
            self._last = int(self._run.summary.get("update", -1))

    def _log(self, row: dict[str, Any], update: int) -> None:
        self._run.log({"update": update, **row})

    def send(self, lines: Sequence[Line]) -> None:
        rows: dict[int, dict[str, float]] = {}
        for line in lines:
            if line["update"] > self._last or "test" in line:
                rows.setdefault(line["update"], {}).update(numbers(line))
        for update, row in rows.items():
            self._log(row, update)
            # Row by row: after an error, those before it are not sent again.
            self._last = max(self._last, update)

    def finish(self, status: Status) -> None:
        try:
            if found := list(files_of(self.folder)):
                files = self._package.Artifact(f"run-{self.record['run']}", "run")
                for file, place in found:
                    files.add_file(str(file), name="/".join(filter(None, (place, file.name))))
                self._run.log_artifact(files)
        finally:
            self._end(status)

    def _end(self, status: Status) -> None:
        """Store the status and wait until all is stored."""
        self._run.summary["status"] = status
        # 255 is its code of a run that was stopped by a signal.
        self._run.finish(exit_code={"FINISHED": 0, "KILLED": 255, "FAILED": 1}[status])
        if self._run.offline:
            wait_for_end(Path(self._run.settings.sync_file))


class Trackio(WandB):
    """One trackio run per run folder, found by the end of its name when the run is resumed."""

    module = "trackio"
    fix = "set TRACKIO_DIR to a folder that can be written, or leave --tracking out"

    def _open(self) -> None:
        project, own = os.environ.get("TRACKIO_PROJECT", "thinkers"), self.record["run"][:8]
        try:
            known = [run.name for run in self._package.Api().runs(project)]
        except ValueError:  # there is no such project yet
            known = []
        name = f"{self.folder.resolve().name}-{own}"  # names alone identify runs
        named = [x for x in known if x.endswith(f"-{own}")]
        settings = {"config": dict(self.record["config"]), "resume": "allow", "embed": False}
        # In a context of its own: `init` ends the run of the context that it is called in.
        begin = partial(self._package.init, project, named[0] if named else name, **settings)
        self._run = contextvars.Context().run(begin)
        # The queue of rows that were logged is written by a thread, so that only the store knows
        # those of a run that was killed.
        self._last = self._run._next_step - 1

    def _log(self, row: dict[str, Any], update: int) -> None:
        self._run.log(row, step=update)

    def _end(self, status: Status) -> None:
        self._log({"status": status}, max(0, self._last))  # it has no other place for it
        self._run.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "mlflow": MLflow,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
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
            TRACKERS[name].fix,
        ) from error


def check(name: str) -> None:
    """Raise a UsageError unless there is a tracker of this name, and it is installed."""
    if not isinstance(name, str) or name not in TRACKERS:
        raise usage_error(
            f"--tracking {name}", f"one of {', '.join(TRACKERS)}", "change --tracking"
        )
    found = TRACKERS[name]
    if found.module:
        require(found.module, found.extra or name, f"--tracking {name}")


def numbers(line: Line) -> Iterator[tuple[str, float]]:
    """Yield ("valid/exact", 0.5) for each number of a line; "nan" and "inf" become numbers."""
    for key, value in _flat(line, "/"):
        if key != "update":
            yield key, float(value)


def files_of(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the files of a run that are stored, and the folder of each: "model", None for its own.

    Plain files alone: a link could send any file of this computer.
    """
    for home, place in ((folder, None), (folder / "model", "model")):
        for file in sorted(home.iterdir()) if own_folder(home) else ():
            is_plain = file.is_file() and not file.is_symlink()
            if is_plain and file.suffix in (".json", ".jsonl", ".html", ".safetensors"):
                yield file, place


def _flat(value: Mapping[str, Any], joint: str, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, x in value.items():
        if isinstance(x, Mapping):
            yield from _flat(x, joint, f"{before}{key}{joint}")
        else:
            yield before + key, x


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
