"""Training: results do not depend on micro-batches, interruptions or resumes."""

import json
import math
import os
import resource
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_cases import lines, losses, make

from thinkers import models, tasks
from thinkers.config.experiment import Config
from thinkers.errors import (
    DamagedError,
    FormatError,
    Interrupted,
    LockedError,
    NonFiniteError,
    ResourceError,
    UsageError,
)
from thinkers.models import MODELS
from thinkers.runs import checkpoint
from thinkers.runs import folder as run_folder
from thinkers.runs.result import load, open_run
from thinkers.tasks import TASKS
from thinkers.training import loop, optim
from thinkers.training.loop import resume, train


def weights(run) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in run.model.state_dict().items()}


def assert_equal_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert torch.equal(x, theirs[name]), name


def test_training_reduces_the_loss_and_scores_the_test_split(tmp_path):
    run = train(make(settings=dict(num_updates=60, lr=2e-2, batch_size=16)), tmp_path / "a")
    first, *_, last = losses(run.folder)
    assert last < 0.5 * first
    assert set(run.scores) == {"exact", "per_token"}
    assert lines(run.folder, "test")[-1]["test"] == run.scores


def test_the_run_folder_records_settings_versions_and_the_model(tmp_path):
    config = replace(make(settings=dict(seed=7)), recipe="copy/decoder")
    run = train(config, tmp_path / "a", overrides=["--loop.seed=7"])
    record = json.loads((run.folder / "config.json").read_text())
    resolved = replace(config, model=run.model.config)
    assert Config.from_dict(record["config"]) == resolved
    assert record["recipe"] == "copy/decoder" and record["overrides"] == ["--loop.seed=7"]
    assert record["seed"] == 7 and record["device"] == "cpu" and record["precision"] == "float32"
    assert record["threads"] == torch.get_num_threads()
    assert record["versions"]["torch"] == torch.__version__
    assert record["git_commit"] is None or len(record["git_commit"]) >= 40
    assert_equal_bits(weights(run), load(run.folder).state_dict())
    assert_equal_bits(weights(run), load(run.folder / "model").state_dict())
    assert run_folder.default_folder(config) == Path("runs/copy-decoder-7")


@pytest.mark.parametrize("model", ["decoder", "looped"])
def test_gradients_of_micro_batches_add_up_to_that_of_the_batch(tmp_path, model):
    found = {}
    for accumulation in (1, 2, 6):
        settings = dict(accumulation=accumulation, precision="float64", num_updates=5)
        run = train(make(model, settings=settings), tmp_path / str(accumulation))
        found[accumulation] = losses(run.folder), weights(run)
    for accumulation in (2, 6):
        assert found[accumulation][0] == pytest.approx(found[1][0], rel=1e-12, abs=0)
        for name, x in found[1][1].items():
            torch.testing.assert_close(found[accumulation][1][name], x, rtol=1e-9, atol=1e-12)


CASES = {
    "adamw": dict(),
    "ema": dict(settings=dict(ema=0.8, accumulation=2, evaluate_every=3)),
    "muon": dict(settings=dict(optimizer="muon", schedule="linear")),
    "dropout": dict(dropout=0.3),
    "depth": dict(
        model="looped", settings=dict(depth="random", random_steps=(1, 4), precision="bf16")
    ),
    "curriculum": dict(
        task=TASKS["copy"].Config(
            max_length=5,
            min_in_base=2,
            max_in_base=2,
            min_out_base=2,
            max_out_base=2,
            curriculum=True,
            window=6,
            threshold=0.1,
        ),
        settings=dict(lr=5e-2, num_updates=13, batch_size=24),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_resuming_from_any_checkpoint_equals_an_uninterrupted_run_bit_for_bit(tmp_path, case):
    uninterrupted = train(make(**CASES[case]), tmp_path / "uninterrupted")
    saves = checkpoint.saved(uninterrupted.folder / "checkpoints")
    assert len(saves) >= 6
    for save in saves:
        folder = tmp_path / save.name
        shutil.copytree(uninterrupted.folder, folder)
        for newer in saves:
            if newer.name > save.name:
                shutil.rmtree(folder / "checkpoints" / newer.name)
        resumed = resume(folder)
        assert_equal_bits(weights(resumed), weights(uninterrupted))
        assert [(x["update"], x["loss"], x["lr"], x["norm"]) for x in lines(folder)] == [
            (x["update"], x["loss"], x["lr"], x["norm"]) for x in lines(uninterrupted.folder)
        ]
        assert lines(folder, "test") == lines(uninterrupted.folder, "test")
        ours = checkpoint.read(checkpoint.saved(folder / "checkpoints")[-1])
        theirs = checkpoint.read(saves[-1])
        for file, tensors in theirs.tensors.items():
            assert_equal_bits(ours.tensors[file], tensors)
        assert ours.state | {"minutes": 0} == theirs.state | {"minutes": 0}


def test_the_curriculum_of_the_resumed_case_advances(tmp_path):
    run = train(make(**CASES["curriculum"]), tmp_path / "a")
    saves = [checkpoint.read(x) for x in checkpoint.saved(run.folder / "checkpoints")]
    assert saves[0].state["task"] != saves[-1].state["task"]


def test_a_run_without_a_checkpoint_is_resumed_from_the_beginning(tmp_path):
    uninterrupted = train(make(), tmp_path / "a")
    shutil.rmtree(uninterrupted.folder / "checkpoints")
    assert_equal_bits(weights(resume(uninterrupted.folder)), weights(uninterrupted))
    assert len(losses(uninterrupted.folder)) == 11


def test_a_damaged_checkpoint_is_renamed_and_reported(tmp_path, capsys):
    uninterrupted = train(make(), tmp_path / "a")
    newest = checkpoint.saved(uninterrupted.folder / "checkpoints")[-1]
    (newest / "weights.safetensors").write_bytes(b"?")
    capsys.readouterr()
    assert_equal_bits(weights(resume(uninterrupted.folder)), weights(uninterrupted))
    assert "renamed to 00000011.damaged" in capsys.readouterr().out


def test_more_updates_extend_a_finished_run(tmp_path):
    constant = dict(schedule="constant", num_updates=6)
    short = train(make(settings=constant), tmp_path / "a")
    longer = resume(short.folder, num_updates=11)
    at_once = train(make(settings=constant | dict(num_updates=11)), tmp_path / "b")
    assert_equal_bits(weights(longer), weights(at_once))
    assert [x["update"] for x in lines(short.folder)] == list(range(1, 12))
    assert len(lines(short.folder, "test")) == 1
    with pytest.raises(UsageError, match="at least 11"):
        resume(short.folder, num_updates=8)
    assert run_folder.read_record(short.folder)["config"]["training"]["num_updates"] == 11


def test_invalid_lines_of_metrics_are_dropped(tmp_path):
    run = train(make(), tmp_path / "a")
    before = lines(run.folder)
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\n[]\n3\n{"update": "x"}\n{}\n{"update": 1')
    resume(run.folder)
    assert lines(run.folder) == before


def test_a_run_whose_record_was_edited_is_not_resumed(tmp_path):
    run = train(make(), tmp_path / "a")
    record = run_folder.read_record(run.folder)
    record["config"]["training"]["lr"] = 1.0
    run_folder.write_record(run.folder, record)
    with pytest.raises(DamagedError, match="training.lr"):
        resume(run.folder)


@pytest.mark.parametrize(("number", "message"), [(1, "of an older"), (3, "of a newer")])
def test_a_run_of_another_format_is_refused(tmp_path, number, message):
    run = train(make(settings=dict(num_updates=1)), tmp_path / "a")
    record = json.loads((run.folder / "config.json").read_text())
    assert record["format"] == 2
    run_folder.write_record(run.folder, record | {"format": number})
    for call in (resume, open_run):
        with pytest.raises(FormatError, match=rf"config.json has format {number}, {message}"):
            call(run.folder)


class Poison(torch.autograd.Function):
    """The identity, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, math.nan)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_leaves_the_weights_unchanged(
    tmp_path, monkeypatch, poison
):
    before = train(make(settings=dict(schedule="constant", num_updates=4)), tmp_path / "before")
    built = []

    def build(config):
        model = MODELS["decoder"](config)
        loss, calls = model.loss, []

        def poisoned(batch, *, num_steps, counts):
            calls.append(1)
            found = loss(batch, num_steps=num_steps, counts=counts)
            if len(calls) != 5:
                return found
            if poison == "loss":
                return replace(found, total=found.total * math.inf)
            return replace(found, total=found.total + Poison.apply(model.norm.weight).sum())

        model.loss = poisoned
        built.append(model)
        return model

    monkeypatch.setattr(models, "from_config", build)
    config = make(settings=dict(schedule="constant"))
    expected = "embedding.weight" if poison == "loss" else "norm.weight"
    with pytest.raises(NonFiniteError, match=f"update 5: .*first in {expected}"):
        train(config, tmp_path / "a")
    assert_equal_bits(built[0].state_dict(), weights(before))
    logged = lines(tmp_path / "a")[-1]
    assert logged["update"] == 5 and ("inf" if poison == "loss" else "nan") in logged.values()
    assert checkpoint.saved(tmp_path / "a/checkpoints")[-1].name == "00000004"


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    step = optim.step

    def explode(made, lr):
        step(made, lr)
        made[0].param_groups[0]["params"][0].data[0, 0] = math.inf

    monkeypatch.setattr(optim, "step", explode)
    with pytest.raises(NonFiniteError):
        train(make(settings=dict(num_updates=1)), tmp_path / "a")
    assert checkpoint.saved(tmp_path / "a/checkpoints") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_after_a_checkpoint(tmp_path, monkeypatch, number):
    uninterrupted = train(make(settings=dict(checkpoint_every=100)), tmp_path / "uninterrupted")
    handlers = [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    observe = tasks.Task.observe

    def send(task, correct):
        if len(seen) == 4:
            os.kill(os.getpid(), number)
        seen.append(observe(task, correct))

    seen: list[None] = []
    monkeypatch.setattr(TASKS["copy"], "observe", send)
    with pytest.raises(Interrupted, match="saved after update 5") as caught:
        train(make(settings=dict(checkpoint_every=100)), tmp_path / "a")
    assert caught.value.exit_code == 128 + number
    assert [x.name for x in checkpoint.saved(tmp_path / "a/checkpoints")] == ["00000005"]
    assert handlers == [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    assert_equal_bits(weights(resume(tmp_path / "a")), weights(uninterrupted))


@pytest.mark.parametrize("every", [None, 4])
def test_a_signal_interrupts_an_evaluation(tmp_path, monkeypatch, every):
    def forever(*args):
        timer.start()
        time.sleep(60)

    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(TASKS["copy"], "score", forever)
    start = time.monotonic()
    with pytest.raises(Interrupted):
        train(make(settings=dict(evaluate_every=every)), tmp_path / "a")
    assert time.monotonic() - start < 10
    newest = checkpoint.saved(tmp_path / "a/checkpoints")[-1].name
    assert newest == ("00000011" if every is None else "00000004")


def test_two_runs_do_not_share_a_folder(tmp_path):
    config = make()
    with run_folder.owned(tmp_path / "a", new=True):
        with pytest.raises(LockedError):
            train(config, tmp_path / "a")
        with pytest.raises(LockedError):
            resume(tmp_path / "a")
    run = train(config, tmp_path / "a")
    before = weights(run)
    with pytest.raises(UsageError, match="--resume"):
        train(config, tmp_path / "a")
    assert_equal_bits(load(run.folder).state_dict(), before)


def test_a_full_disk_leaves_earlier_checkpoints_intact(tmp_path, monkeypatch):
    save, calls = checkpoint.save, []

    def full_the_third_time(*args):
        calls.append(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if len(calls) == 3 else soft, hard))
        try:
            return save(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(checkpoint, "save", full_the_third_time)
    with pytest.raises(ResourceError, match="bytes needed"):
        train(make(), tmp_path / "a")
    monkeypatch.undo()
    held = sorted(x.name for x in (tmp_path / "a/checkpoints").iterdir())
    assert held == ["00000002", "00000004"]
    uninterrupted = train(make(), tmp_path / "uninterrupted")
    assert_equal_bits(weights(resume(tmp_path / "a")), weights(uninterrupted))


def test_max_minutes_ends_a_run_and_minutes_add_up_over_resumes(tmp_path, monkeypatch):
    # Each look at the clock takes a minute, and there is one for each update.
    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    run = train(make(settings=dict(max_minutes=4.5, num_updates=30)), tmp_path / "a")
    assert len(losses(run.folder)) < 30
    first = lines(run.folder)[-1]["minutes"]
    assert first >= 4.5
    resume(run.folder, num_updates=31)
    assert lines(run.folder)[-1]["minutes"] == first


def test_init_from_loads_weights_of_the_same_shapes(tmp_path):
    given = train(make(settings=dict(seed=5)), tmp_path / "given")
    again = make(settings=dict(init_from=str(given.folder / "model"), num_updates=1, lr=1e-12))
    run = train(again, tmp_path / "a")
    shutil.move(given.folder, tmp_path / "gone")
    resume(run.folder)
    shutil.move(tmp_path / "gone", given.folder)
    for name, x in weights(given).items():
        torch.testing.assert_close(run.model.state_dict()[name], x, rtol=0, atol=1e-9)
    wrong = make(settings=dict(init_from=str(given.folder / "model")), dim=16)
    with pytest.raises(UsageError, match="init_from must hold"):
        train(wrong, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_resulting_model_is_the_moving_average(tmp_path):
    run = train(make(settings=dict(ema=0.5, num_updates=2, checkpoint_every=1)), tmp_path / "a")
    first, second = (checkpoint.read(x) for x in checkpoint.saved(run.folder / "checkpoints"))
    # After update u the decay is at most u / (9 + u).
    decay = 2 / 11
    for name, x in weights(run).items():
        old, new = first.tensors["ema"][name], second.tensors["weights"][name]
        torch.testing.assert_close(x, decay * old + (1 - decay) * new)


def test_the_best_checkpoint_is_kept_besides_the_last(tmp_path, monkeypatch):
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.4, 0.5])
    monkeypatch.setattr(TASKS["copy"], "score", lambda *args: {"exact": next(scores)})
    settings = dict(evaluate_every=2, keep_last=1)
    run = train(make(settings=settings), tmp_path / "a")
    saved = [x.name for x in checkpoint.saved(run.folder / "checkpoints")]
    assert saved == ["00000004", "00000011"]
    assert [x["valid"]["exact"] for x in lines(run.folder, "valid")] == [0.1, 0.9, 0.2, 0.3, 0.4]


def test_a_score_that_is_not_a_number_is_logged_and_never_the_best(tmp_path, monkeypatch):
    scores = iter([math.nan, 0.5, math.nan, 0.1])
    monkeypatch.setattr(TASKS["copy"], "score", lambda *args: {"exact": next(scores)})
    settings = dict(evaluate_every=2, keep_last=1, num_updates=6)
    run = train(make(settings=settings), tmp_path / "a")
    saved = [x.name for x in checkpoint.saved(run.folder / "checkpoints")]
    assert saved == ["00000004", "00000006"]
    assert [x["valid"]["exact"] for x in lines(run.folder, "valid")] == ["nan", 0.5, "nan"]
    assert not run.model.training and all(p.requires_grad for p in run.model.parameters())
