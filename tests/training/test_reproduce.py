"""`reproduce`: a run trained again is equal bit for bit, and a difference is reported."""

import json
import shutil

import pytest

import thinkers
from thinkers.cli import main
from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.errors import DamagedError, UsageError
from thinkers.models.looped import Looped
from thinkers.runs import folder as run_folder
from thinkers.tasks.arithmetic import Add
from thinkers.training.reproduce import reproduce


def config(**own) -> Config:
    settings: dict = dict(num_updates=7, batch_size=3, log_every=2, checkpoint_every=3)
    settings |= dict(evaluate_examples=11, depth="random", random_steps=(1, 3), warmup_updates=2)
    training = Training(**(settings | own))
    sizes = dict(dim=8, num_layers=1, num_heads=2, num_steps=2)
    return Config.fit(Looped, Add.Config(max_digits=2), training, **sizes)


def edit(folder, change):
    """Change the first line of metrics.jsonl."""
    shutil.rmtree(folder / "checkpoints")  # which hold the digest of the lines
    file = folder / "metrics.jsonl"
    first, *rest = [json.loads(line) for line in file.read_text().splitlines()]
    change(first)
    file.write_text("".join(json.dumps(line) + "\n" for line in [first, *rest]))


def test_a_run_is_reproduced_bit_for_bit_with_its_scores(tmp_path):
    run = thinkers.train(config(evaluate_every=4), tmp_path / "a")
    found = reproduce(run.folder)
    assert found.equal and found.difference is None and found.weights_equal is True
    assert (found.last, found.num_lines, found.changes) == (7, 5, [])
    assert found.folder == tmp_path / "a-again"


def test_a_run_that_was_scored_on_another_split_is_reproduced_with_its_score(tmp_path):
    run = thinkers.train(config(), tmp_path / "a", score_on="valid")
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"update": 7, "valid": run.scores}
    assert reproduce(run.folder).equal
    with pytest.raises(UsageError, match="split"):
        thinkers.train(config(), tmp_path / "b", score_on="training")
    assert not (tmp_path / "b").exists()


def test_a_run_extended_twice_is_extended_at_the_same_updates(tmp_path):
    run = thinkers.train(config(), tmp_path / "a", until=5)
    thinkers.resume(run.folder, num_updates=9, until=8)
    thinkers.resume(run.folder, num_updates=13)
    found = reproduce(run.folder, tmp_path / "b")
    assert found.equal and found.last == 13 and found.weights_equal is True
    record = json.loads((tmp_path / "b/config.json").read_text())
    plans = [(plan["from"], plan["num_updates"]) for plan in record["plans"]]
    assert plans == [(0, 7), (5, 9), (8, 13)]
    # With the last plan from the start, the learning rate would have been another.
    once = thinkers.train(config(num_updates=13), tmp_path / "c")
    assert (once.folder / "metrics.jsonl").read_text() != (
        found.folder / "metrics.jsonl"
    ).read_text()


def test_max_minutes_is_ignored(tmp_path):
    run = thinkers.train(config(max_minutes=1e-9), tmp_path / "a")
    found = reproduce(run.folder)
    assert (
        found.equal
        and found.last
        == json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])["update"]
    )


def test_an_unfinished_run_is_compared_up_to_its_last_line(tmp_path):
    run = thinkers.train(config(), tmp_path / "a")
    file = run.folder / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    for name in ("00000006", "00000007"):  # which were saved later
        shutil.rmtree(run.folder / "checkpoints" / name)
    found = reproduce(run.folder)
    assert found.equal and found.weights_equal is None and (found.last, found.num_lines) == (4, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.update(loss=4.25), "update 2: loss was 4.25 and is "),
        (lambda line: line.pop("norm"), "update 2: norm was None and is "),
        (lambda line: line.update(more=1), "update 2: more was 1 and is None"),
    ],
)
def test_the_first_difference_of_metrics_is_reported(tmp_path, capsys, change, message):
    run = thinkers.train(config(), tmp_path / "a")
    edit(run.folder, change)
    assert main.main(["reproduce", str(run.folder)]) == 1
    assert f"not equal: {message}" in capsys.readouterr().out


def test_the_clock_may_differ(tmp_path, capsys):
    run = thinkers.train(config(), tmp_path / "a")
    edit(run.folder, lambda line: line.update(minutes=99.0))
    assert main.main(["reproduce", str(run.folder), "--out", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "equal bit for bit: 4 lines of metrics up to update 7, and the weights" in out


def test_different_weights_and_versions_are_reported(tmp_path, capsys):
    run = thinkers.train(config(), tmp_path / "a")
    other = thinkers.train(config(seed=5), tmp_path / "b")
    other.model.save(run.folder / "model")
    record = run_folder.read_record(run.folder)
    record["versions"]["torch"] = "1.0"
    run_folder.write_record(run.folder, record)
    assert main.main(["reproduce", str(run.folder)]) == 0
    out = capsys.readouterr().out
    assert "versions was" in out and "the metrics are equal, and the weights differ" in out


def test_runs_without_plans_or_valid_metrics_are_refused(tmp_path):
    run = thinkers.train(config(), tmp_path / "a")
    record = run_folder.read_record(run.folder)
    run_folder.write_record(run.folder, record | {"plans": []})
    with pytest.raises(UsageError, match="plans, from update 0 on"):
        reproduce(run.folder)
    (run.folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(DamagedError, match="line 1 lacks .update."):
        reproduce(run.folder)
    (run.folder / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match="has none yet"):
        reproduce(run.folder)
    with pytest.raises(UsageError, match="holds no config.json"):
        reproduce(tmp_path)


def test_metrics_that_changed_since_they_were_saved_are_damage_and_no_difference(tmp_path):
    run = thinkers.train(config(), tmp_path / "a")
    file = run.folder / "metrics.jsonl"
    file.write_text(file.read_text().replace("loss", "lass", 1))
    with pytest.raises(DamagedError, match="metrics.jsonl has changed"):
        reproduce(run.folder)
    assert not (tmp_path / "a-again").exists()


def test_a_run_does_not_choose_the_weights_that_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thinkers.train(config(), tmp_path / "given")
    begun = config(init_from="given", num_updates=3)
    assert begun.training.init_from == str(tmp_path / "given")
    run = thinkers.train(begun, tmp_path / "a")
    with pytest.raises(UsageError, match="add --init_from"):
        reproduce(run.folder)
    assert reproduce(run.folder, init_from="given").equal
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(UsageError, match="add --training.init_from"):
        thinkers.resume(run.folder)
    with pytest.raises(UsageError, match="with --resume"):
        thinkers.resume(run.folder, init_from="other")
    assert main.main(["train", "--resume=a", "--training.init_from=given"]) == 0
    thinkers.resume(run.folder)  # which has a checkpoint again


def test_a_run_does_not_begin_anew_with_weights_that_have_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = thinkers.train(config(), tmp_path / "given")
    run = thinkers.train(config(init_from="given", num_updates=3), tmp_path / "a")
    shutil.rmtree(run.folder / "checkpoints")
    thinkers.resume(given.folder, num_updates=config().training.num_updates + 1)
    for call in (
        lambda: reproduce(run.folder, init_from="given"),
        lambda: thinkers.resume(run.folder, init_from="given"),
    ):
        with pytest.raises(UsageError, match="given, whose weights have changed since the run"):
            call()
    assert not (tmp_path / "a-again").exists()
    # A run of before, whose record has no digest of them.
    record = run_folder.read_record(run.folder)
    assert len(record.pop("initial_weights")) == 64
    run_folder.write_record(run.folder, record)
    thinkers.resume(run.folder, init_from="given")


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**9])
def test_a_record_asks_for_a_possible_number_of_threads(tmp_path, threads):
    record = run_folder.new_record(config()) | {"threads": threads}
    run_folder.write_record(tmp_path, record)
    with pytest.raises(DamagedError, match="threads must be in 1 .. 1024"):
        run_folder.read_record(tmp_path)
