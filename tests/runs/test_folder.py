"""Run folders: one owner, a record with a digest, and no link that is followed."""

import errno
import json
import os
import shutil
import threading
from dataclasses import dataclass

import pytest
import torch
from training_cases import make

import thinkers
from thinkers.checks import added
from thinkers.config import experiment
from thinkers.config.training import Training
from thinkers.errors import DamagedError, FormatError, LockedError, ResourceError, UsageError
from thinkers.json_files import with_digest
from thinkers.models import MODELS
from thinkers.runs import folder as run_folder
from thinkers.runs.result import load, open_run
from thinkers.tasks import TASKS
from thinkers.training.loop import resume, train

QUICK = dict(num_updates=2, ema=0.9, checkpoint_every=1)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(make(settings=QUICK), tmp_path_factory.mktemp("runs") / "a").folder


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "a")


# The owner


def test_a_folder_is_locked_by_one_owner(tmp_path):
    folder = tmp_path / "run"
    with run_folder.owned(folder, new=True):
        (folder / "config.json").write_text("{}")
        for new in (True, False):
            with pytest.raises(LockedError, match=r"process \d+ on .+, started 20"):
                with run_folder.owned(folder, new=new):
                    pass
    with pytest.raises(UsageError, match="--resume"):
        with run_folder.owned(folder, new=True):
            pass
    with run_folder.owned(folder, new=False):
        pass


def test_a_folder_that_is_not_a_run_is_refused_and_unchanged(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(UsageError, match="but exists"):
        with run_folder.owned(tmp_path, new=True):
            pass
    with pytest.raises(UsageError, match="there is none"):
        with run_folder.owned(tmp_path / "none", new=False):
            pass
    with pytest.raises(UsageError, match="but is a file"):
        with run_folder.owned(tmp_path / "thesis.txt", new=True):
            pass
    with pytest.raises(UsageError, match="holds no config.json"):
        with run_folder.owned(tmp_path, new=False):
            pass
    assert names(tmp_path) == ["thesis.txt"]
    (tmp_path / ".lock").touch()
    with pytest.raises(UsageError, match="but exists"):
        with run_folder.owned(tmp_path, new=True):
            pass
    (tmp_path / ".lock").unlink()
    assert names(tmp_path) == ["thesis.txt"]


def test_a_run_that_fails_before_its_record_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError, match="early"):
        with run_folder.owned(tmp_path / "runs" / "a", new=True):
            raise RuntimeError("early")
    assert names(tmp_path) == []


def test_the_folder_of_a_run_killed_before_its_record_can_be_used(tmp_path):
    (tmp_path / ".lock").write_text("process 1")
    (tmp_path / ".config.json.tmp").write_text("{")
    with run_folder.owned(tmp_path, new=True):
        pass


def test_the_lock_of_a_removed_file_is_not_taken(tmp_path, monkeypatch):
    """A process that fails removes its lock file while another has just opened it."""
    real, opened = run_folder.open_lock, []

    def open_and_lose(path):
        opened.append(real(path))
        if len(opened) == 1:
            path.unlink()
            path.parent.rmdir()
        return opened[-1]

    monkeypatch.setattr(run_folder, "open_lock", open_and_lose)
    with run_folder.owned(tmp_path / "a", new=True):
        assert len(opened) == 2
        monkeypatch.undo()
        with pytest.raises(LockedError):
            with run_folder.owned(tmp_path / "a", new=True):
                pass


@pytest.mark.parametrize("error", [FileNotFoundError, FileExistsError])
def test_a_folder_that_cannot_be_made_is_not_tried_for_ever(tmp_path, monkeypatch, error):
    """As in /proc, where nothing is found, even while it is made."""
    tried = []

    def fail(path):
        tried.append(path)
        raise error(2, "No such file or directory", str(path))

    monkeypatch.setattr(run_folder, "make_folders", fail)
    with pytest.raises(error), run_folder.locked(tmp_path / "run"):
        pass
    assert len(tried) == run_folder.MOST_TRIES


def test_a_disk_that_is_full_as_the_lock_is_signed_is_named_and_nothing_is_left(
    tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(ResourceError, match=r"\.lock: \d+ bytes needed, .* make room"):
        with run_folder.owned(tmp_path / "runs" / "a", new=True):
            pass
    assert names(tmp_path) == []


def test_a_folder_never_has_two_owners(tmp_path):
    owners, most, errors = [], [], []

    def try_often():
        for _ in range(150):
            try:
                with run_folder.owned(tmp_path / "a", new=True):
                    owners.append(1)
                    most.append(len(owners))
                    owners.pop()
                    raise RuntimeError("early")  # so that the lock and the folder are removed
            except (RuntimeError, LockedError):
                pass
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=try_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and max(most) == 1
    # The folder may stay, if the one that made it found another in it; no file does.
    assert not list(tmp_path.rglob(".*"))


# Links and pipes


def contents(folder):
    return {x.relative_to(folder): x.read_bytes() for x in folder.rglob("*") if x.is_file()}


@pytest.mark.parametrize(
    "name", [".lock", "model", "checkpoints", "metrics.jsonl", "config.json", "tensorboard"]
)
def test_no_link_in_a_run_is_followed(copied, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    part, target = copied / name, outside / name
    if part.exists():
        part.rename(target)
    else:
        target.mkdir()
    part.symlink_to(target)
    before = contents(outside), contents(copied)
    with pytest.raises(DamagedError, match=f"{name}.* is a link"):
        resume(copied, num_updates=5)
    if name in ("model", "config.json"):
        with pytest.raises(DamagedError, match=f"{name}.* is a link"):
            open_run(copied)
    assert (contents(outside), contents(copied)) == before


def test_a_lock_with_a_name_elsewhere_is_not_written(copied, tmp_path):
    (tmp_path / "diary").write_text("dear")
    (copied / ".lock").unlink()
    os.link(tmp_path / "diary", copied / ".lock")
    with pytest.raises(DamagedError, match="second name"):
        resume(copied)
    assert (tmp_path / "diary").read_text() == "dear"


def test_metrics_with_a_name_elsewhere_are_not_appended_to(copied, tmp_path):
    os.link(copied / "metrics.jsonl", tmp_path / "snapshot")
    before = (tmp_path / "snapshot").read_bytes()
    resume(copied, num_updates=4)
    assert (tmp_path / "snapshot").read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [".lock", "config.json", "metrics.jsonl", "model/config.json", "model/model.safetensors"]
    + [f"checkpoints/00000002/{x}" for x in ("manifest.json", "state.json", "ema.safetensors")],
)
def test_a_pipe_is_refused_and_not_waited_for(copied, name, capsys):
    (copied / name).unlink(missing_ok=True)
    os.mkfifo(copied / name)
    if name.startswith("model"):
        with pytest.raises(DamagedError, match=f"{name} must be a plain file, and is a named pipe"):
            load(copied)
    elif name.startswith("checkpoints"):
        resume(copied)
        assert f"{name} must be a plain file, and is a named pipe" in capsys.readouterr().out
    else:
        with pytest.raises(DamagedError, match=f"{name} must be a plain file, and is a named pipe"):
            resume(copied)


# The record


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl"])
def test_every_bit_of_a_run_counts(copied, file):
    path = copied / file
    whole = path.read_bytes()
    size = len(whole)
    if file == "metrics.jsonl":  # all but the last line, which is computed again
        size = len(b"".join(whole.splitlines(keepends=True)[:-1]))
    before = {x: y for x, y in contents(copied).items() if str(x) not in (file, ".lock")}
    for position in range(5, 8 * size, 1 + 8 * size // 60):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises((DamagedError, FormatError), match=file):
            if file == "config.json":
                open_run(copied)
            else:
                resume(copied)
    if file == "config.json":
        with pytest.raises((DamagedError, FormatError), match=file):
            resume(copied)
        after = {x: y for x, y in contents(copied).items() if str(x) not in (file, ".lock")}
        assert after == before
    path.write_bytes(whole)
    resume(copied)


def edit(folder, change, digest=True):
    file = folder / "config.json"
    record = json.loads(file.read_text())
    del record["sha256"]
    change(record)
    file.write_bytes(with_digest(record))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda r: r["config"]["model"].pop("num_heads"), DamagedError, "lacks model.num_heads"),
        (lambda r: r["config"]["task"].pop("max_length"), DamagedError, "lacks task.max_length"),
        (lambda r: r["config"]["training"].pop("lr"), DamagedError, "lacks training.lr"),
        (lambda r: r["config"].pop("task"), DamagedError, "lacks task"),
        (lambda r: r.pop("threads"), DamagedError, "lacks 'threads'"),
        (lambda r: r.update(config=[]), DamagedError, "config must be dict, got list"),
        (lambda r: r.update(run=None), DamagedError, "run must be str, got null"),
        (lambda r: r.update(precision="bf17"), DamagedError, "precision must be in .* 'bf17'"),
        (lambda r: r.update(plans=[3]), DamagedError, "plans must hold a JSON object, got int"),
        (lambda r: r.update(plans=[{"from": 0}]), DamagedError, "plans lacks 'num_updates'"),
        (lambda r: r.update(format=3), FormatError, "format 3, of a newer version"),
        (lambda r: r.update(format=1), FormatError, "format 1, of an older version"),
        (lambda r: r.update(format=2.0), DamagedError, "format 2.0; it must be an integer"),
        (lambda r: r["config"]["model"].update(name="mine"), UsageError, "unknown model 'mine'"),
    ],
)
def test_every_field_of_a_record_is_demanded_and_checked(copied, change, kind, message):
    edit(copied, change)
    for call in (open_run, resume):
        with pytest.raises(kind, match=message):
            call(copied)


@dataclass(frozen=True, kw_only=True)
class LaterTraining(Training):
    patience: int = added(3)


class LaterDecoder(MODELS["decoder"]):
    @dataclass(frozen=True, kw_only=True)
    class Config(MODELS["decoder"].Config):
        gain: float = added(1.0)


class LaterCopy(TASKS["copy"]):
    @dataclass(frozen=True, kw_only=True)
    class Config(TASKS["copy"].Config):
        places: int = added(2)


@dataclass(frozen=True, kw_only=True)
class NoLaterTraining(Training):
    patience: int = 3


def test_a_run_lacks_nothing_but_settings_that_were_added_since(copied, monkeypatch):
    monkeypatch.setitem(MODELS, "decoder", LaterDecoder)
    monkeypatch.setitem(TASKS, "copy", LaterCopy)
    monkeypatch.setattr(experiment, "Training", NoLaterTraining)
    with pytest.raises(DamagedError, match="lacks training.patience in its config"):
        resume(copied)
    monkeypatch.setattr(experiment, "Training", LaterTraining)
    model, task = open_run(copied)
    assert (model.config.gain, task.config.places) == (1.0, 2)
    # The checkpoint lacks them, too.
    resume(copied, num_updates=3)
    config = json.loads((copied / "config.json").read_text())["config"]
    found = config["model"]["gain"], config["task"]["places"], config["training"]["patience"]
    assert found == (1.0, 2, 3)
    edit(copied, lambda r: r["config"]["model"].pop("num_heads"))
    with pytest.raises(DamagedError, match="lacks model.num_heads"):
        open_run(copied)


def test_the_model_of_a_record_is_no_larger_than_the_weights(copied):
    edit(copied, lambda record: record["config"]["model"].update(num_layers=1_000_000))
    with pytest.raises(DamagedError, match="config.json describes a larger model"):
        resume(copied)


@pytest.mark.parametrize("text", ["{", "[" * 99999, '{"run": NaN}', '{"a": 1, "a": 2}', "\xff"])
def test_a_record_that_is_not_strict_json_is_damaged(copied, text):
    (copied / "config.json").write_bytes(text.encode("latin-1"))
    for call in (open_run, resume, thinkers.evaluate):
        with pytest.raises(DamagedError, match="config.json is not JSON"):
            call(copied)


def test_metrics_that_are_missing_are_not_replaced(copied):
    (copied / "metrics.jsonl").unlink()
    with pytest.raises(DamagedError, match="metrics.jsonl must have at least .* bytes"):
        resume(copied)
    assert not (copied / "metrics.jsonl").exists()


# Names of folders


@pytest.mark.parametrize("out", [".", "./", "../here", "a/..", " ", "-dash", "wörter/ß"])
def test_unusual_names_of_folders_work(tmp_path, monkeypatch, out):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if out == "a/..":
        (tmp_path / "here" / "a").mkdir()
        out = "a/../b"
    run = train(make(settings=QUICK), out)
    model = load(out).state_dict()
    for name, x in run.model.state_dict().items():
        assert torch.equal(model[name], x)
    resume(out, num_updates=3)
    assert open_run(out)[1] is not None


@pytest.mark.parametrize("out", ["a\0b", os.fsdecode(b"a\xff"), ""])
def test_names_that_no_folder_can_have_are_refused_before_any_work(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    config = make(settings=QUICK)
    monkeypatch.setattr(type(config), "to_dict", pytest.fail)
    for call in (lambda: train(config, out), lambda: resume(out), lambda: load(out)):
        with pytest.raises(UsageError, match="found: "):
            call()
    assert names(tmp_path) == []
