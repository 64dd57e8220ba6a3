"""`grow`: the new run, its resumes and reproduction, its operations, and refusals."""

import json
import shutil

import pytest
import torch
from training_cases import lines, make

import thinkers
from thinkers import tasks
from thinkers.cli.main import main
from thinkers.errors import NonFiniteError, UsageError
from thinkers.runs import folder as run_folder
from thinkers.tasks import TASKS
from thinkers.training.grow import configuration

CUPS = TASKS["cups"].Config(max_length=4)
SIZES = dict(num_steps=4, max_steps=8, step_loss="due")
LARGER = ["--model.dim=16", "--training.num_updates=6", "--training.seed=3"]
OWN = dict(weight=0.7, decay=0.5)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config = make("looped", CUPS, {"num_updates": 2, "depth": "due", "max_flops": 1e12}, **SIZES)
    return thinkers.train(config, tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("grown") / "run"
    return thinkers.grow(base, out=out, flags=LARGER, **OWN)


def same(run, other):
    ours, theirs = (x.model.state_dict() for x in (run, other))
    return all(torch.equal(x, theirs[name]) for name, x in ours.items())


def clean(folder):
    return [{k: v for k, v in x.items() if k != "minutes"} for x in lines(folder)]


def test_the_record_has_the_guide_and_its_weights_and_the_settings_of_the_run(base, run):
    record = run_folder.read_record(run.folder)
    assert record["config"]["grow"] == OWN | {"guide": str(base.folder)}
    assert len(record["guide_weights"]) == 64
    assert record["config"]["model"]["dim"] == 16 and record["config"]["training"]["depth"] == "due"
    assert record["config"]["training"]["max_flops"] is None
    assert record["config"]["training"]["init_from"] is None


def test_the_guide_counts_while_its_weight_is_above_0(base, run, tmp_path):
    guided = lines(run.folder)
    assert ["guide" in line for line in guided] == [True, True, True, False, False, False]
    alone = configuration(base, LARGER)
    alone = thinkers.train(make_alone(alone), tmp_path / "alone")
    batches = [tasks.from_config(CUPS, 3).batch(n, 6) for n in range(3)]
    each = [base.model.flops(*batch.tokens.shape, 4) for batch in batches]
    apart = [a["flops"] - b["flops"] for a, b in zip(guided, lines(alone.folder), strict=True)]
    assert apart == [sum(each[:n]) for n in range(1, 7)]
    assert guided[0]["loss"] == pytest.approx(guided[0]["next_token"] + 0.7 * guided[0]["guide"])
    assert guided[4]["loss"] == guided[4]["next_token"]


def make_alone(config):
    return thinkers.Config(config.model, config.task, config.training)


def test_with_weight_0_it_is_train_bit_for_bit(base, tmp_path):
    found = thinkers.grow(base, out=tmp_path / "a", flags=LARGER, weight=0.0)
    plain = thinkers.train(make_alone(configuration(base, LARGER)), tmp_path / "b")
    assert same(found, plain) and clean(found.folder) == clean(plain.folder)
    assert found.scores == plain.scores


@pytest.mark.parametrize("until", [1, 2, 5])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(base, run, tmp_path, until):
    config = configuration(base, LARGER, OWN)
    thinkers.train(config, tmp_path / "run", until=until)
    again = thinkers.resume(tmp_path / "run", guide=base.folder)
    assert same(run, again) and clean(run.folder) == clean(again.folder)


def test_a_run_is_reproduced_bit_for_bit(base, run, tmp_path, capsys):
    line = ["reproduce", str(run.folder), f"--out={tmp_path / 'a'}", f"--guide={base.folder}"]
    assert main(line) == 0
    assert "equal bit for bit" in capsys.readouterr().out
    with pytest.raises(UsageError, match="and None as guide\nexpected: the same folder"):
        thinkers.reproduce(run.folder, tmp_path / "b")


@pytest.mark.parametrize("updates", ["4", "9"])
def test_function_and_command_line_agree_and_a_run_can_be_extended(base, tmp_path, capsys, updates):
    flags = [*LARGER, "--grow.weight=0.3", "--grow.decay=1"]
    line = ["grow", str(base.folder), "--out", str(tmp_path / "a"), *flags]
    assert main(line) == 0
    assert "on held-out examples" in capsys.readouterr().out
    record = json.loads((tmp_path / "a" / "config.json").read_text())["config"]
    assert record["grow"]["weight"] == 0.3 and record["grow"]["decay"] == 1
    resumed = ["train", f"--resume={tmp_path / 'a'}", f"--grow.guide={base.folder}"]
    code = main([*resumed, f"--training.num_updates={updates}"])
    assert code == (0 if updates == "9" else 2), capsys.readouterr().err
    assert len(lines(tmp_path / "a")) == (9 if updates == "9" else 6)


def test_without_out_the_new_run_is_beside_the_old_one(base, tmp_path):
    shutil.copytree(base.folder, tmp_path / "a")
    found = thinkers.grow(tmp_path / "a", flags=["--training.num_updates=1"])
    assert found.folder == tmp_path / "a-grown"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--grow.weight=-1"], "--grow.weight -1.0"),
        (["--grow.decay=2"], "--grow.decay 2.0"),
        (["--grow.guide=elsewhere"], "--grow.guide"),
        (["--task.num_cups=4"], "tokens mean something else than in training"),
        (["--model.vocab_size=40"], "with 16 tokens, and a model with 40"),
        (
            ["--task.max_length=40", "--model.max_length=60", "--training.depth=fixed"],
            "which reads",
        ),
        (["--reinforce.lr=1"], "--reinforce.lr"),
    ],
)
def test_what_does_not_fit_exits_2_with_three_lines(base, tmp_path, capsys, flags, message):
    assert main(["grow", str(base.folder), f"--out={tmp_path / 'x'}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and "expected: " in error and len(error.splitlines()) == 3, error
    assert not (tmp_path / "x").exists()


@pytest.mark.misuse
def test_what_is_no_run_and_runs_of_reinforce_are_refused(base, tmp_path):
    with pytest.raises(UsageError, match="which is no run\nexpected: the folder of a run, whose"):
        thinkers.grow(tmp_path)
    with pytest.raises(UsageError, match="found: a Looped instead of a run"):
        thinkers.grow(base.model)
    with pytest.raises(UsageError, match="guide must be left out"):
        thinkers.grow(base, guide="a")
    record = json.loads((base.folder / "config.json").read_text())
    config = thinkers.Config.from_dict(record["config"] | {"reinforce": {}})
    run_folder.write_record(tmp_path, run_folder.new_record(config))
    with pytest.raises(UsageError, match="a run of reinforce"):
        thinkers.grow(tmp_path)


def test_a_guide_with_a_memory_is_refused(tmp_path):
    task = TASKS["facts"].Config(num_sections=3, questions=2)
    memory = dict(memory="blocks", memory_section=8, memory_top=2, mixing=2)
    sizes = dict(num_latents=2, num_steps=2)
    run = thinkers.train(
        make("thinker", task, {"num_updates": 1}, **sizes, **memory), tmp_path / "a"
    )
    with pytest.raises(
        UsageError, match="a thinker with memory blocks\nexpected: a model that ans"
    ):
        thinkers.grow(run, out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_guide_that_is_not_finite_is_refused(base, tmp_path, monkeypatch):
    shutil.copytree(base.folder, tmp_path / "a")
    model = thinkers.load(tmp_path / "a")
    with torch.no_grad():
        model.embedding.weight[0, 0] = torch.nan
    monkeypatch.setattr("thinkers.models.weights_file.first_not_finite", lambda tensors: None)
    model.save(tmp_path / "a" / "model")
    with pytest.raises(NonFiniteError, match="embedding.weight of the guide .* is not finite"):
        thinkers.grow(tmp_path / "a", out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_guide_that_is_missing_or_has_changed_or_is_not_named_again_is_refused(
    base, tmp_path, capsys
):
    guide = shutil.copytree(base.folder, tmp_path / "guide")
    config = configuration(guide, LARGER, OWN)
    thinkers.train(config, tmp_path / "a", until=2)
    resumed = ["train", f"--resume={tmp_path / 'a'}"]
    named = [*resumed, f"--grow.guide={guide}"]

    def refused(line, message):
        assert main(line) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 3, error

    refused(resumed, f"add --grow.guide {guide}")
    refused([*resumed, f"--grow.guide={base.folder}"], f"guided by {guide}, and {base.folder}")
    refused(["train", f"--resume={base.folder}", "--grow.guide=b"], "leave --grow.guide out")
    thinkers.resume(guide, num_updates=3)
    refused(named, "whose weights have changed since the run was first guided by them")
    refused(["reproduce", str(tmp_path / "a"), f"--guide={guide}"], "whose weights have changed")
    shutil.rmtree(guide)
    refused(named, "which holds no model")


def test_an_infinite_loss_names_the_update(base, tmp_path):
    with pytest.raises(NonFiniteError, match="update 1: loss inf|update 1: loss nan"):
        thinkers.grow(base, out=tmp_path / "a", flags=LARGER, weight=1e308)


def test_micro_batches_have_the_loss_of_the_whole_batch(base, tmp_path):
    flags = [*LARGER, "--training.precision=float64"]
    found = [
        lines(
            thinkers.grow(
                base, out=tmp_path / str(n), flags=[*flags, f"--training.accumulation={n}"], **OWN
            ).folder
        )
        for n in (1, 3)
    ]
    for ours, theirs in zip(*found, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-12)
        assert ours.get("guide") == pytest.approx(theirs.get("guide"), abs=1e-12)
