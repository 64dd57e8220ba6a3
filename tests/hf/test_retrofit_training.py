"""Retrofitted models in training, scores, inspection and comparisons, as any other model."""

import json
from dataclasses import replace

import pytest
import torch
from model_cases import ids
from retrofit_cases import pretrained
from torch.utils.flop_counter import FlopCounterMode
from training_cases import QUICK, losses

import thinkers
from thinkers.cli.main import main
from thinkers.comparison import plan
from thinkers.config.experiment import Config
from thinkers.config.overrides import dump, override
from thinkers.training import optim

pytest.importorskip("transformers")
pytestmark = [pytest.mark.extras, pytest.mark.usefixtures("plain_pages")]
TASK = thinkers.TASKS["copy"].Config(max_length=3)
WORDS = thinkers.build_task("copy", max_length=3).vocab_size
STRONG = QUICK | dict(lr=0.02, weight_decay=0.5, num_updates=6)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(plan, "POINTS", 2)


def experiment(tmp_path, case="llama", trainable="core", **settings):
    """A retrofitted model in a folder, and the configuration of its training."""
    model = thinkers.retrofit(pretrained(case, vocab_size=WORDS), (2, 4), 2, trainable=trainable)
    folder = tmp_path / f"{case}-{trainable}"
    model.save(folder)
    training = thinkers.Training(**(STRONG | {"init_from": str(folder)} | settings))
    return model, Config(model.config, TASK, training)


def changed(before, after):
    """Parts of the model with a weight that is another one."""
    new = after.state_dict()
    return {
        name.partition(".")[0] for name, x in before.state_dict().items() if (x != new[name]).any()
    }


@pytest.mark.parametrize(
    ("case", "trainable", "settings", "wanted"),
    [
        ("llama", "core", {"ema": 0.5}, {"core", "gate"}),
        ("gpt2", "core", {"optimizer": "muon"}, {"core", "gate"}),
        ("decoder", "core", {"optimizer": "muon", "ema": 0.5}, {"core", "gate"}),
        ("decoder", "gate", {"optimizer": "muon"}, {"gate"}),
        ("llama", "gate", {"depth": "random", "random_steps": (1, 3)}, {"gate"}),
    ],
)
def test_core_and_gate_alone_are_trained_and_no_weight_decays(
    tmp_path, case, trainable, settings, wanted
):
    before, config = experiment(tmp_path, case, trainable, **settings)
    run = thinkers.train(config, tmp_path / "run")
    assert changed(before, run.model) == wanted
    if "ema" in settings:  # the average, and the weights that it is one of
        assert "ema" in run_tensors(tmp_path / "run")
        for tensors in run_tensors(tmp_path / "run").values():
            for name, x in before.state_dict().items():
                if name.partition(".")[0] not in wanted:
                    assert torch.equal(tensors[name], x), name
    cut = thinkers.train(config, tmp_path / "cut", until=2)
    assert changed(before, cut.model) <= wanted
    again = thinkers.resume(tmp_path / "cut")
    assert losses(again.folder) == losses(run.folder)
    assert not changed(run.model, again.model)


def run_tensors(folder):
    from thinkers.runs import checkpoint

    kept = checkpoint.read(checkpoint.saved(folder / "checkpoints")[-1]).tensors
    return {kind: x for kind, x in kept.items() if kind != "optimizer"}


def test_the_optimiser_has_no_state_of_weights_that_are_not_trained(tmp_path):
    model, config = experiment(tmp_path)
    for name in ("adamw", "muon"):
        optimizers = optim.build(model, replace(config.training, optimizer=name))
        held = {x for o in optimizers for group in o.param_groups for x in group["params"]}
        assert held == {x for x in model.parameters() if x.requires_grad}
    assert len(list(model.parameters())) > len(held)


@pytest.mark.parametrize("case", ["llama, grouped, tied, biased", "gpt2", "decoder"])
@pytest.mark.parametrize("trainable", ["all", "core", "gate"])
def test_flops_are_those_counted_by_torch(case, trainable):
    model = thinkers.retrofit(pretrained(case), (2, 4), 2, max_steps=4, trainable=trainable)
    tokens = ids(3, 23)
    for steps in (1, 2, 3, 4):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            with FlopCounterMode(display=False) as training:
                model.train().loss(tokens, num_steps=steps).total.backward()
            with torch.no_grad(), FlopCounterMode(display=False) as inference:
                model.eval()(tokens, num_steps=steps)
        assert model.flops(3, 23, steps) == inference.get_total_flops()
        assert model.flops(3, 23, steps, training=True) == training.get_total_flops()


def test_a_retrofitted_model_is_scored_asked_inspected_and_ablated(tmp_path):
    task = thinkers.build_task("add", max_digits=1)
    model = thinkers.retrofit(pretrained("llama", vocab_size=task.vocab_size), (2, 4), 2)
    model.gate.data.fill_(0.7)
    run = model, task
    rows = thinkers.evaluate(run, num_steps=[1, 4], num_examples=9)
    assert [row["num_steps"] for row in rows] == [1, 4]
    assert thinkers.answer(run, "1+2=").startswith("1+2=")
    seen = thinkers.inspect(run, "1+2=", 4, tmp_path / "seen.html")
    assert seen.answers.tokens.shape[0] == 4 and (seen.moved[1:] > 0).all()
    assert set(seen.attention) == {"words"} and seen.attention["words"].shape[0] == 4
    torch.testing.assert_close(seen.attention["words"].sum(-1), torch.ones(seen.moved.shape))
    assert "hf_looped" in (tmp_path / "seen.html").read_text()
    found = thinkers.ablate(run, 3, 9)
    assert found.num_steps == 3 and found.effects[0].replacement == "zeros"


def test_settings_survive_json_yaml_and_flags(tmp_path):
    _, config = experiment(tmp_path, "gpt2")
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    (tmp_path / "a.yaml").write_text(dump(config))
    base = replace(config, model=type(config.model)())
    assert override(base, [str(tmp_path / "a.yaml")]).model == config.model
    flags = [f"--model.hf_config={config.model.hf_config}", "--model.layers=[2,4]"]
    found = override(base, (), [*flags, "--model.max_length=9"]).model
    assert found == replace(config.model, trainable="all", num_steps=4, max_steps=16, max_length=9)


def test_it_is_compared_with_the_untouched_model_at_equal_flops(tmp_path):
    before, config = experiment(tmp_path)
    settings = {"training.init_from": config.training.init_from, "task.max_length": 3}
    settings |= {"training.batch_size": 4}
    names = ["hf_looped+one_step", "hf_looped"]
    found = thinkers.compare(
        "copy", names, budget=4e8, seeds=1, num_examples=9, settings=settings, out=tmp_path / "out"
    )
    assert not found.failures
    records = [found.results[name][0].record for name in names]
    assert records[0]["parameters"] == records[1]["parameters"]
    assert records[0]["updates"] > records[1]["updates"]
    assert all(4e8 <= record["flops"] < 4.4e8 for record in records)
    models = [thinkers.load(tmp_path / "out" / "runs" / f"{name}-0") for name in names]
    assert [model.step_counts for model in models] == [(1,), (1, 2, 4, 8)]
    assert changed(before, models[0]) == {"core"} and changed(before, models[1]) == {"core", "gate"}


def test_the_command_line_trains_one_from_nothing(tmp_path, capsys):
    flags = ["--training.num_updates=2", "--training.evaluate_examples=2", "--model.num_heads=2"]
    line = ["train", "copy/hf_looped", "--model.dim=16", "--model.layers=[0,1]", *flags]
    assert main([*line, "--out", str(tmp_path / "run")]) == 0
    assert main(["generate", str(tmp_path / "run"), "--prompt", "12="]) == 0
    assert main(["list", "models"]) == 0 and "hf_looped" in capsys.readouterr().out
