"""Training with compiled layers: the plain model, the same state, no trace in the process."""

import json

import pytest
import torch
from test_process_state import differences, state
from training_cases import losses, make

from thinkers.cli.main import main
from thinkers.errors import UsageError
from thinkers.models import MODELS, load_model
from thinkers.training import compiled
from thinkers.training.loop import resume, train
from thinkers.training.state import build_on

METHODS = {x for model in MODELS.values() for x in model.compiled_methods}
ON = dict(compile=True, num_updates=4, ema=0.9)
IGNORE = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def traced(monkeypatch):
    """Graphs that torch runs as they are: what is compiled, without the minutes of compiling."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")


@IGNORE
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=() if x in ("looped", "thoughtsformer") else pytest.mark.slow)
        for x in MODELS
    ],
)
def test_updates_equal_those_of_the_plain_layers(tmp_path, traced, name):
    one, two = (
        train(make(name, settings=ON | {"compile": x}), tmp_path / str(x)) for x in (True, False)
    )
    torch.testing.assert_close(losses(one.folder), losses(two.folder), rtol=1e-5, atol=1e-6)
    assert one.model.state_dict().keys() == two.model.state_dict().keys()
    assert load_model(one.folder / "model").state_dict().keys() == two.model.state_dict().keys()
    assert not any(x in layer.__dict__ for layer in one.model.modules() for x in METHODS)


@IGNORE
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, traced):
    whole = train(make("looped", settings=ON), tmp_path / "whole")
    train(make("looped", settings=ON), tmp_path / "cut", until=2)
    again = resume(tmp_path / "cut")
    assert losses(whole.folder) == losses(again.folder)
    for name, x in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], x)


@IGNORE
def test_the_process_is_as_it_was(tmp_path, traced):
    config = make("decoder", settings=ON)
    train(config, tmp_path / "first")  # what torch sets as it is imported is its own
    settings = torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy()
    before = state()
    train(config, tmp_path / "second")
    assert not differences(before, state())
    after = torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy()
    assert settings == after


@IGNORE
def test_a_code_that_serves_few_updates_is_an_error(tmp_path, traced, monkeypatch):
    _, model = build_on(torch.device("cpu"), make("decoder"), initialize=False)
    forward, calls = type(model.blocks[0]).forward, []

    def fickle(self, *args):
        calls.append(1)
        return forward(self, *args) * len(calls)

    monkeypatch.setattr(type(model.blocks[0]), "forward", fickle)
    layers = compiled.CompiledLayers(model.train())
    few = torch._dynamo.config.patch(recompile_limit=2)
    with few, pytest.raises(UsageError, match="layers compiled 2 times"), layers.used():
        for _ in range(20):
            model(torch.zeros(2, 3, dtype=torch.int64))


@IGNORE
def test_no_compiler_is_told_before_anything_is_written(tmp_path, monkeypatch):
    def missing(graph, inputs):
        raise torch._inductor.exc.InvalidCxxCompiler

    monkeypatch.setattr(compiled, "BACKEND", missing)
    with pytest.raises(UsageError, match=r"(?s)cannot compile.*C\+\+ compiler.*install one"):
        train(make("decoder", settings=ON), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@IGNORE
def test_the_command_line_has_the_setting(tmp_path, traced):
    flags = [
        "--training.num_updates=1",
        "--training.evaluate_examples=1",
        "--training.compile=true",
    ]
    assert main(["train", "add/decoder", "--out", str(tmp_path / "run"), *flags]) == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["training"]["compile"] is True


@pytest.mark.slow
@IGNORE
@pytest.mark.parametrize("name", MODELS)
def test_generated_code_trains_and_resumes_as_the_plain_layers(tmp_path, name):
    one, two = (
        train(make(name, settings=ON | {"compile": x}), tmp_path / str(x)) for x in (True, False)
    )
    torch.testing.assert_close(losses(one.folder), losses(two.folder), rtol=1e-4, atol=1e-5)
    train(make(name, settings=ON), tmp_path / "cut", until=2)
    assert losses(resume(tmp_path / "cut").folder) == losses(one.folder)
