"""W&B, offline, and trackio have each number of metrics.jsonl once, of killed runs too."""

import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paths import ROOT
from test_trackers import config, written

import thinkers
from thinkers.errors import UsageError
from thinkers.models.decoder import Decoder
from thinkers.runs import trackers, wandb_files

pytestmark = pytest.mark.extras
wandb = pytest.importorskip("wandb")
HOME = tempfile.TemporaryDirectory(prefix="trackers")
os.environ["TRACKIO_DIR"] = HOME.name  # read once, when trackio is imported
PLACE = Path(HOME.name) / "wandb"
trackio = pytest.importorskip("trackio")
from trackio.sqlite_storage import SQLiteStorage  # noqa: E402

BOTH = pytest.mark.parametrize("name", ["wandb", "trackio"])
OWN = ("_step", "_timestamp", "_runtime", "update", "timestamp", "step", "status")


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty store; trackio has one for each project, W&B keeps the folder of its first run."""
    monkeypatch.chdir(tmp_path)
    for key in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{key}", HOME.name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    shutil.rmtree(PLACE, ignore_errors=True)
    monkeypatch.setenv("TRACKIO_PROJECT", tmp_path.name)


def rows(name) -> list[dict]:
    """The rows of the only run of a store; `update` is their step."""
    if name == "wandb":
        ids = {folder.name.rsplit("-", 1)[1] for folder in PLACE.glob("offline-run-*")}
        (run,) = ids
        return list(wandb_files.logged_rows(PLACE, run))
    (run,) = trackio.Api().runs(os.environ["TRACKIO_PROJECT"])
    logs = SQLiteStorage.get_logs(os.environ["TRACKIO_PROJECT"], run.name)
    return [row | {"update": row["step"]} for row in logs]


def logged(name) -> list[tuple[str, int, float]]:
    return sorted(
        (key, row["update"], value)
        for row in rows(name)
        for key, value in row.items()
        if key not in OWN
    )


def records(kind) -> list:
    """The messages of this kind in W&B's files, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(PLACE.glob("offline-run-*/*.wandb"))
    found = [
        Record.FromString(x) for file in files for x in wandb_files.messages(file.read_bytes())
    ]
    return [getattr(x, kind) for x in found if x.WhichOneof("record_type") == kind]


def wait_for_another_second():
    """W&B names its folders by the second; nobody resumes a run that soon."""
    time.sleep(1.05 - time.time() % 1)


@BOTH
def test_each_number_of_a_resumed_run_is_there_once(tmp_path, name):
    run = thinkers.train(config(), tmp_path / "a", tracking=name)
    before = logged(name)
    assert before == sorted(written(run.folder)) and len(before) > 40
    wait_for_another_second()
    run = thinkers.resume(run.folder, num_updates=10, tracking=name)
    after = logged(name)
    assert len(set(after)) == len(after)
    assert set(after) == set(before) | written(run.folder)


@BOTH
def test_a_run_that_was_not_tracked_at_first_has_all_later(tmp_path, name):
    run = thinkers.train(config(), tmp_path / "a", until=5)
    run = thinkers.resume(run.folder, tracking=name)
    assert logged(name) == sorted(written(run.folder))


@BOTH
def test_a_renamed_folder_is_the_same_run(tmp_path, name):
    thinkers.train(config(), tmp_path / "a", until=3, tracking=name)
    (tmp_path / "a").rename(tmp_path / "b")
    wait_for_another_second()
    run = thinkers.resume(tmp_path / "b", tracking=name)
    assert set(logged(name)) >= written(run.folder)  # `rows` finds one run


def test_wandb_has_settings_files_status_and_the_axis(tmp_path):
    run = thinkers.train(config(), tmp_path / "a", tracking="wandb")
    record = json.loads((run.folder / "config.json").read_text())
    (first, *_), (end,) = records("run"), records("exit")
    assert (first.run_id, first.display_name, first.project) == (record["run"], "a", "thinkers")
    assert end.exit_code == 0
    settings = {x.key: json.loads(x.value_json) for c in records("config") for x in c.update}
    assert settings["model"]["dim"] == 8 and settings["task"]["name"] == "add"
    assert {(m.name or m.glob_name, m.step_metric) for m in records("metric")} >= {("*", "update")}
    (artifact,) = records("artifact")
    names = {entry.path for entry in artifact.manifest.contents}
    files = {"config.json", "metrics.jsonl"}
    assert names == files | {"model/config.json", "model/model.safetensors"}
    summary = {x.key: x.value_json for s in records("summary") for x in s.update}
    assert summary["status"] == '"FINISHED"'


def test_trackio_has_settings_files_and_status(tmp_path):
    run = thinkers.train(config(), tmp_path / "a", tracking="trackio")
    project = os.environ["TRACKIO_PROJECT"]
    (found,) = trackio.Api().runs(project)
    assert found.name.startswith("a-") and found.config["model"]["dim"] == 8
    assert [row["status"] for row in rows("trackio") if "status" in row] == ["FINISHED"]
    name = f"run-{json.loads((run.folder / 'config.json').read_text())['run']}"
    manifest = SQLiteStorage.get_artifact_manifest(project, name, "latest")["manifest"]
    names = {entry["path"] for entry in manifest}
    assert {"config.json", "metrics.jsonl", "model/model.safetensors"} <= names


@BOTH
def test_a_failing_run_has_the_status_failed(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Decoder, "loss", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        thinkers.train(config(), tmp_path / "a", tracking=name)
    if name == "wandb":
        assert [end.exit_code for end in records("exit")] == [1]
    else:
        assert [row["status"] for row in rows(name)] == ["FAILED"]


@BOTH
def test_an_interrupted_run_has_the_status_killed_and_is_continued(tmp_path, name):
    def stop(state, result):
        if result.update == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(thinkers.ThinkersError, match="interrupted"):
        thinkers.train(config(), tmp_path / "a", tracking=name, callbacks=[stop])
    if name == "wandb":
        assert [end.exit_code for end in records("exit")] == [255]
    else:
        assert [row["status"] for row in rows(name) if "status" in row] == ["KILLED"]
    wait_for_another_second()
    run = thinkers.resume(tmp_path / "a", tracking=name)
    assert logged(name) == sorted(written(run.folder))


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import thinkers
from test_trackers import config
def stop(state, result):
    if result.update == 32:
        os.kill(os.getpid(), signal.SIGKILL)
settings = config(num_updates=40, checkpoint_every=5, evaluate_every=10)
thinkers.train(settings, "a", tracking={name!r}, callbacks=[stop])
"""


@BOTH
def test_a_killed_run_has_each_number_once_after_it_was_resumed(tmp_path, name):
    code = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests" / "runs"), name=name)
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    # Without the process that W&B has begun for this one, which would outlive the run.
    own = {key: x for key, x in os.environ.items() if key != "WANDB_SERVICE"} | path
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = thinkers.resume(tmp_path / "a", tracking=name)
    without_clocks = [x for x in logged(name) if x[0] != "minutes"]
    assert without_clocks == sorted(x for x in written(run.folder) if x[0] != "minutes")


@BOTH
def test_an_error_of_the_store_does_not_end_training_and_nothing_is_sent_twice(
    tmp_path, monkeypatch, capsys, name
):
    found = trackers.TRACKERS[name]
    real, count = found._log, itertools.count()

    def log(self, row, update):
        if next(count) in (2, 5):
            raise ConnectionError("nobody there")
        real(self, row, update)

    monkeypatch.setattr(found, "_log", log)
    run = thinkers.train(config(), tmp_path / "a", tracking=name)
    assert "tracking failed: ConnectionError: nobody there" in capsys.readouterr().out
    monkeypatch.setattr(found, "_log", real)
    wait_for_another_second()
    thinkers.resume(run.folder, tracking=name)
    assert set(logged(name)) == written(run.folder)
    assert [x for x in logged(name) if not x[0].startswith("test/")] == sorted(
        x for x in written(run.folder) if not x[0].startswith("test/")
    )


@BOTH
def test_numbers_that_are_not_finite_are_stored(tmp_path, name):
    record = {"run": "0123456789abcdef", "config": {"model": {"dim": 8}}}
    tracker = trackers.open_tracker(name, tmp_path, record)
    tracker.send([{"update": 3, "loss": "nan"}, {"update": 3, "valid": {"exact": "inf"}}])
    tracker.finish("FINISHED")
    (row,) = [row for row in rows(name) if "loss" in row]  # one row for each update
    assert math.isnan(row["loss"]) and row["valid/exact"] == math.inf and row["update"] == 3


@BOTH
def test_runs_of_the_caller_and_of_a_comparison_stay_apart(tmp_path, monkeypatch, name):
    """Two trackers at once, each with its rows."""
    open_both = [
        trackers.open_tracker(name, tmp_path / x, {"run": x * 16, "config": {"x": x}}) for x in "ab"
    ]
    for update, tracker in enumerate([*open_both, *open_both], 1):
        tracker.send([{"update": update, "loss": float(update)}])
    for tracker in open_both:
        tracker.finish("FINISHED")
    if name == "wandb":
        found = [[r["loss"] for r in wandb_files.logged_rows(PLACE, x * 16)] for x in "ab"]
    else:
        logs = [SQLiteStorage.get_logs(tmp_path.name, f"{x}-{x * 8}") for x in "ab"]
        found = [[row["loss"] for row in some if "loss" in row] for some in logs]
    assert found == [[1, 3], [2, 4]]


@BOTH
def test_neither_weights_nor_random_streams_change(tmp_path, name):
    streams = random.getstate(), torch.get_rng_state()
    tracked = thinkers.train(config(), tmp_path / "a", tracking=name)
    assert random.getstate() == streams[0] and torch.equal(torch.get_rng_state(), streams[1])
    plain = thinkers.train(config(), tmp_path / "b")
    for ours, theirs in zip(plain.model.parameters(), tracked.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_online_run_continues_after_the_last_update_of_the_server(tmp_path, monkeypatch):
    """A stand-in for the package: no server is reached in tests."""
    got = []

    class Run(SimpleNamespace):
        id, offline, resumed = "r", False, True
        summary = {"update": 4}
        config = SimpleNamespace(update=lambda *_, **__: None)

        def log(self, row):
            got.append(row)

        def define_metric(self, *_, **__):
            pass

    package = SimpleNamespace(init=lambda **_: Run(), Settings=lambda **_: None)
    monkeypatch.setattr(trackers, "require", lambda *_: package)
    tracker = trackers.open_tracker("wandb", tmp_path, {"run": "r", "config": {}})
    tracker.send([{"update": u, "loss": 0.5} for u in range(1, 7)])
    assert [row["update"] for row in got] == [5, 6]


def test_a_store_that_cannot_be_opened_is_a_usage_error(tmp_path, monkeypatch):
    def refused(**_):
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(UsageError, match="(?s)No API key.*run wandb login, set WANDB_MODE"):
        thinkers.train(config(), tmp_path / "a", tracking="wandb")


def test_a_log_is_read_up_to_the_message_that_was_cut():
    """Fragments at the end of a block, a block that is filled with zeros, and any cut."""
    header, block = wandb_files.HEADER, wandb_files.BLOCK
    given = [b"a" * 10, b"b" * (block - 7 - 17 - 7 - 20), b"c" * 90, b"d" * 3 * block]
    content = b"\0" * 7
    for message in given:
        first, rest = True, message
        while first or rest:
            left = block - len(content) % block
            if left < 7:
                content += b"\0" * left
                continue
            part, rest = rest[: left - 7], rest[left - 7 :]
            kind = (1 if not rest else 2) if first else (4 if not rest else 3)
            content += header.pack(0, len(part), kind) + part
            first = False
    assert list(wandb_files.messages(content)) == given
    for cut in range(0, len(content), 97):
        found = list(wandb_files.messages(content[:cut]))
        assert found == given[: len(found)]
