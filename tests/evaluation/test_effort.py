"""Evaluation of models whose tokens halt: mean steps and the share of FLOPs, by example."""

from itertools import product

import pytest
import torch
from halting_cases import GATED, halting, waiting

import thinkers
from thinkers.errors import UsageError
from thinkers.evaluation.by_step import accuracy_by_step
from thinkers.evaluation.evaluate import evaluate, find_fall
from thinkers.evaluation.generate import answer
from thinkers.evaluation.halting import measure_effort

TASKS = {
    "cups": {"max_length": 6},
    "written": {"max_length": 5},
    "links": {"max_length": 9, "max_depth": 6},
    "automaton": {"width": 6, "max_updates": 4},
    "add": {"max_digits": 3},
    "copy": {"max_length": 4},
    "star_graph": {},
    "babi": {},
    "text": {},
}


def task_of(name, folder):
    if name == "text":
        (folder / "a.txt").write_text("to be or not to be, that is the question. " * 40)
        return thinkers.build_task("text", path=str(folder / "a.txt"), context=12)
    if name == "written":
        return thinkers.build_task("cups", written=True, **TASKS[name])
    return thinkers.build_task(name, **TASKS[name])


def by_hand(model, task, rows, num_steps, halt):
    """(mean steps, FLOPs, FLOPs of all steps) of each row, one row at a time."""
    found = []
    for i, length in enumerate(rows.lengths.tolist()):
        prompt = None if rows.prompt_lengths is None else rows.prompt_lengths[i : i + 1]
        row = rows.tokens[i : i + 1, :length]
        with torch.no_grad():
            steps = model(row, num_steps=num_steps, prompt_lengths=prompt, halt=halt).steps
        real = steps[0, 1:] if task.start_token is not None else steps[0]
        done = model.flops(1, length, num_steps, steps=steps)
        found.append((real.tolist(), done, model.flops(1, length, num_steps)))
    return found


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("looped", name) for name in TASKS),
        *product(GATED[1:], ["cups", "written", "add", "text"]),
    ],
)
def test_steps_and_flops_are_those_of_each_row_alone(kind, name, tmp_path):
    task = task_of(name, tmp_path)
    model = halting(task, kind, **({"section": 5} if kind == "thinker" else {}))
    n = 6
    (row,) = evaluate((model, task), 5, n, halt=0.5, by_example=True)
    grades = task.grade(model, "test", n, 5, 0.5)
    found = [
        x
        for rows in task.graded_rows(model, "test", n, 5, 0.5)
        for x in by_hand(model, task, rows, 5, 0.5)
    ]
    assert [x["row"] for x in row["examples"]] == list(range(n))
    assert [x[task.primary_metric] for x in row["examples"]] == grades.tolist()
    for shown, (steps, done, full) in zip(row["examples"], found, strict=True):
        assert shown["mean_steps"] == pytest.approx(sum(steps) / len(steps), rel=1e-12)
        assert shown["flops_share"] == pytest.approx(done / full, rel=1e-12)
    every = [step for steps, _, _ in found for step in steps]
    assert row["mean_steps"] == pytest.approx(sum(every) / len(every), rel=1e-12)
    assert row["flops_share"] == pytest.approx(
        sum(done for _, done, _ in found) / sum(full for *_, full in found), rel=1e-12
    )
    assert len(set(every)) > 1 and row["num_steps"] == 5 and row["halt"] == 0.5
    scores = task.score(model, "test", n, 5, 0.5)
    assert {key: row[key] for key in scores} == scores
    assert scores[task.primary_metric] == pytest.approx(float(grades.mean()))


@pytest.mark.parametrize("name", TASKS)
def test_a_gate_that_never_opens_is_graded_as_all_steps(name, tmp_path):
    task = task_of(name, tmp_path)
    model = halting(task)
    (row,) = evaluate((model, task), 3, 6, halt=1.0, by_example=True)
    (plain,) = evaluate((model, task), 3, 6, by_example=True)
    assert row["mean_steps"] == 3 and "mean_steps" not in plain and "halt" not in plain
    # The gate is asked after every step, which costs a little.
    assert 1 <= row["flops_share"] < 1.05
    for key in plain.keys() - {"examples"}:
        assert row[key] == pytest.approx(plain[key], rel=1e-9)
    for shown, other in zip(row["examples"], plain["examples"], strict=True):
        assert {key: shown[key] for key in other} == pytest.approx(other, rel=1e-9)


def test_rows_that_a_model_reads_hold_its_own_answers_up_to_their_end():
    task = thinkers.build_task("add", max_digits=2)
    model = halting(task)
    (rows,) = task.graded_rows(model, "test", 20, 3, 0.5)
    batch = next(task.evaluation_batches("test", 20))
    width = task.max_answer_length()
    ended = 0
    for row, start, length in zip(rows.tokens, batch.prompt_lengths, rows.lengths, strict=True):
        prompt = row[None, :start]
        written = model.answer(prompt, start[None], width, 3, halt=0.5)[0].tolist()
        end = written.index(task.end_token) if task.end_token in written else width - 1
        ended += end < width - 1
        assert row[:length].tolist() == [*prompt[0].tolist(), *written[:end]]
    assert rows.prompt_lengths is batch.prompt_lengths or torch.equal(
        rows.prompt_lengths, batch.prompt_lengths
    )
    assert ended < 20


def test_rows_with_written_states_hold_those_of_the_model():
    task = thinkers.build_task("cups", written=True, max_length=5)
    model = halting(task)
    (rows,) = task.graded_rows(model, "test", 20, 3, 0.5)
    with torch.no_grad():
        thought = model(
            rows.tokens,
            num_steps=3,
            lengths=rows.lengths,
            prompt_lengths=rows.prompt_lengths,
            halt=0.5,
        )
    said = thought.logits[..., : task.vocab_size].argmax(-1)
    for row, own, length in zip(rows.tokens, said, rows.lengths.tolist(), strict=True):
        assert row[2:length:2].tolist() == own[1 : length - 1 : 2].tolist()


def test_answered_halts_at_the_first_step_that_does_not_wait():
    task = thinkers.build_task("links", max_length=6)
    model = waiting(task)
    (row,) = evaluate((model, task), 6, 20, halt="answered")
    assert 1 < row["mean_steps"] < 6 and row["halt"] == "answered"
    rows = next(iter(task.graded_rows(model, "test", 20, 6, "answered")))
    given = {"num_steps": 6, "lengths": rows.lengths, "prompt_lengths": rows.prompt_lengths}
    with torch.no_grad():
        thought = model(rows.tokens, halt="answered", keep_states=True, **given)
    waits = model.read_out(thought.states).argmax(-1) == task.wait_token
    for i, length in enumerate(rows.lengths.tolist()):
        for t, n in enumerate(thought.steps[i, :length].tolist()):
            assert waits[i, : n - 1, t].all() and (n == 6 or not waits[i, n - 1, t])
    with pytest.raises(UsageError, match="without a gate"):
        evaluate((model, task), 6, 20, halt=0.5)


def test_each_number_of_steps_is_a_limit():
    task = thinkers.build_task("cups", max_length=6)
    model = halting(task)
    rows = evaluate((model, task), [1, 2, 8], 30, halt=0.5)
    means = [row["mean_steps"] for row in rows]
    assert means[0] == 1 and means[0] < means[1] <= 2 and means[1] < means[2] <= 8
    assert [row["num_steps"] for row in rows] == [1, 2, 8]
    assert [r["num_steps"] for r in evaluate((model, task), num_examples=4, halt=0.5)] == [
        *model.step_counts
    ]


def test_a_task_that_is_judged_at_due_steps_has_no_oracle_beside_halting():
    task = thinkers.build_task("automaton", width=5, max_updates=3)
    model = halting(task)
    rows = evaluate((model, task), num_examples=5, halt=0.5)
    assert [row["num_steps"] for row in rows] == list(model.step_counts)
    for call in (
        lambda: evaluate((model, task), "due", 5, halt=0.5),
        lambda: task.score(model, "test", 5, "due", 0.5),
        lambda: task.grade(model, "test", 5, "due", 0.5),
        lambda: list(task.graded_rows(model, "test", 5, "due", 0.5)),
    ):
        with pytest.raises(UsageError, match='found: num_steps "due" with halt 0.5'):
            call()


def test_a_model_without_a_gate_is_refused():
    task = thinkers.build_task("cups", max_length=6)
    for name in ("decoder", "looped"):
        model = thinkers.build_model(
            name, vocab_size=task.vocab_size, max_length=40, dim=8, num_layers=1, num_heads=2
        )
        for call in (
            lambda model=model: evaluate((model, task), halt=0.5, num_examples=4),
            lambda model=model: task.score(model, "test", 4, halt=0.5),
            lambda model=model: answer((model, task), "12 23", halt=0.5),
            lambda model=model: find_fall((model, task), [1, 2], 4, halt=0.5),
        ):
            with pytest.raises(UsageError, match="without a gate"):
                call()
    for wrong in (-0.1, 1.5, "gate", True):
        with pytest.raises(UsageError, match="halt must be a number in 0"):
            evaluate((halting(task), task), halt=wrong)


def test_answers_and_samples_take_halt(tmp_path):
    task = thinkers.build_task("add", max_digits=2)
    model = halting(task)
    prompt = torch.tensor([task.encode("12+34=")])
    said = model.answer(prompt, torch.tensor([7]), task.max_answer_length(), 6, halt=0.5)
    assert answer((model, task), "12+34=", 6, halt=0.5).startswith(
        task.with_answer("12+34=", said[0].tolist())
    )
    for name in ("cups", "written", "automaton"):
        other = task_of(name, tmp_path)
        text = "2:0110" if name == "automaton" else "12 23 14"
        found = [answer((halting(other), other), text, 6, halt=x) for x in (None, 1.0, 0.0)]
        assert found[0] == found[1] and all(x.startswith(f"{text} ->") for x in found)
    text = task_of("text", tmp_path)
    model = halting(text)
    given = (model, text), "to be", 30, 6
    texts = [thinkers.generate(*given, temperature=0, halt=x)[0] for x in (None, 1.0, 0.5, 0.0)]
    assert texts[0] == texts[1] and len({*texts}) > 1
    assert thinkers.generate(*given[:3], 1, temperature=0) == [texts[3]]
    with pytest.raises(UsageError, match="halt must be"):
        next(thinkers.stream(*given, halt=2))


def test_accuracy_by_step_keeps_the_answers_of_tokens_that_have_halted():
    task = thinkers.build_task("cups", max_length=6)
    model = halting(task)
    batches = [task.batch(0, 30, "test")]
    never, plain = (accuracy_by_step(model, batches, 4, halt) for halt in (1.0, None))
    at_once = accuracy_by_step(model, batches, 4, 0.0)
    torch.testing.assert_close(never, plain, equal_nan=True)
    assert torch.equal(at_once[0][1:], at_once[3][1:]) and not torch.equal(never[0], never[3])


def test_a_task_that_does_not_say_what_is_read_is_refused():
    class Own(type(thinkers.build_task("cups"))):
        graded_rows = thinkers.Task.graded_rows

    model = halting(Own())
    assert task_score(model, Own())
    with pytest.raises(UsageError, match="found: Own, which does not say"):
        measure_effort(model, Own(), "test", 4, 2, 0.5)


def task_score(model, task):
    return task.score(model, "test", 4, 2, 0.5)
