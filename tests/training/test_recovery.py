"""After any failure of the disk, and any resume, model/ is that of the newest checkpoint.

Every operation by which a save changes the disk fails once, and at every one the process dies once:
the first, the second and so on, until a save gets through (as SQLite is tested:
https://sqlite.org/testing.html).
"""

import errno
import itertools
import math
import os
import shutil
import warnings

import pytest
import torch
from training_cases import make

from thinkers import files
from thinkers.errors import NonFiniteError, ResourceError
from thinkers.runs import checkpoint
from thinkers.runs.result import load
from thinkers.training import optim
from thinkers.training.loop import resume, train

CHANGES = {"write", "fsync", "mkdir", "unlink", "rmdir", "rename", "replace"}
SETTINGS = dict(num_updates=4, checkpoint_every=2, keep_last=1, schedule="constant", log_every=1)


class Killed(BaseException):
    """The death of the process."""


class FaultyDisk:
    """`os`, whose Nth change of the disk fails; if it is a death, so do all that follow."""

    def __init__(self, number, death):
        self.left, self.death, self.failed = number, death, False

    def __getattr__(self, name):
        real = getattr(os, name)
        if name == "open":
            return lambda path, flags, *mode: self.call(
                real, flags & os.O_CREAT, path, flags, *mode
            )
        return (lambda *given: self.call(real, True, *given)) if name in CHANGES else real

    def call(self, real, changes, *given):
        if not changes:
            return real(*given)
        self.left -= 1
        if self.left == 0 or (self.failed and self.death):
            self.failed = True
            if self.death:
                raise Killed
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*given)


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Each fsync is called, and fails in its turn; what it waits for is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run after 2 of 4 updates, with an average of the weights."""
    config = make(settings=SETTINGS | dict(ema=0.9))
    return train(config, tmp_path_factory.mktemp("runs") / "a", until=2).folder


def assert_model_is_newest(folder):
    newest = checkpoint.read(checkpoint.saved(folder / "checkpoints")[-1])
    model = load(folder).state_dict()
    assert model.keys() == newest.tensors["ema"].keys()
    for name, x in newest.tensors["ema"].items():
        assert torch.equal(model[name], x), name
    return newest


@pytest.mark.parametrize(
    ("death", "every"),
    [(True, 2), (False, 4), *(pytest.param(x, 1, marks=pytest.mark.slow) for x in (True, False))],
)
def test_model_is_that_of_the_newest_checkpoint_whichever_change_of_the_disk_fails(
    begun, tmp_path, monkeypatch, capsys, death, every
):
    expected = train(make(settings=SETTINGS | dict(ema=0.9)), tmp_path / "undisturbed")
    for number in itertools.count(1, every):
        folder = tmp_path / str(number)
        shutil.copytree(begun, folder)
        disk = FaultyDisk(number, death)
        capsys.readouterr()
        with monkeypatch.context() as patch, warnings.catch_warnings():
            patch.setattr(files, "os", disk)
            try:
                resume(folder)
                failed = False
            except (Killed, OSError):
                failed = True
        assert failed == disk.failed
        acknowledged = "saved update=4" in capsys.readouterr().out
        if acknowledged:
            assert_model_is_newest(folder)
        run = resume(folder)
        assert assert_model_is_newest(folder).update == 4
        for name, x in expected.model.state_dict().items():
            assert torch.equal(run.model.state_dict()[name], x), (number, name)
        leftovers = [x.name for x in folder.rglob("*") if x.name.endswith((".tmp", ".damaged"))]
        assert leftovers == []
        shutil.rmtree(folder)
        if not failed:
            assert acknowledged and number > 30
            return


def test_a_missing_or_older_model_folder_is_written_again(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "a")
    older = load(folder)
    resume(folder)
    shutil.rmtree(folder / "model")
    resume(folder)
    assert_model_is_newest(folder)
    older.save(folder / "model")
    resume(folder)
    assert_model_is_newest(folder)
    shutil.rmtree(checkpoint.saved(folder / "checkpoints")[-1])
    shutil.copytree(begun / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)
    resume(folder, until=2)
    assert assert_model_is_newest(folder).update == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["weights", "ema", "optimizer"])
def test_what_is_not_finite_is_named_and_never_saved(begun, tmp_path, monkeypatch, kind, value):
    folder = shutil.copytree(begun, tmp_path / "a")
    before = {x: x.read_bytes() for x in (folder / "model").iterdir()}
    from thinkers.training import loop

    save = loop.save

    def poisoned(state, *rest):
        if kind == "optimizer":
            parameter = state.parameters[0]
            state.optimizers[0].state[parameter]["exp_avg_sq"].view(-1)[1] = value
        else:
            model = state.model if kind == "weights" else state.average
            model.embedding.weight.data[0, 1] = value
        save(state, *rest)

    monkeypatch.setattr(loop, "save", poisoned)
    with pytest.raises(NonFiniteError, match=rf"update 4: embedding.weight.* of {kind} is not"):
        resume(folder)
    assert {x: x.read_bytes() for x in (folder / "model").iterdir()} == before
    assert [x.name for x in checkpoint.saved(folder / "checkpoints")] == ["00000002"]


def test_weights_that_an_earlier_update_spoilt_are_not_said_to_be_intact(tmp_path, monkeypatch):
    step = optim.step

    def explode(made, lr):
        step(made, lr)
        made[0].param_groups[0]["params"][0].data[0, 0] = math.nan

    monkeypatch.setattr(optim, "step", explode)
    with pytest.raises(
        NonFiniteError, match="update 2: .* is not finite after an earlier"
    ) as found:
        train(make(settings=SETTINGS | dict(checkpoint_every=9)), tmp_path / "a")
    assert "as before" not in str(found.value)


def test_errors_of_a_save_are_errors_of_ours(begun, tmp_path, monkeypatch):
    folder = shutil.copytree(begun, tmp_path / "a")
    for number in (1, 12, 20, 30, 40):
        monkeypatch.setattr(files, "os", FaultyDisk(number, death=False))
        with pytest.raises(ResourceError, match="bytes free"):
            resume(folder)
