"""MLflow and TensorBoard have each number of metrics.jsonl exactly once."""

import json
import logging
import math
import random
import re
import shutil

import pytest
import torch
from paths import ROOT

import thinkers
from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.errors import UsageError
from thinkers.models.decoder import Decoder
from thinkers.runs import trackers
from thinkers.runs.metrics import MetricsWriter
from thinkers.tasks.arithmetic import Add
from thinkers.training.loop import train

# The libraries of the stores warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


def config(**own) -> Config:
    settings: dict = dict(num_updates=7, batch_size=3, log_every=1, checkpoint_every=3)
    training = Training(**(settings | dict(evaluate_examples=11, evaluate_every=5) | own))
    return Config.fit(Decoder, Add.Config(max_digits=2), training, dim=8, num_layers=1, num_heads=2)


def written(folder) -> set[tuple[str, int, float]]:
    """Return (name, update, value) of each number in metrics.jsonl, parsed independently."""
    found = set()
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        update = line.pop("update")
        for key, value in line.items():
            for inner, x in value.items() if isinstance(value, dict) else [(None, value)]:
                found.add((key if inner is None else f"{key}/{inner}", update, float(x)))
    return found


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A store without runs; its tables take MLflow seconds to create, so it is copied."""
    tracking = pytest.importorskip("mlflow.tracking")
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(empty, tmp_path, monkeypatch):
    """A function that returns a client of a new MLflow store, named by its absolute path.

    MLflow keeps one store for each name, so that a relative one would be found in the first test's
    folder by all.
    """
    tracking = pytest.importorskip("mlflow.tracking")
    shutil.copy(empty, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return lambda: tracking.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def only_run(client):
    (run,) = client.search_runs([client.get_experiment_by_name("thinkers").experiment_id])
    return run


def logged(client) -> list[tuple[str, int, float]]:
    run = only_run(client)
    histories = [client.get_metric_history(run.info.run_id, key) for key in run.data.metrics]
    return [(m.key, m.step, m.value) for history in histories for m in history]


def test_mlflow_has_each_number_of_a_resumed_run_once(tmp_path, store):
    run = thinkers.train(config(), tmp_path / "a", tracking="mlflow")
    client = store()
    assert sorted(logged(client)) == sorted(written(run.folder)) and len(logged(client)) > 40
    found = only_run(client)
    assert found.info.status == "FINISHED" and found.info.run_name == "a"
    assert found.data.params["model.dim"] == "8" and found.data.params["task.name"] == '"add"'
    before = set(logged(client))

    run = thinkers.resume(run.folder, num_updates=10, tracking="mlflow")
    after = logged(client)
    assert len(set(after)) == len(after) and set(after) == before | written(run.folder)
    found = only_run(client)
    assert found.data.tags["resumed with training.num_updates"] == "10"
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"config.json", "metrics.jsonl", "model"}
    inside = {file.path for file in client.list_artifacts(found.info.run_id, "model")}
    assert inside == {"model/config.json", "model/model.safetensors"}


def test_a_failing_store_does_not_end_training_and_receives_all_later(
    tmp_path, store, monkeypatch, capsys
):
    broken = True
    real = trackers.MLflow.send

    def send(self, given):
        if broken:
            raise ConnectionError("nobody there")
        return real(self, given)

    monkeypatch.setattr(trackers.MLflow, "send", send)
    run = thinkers.train(config(), tmp_path / "a", tracking="mlflow")
    assert "tracking failed: ConnectionError: nobody there" in capsys.readouterr().out
    assert logged(store()) == []
    broken = False
    thinkers.resume(run.folder, tracking="mlflow")
    assert sorted(logged(store())) == sorted(written(run.folder))


def test_metrics_beyond_the_limit_of_a_call_are_split(tmp_path, store, monkeypatch):
    monkeypatch.setattr(trackers, "METRICS_PER_CALL", 10)
    run = thinkers.train(config(), tmp_path / "a", tracking="mlflow")
    assert sorted(logged(store())) == sorted(written(run.folder))


def test_a_failing_run_has_the_status_failed(tmp_path, store, monkeypatch):
    monkeypatch.setattr(Decoder, "loss", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        thinkers.train(config(), tmp_path / "a", tracking="mlflow")
    assert only_run(store()).info.status == "FAILED"


def test_tensorboard_has_each_number_of_a_resumed_run_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = thinkers.train(config(), tmp_path / "a", tracking="tensorboard")
    others = [
        run.folder / "tensorboard" / name for name in ("notes.txt", "events.out.tfevents.1.x")
    ]
    for file in others:
        file.write_bytes(b"")
    run = thinkers.resume(run.folder, num_updates=10, tracking="tensorboard")
    assert all(file.exists() for file in others) and len(list(others[0].parent.iterdir())) == 3
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found = [
        (key, event.step, event.value)
        for key in events.Tags()["scalars"]
        for event in events.Scalars(key)
    ]
    # TensorBoard keeps float32.
    expected = [(k, step, torch.tensor(x).item()) for k, step, x in written(run.folder)]
    assert sorted(found) == sorted(expected) and len(found) > 40
    assert "config/text_summary" in events.Tags()["tensors"]


def test_nan_and_inf_in_lines_become_numbers():
    line = {"update": 3, "loss": "nan", "valid": {"exact": "inf"}}
    (loss, worst), (name, best) = trackers.numbers(line)
    assert (loss, name, best) == ("loss", "valid/exact", math.inf) and math.isnan(worst)


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="expected: one of mlflow, tensorboard, wandb, trackio"):
        thinkers.train(config(), tmp_path / "a", tracking="wands")
    assert not (tmp_path / "a").exists()


@pytest.fixture
def own(monkeypatch):
    """A tracker of a user's that keeps what it gets."""

    class Mine(trackers.Tracker):
        got = []

        def send(self, lines):
            self.got.extend(lines)

        def finish(self, status):
            self.got.append((status, self.folder.name, self.record["config"]["task"]["name"]))

    monkeypatch.setitem(thinkers.TRACKERS, "mine", Mine)
    return Mine.got


def test_a_tracker_of_a_user_has_every_line(tmp_path, own, capsys):
    run = thinkers.train(config(), tmp_path / "a", tracking="mine")
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert own == [*lines, ("FINISHED", "a", "add")] and len(lines) > 7
    del own[:]
    thinkers.resume(run.folder, num_updates=8)  # what a folder names is not used
    assert own == [] and "add --tracking mine" in capsys.readouterr().out
    thinkers.resume(run.folder, num_updates=9, tracking="mine")
    assert [x["update"] for x in own[:-1] if "loss" in x] == list(range(1, 10))
    assert own[-1][0] == "FINISHED"


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """A tracker, a callback and a loop of a user's."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "trackers.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    found = {}
    try:
        exec(compile("\n".join(code), "trackers.md", "exec"), found)
    finally:
        del thinkers.TRACKERS["table"]
    *rows, last = (found["run"].folder / "table.txt").read_text().splitlines()
    assert last == "# FINISHED" and {x.split("\t")[1] for x in rows} >= {"loss", "test/exact"}
    assert {(k, int(u), float(x)) for u, k, x in (row.split("\t") for row in rows)} == written(
        found["run"].folder
    )
    assert found["loss"].total < 3 and thinkers.load("models/mine").name == "looped"


def test_mlflow_leaves_the_levels_of_loggers_as_they_were(tmp_path, store):
    levels = {}
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.DEBUG)
        levels[name] = logging.DEBUG
    thinkers.train(config(num_updates=1), tmp_path / "a", tracking="mlflow")
    assert {name: logging.getLogger(name).level for name in levels} == levels
    for name in levels:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize("name", sorted(trackers.TRACKERS))
def test_a_missing_extra_is_reported_before_anything_is_written(tmp_path, monkeypatch, name):
    settings = config()

    def missing(module, *_):
        raise ImportError(module)

    monkeypatch.setattr(trackers.importlib, "import_module", missing)
    extra = trackers.TRACKERS[name].extra or name
    with pytest.raises(UsageError, match=rf'pip install "thinkers\[{extra}\]"'):
        train(settings, tmp_path / "a", tracking=name)
    assert not (tmp_path / "a").exists()


def test_importing_a_package_leaves_the_random_stream(monkeypatch):
    monkeypatch.setattr(trackers.importlib, "import_module", lambda name: random.random() and json)
    before = random.getstate()
    trackers.require("trackio", "wandb", "--tracking trackio")
    assert random.getstate() == before


def test_a_folder_of_the_name_is_no_package(tmp_path, monkeypatch):
    """W&B makes a folder `wandb` where it runs, which Python would import."""
    (tmp_path / "wanda" / "run-1").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="no package wanda"):
        trackers.require("wanda", "wandb", "--tracking wandb")


def test_lines_are_on_the_disk_before_the_tracker_gets_them(tmp_path):
    seen = []

    class Recorder:
        def send(self, lines):
            on_disk = (tmp_path / "metrics.jsonl").read_text().splitlines()
            seen.append((list(lines), len(on_disk)))

        def finish(self, status):
            seen.append(status)

    with MetricsWriter(tmp_path, 0, 9, Recorder()) as metrics:  # type: ignore[arg-type]
        metrics.log(1, loss=2.5)
        metrics.log(2, loss=math.nan)
        assert not seen
        metrics.flush()
        metrics.log(3, loss=1.5)
    first = [{"update": 1, "loss": 2.5}, {"update": 2, "loss": "nan"}]
    assert seen == [(first, 2), ([{"update": 3, "loss": 1.5}], 3), "FINISHED"]


def test_a_tracker_does_not_change_the_weights(tmp_path):
    pytest.importorskip("tensorboard")
    plain = thinkers.train(config(), tmp_path / "a")
    tracked = thinkers.train(config(), tmp_path / "b", tracking="tensorboard")
    for ours, theirs in zip(plain.model.parameters(), tracked.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
