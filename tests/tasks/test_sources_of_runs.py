"""Texts of runs: found from every folder, and never chosen by a run that others made."""

import json
import os
import shutil
from pathlib import Path

import pytest
from training_cases import make

import thinkers
from thinkers.config.overrides import override
from thinkers.data import sources, token_cache
from thinkers.errors import DataError
from thinkers.runs.folder import read_record, write_record
from thinkers.tasks.text import Text
from thinkers.training import loop

TEXT = "some words on a line, and a few more\n" * 60
OTHER = "a few words more, and some on a line\n" * 61
TRAINED = "the text that the run was trained on"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a text, no network, and an empty cache."""
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "_verified", {})

    def no_network(name):
        raise AssertionError(f"asked the hub for {name}")

    monkeypatch.setattr(sources, "_hub_texts", no_network)
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here" / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def train(path="text.txt", out="run", **own):
    small = {"model.dim": 8, "model.num_layers": 1, "model.num_heads": 2, "model.hidden": 12}
    small |= {"training.num_updates": 2, "training.batch_size": 3, "training.device": "cpu"}
    small |= {"task.path": path, "task.context": 10, "training.evaluate_examples": 5} | own
    flags = [f"--{name}={value}" for name, value in small.items()]
    return thinkers.train(override(thinkers.RECIPES["shakespeare/decoder"](), flags=flags), out)


def edit_record(folder, **settings):
    """Change settings of a run's task as somebody who hands it on could, its digest included."""
    folder = Path(folder)
    record = read_record(folder)
    record["config"]["task"] |= settings
    record.pop("digest", None)
    write_record(folder, record)


def test_a_run_with_a_relative_path_is_resumed_and_evaluated_from_another_folder(here, monkeypatch):
    train()
    monkeypatch.chdir(here.parent / "elsewhere")
    assert thinkers.resume(here / "run", num_updates=3)
    assert thinkers.evaluate(here / "run", num_examples=3)


def test_a_path_is_kept_absolute_and_expanded(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    for path in ("text.txt", "~/text.txt", "../here/text.txt"):
        task = Text.Config(path=path, valid_path=path)
        assert task.path.startswith("/") and os.path.samefile(task.path, here / "text.txt")
        assert task.valid_path == task.path
    assert Text.Config(path="hf:a/b").path == "hf:a/b" and Text.Config().path == ""


def test_a_text_that_is_gone_may_lie_in_the_run(here):
    run = train()
    (here / "text.txt").rename(here / "moved.txt")
    for call in (lambda: thinkers.resume("run", num_updates=3), lambda: thinkers.evaluate("run")):
        with pytest.raises(DataError) as caught:
            call()
        found, expected, fix = str(caught.value).splitlines()
        assert "text.txt: no such file" in found and TRAINED in expected
        assert fix == "fix: put it back, or a copy of it at run/data/text.txt"
    (run.folder / "data").mkdir()
    (here / "moved.txt").rename(run.folder / "data" / "text.txt")
    assert thinkers.evaluate("run", num_examples=3)
    assert thinkers.resume("run", num_updates=3).model is not None
    (run.folder / "data" / "text.txt").write_text(OTHER)
    with pytest.raises(DataError, match="has changed since the run began"):
        thinkers.evaluate("run")


def test_no_link_in_a_run_is_followed(here):
    run = train()
    (here / "text.txt").rename(here / "moved.txt")
    (run.folder / "data").mkdir()
    (run.folder / "data" / "text.txt").symlink_to(here / "moved.txt")
    with pytest.raises(DataError, match="a link"):
        thinkers.evaluate("run")


@pytest.mark.parametrize("name", ["path", "valid_path", "test_path"])
@pytest.mark.parametrize("call", ["evaluate", "resume", "reproduce"])
def test_a_run_does_not_choose_what_is_read(here, name, call, monkeypatch):
    train()
    (here / "secret").write_text(OTHER)
    calls = {
        "evaluate": lambda: thinkers.evaluate("run"),
        "resume": lambda: thinkers.resume("run", num_updates=3),
        "reproduce": lambda: thinkers.reproduce("run", "again"),
    }
    opened = []
    monkeypatch.setattr(sources, "_digest", lambda stats: opened.append(stats) or "")
    for chosen in (str(here / "secret"), "hf:some/name", str(here), "/"):
        edit_record("run", **{name: chosen})
        with pytest.raises(DataError) as caught:
            calls[call]()
        assert caught.value.exit_code == 3 and len(str(caught.value).splitlines()) == 3
        assert not (here / "again").exists()
    assert not any("secret" in file for stats in opened for file, *_ in stats)


def test_a_data_set_of_a_run_is_read_from_the_cache_or_fetched_by_its_user(here, monkeypatch):
    monkeypatch.setattr(sources, "_hub_texts", lambda name: iter([TEXT * 4]))
    train("hf:some/name")
    assert thinkers.evaluate("run", num_examples=3)
    shutil.rmtree(os.environ["THINKERS_CACHE"])
    token_cache._verified.clear()
    for call in (lambda: thinkers.resume("run", num_updates=3), lambda: thinkers.evaluate("run")):
        with pytest.raises(DataError, match=r"build_task\('text', path='hf:some/name'\)"):
            call()
    assert thinkers.evaluate("run", num_examples=3, flags=["--task.path=hf:some/name"])
    assert thinkers.resume("run", num_updates=3)
    shutil.rmtree(os.environ["THINKERS_CACHE"])
    token_cache._verified.clear()
    thinkers.build_task("text", path="hf:some/name")
    assert thinkers.resume("run", num_updates=4)


def test_texts_that_the_user_names_are_read(here):
    train()
    (here / "other.txt").write_text(OTHER)
    flags = ["--task.test_path=other.txt"]
    (row,) = thinkers.evaluate("run", num_examples=3, flags=flags)
    assert row["loss"] > 0
    edit_record("run", valid_path=str(here / "other.txt"))
    with pytest.raises(DataError, match="not recorded by the run"):
        thinkers.evaluate("run", split="valid", flags=flags)


def test_a_run_that_was_killed_before_its_record_can_begin_again(here, monkeypatch):
    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(loop.run_folder, "_remove_unused", lambda *_: None)
        patch.setattr(loop.run_folder, "write_record", killed)
        with pytest.raises(SystemExit):
            train()
    assert {x.name for x in (here / "run").iterdir()} == {".lock", "vocabulary.json"}
    (here / "text.txt").write_text(OTHER)
    assert train().scores["loss"] > 0


def test_a_run_that_fails_before_its_record_leaves_nothing(here, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.run_folder, "write_record", full)
    with pytest.raises(OSError, match="No space"):
        train()
    assert not (here / "run").exists()


# stories


def stories(folder, place="attic"):
    folder.mkdir(exist_ok=True)
    story = f"1 Anna ran to the {place}.\n2 Where is Anna?\t{place}\t1\n"
    for part in ("train", "test"):
        (folder / f"qa1_single_{part}.txt").write_text(story * 20)


def test_stories_of_a_run_are_found_and_verified_likewise(here, monkeypatch):
    stories(here / "tasks")
    task = thinkers.TASKS["babi"].Config(path="tasks")
    settings = dict(num_updates=1, batch_size=2, evaluate_examples=4)
    config = make("decoder", settings=settings)
    config = thinkers.Config.fit(
        thinkers.MODELS["decoder"], task, config.training, dim=8, num_layers=1, num_heads=2
    )
    run = thinkers.train(config, "run")
    monkeypatch.chdir(here.parent / "elsewhere")
    home = here / "run"
    assert thinkers.evaluate(home, num_examples=3) and thinkers.resume(home, num_updates=2)
    stories(here / "secret", "cellar")
    edit_record(home, path=str(here / "secret"))
    for call in (lambda: thinkers.evaluate(home), lambda: thinkers.resume(home, num_updates=3)):
        with pytest.raises(DataError, match="has changed since the run began"):
            call()
    with pytest.raises(DataError, match="the word 'cellar'"):
        thinkers.evaluate(home, flags=[f"--task.path={here / 'secret'}"])
    assert thinkers.evaluate(home, num_examples=3, flags=[f"--task.path={here / 'tasks'}"])
    (home / "data").mkdir()
    (here / "tasks").rename(home / "data" / "secret")
    assert thinkers.evaluate(home, num_examples=3)
    assert json.loads((home / "vocabulary.json").read_text())["files"]["files"] == 2
    assert run.folder.name == "run"
