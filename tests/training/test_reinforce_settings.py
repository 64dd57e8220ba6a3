"""`reinforce` with other settings: planned updates, precisions, micro-batches, averages, texts."""

import json
import math
from dataclasses import replace

import pytest
import torch
from training_cases import lines, make

import thinkers
from thinkers.cli.main import main
from thinkers.config.experiment import build
from thinkers.config.overrides import dump, override
from thinkers.config.reinforce import Reinforce
from thinkers.errors import UsageError
from thinkers.policies.loss import PolicyLoss
from thinkers.tasks import TASKS
from thinkers.training.distributed import Ranks
from thinkers.training.estimate import estimate
from thinkers.training.reproduce import reproduce
from thinkers.training.state import build_on
from thinkers.training.step import autocast, faster_precision, parts_of_batch

OWN = Reinforce(num_updates=5, supervised_updates=2, policy_updates=1, group_size=2)
SIZES = dict(num_latents=2, num_steps=3, max_steps=5, policy=True)


def config(reinforce=OWN, task=None, **settings):
    task = TASKS["mixed"].Config(max_swaps=3) if task is None else task
    found = make("thinker", task, {"depth": "fixed"} | settings, **SIZES)
    return replace(found, reinforce=reinforce).with_updates(reinforce.num_updates)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def values(run, *names):
    return [[line.get(name) for name in names] for line in lines(run.folder)]


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 6, 7, 20])
def test_counts_of_updates_are_those_of_a_loop(updates):
    kinds = [OWN.is_supervised(update) for update in range(updates)]
    assert OWN.counts(updates) == (sum(kinds), updates - sum(kinds))
    assert sum(OWN.alternating().is_supervised(update) for update in range(4)) == 2
    assert config().update_counts(updates) == OWN.counts(updates)
    assert replace(config(), reinforce=None).update_counts(updates) == (updates,)


def test_a_flag_for_the_updates_of_one_part_is_for_both():
    def planned(*flags):
        found = override(config(), (), flags)
        return found.training.num_updates, found.reinforce.num_updates

    assert planned("--training.num_updates=9") == planned("--reinforce.num_updates=9") == (9, 9)
    assert planned("--training.lr=0.1") == (5, 5)
    both = ["--training.num_updates=5", "--reinforce.num_updates=9"]
    assert planned(*both) == (5, 9)
    with pytest.raises(UsageError, match=r"(?s)num_updates 5 with reinforce.num_updates 9.*both"):
        thinkers.train(override(config(), (), both), "nowhere")


def test_printed_settings_are_read_back(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(dump(config(), (), ["--reinforce.num_updates=9"]))
    assert override(config(), [str(file)]) == config().with_updates(9)
    assert "reinforce" not in dump(replace(config(), reinforce=None))


def test_an_extended_run_is_planned_anew_and_reproduced(tmp_path, capsys):
    thinkers.train(config(), tmp_path / "a")
    line = ["train", "--resume", str(tmp_path / "a"), "--training.num_updates"]
    assert main([*line, "4"]) == 2
    assert "at least 5, for which the run was planned" in capsys.readouterr().err
    assert main([*line, "7"]) == 0
    record = json.loads((tmp_path / "a" / "config.json").read_text())
    assert record["config"]["reinforce"]["num_updates"] == 7
    assert record["config"]["training"]["num_updates"] == 7
    found = reproduce(tmp_path / "a", tmp_path / "b")
    assert found.equal and found.last == 7 and found.weights_equal


@pytest.mark.parametrize("precision", ["bf16", "float64", "auto"])
def test_runs_of_each_precision_resume_bit_for_bit(tmp_path, monkeypatch, precision):
    # Which of two precisions is the faster one may change from run to run.
    monkeypatch.setattr("thinkers.training.loop.faster_precision", lambda *_: "bf16")
    wanted = config(precision=precision)
    once = thinkers.train(wanted, tmp_path / "a")
    thinkers.train(wanted, tmp_path / "b", until=2)
    again = thinkers.resume(tmp_path / "b")
    assert values(once, "loss", "norm", "right", "reward") == values(
        again, "loss", "norm", "right", "reward"
    )
    state, other = once.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(x, other[name]) for name, x in state.items())
    assert all(x.dtype == torch.float64 for x in state.values()) == (precision == "float64")


def test_several_processes_are_refused_before_anything_is_written():
    ranks = Ranks(0, 2, torch.device("cpu"))
    assert parts_of_batch(replace(config(accumulation=3), reinforce=None), ranks) == 6
    with pytest.raises(UsageError, match="found: 2 processes with reinforce"):
        parts_of_batch(config(), ranks)


def test_early_answers_that_a_task_lacks_are_missed_before_anything_is_written(tmp_path):
    cups, add = TASKS["cups"].Config(max_length=4), TASKS["add"].Config(max_digits=1)
    for model in ("looped", "thinker", "thoughtsformer"):
        with pytest.raises(UsageError, match="step_loss early with due steps and no early answers"):
            thinkers.train(make(model, cups, step_loss="early"), tmp_path / model)
    assert not list(tmp_path.iterdir())
    found, model = build_on(torch.device("cpu"), make("looped", add, step_loss="early"), True)
    assert model.loss(found.batch(0, 2)).total.isfinite()


def test_the_faster_precision_is_found_with_a_policy():
    task, model = build(config())
    assert faster_precision(model, task.batch(0, 2)) in ("float32", "bf16")


def test_losses_under_autocast_are_summed_in_float32():
    torch.manual_seed(1)
    task, model = build(config())
    batch = task.batch(0, 64)
    loss = PolicyLoss(model, OWN, 64, lambda: 0)
    exact = loss(batch, None, model.counts(batch)).parts["right"]
    with autocast("bf16", torch.device("cpu")):
        found = loss(batch, None, model.counts(batch)).parts["right"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.02)  # states are of 8 bits


def test_micro_batches_give_the_gradients_of_the_batch(tmp_path):
    runs = [
        thinkers.train(config(precision="float64", accumulation=n), tmp_path / str(n))
        for n in (1, 2)
    ]
    names = ("loss", "norm", "flops", "reward", "saved", "entropy", "right", "accuracy")
    for one, two in zip(*(values(run, *names) for run in runs), strict=True):
        numbers = [[math.nan if x is None else x for x in line] for line in (one, two)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-9, nan_ok=True)


def test_the_average_is_of_model_and_policy_and_is_what_is_kept(tmp_path):
    seen = []

    def keep(state, result):
        seen.append({name: x.clone() for name, x in state.model.state_dict().items()})

    run = thinkers.train(config(ema=0.5), tmp_path / "a", callbacks=[keep])
    wanted = None
    for update, weights in enumerate(seen, 1):
        decay = min(0.5, update / (9 + update))
        before = wanted or build_first()
        wanted = {name: torch.lerp(before[name], x, 1 - decay) for name, x in weights.items()}
    for name, x in run.model.state_dict().items():
        torch.testing.assert_close(x, wanted[name])
    assert not torch.equal(
        seen[1]["policy.blocks.linear.bias"], seen[2]["policy.blocks.linear.bias"]
    )


def build_first():
    torch.manual_seed(config().training.seed)
    return build(config())[1].state_dict()


def test_a_dry_run_counts_and_times_both_kinds_of_updates(tmp_path, monkeypatch):
    wanted = config(replace(OWN, num_updates=8))
    run = thinkers.train(wanted, tmp_path / "a")
    used = lines(run.folder)[-1]["flops"]
    found = estimate(wanted)
    assert found.flops == pytest.approx(used / 8, rel=0.05) and found.minutes > 0
    kinds = []
    forward = PolicyLoss.forward

    def spy(self, *arguments):
        kinds.append(self.settings.is_supervised(self.update()))
        return forward(self, *arguments)

    monkeypatch.setattr(PolicyLoss, "forward", spy)
    estimate(config(Reinforce()))
    assert kinds == [True, False] * 4


def test_a_text_has_no_questions_and_is_refused(tmp_path, monkeypatch):
    (tmp_path / "poem.txt").write_text("the rain in spain stays mainly in the plain\n" * 9)
    text = TASKS["text"].Config(path=str(tmp_path / "poem.txt"), context=7)
    run = thinkers.train(make("thinker", text, {"num_updates": 1}, **SIZES), tmp_path / "run")
    monkeypatch.setattr(type(thinkers.open_run(run)[1]), "score", None)  # refused before it
    with pytest.raises(UsageError, match="found: policy for Text"):
        thinkers.evaluate(run, policy=True)
    with pytest.raises(UsageError, match="questions with answers"):
        thinkers.reinforce(run, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
