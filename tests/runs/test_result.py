"""`open_run`: from a run, its folders, a model or (model, task) to a model and its task."""

import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from training_cases import make

import thinkers
from thinkers import tasks
from thinkers.errors import DamagedError, DataError, UsageError
from thinkers.json_files import with_digest
from thinkers.runs.result import Run, load, open_run, open_with_task
from thinkers.tasks import TASKS
from thinkers.training.loop import train

CALLS = {
    "answer": lambda run: thinkers.answer(run, "12="),
    "generate": lambda run: thinkers.generate(run, "12="),
    "stream": lambda run: next(thinkers.stream(run, "12=")),
    "evaluate": lambda run: thinkers.evaluate(run, num_examples=3),
    "inspect": lambda run: thinkers.inspect(run, "12="),
    "ablate": lambda run: thinkers.ablate(run, num_examples=3),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    settings = dict(num_updates=1, seed=7)
    return train(make("looped", settings=settings), tmp_path_factory.mktemp("runs") / "a")


def assert_same_weights(ours, theirs):
    for name, x in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], x), name


def test_a_run_its_folder_and_its_model_folder_give_its_model_and_its_task(run, monkeypatch):
    monkeypatch.chdir(run.folder / "model")
    for opened in (run, run.folder, str(run.folder), run.folder / "model", "../model", "."):
        model, task = thinkers.open_run(opened)
        assert_same_weights(model, run.model)
        assert not model.training
        assert type(task) is TASKS["copy"] and task.seed == 7 and task.config.max_length == 3


def test_a_model_without_a_run_has_no_task(run, tmp_path):
    shutil.copytree(run.folder / "model", tmp_path / "alone")
    model, task = open_run(tmp_path / "alone")
    assert_same_weights(model, run.model)
    assert task is None and not model.training
    assert open_run(run.model) == (run.model, None)


def test_a_model_folder_beside_another_config_has_no_task(run, tmp_path):
    shutil.copytree(run.folder / "model", tmp_path / "model")
    (tmp_path / "config.json").write_text('{"name": "something else"}')
    assert open_run(tmp_path / "model")[1] is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DamagedError, match="config.json is not JSON"):
        open_run(tmp_path / "model")


def test_a_pair_is_returned_as_it_is(run):
    task = tasks.build_task("copy", max_length=3)
    model = load(run.folder).train()
    assert open_run((model, task)) == (model, task)
    thinkers.evaluate((model, task), num_examples=3)
    assert model.training


@pytest.mark.parametrize("name", CALLS)
def test_functions_that_need_a_task_ask_for_one(run, tmp_path, name):
    shutil.copytree(run.folder / "model", tmp_path / "alone")
    for given, found in ((run.model, "looped"), (tmp_path / "alone", "alone")):
        with pytest.raises(UsageError, match=rf"{found}, a model without its task\n.*\nfix: pass"):
            CALLS[name](given)


@pytest.mark.parametrize("name", ["answer", "evaluate", "inspect", "ablate"])
def test_functions_take_every_form_of_a_run(run, name):
    _, task = open_with_task(run)
    for given in (run, run.folder, run.folder / "model", (run.model, task)):
        CALLS[name](given)


@pytest.mark.parametrize("model", ["decoder", "looped"])
def test_a_loaded_model_is_in_evaluation_mode(model, tmp_path):
    found = train(make(model, settings=dict(num_updates=1)), tmp_path / "a")
    assert not found.model.training
    assert not load(found.folder).training and not load(found.folder / "model").training


def test_nothing_is_opened_or_built_to_answer_by_a_model_and_its_task(run):
    pair = open_run(run.folder)
    expected = thinkers.answer(pair, "12=")  # the first call imports what it needs
    opened = []

    def audit(event, details):
        if opened is not None and event == "open":
            opened.append(details[0])

    sys.addaudithook(audit)
    try:
        assert thinkers.answer(pair, "12=") == expected
        thinkers.evaluate(pair, num_examples=3)
        assert opened == []
        thinkers.answer(run.folder, "12=")
        assert any(str(file).endswith("config.json") for file in opened)  # by a folder, it is
    finally:
        opened = None


def test_a_run_is_shown_in_a_line_and_as_a_table():
    run = Run(load_model(), {"exact": 0.51234, "per_token": 1.0}, Path("runs/<a>"))
    assert repr(run) == "Run(looped: exact 0.5123, per_token 1.0000; runs/<a>)"
    page = parsed(run._repr_html_())
    size = f"{sum(p.numel() for p in run.model.parameters()):,}"
    assert page == ["model", "looped", "parameters", size, "exact", "0.5123"] + [
        *("per_token", "1.0000", "folder", "runs/<a>")
    ]


def load_model():
    return thinkers.build_model("looped", vocab_size=5, dim=8, num_heads=2)


def parsed(page):
    """Return the texts of the cells of a table."""
    found = []

    class Reader(HTMLParser):
        def handle_data(self, data):
            found.append(data)

    Reader().feed(page)
    return found


def test_settings_of_the_task_need_a_run(run, tmp_path):
    flags = ["--task.max_length=2"]
    assert open_run(run, flags=flags)[1].config.max_length == 2
    shutil.copytree(run.folder / "model", tmp_path / "alone")
    for given in (run.model, open_with_task(run), tmp_path / "alone"):
        with pytest.raises(UsageError, match="flags must be left out"):
            open_run(given, flags=flags)


def test_things_that_are_not_runs_are_refused(run, tmp_path):
    with pytest.raises(UsageError, match="run must be a Run, a folder, a model .*, got int"):
        open_run(3)
    with pytest.raises(UsageError, match="folder of a run, but there is none"):
        open_run(tmp_path / "none")
    with pytest.raises(UsageError, match="holds no config.json"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"comparison": {}}))
    with pytest.raises(UsageError, match="is not its record"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_bytes(with_digest({"comparison": {}, "format": 2}))
    with pytest.raises(UsageError, match="is not its record"):
        open_run(tmp_path)
    shutil.copytree(run.folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/model")
    with pytest.raises(DataError, match="no model yet"):
        open_run(tmp_path / "copy")


@pytest.mark.parametrize("field", ["run", "config"])
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_record_without_one_of_its_fields_is_damaged(run, tmp_path, field, is_lost):
    file = shutil.copytree(run.folder, tmp_path / "copy") / "config.json"
    record = json.loads(file.read_text())
    value = record.pop(field)
    file.write_text(json.dumps(record if is_lost else record | {field[:-1] + "x": value}))
    with pytest.raises(DamagedError):
        open_run(file.parent)


@pytest.mark.parametrize("shape", [(), ("model",), ("model", 3), ("task", "model"), (1, 2)])
def test_a_tuple_that_is_no_pair_of_model_and_task_is_refused(run, shape):
    model, task = thinkers.open_run(run)
    pair = tuple({"model": model, "task": task}.get(x, x) for x in shape)
    with pytest.raises(UsageError, match="pair"):
        open_run(pair)
