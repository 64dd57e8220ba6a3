"""`evaluate`: one row for each number of thinking steps, on held-out examples."""

import pytest
import torch

import thinkers
from thinkers import tasks
from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.errors import DataError, UsageError
from thinkers.evaluation.evaluate import evaluate
from thinkers.models import MODELS
from thinkers.runs.result import load
from thinkers.tasks import TASKS
from thinkers.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = Training(num_updates=2, batch_size=5, evaluate_examples=7, device="cpu", ema=0.5)
    task = TASKS["copy"].Config(max_length=3)
    config = Config.fit(
        MODELS["looped"], task, settings, dim=8, num_layers=1, num_heads=2, num_steps=3
    )
    return train(config, tmp_path_factory.mktemp("runs") / "a")


def test_a_run_its_folder_its_model_folder_and_its_model_score_the_same(run):
    rows = evaluate(run, num_examples=11)
    assert [row["num_steps"] for row in rows] == list(run.model.step_counts) == [1, 2, 3, 4, 8]
    assert evaluate(run.folder, num_examples=11) == rows
    assert evaluate(str(run.folder / "model"), num_examples=11) == rows
    task = tasks.from_config(Config.from_dict(_record(run)["config"]).task)
    assert evaluate((run.model, task), num_examples=11) == rows
    assert thinkers.evaluate(run.folder, num_examples=11) == rows


def _record(run):
    from thinkers.runs import folder as run_folder

    return run_folder.read_record(run.folder)


def test_the_score_at_the_models_own_steps_is_that_of_training(run):
    (row,) = evaluate(run, num_steps=3, num_examples=7)
    assert row == {"num_steps": 3} | run.scores
    (row,) = evaluate(run, num_steps=[None], num_examples=7)
    assert row == {"num_steps": None} | run.scores


def test_the_arguments_reach_the_task(run, monkeypatch):
    asked = []
    monkeypatch.setattr(TASKS["copy"], "score", lambda *args: asked.append(args[2:]) or {"x": 1.0})
    assert evaluate(run, [1, 4], 13, "valid") == [
        {"num_steps": 1, "x": 1.0},
        {"num_steps": 4, "x": 1.0},
    ]
    assert asked == [("valid", 13, 1), ("valid", 13, 4)]


def test_invalid_arguments_are_refused(run, tmp_path):
    with pytest.raises(UsageError, match="split must be one of"):
        evaluate(run, split="exam")
    with pytest.raises(ValueError, match="num_steps"):
        evaluate(run, num_steps=[0])
    with pytest.raises(ValueError, match="num_examples must be"):
        evaluate(run, num_examples=0)
    with pytest.raises(UsageError, match="folder of a run"):
        evaluate(tmp_path / "none")


def test_loading_takes_a_run_or_a_model_folder(run, tmp_path):
    for folder in (run.folder, run.folder / "model"):
        loaded = load(folder)
        for name, x in run.model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], x)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(DataError, match="no model yet"):
        load(tmp_path)
