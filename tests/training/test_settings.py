"""Settings of training: learning rate, parameter groups, precision, limits, invalid values."""

import math

import pytest
import torch
from training_cases import lines, losses, make

import thinkers
from thinkers.config.experiment import build
from thinkers.config.training import Training
from thinkers.errors import UsageError
from thinkers.prng import draw
from thinkers.runs import folder as run_folder
from thinkers.training import loop, optim
from thinkers.training.distributed import Ranks
from thinkers.training.loop import resume, train
from thinkers.training.state import TrainState
from thinkers.training.step import forward_backward, loss_module, thinking_steps


def settings_of(**own) -> Training:
    return Training(**(dict(num_updates=100, warmup_updates=10, lr=2.0, min_lr_ratio=0.1) | own))


@pytest.mark.parametrize(
    ("schedule", "update", "expected"),
    [
        ("cosine", 0, 0.2),
        ("cosine", 9, 2.0),
        ("cosine", 10, 2.0),
        ("cosine", 55, 1.1),
        ("cosine", 100, 0.2),
        ("linear", 55, 1.1),
        ("linear", 32, 2.0 - 1.8 * 22 / 90),
        ("linear", 500, 0.2),
        ("constant", 99, 2.0),
    ],
)
def test_the_learning_rate_is_a_function_of_the_update(schedule, update, expected):
    found = optim.learning_rate(update, settings_of(schedule=schedule))
    assert found == pytest.approx(expected, rel=1e-12)


def test_norms_biases_and_embeddings_are_not_decayed():
    model = torch.nn.Sequential(
        torch.nn.Embedding(13, 7), torch.nn.Linear(7, 5), torch.nn.LayerNorm(5)
    )
    (adamw,) = optim.build(model, settings_of(weight_decay=0.3))
    decays = {p: g["weight_decay"] for g in adamw.param_groups for p in g["params"]}
    assert {n: decays[p] for n, p in model.named_parameters()} == {
        "0.weight": 0.0,
        "1.weight": 0.3,
        "1.bias": 0.0,
        "2.weight": 0.0,
        "2.bias": 0.0,
    }


def test_muon_takes_the_matrices_of_hidden_layers():
    model = build(make())[1]
    adamw, muon = optim.build(model, settings_of(optimizer="muon"))
    names = {p: n for n, p in model.named_parameters()}
    taken = {names[p] for g in muon.param_groups for p in g["params"]}
    assert taken == {n for n, p in model.named_parameters() if p.ndim == 2} - {"embedding.weight"}
    rest = {names[p] for g in adamw.param_groups for p in g["params"]}
    assert rest | taken == set(names.values()) and not rest & taken


def test_thinking_steps_are_drawn_from_the_seed_and_the_update():
    batch = thinkers.Batch(torch.zeros(1, 2).long(), torch.zeros(1, 2).long())

    def steps(**own):
        settings = settings_of(depth="random", random_steps=(2, 5), **own)
        return [thinking_steps(u, settings, batch) for u in range(400)]

    drawn = steps()
    assert sorted(set(drawn)) == [2, 3, 4, 5]
    assert all(70 < drawn.count(k) < 130 for k in (2, 3, 4, 5))
    assert drawn == steps() and drawn != steps(seed=1)
    assert thinking_steps(0, settings_of(), batch) is None
    assert draw(1, 23) != draw(12, 3)


def test_what_a_pass_draws_is_a_function_of_the_seed_the_update_and_the_micro_batch():
    def drawn(update, seed=0):
        config = make(settings=dict(accumulation=3, seed=seed))
        task, model = build(config)
        state = TrainState.new(config, task, model)
        state.update, numbers = update, []
        loss = loss_module(state)
        loss.register_forward_pre_hook(lambda *_: numbers.append(float(torch.rand(()))))
        ranks = Ranks(0, 1, torch.device("cpu"))
        with torch.random.fork_rng(devices=()):
            forward_backward(state, task.batch(0, 6), loss, None, "float32", ranks)
        return numbers

    first = drawn(0)
    assert first == drawn(0)
    assert len({*first, *drawn(1), *drawn(0, seed=1)}) == 9


def test_steps_that_are_due_follow_the_latest_due_target_of_the_global_batch():
    zeros = torch.zeros(3, 2).long()
    settings = settings_of(depth="due", spare_steps=2)
    taken = [
        thinking_steps(u, settings, thinkers.Batch(zeros, zeros, due=zeros + latest))
        for latest in (1, 7)
        for u in range(300)
    ]
    for first, latest in ((0, 1), (300, 7)):
        counts = [taken[first : first + 300].count(latest + spare) for spare in range(3)]
        assert sum(counts) == 300 and all(70 < count < 130 for count in counts)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (dict(num_updates=0), "num_updates must be an integer at least 1, got 0"),
        (dict(batch_size=True), "batch_size"),
        (dict(accumulation=4, batch_size=6), "batch_size must be a multiple of accumulation"),
        (dict(lr=0.0), "lr must be above 0, got 0.0"),
        (dict(lr=math.nan), "lr must be above 0, got nan"),
        (dict(clip=-1.0), "clip"),
        (dict(min_lr_ratio=1.5), "min_lr_ratio must be in 0 .. 1, got 1.5"),
        (dict(betas=(0.9, 1.0)), "betas"),
        (dict(ema=1.0), "ema"),
        (dict(depth="random", random_steps=(3, 2)), "random_steps"),
        (dict(depth="random", random_steps=(1.5, 2)), "random_steps must be an integer at least 0"),
        (dict(depth="random"), "random_steps must be set where depth is random, got None"),
        (dict(random_steps=(1, 2)), "random_steps must be left out unless depth is random"),
        (dict(depth="due", random_steps=(1, 2)), "random_steps must be left out unless depth is"),
        (dict(spare_steps=2), "spare_steps must be left out unless depth is due, got 2"),
        (dict(depth="due", spare_steps=-1), "spare_steps must be an integer at least 0"),
        (dict(depth="deep"), "depth must be one of .*, got 'deep'"),
        (dict(max_minutes=0), "max_minutes"),
        (dict(max_flops=-1), "max_flops"),
        (dict(weight_decay=-0.1), "weight_decay"),
        (dict(schedule="square"), "schedule must be one of .*, got 'square'"),
        (dict(optimizer="sgd"), "optimizer"),
        (dict(precision="fp8"), "precision"),
        (dict(seed=-1), "seed"),
        (dict(evaluate_every=0), "evaluate_every"),
    ],
)
def test_invalid_settings_are_refused(own, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**own)


def test_invalid_calls_are_refused_and_write_nothing(tmp_path):
    for config in ("add/thinker", None):
        with pytest.raises(UsageError, match="config must be a Config, got"):
            train(config, tmp_path / "a")
    for until in (0, 2.5):
        with pytest.raises(ValueError, match="until must be an integer at least 1"):
            train(make(), tmp_path / "a", until=until)
    with pytest.raises(UsageError, match="folder of a run"):
        resume(tmp_path)
    with pytest.raises(UsageError, match="device"):
        train(make(settings=dict(device="abacus")), tmp_path / "a")
    with pytest.raises(UsageError, match="random_steps with 99"):
        train(make(settings=dict(depth="random", random_steps=(1, 99))), tmp_path / "a")
    with pytest.raises(UsageError, match="init_from"):
        train(make(settings=dict(init_from=str(tmp_path / "none"))), tmp_path / "a")
    with pytest.raises((ValueError, MemoryError)):
        train(make(settings=dict(batch_size=2**62)), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_auto_precision_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "faster_precision", lambda model, batch: "bf16")
    settings = dict(precision="auto", num_updates=3, schedule="constant")
    auto = train(make(settings=settings), tmp_path / "a")
    assert run_folder.read_record(auto.folder)["precision"] == "bf16"
    monkeypatch.setattr(loop, "faster_precision", None)
    resume(auto.folder, num_updates=5)
    plain = train(
        make(settings=dict(precision="bf16", num_updates=5, schedule="constant")), tmp_path / "b"
    )
    assert losses(auto.folder) == losses(plain.folder)


def test_the_measured_precision_is_one_of_two():
    task, model = build(make())
    assert loop.faster_precision(model, task.batch(0, 3)) in ("float32", "bf16")
    assert all(p.grad is None for p in model.parameters())


def test_max_flops_ends_a_run(tmp_path):
    full = train(make(), tmp_path / "full")
    total = lines(full.folder)[-1]["flops"]
    cut = train(make(settings=dict(max_flops=0.5 * total)), tmp_path / "cut")
    assert len(losses(cut.folder)) == 6
    assert losses(cut.folder) == losses(full.folder)[:6]
    resume(cut.folder)
    assert len(losses(cut.folder)) == 6
