"""After any resume, model/ is that of the newest checkpoint; what is not finite is not saved.

tests/faults has every failure of the disk, and a death at each change of it.
"""

import math
import shutil

import pytest
import torch
from faulty_disk import FaultyDisk
from training_cases import make

from thinkers.errors import NonFiniteError, ResourceError
from thinkers.runs import checkpoint
from thinkers.runs.result import load
from thinkers.training import optim
from thinkers.training.loop import resume, train

SETTINGS = dict(num_updates=4, checkpoint_every=2, keep_last=1, schedule="constant", log_every=1)


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Nothing here loses power: waiting for the disk is left out."""
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


def test_the_error_of_a_full_disk_says_how_much_is_free(begun, tmp_path):
    for number in (2, 12, 40):
        folder = shutil.copytree(begun, tmp_path / str(number))
        disk = FaultyDisk(folder, number, "ENOSPC", changes=True)
        with disk, pytest.raises(ResourceError, match="bytes free"):
            resume(folder)
