"""After each public call the caller's process is as it was, also when the call fails."""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import read_golden
from training_cases import make

import thinkers
from thinkers import published
from thinkers.comparison.one_run import Job
from thinkers.models import load_model
from thinkers.runs.folder import read_record, write_record
from thinkers.testing import check_model
from thinkers.training.estimate import estimate

SMALL = {
    "task.max_digits": 1,
    "model.dim": 8,
    "model.num_heads": 2,
    "training.device": "cpu",
    "training.batch_size": 4,
}


FIRST_CALLS = """
import os, random, sys
from dataclasses import replace
random.seed(9)
stream, environment = random.getstate(), dict(os.environ)
import thinkers
import thinkers.training.loop
recipe = thinkers.RECIPES["add/decoder"]()
own = dict(num_updates=1, evaluate_examples=9, device="cpu")
run = thinkers.train(replace(recipe, training=replace(recipe.training, **own)), sys.argv[1])
thinkers.answer(run, "1+2=")
thinkers.inspect(run, "1+2=", out=sys.argv[1] + ".html")
assert random.getstate() == stream and os.environ == environment
"""


def test_the_first_calls_of_a_process_leave_it_as_it_was(tmp_path):
    """Packages that are imported late, or by torch, change it once: only a new process shows it."""
    words = [sys.executable, "-c", FIRST_CALLS, tmp_path / "a"]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def state():
    """Everything that a caller may have set, or rely on, in its process."""
    numpy_state = np.random.get_state()
    return {
        "random": random.getstate(),
        "numpy": (numpy_state[1].tolist(), *numpy_state[2:]),
        "torch": torch.get_rng_state().tolist(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "products": torch.get_float32_matmul_precision(),
        "warnings": list(warnings.filters),
        "signals": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "environment": {k: x for k, x in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "folder": os.getcwd(),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "modules' path": list(sys.path),
        "collector": gc.isenabled(),
        "attention record": thinkers.nn.tracing.current_record(),
    }


def differences(before, after):
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


@pytest.fixture
def process(tmp_path, monkeypatch):
    """A process whose settings are its own: none is the default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINE", "1")
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    torch.rand(1), torch.randn(1)
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high")
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "mine")
        yield state()
    signal.signal(signal.SIGTERM, handler)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of finished runs: on numbers, and on text."""
    home = tmp_path_factory.mktemp("runs")
    thinkers.train(make("looped", settings=dict(num_updates=3)), home / "numbers")
    (home / "text.txt").write_text("the cat sat on the mat. " * 40)
    text = thinkers.TASKS["text"].Config(
        path=str(home / "text.txt"), vocabulary="character", context=9
    )
    thinkers.train(make(task=text, settings=dict(num_updates=3)), home / "text")
    return home


def dropping_pair(runs):
    """A model with dropout, in training mode: each of its passes would draw numbers."""
    config = make(settings=dict(seed=1), dropout=0.5)
    with torch.random.fork_rng(devices=()):
        task, model = thinkers.config.experiment.build(config)
    return model.train(), task


def bad_task_batch(runs):
    thinkers.build_task("copy").batch(-1, 3)


def extended(runs):
    shutil.copytree(runs / "numbers", "copy")
    return thinkers.resume("copy", num_updates=5)


def reproduced(runs):
    shutil.copytree(runs / "numbers", "copy")
    write_record(Path("copy"), read_record(Path("copy")) | {"threads": 2})
    return thinkers.reproduce("copy")


def compared(workers=1, **own):
    asked = dict(match="parameters", budget=2, seeds=1, num_examples=4, controls=["wider"])
    names = ["decoder", "looped"]
    return thinkers.compare("add", names, settings=SMALL, workers=workers, **(asked | own))


def compared_by_others(runs):
    """Each job is a process that ends at once: how this one fares is asked, not what they find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "command", property(lambda job: [sys.executable, "-S", "-c", "exit(3)"]))
        found = compared(workers=2, controls=[])
    assert len(found.failures) == 2


def imported(runs):
    settings, groups = read_golden("thinker_a")
    model = published.load("thinker", groups["weights"], settings)
    return published.outputs(model, groups["in"], settings), published.dump(model)


def stopped(runs):
    """A training that the user stops by a signal."""

    def stop(state, result):
        signal.raise_signal(signal.SIGINT)

    thinkers.train(make(), "a", callbacks=[stop])


CALLS = {
    "train": lambda runs: thinkers.train(make(settings=dict(num_updates=2)), "a"),
    "train with ema, muon and bf16": lambda runs: thinkers.train(
        make(settings=dict(num_updates=2, ema=0.9, optimizer="muon", precision="bf16")), "a"
    ),
    "train with a measured precision": lambda runs: thinkers.train(
        make(settings=dict(num_updates=1, precision="auto"), dropout=0.5), "a"
    ),
    "train from weights": lambda runs: thinkers.train(
        make("looped", settings=dict(num_updates=1, init_from=str(runs / "numbers"))), "a"
    ),
    "resume": extended,
    "reproduce": reproduced,
    "estimate": lambda runs: estimate(make(settings=dict(num_updates=2))),
    "load": lambda runs: thinkers.load(runs / "numbers"),
    "load_model": lambda runs: load_model(runs / "numbers" / "model"),
    "open_run": lambda runs: thinkers.open_run(runs / "numbers"),
    "evaluate": lambda runs: thinkers.evaluate(runs / "numbers", num_examples=3),
    "evaluate a model in training mode": lambda runs: thinkers.evaluate(
        dropping_pair(runs), num_examples=3
    ),
    "answer": lambda runs: thinkers.answer(runs / "numbers", "12="),
    "generate": lambda runs: thinkers.generate(runs / "text", "the", 12, num_samples=2),
    "stream": lambda runs: list(thinkers.stream(runs / "text", "the", 12)),
    "inspect": lambda runs: thinkers.inspect(runs / "numbers", "12=", out="page.html"),
    "ablate": lambda runs: thinkers.ablate(runs / "numbers", num_examples=4, out="page.html"),
    "compare": lambda runs: compared(),
    "compare with a search and FLOPs": lambda runs: compared(
        match="flops", budget=3e6, lrs=[1e-3, 1e-2], controls=[]
    ),
    "compare with workers": compared_by_others,
    "check_model": lambda runs: check_model(thinkers.load(runs / "text")),
    "task.batch": lambda runs: thinkers.build_task("add").batch(3, 5),
    "published": imported,
}
"""{public call: a small use of it}; `build_model` draws from the caller's stream, and says so."""

FAILURES = {
    "train, wrong settings": lambda runs: thinkers.train(make(vocab_size=2), "a"),
    "train, not finite": lambda runs: thinkers.train(make(settings=dict(lr=1e30)), "a"),
    "train, in an owned folder": lambda runs: thinkers.train(make(), runs / "numbers"),
    "train, an error of a callback": lambda runs: thinkers.train(make(), "a", callbacks=[fail]),
    "train, stopped": stopped,
    "resume, nothing there": lambda runs: thinkers.resume("nothing"),
    "reproduce, nothing there": lambda runs: thinkers.reproduce("nothing"),
    "load, nothing there": lambda runs: thinkers.load("nothing"),
    "evaluate, too many steps": lambda runs: thinkers.evaluate(runs / "numbers", 10**6),
    "answer, nothing asked": lambda runs: thinkers.answer(runs / "numbers", ""),
    "generate, not text": lambda runs: thinkers.generate(runs / "numbers", "1"),
    "inspect, nothing asked": lambda runs: thinkers.inspect(runs / "numbers", ""),
    "ablate, too few": lambda runs: thinkers.ablate(runs / "numbers", num_examples=1),
    "compare, unknown": lambda runs: thinkers.compare("add", ["none"]),
    "compare, budget below one update": lambda runs: compared(match="flops", budget=1),
    "check_model, a defect": lambda runs: defective(),
    "task.batch, wrong": bad_task_batch,
}


def fail(state, result):
    raise RuntimeError("of a callback")


def defective():
    with torch.random.fork_rng(devices=()):
        model = Defective(Defective.Config(vocab_size=5, dim=8, num_heads=2))
    check_model(model)


class Defective(thinkers.models.decoder.Decoder):
    """Its logits are random."""

    def forward(self, *given, **named):
        found = super().forward(*given, **named)
        return thinkers.Thought(torch.rand_like(found.logits))


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_the_process_as_it_was(name, runs, process):
    CALLS[name](runs)
    assert differences(process, state()) == {}


@pytest.mark.parametrize("name", FAILURES)
def test_a_call_that_fails_leaves_the_process_as_it_was(name, runs, process):
    with pytest.raises((thinkers.ThinkersError, RuntimeError, ValueError, AssertionError)):
        FAILURES[name](runs)
    assert differences(process, state()) == {}


def test_a_generator_leaves_the_process_as_it_was_while_it_is_half_consumed(runs, process):
    pieces = thinkers.stream(runs / "text", "the", 40)
    next(pieces), next(pieces)
    assert differences(process, state()) == {}
    drawn = torch.rand(3)
    rest = list(pieces)
    again = list(thinkers.stream(runs / "text", "the", 40))
    assert again[2:] == rest  # the caller's numbers are not those of the text
    torch.manual_seed(3)
    torch.rand(1), torch.randn(1)
    assert torch.equal(torch.rand(3), drawn)
    closed = thinkers.stream(runs / "text", "the", 40)
    next(closed)
    before = state()
    closed.close()
    assert differences(before, state()) == {}


def test_a_score_does_not_depend_on_the_mode_of_the_model(runs):
    model, task = dropping_pair(runs)
    found = thinkers.evaluate((model, task), num_examples=50)
    assert model.training
    assert thinkers.evaluate((model.eval(), task), num_examples=50) == found


def test_the_callers_random_stream_continues(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    first = torch.rand(2)
    thinkers.train(make(settings=dict(num_updates=1, seed=9)), tmp_path / "a")
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)


def test_a_model_that_is_built_draws_from_the_callers_stream():
    settings = dict(vocab_size=5, dim=8, num_heads=2)
    torch.manual_seed(5)
    one, other = (thinkers.build_model("decoder", **settings) for _ in range(2))
    torch.manual_seed(5)
    again = thinkers.build_model("decoder", **settings)
    assert torch.equal(one.embedding.weight, again.embedding.weight)
    assert not torch.equal(one.embedding.weight, other.embedding.weight)
