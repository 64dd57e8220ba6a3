"""Sharded training: the weights and optimiser of one process, resumed by any number of ranks."""

import runpy
import shutil
import sys
from unittest import mock

import pytest
from test_ranks import finish, losses, start_ranks

from thinkers.cli.main import main
from thinkers.models import MODELS
from thinkers.runs import checkpoint
from thinkers.runs.result import load

SCRIPT = """
import sys
from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.models import MODELS
from thinkers.tasks import TASKS
from thinkers.training import loop
model, sharding, precision, accumulation, until, folder = sys.argv[1:]
settings = Training(
    num_updates=6, batch_size=8, accumulation=int(accumulation), warmup_updates=2, log_every=1,
    checkpoint_every=3, evaluate_examples=5, evaluate_every=3, device="cpu", precision=precision,
    lr=1e-2, ema=0.9, sharding=sharding,
)
task = TASKS["add"].Config(max_digits=2)
config = Config.fit(MODELS[model], task, settings, dim=8, num_layers=2, num_heads=2)
if until == "resume":
    loop.resume(folder)
else:
    loop.train(config, folder, until=int(until))
"""


def one(script, *words):
    with mock.patch.object(sys, "argv", [str(script), *map(str, words)]):
        runpy.run_path(str(script))


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    (tmp_path / "outputs").mkdir()
    return path


def ranks(number, script, *words):
    outputs = script.parent / "outputs"
    codes = finish(start_ranks(number, outputs, script, *words))
    printed = "".join(x.read_text() for x in sorted(outputs.iterdir()))
    assert codes == f"{[0] * number}\n", printed
    return printed


def last(folder):
    path = checkpoint.saved(folder / "checkpoints")[-1]
    return checkpoint.read(path)


def assert_equal(folder, other, tolerance=1e-12):
    found, wanted = last(folder), last(other)
    assert found.update == wanted.update and found.tensors.keys() == wanted.tensors.keys()
    for kind, tensors in wanted.tensors.items():
        for name, x in tensors.items():
            error = (found.tensors[kind][name] - x).abs().max()
            assert error <= tolerance * max(1.0, float(x.abs().max())), (kind, name, error)
    # Losses, scores and the model that is kept.
    assert losses(folder) == pytest.approx(losses(other), rel=tolerance, abs=tolerance)
    for name, x in load(other).state_dict().items():
        assert (load(folder).state_dict()[name] - x).abs().max() <= tolerance


def test_two_sharded_ranks_equal_one_process_and_are_resumed_by_two_and_by_one(script, tmp_path):
    """With an average of the weights, and two micro-batches."""
    one(script, "looped", "none", "float64", 2, 6, tmp_path / "one")
    printed = ranks(2, script, "looped", "full", "float64", 2, 3, tmp_path / "two")
    assert printed.count("saved update=3") == 1
    copy = shutil.copytree(tmp_path / "two", tmp_path / "alone")
    ranks(2, script, "looped", "full", "float64", 2, "resume", tmp_path / "two")
    assert_equal(tmp_path / "two", tmp_path / "one")
    one(script, "looped", "full", "float64", 2, "resume", copy)
    assert_equal(copy, tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model_is_sharded_and_resumed_by_one_two_and_four_ranks(script, tmp_path, model):
    one(script, model, "none", "float64", 1, 6, tmp_path / "one")
    ranks(4, script, model, "full", "float64", 1, 2, tmp_path / "many")
    for number in (1, 2, 4):
        copy = shutil.copytree(tmp_path / "many", tmp_path / str(number))
        words = script, model, "full", "float64", 1, "resume", copy
        one(*words) if number == 1 else ranks(number, *words)
        assert_equal(copy, tmp_path / "one")


@pytest.mark.slow
def test_bf16_is_trained_in_shards(script, tmp_path):
    ranks(2, script, "looped", "full", "bf16", 1, 6, tmp_path / "two")
    one(script, "looped", "none", "bf16", 1, 6, tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0.02)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--training.optimizer=muon"], "Muon needs whole matrices"),
        (["--training.compile=true"], "one of them"),
    ],
)
def test_what_cannot_be_sharded_is_refused(tmp_path, capsys, more, what):
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", "add/looped", "--training.sharding", "full", *more, *out]) == 2
    assert what in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
