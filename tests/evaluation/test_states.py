"""Answers and scores of runs on cups, automaton and links: text, inspection, due steps."""

import json

import pytest
import torch
from training_cases import make

import thinkers
from thinkers.cli.main import main
from thinkers.config.experiment import build
from thinkers.errors import UsageError
from thinkers.evaluation.evaluate import find_fall
from thinkers.tasks import TASKS

PROMPTS = {"cups": "12 35 14", "automaton": "3:01101001", "links": "1+3 2+0 3+4 1+1"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = make("looped", TASKS["cups"].Config(max_length=4))
    return thinkers.train(config, tmp_path_factory.mktemp("runs") / "a")


def built(name, model="looped", **own):
    torch.manual_seed(3)
    task, made = build(make(model, TASKS[name].Config(**own)))
    return made.eval(), task


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("model", ["decoder", "looped", "thoughtsformer"])
def test_an_answer_is_read_from_one_forward_pass(name, model):
    made, task = built(name, model)
    row = torch.tensor([task.encode(PROMPTS[name])])
    # A prompt of automaton says how many updates it asks for, each a thinking step.
    asked = 3 if name == "automaton" and made.config.takes_steps else None
    with torch.no_grad():
        ends = torch.tensor([row.shape[1]])
        found = made(row, num_steps=asked, prompt_lengths=ends).logits.argmax(-1)[0]
    first = {"cups": -1, "automaton": 2, "links": 1}[name]
    answered = task.decode(found[first:])
    if name == "automaton":
        answered = "".join(str(x) if x < 2 else "?" for x in found[first:].tolist())
    wanted = f"{PROMPTS[name]} -> {answered}"
    assert thinkers.answer((made, task), f" {PROMPTS[name]} ") == wanted
    seen = thinkers.inspect((made, task), PROMPTS[name])
    assert seen.answer == task.decode(found[first:]) and seen.prompt_length == row.shape[1]
    assert seen.requested_steps == (asked or made.config.num_steps)
    # No position reads the only token of an answer.
    assert seen.tokens == row[0].tolist()


def test_a_chain_of_states_is_written_between_the_swaps():
    made, task = built("cups", "decoder", written=True)
    prompt, _, answer = thinkers.answer((made, task), "12 35 14").partition(" -> ")
    assert prompt == "12 35 14"
    seen = thinkers.inspect((made, task), "12 35 14")
    assert seen.tokens[1::2] == task.encode("12 35 14")[1:] and len(seen.tokens) == 7
    assert task.decode(seen.tokens[-1:]) == answer == seen.answer
    row = torch.tensor([seen.tokens[:-1]])
    with torch.no_grad():
        found = made(row).logits[0].argmax(-1)
    assert found[1::2].tolist() == seen.tokens[2::2]


def test_a_prompt_may_have_any_length_that_the_model_takes():
    made, task = built("automaton")
    text = "2:" + "01" * 10
    answer = thinkers.answer((made, task), text, made.config.num_steps)
    answer = answer.removeprefix(f"{text} -> ")
    assert len(answer.replace(":", "")) == 20  # of any tokens, since it has learned nothing
    with pytest.raises(UsageError, match="a prompt of 33 tokens"):
        thinkers.answer((made, task), "2:" + "1" * 31)


def test_evaluate_at_due_steps_says_that_it_is_an_oracle(run, tmp_path, capsys):
    (row, four) = thinkers.evaluate(run, num_steps=["due", 4], num_examples=90)
    wanted = run.model, TASKS["cups"](TASKS["cups"].Config(max_length=4))
    assert row == {"num_steps": "due", "oracle": True} | wanted[1].score(
        run.model, "test", 90, "due"
    )
    assert four["num_steps"] == 4 and "oracle" not in four
    assert thinkers.evaluate(run, "due", 90) == [row]
    out = tmp_path / "scores.json"
    words = ["evaluate", str(run.folder), "--num_steps", "due,4", "--num_examples", "90"]
    assert main([*words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["steps", "exact", "per_token"]
    assert shown[1].split()[0] == "due" and shown[2].split()[0] == "4"
    assert "oracle" in shown[3]
    scores = json.loads(out.read_text())["scores"]
    assert scores["due"]["oracle"] is True and "oracle" not in scores["4"]


def test_an_automaton_is_judged_at_due_steps(tmp_path, monkeypatch):
    """More steps are more updates: there is no loss of score to warn of either."""
    asked = []
    score = TASKS["automaton"].score
    monkeypatch.setattr(
        TASKS["automaton"], "score", lambda *args: asked.append(args[2:]) or score(*args)
    )
    config = make("looped", TASKS["automaton"].Config(), max_steps=8)
    run = thinkers.train(config, tmp_path / "a")
    assert asked == [("test", 3, "due")]
    rows = thinkers.evaluate(run, num_examples=20)
    assert [row["num_steps"] for row in rows] == ["due", 1, 2, 4, 8]
    assert find_fall(run, num_examples=20) is None
    plain = thinkers.evaluate(built("automaton", "decoder"), num_examples=20)
    assert [row["num_steps"] for row in plain] == [1]
    with pytest.raises(UsageError, match="max_steps 7, but rows of up to 8 updates"):
        thinkers.train(make("looped", config.task, max_steps=7), tmp_path / "b")


def test_thoughts_are_replaced_at_the_steps_that_a_task_is_judged_by():
    made, task = built("automaton", max_updates=4)
    found = thinkers.ablate((made, task), num_examples=60)
    assert found.num_steps == "due"
    assert found.score == pytest.approx(task.grade(made, "test", 60, "due").mean().item())
    fixed = thinkers.ablate((made, task), 4, num_examples=60)
    assert fixed.num_steps == 4 and fixed.score == task.grade(made, "test", 60, 4).mean()


def test_more_steps_than_the_model_takes_are_refused():
    task = TASKS["cups"].Config(min_length=20, max_length=20)
    built_task, model = build(make("looped", task))
    with pytest.raises(UsageError, match="num_steps must be an integer in 1 .. 16 .*, got 20"):
        thinkers.evaluate((model, built_task), "due", 9)


def test_due_is_refused_where_a_task_has_none():
    with pytest.raises(UsageError, match='num_steps "due" on a task whose answers have no due'):
        thinkers.evaluate(built("add"), "due", 9)
    with pytest.raises(UsageError, match='num_steps "due" on a task whose answers have no due'):
        thinkers.evaluate(built("cups", written=True), ["due", 1], 9)


def test_thoughts_of_these_tasks_can_be_replaced(run):
    found = thinkers.ablate(run, num_steps=4, num_examples=60)
    assert found.num_examples == 60 and len(found.effects) == 4


def test_an_answer_of_automaton_shows_every_cell(run):
    task = TASKS["automaton"]()
    assert task.with_answer("3:0110", [0, task.start_token, 1, 4]) == "3:0110 -> 0?1?"


@pytest.mark.parametrize("flag", ["--task.num_cups=4", "--task.num_cups=6"])
def test_settings_that_change_what_tokens_mean_are_refused(run, flag):
    for given in (run, run.folder):
        with pytest.raises(UsageError, match=f"{flag}, with which tokens mean something else"):
            thinkers.evaluate(given, num_examples=9, flags=[flag])
    assert thinkers.evaluate(run, 4, num_examples=9, flags=["--task.max_length=3"])
