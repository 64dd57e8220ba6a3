"""Mixed questions against a solver in plain Python."""

import pytest
import torch

from thinkers.errors import UsageError
from thinkers.tasks import SPLITS, build_task


def solved(text):
    """Return (answer, steps) of a question as text."""
    first, *rest = text.split()
    if len(rest[0]) == 1:
        return rest[int(first) - 1], 1
    ball = first
    for swap in rest:
        if ball in swap:
            ball = swap.replace(ball, "")
    return ball, len(rest)


@pytest.mark.parametrize("own", [{}, dict(num_cups=9, max_swaps=3, min_digits=2, max_digits=20)])
def test_answers_and_due_steps_are_those_of_a_loop(own):
    task = build_task("mixed", seed=2, **own)
    for split in SPLITS:
        kinds = set()
        for update in range(4):
            batch = task.batch(update, 25, split)
            found = zip(batch.tokens, batch.targets, batch.due, batch.lengths.tolist(), strict=True)
            pairs = zip(found, task.kinds(batch), strict=True)
            for row_number, ((row, targets, due, n), kind) in enumerate(pairs):
                answer, steps = solved(task.decode(row[:n]))
                assert row[0] == task.start_token and (targets[: n - 1] == -100).all()
                assert task.decode([int(targets[n - 1])]) == answer
                assert due[n - 1] == steps == max(1, kind) and (due[:n] >= 1).all()
                early = batch.early[row_number, n - 1].tolist()
                rest = task.decode(row[2:n]).split()
                if kind:
                    first = task.decode(row[1:2])
                    path = [solved(" ".join([first, *rest[:k]]))[0] for k in range(1, kind + 1)]
                    path += path[-1:] * (task.config.max_swaps - kind)
                    assert [task.decode([x]) for x in early] == path
                else:
                    assert set(early) == {-100}
                assert (batch.early[row_number, : n - 1] == -100).all()
                assert (targets[n:] == -100).all() and (due[n:] == 0).all()
                kinds.add(int(kind))
        assert 0 in kinds and len(kinds) > 2


def test_half_of_all_rows_are_lists_and_splits_share_no_row():
    task = build_task("mixed")
    seen = {}
    for split in SPLITS:
        batch = task.batch(0, 2000, split)
        rows = zip(batch.tokens, batch.lengths, strict=True)
        seen[split] = {tuple(row[:n].tolist()) for row, n in rows}
        assert abs((task.kinds(batch) == 0).mean() - 0.5) < 0.05
    assert not seen["train"] & seen["test"] and not seen["valid"] & seen["test"]


def test_a_training_batch_has_one_number_of_swaps_and_lessons_add_one():
    task = build_task("mixed", curriculum=True, max_swaps=4, window=10)
    assert task.difficulty == 1 and set(task.kinds(task.batch(0, 40))) == {0, 1}
    for _ in range(5):
        task.observe(torch.ones(10, dtype=torch.bool))
    assert task.difficulty == 4
    sizes = [set(task.kinds(task.batch(i, 30))) - {0} for i in range(8)]
    assert all(len(x) == 1 for x in sizes) and set.union(*sizes[:4]) == {1, 2, 3, 4}
    state = task.state_dict()
    again = build_task("mixed", curriculum=True, max_swaps=4, window=10)
    again.load_state_dict(state)
    assert torch.equal(again.batch(9, 30).tokens, task.batch(9, 30).tokens)


def test_text_is_read_and_written():
    task = build_task("mixed")
    assert task.decode(task.encode("2 21 13")) == "2 12 13"
    assert task.read_prompt("3 5 1 4").tokens == task.encode("3 5 1 4")
    assert task.with_answer("2 12 13", [2]) == "2 12 13 -> 3"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "an empty prompt"),
        ("2", "the question '2'"),
        ("12 13", "the question '12 13'"),
        ("2 12 3", "the question '2 12 3'"),
        ("4 1 2 3", "a place and a list that has it"),
        ("2 66", "word 1 of '2 66' is '66'"),
        ("x", "word 0 of 'x' is 'x'"),
    ],
)
def test_other_questions_are_refused(text, message):
    with pytest.raises(UsageError) as error:
        build_task("mixed").read_prompt(text)
    assert message in str(error.value)


@pytest.mark.parametrize("own", [dict(num_cups=2), dict(min_digits=1), dict(max_digits=2)])
def test_settings_out_of_range_are_refused(own):
    with pytest.raises(UsageError):
        build_task("mixed", **own)
