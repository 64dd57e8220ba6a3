"""Paths that users give: expanded and checked in one place."""

import os
from pathlib import Path

import pytest
from training_cases import make

import thinkers
from thinkers.errors import UsageError
from thinkers.tasks import TASKS
from thinkers.user_paths import output_file, user_path


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_tilde_is_the_users_folder(home):
    assert user_path("~") == home
    assert user_path("~/a/b") == user_path(Path("~/a/b")) == home / "a" / "b"
    assert user_path("a/~") == Path("a/~")


def test_a_folder_may_be_called_tilde_and_a_path_may_be_expanded_twice(home, monkeypatch):
    monkeypatch.chdir(home)
    assert user_path("./~") == user_path(user_path("./~")) == home / "~"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a\0b",
        "\udcff",
        b"bytes",
        3,
        None,
        "~no_such_user/a",
    ],
    ids=repr,
)
def test_what_is_no_path_is_refused_by_name_and_can_be_printed(path):
    with pytest.raises(UsageError) as refused:
        user_path(path, "--out")
    message = str(refused.value)
    message.encode()
    assert "--out" in message and "\0" not in message and len(message.splitlines()) == 3


def test_tasks_read_paths_from_the_users_folder(home, monkeypatch):
    monkeypatch.setenv("THINKERS_CACHE", "~/cache")
    (home / "text.txt").write_text("some words on a line\n" * 40)
    task = thinkers.build_task("text", path="~/text.txt", context=8)
    assert len(task.tokens("train")) > 100
    assert (home / "cache" / "text").is_dir()
    lines = [f"{i} Anna is in x.\n{i + 1} Where is Anna?\tx\t1\n" for i in [1] * 20]
    (home / "qa.txt").write_text("".join(lines))
    assert "anna" in thinkers.build_task("babi", path="~/qa.txt").words


def test_an_output_replaces_no_device_pipe_link_or_file_of_a_run(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("report.html")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("pipe", "link", "dangling", "/dev/null"):
        with pytest.raises(UsageError, match="no regular file"):
            output_file(tmp_path / name)
    (tmp_path / "report.html").write_text("old")
    assert output_file(tmp_path / "report.html") == tmp_path / "report.html"
    assert output_file(tmp_path / "config.json") == tmp_path / "config.json"  # it is a new one


def test_every_file_of_a_run_is_protected(tmp_path):
    run = thinkers.train(make("looped", TASKS["cups"].Config(max_length=4)), tmp_path / "a")
    kept = [x for x in run.folder.rglob("*") if x.is_file()]
    assert {"config.json", "metrics.jsonl", "model.safetensors"} <= {x.name for x in kept}
    for file in kept:
        with pytest.raises(UsageError, match="a file of a run"):
            thinkers.inspect(run, "12 23", out=file)
