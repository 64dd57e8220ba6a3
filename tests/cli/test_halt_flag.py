"""`--halt` of evaluate, generate and inspect."""

import json
import shutil

import pytest
from halting_cases import open_gate

import thinkers
from thinkers.cli import main
from thinkers.json_files import read_with_digest, with_digest
from thinkers.models.base import Model
from thinkers.runs.result import load

SIZES = ["--model.dim=16", "--model.num_layers=1", "--training.evaluate_examples=5"]
STEPS = [
    "--model.num_steps=4",
    "--model.max_steps=8",
    "--training.num_updates=2",
    "--training.log_every=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs `gate`, with steps that differ, and `plain`."""
    place = tmp_path_factory.mktemp("runs")
    for name, flags in (("gate", ["--model.halting=true"]), ("plain", [])):
        words = ["train", "add/looped", f"--out={place / name}", *SIZES, *STEPS, *flags]
        assert main.main(words) == 0
    model = load(place / "gate")
    open_gate(model)
    model.save(place / "gate" / "model")
    return place


@pytest.fixture
def run(folder):
    return str(folder / "gate")


def test_evaluate_prints_steps_and_flops_and_writes_them_by_example(run, tmp_path, capsys):
    words = ["evaluate", run, "--num_steps=2,4", "--num_examples=9", "--halt=0.5"]
    assert main.main(words) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["steps", "exact", "per_token", "mean_steps", "flops_share"]
    expected = thinkers.evaluate(run, [2, 4], 9, halt=0.5, by_example=True)
    for line, row in zip(lines[1:], expected, strict=False):
        assert line == [str(row["num_steps"]), *(f"{row[name]:.4f}" for name in lines[0][1:])]
    assert 1 < expected[0]["mean_steps"] < 2 and 0 < expected[0]["flops_share"] < 1
    assert main.main([*words, f"--out={tmp_path / 's.json'}"]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert scores == {str(row["num_steps"]): row for row in expected}
    (names,) = {tuple(sorted(x)) for x in scores["2"]["examples"]}
    assert names == ("exact", "flops_share", "mean_steps", "row")
    assert [x["row"] for x in scores["2"]["examples"]] == list(range(9))
    assert main.main([*words[:-1], f"--out={tmp_path / 's.json'}"]) == 0
    assert "examples" not in json.loads((tmp_path / "s.json").read_text())["scores"]["2"]


def test_generate_and_inspect_take_it(run, tmp_path, capsys):
    assert main.main(["generate", run, "--prompt=12+34=", "--num_steps=6", "--halt=0.5"]) == 0
    said = thinkers.answer(run, "12+34=", 6, halt=0.5)
    assert capsys.readouterr().out == f"{said}\n"
    page = tmp_path / "a.html"
    assert main.main(["inspect", run, "--prompt=12+34=", "--halt=0.5", f"--out={page}"]) == 0
    out = capsys.readouterr().out
    assert "\ntoken [start] 2 1 + 4 3 =" in out and "\nsteps " in out
    assert "--halt=0.5" in page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "plain", "--halt=0.5"], "found: halt 0.5 for looped without a gate"),
        (["generate", "plain", "--prompt=1+2=", "--halt=0.5"], "found: halt 0.5 for looped"),
        (["inspect", "plain", "--prompt=1+2=", "--halt=0.5"], "found: halt 0.5 for looped"),
        (["evaluate", "gate", "--halt=answered"], 'found: halt "answered" for looped'),
        (["evaluate", "gate", "--halt=1.5"], "halt must be a number in 0 .. 1"),
        (["evaluate", "gate", "--halt=nan"], "halt must be a number in 0 .. 1"),
        (["evaluate", "gate", "--halt=soon"], "found: --halt soon"),
        (["evaluate", "gate", "--halt="], "--halt"),
        (["evaluate", "gate", "--halt=0.5", "--num_steps=due"], 'found: num_steps "due" with'),
        (["inspect", "gate", "--ablate", "--halt=0.5"], "found: --halt without a prompt"),
    ],
)
def test_what_cannot_be_is_refused_with_exit_code_2(folder, words, message, capsys):
    command, run, *more = words
    assert main.main([command, str(folder / run), *more]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) <= 3


def test_a_run_that_was_saved_before_there_was_halting_is_as_it_was(folder, monkeypatch, capsys):
    """Its settings do not have `halting`, in the record and beside the weights."""
    old = shutil.copytree(folder / "plain", folder / "old")
    of_now, model = Model.config_dict, load(old)

    def config_dict(model):
        found = of_now(model)
        assert found["config"].pop("halting") is False
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Model, "config_dict", config_dict)
        model.save(old / "model")
    record = read_with_digest(old / "config.json", {"config": dict})
    assert record["config"]["model"].pop("halting") is False
    (old / "config.json").write_bytes(with_digest(record))
    found = [thinkers.evaluate(folder / name, 2, 9) for name in ("plain", "old")]
    assert found[0] == found[1] and load(old).config == model.config
    assert main.main(["evaluate", str(old), "--halt=0.5"]) == 2
    assert "without a gate" in capsys.readouterr().err
    assert thinkers.resume(old, num_updates=3).model.config.halting is False


def test_a_run_with_a_gate_is_reproduced(run, tmp_path):
    found = thinkers.reproduce(run, tmp_path / "again")
    assert found.difference is None and found.num_lines == 3
    assert "halt" in json.loads((tmp_path / "again" / "metrics.jsonl").read_text().splitlines()[0])
    assert load(tmp_path / "again").halts_by == ("gate",)
