"""Scores of tasks on states, and evaluation at due steps, by models that answer as oracles do."""

from types import SimpleNamespace

import pytest
import torch
from state_oracles import SOLVE
from torch import nn

from thinkers.errors import UsageError
from thinkers.models import MODELS, Batch, build_model
from thinkers.models.base import Thought
from thinkers.tasks import build_task
from thinkers.tasks.answers import generated_answers
from thinkers.tasks.due import step_groups

NAMES = list(SOLVE)


class Solver(nn.Module):
    """Model that answers as a loop in Python does; a position is wrong before its due step.

    Args:
        corrupt: Function of the rows' texts, one per position: the positions that are wrong.
    """

    causal = True

    def __init__(self, name, task, takes_steps=True, corrupt=lambda texts: [], **own):
        super().__init__()
        self.name, self.task, self.corrupt, self.own, self.asked = name, task, corrupt, own, []
        self.config = SimpleNamespace(takes_steps=takes_steps, max_length=99)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens, *, num_steps=None, lengths=None, prompt_lengths=None):
        assert not self.training and not torch.is_grad_enabled()
        self.asked.append((num_steps, len(tokens), tokens.shape[1]))
        assert tokens.shape[1] == lengths.max() and torch.equal(lengths, prompt_lengths)
        logits = torch.zeros(*tokens.shape, self.task.vocab_size + 3)
        logits[..., -1] = 9.0  # ids beyond the task's vocabulary are never chosen
        for i, (row, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
            found = SOLVE[self.name](self.task.decode(row[:length]), **self.own)
            wrong = self.corrupt(found)
            for place, (answer, due) in enumerate(found, length - len(found)):
                token = self.task.encode(answer)[1]
                bad = place - (length - len(found)) in wrong
                bad = bad or (num_steps is not None and num_steps < due)
                logits[i, place, (token + 1) % 2 if bad else token] = 1.0
        return Thought(logits)


class Recorder(nn.Module):
    """Model that answers with token 3, recording its calls."""

    def __init__(self, takes_steps=True):
        super().__init__()
        self.config, self.asked = SimpleNamespace(takes_steps=takes_steps), []

    def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None):
        self.asked.append((num_steps, tokens.tolist(), prompt_lengths.tolist()))
        return torch.full((len(tokens), max_new_tokens), 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_right_answers_score_one(name, split):
    task = build_task(name, seed=2)
    model = Solver(name, task).train()
    assert task.score(model, split, 513, num_steps=99) == {"exact": 1.0, "per_token": 1.0}
    assert model.training and [x[:2] for x in model.asked] == [(99, 500), (99, 13)]
    assert task.grade(model, split, 30).tolist() == [1.0] * 30


@pytest.mark.parametrize("name", NAMES)
def test_wrong_answers_score_nothing(name):
    task = build_task(name)
    model = Solver(name, task, corrupt=lambda found: range(len(found)))
    assert task.score(model, "test", 200) == {"exact": 0.0, "per_token": 0.0}
    assert task.grade(model, "test", 20).tolist() == [0.0] * 20


def test_exact_needs_the_last_answer_of_cups_and_every_answer_of_the_others():
    for name, first, last in (("cups", 1.0, 0.0), ("automaton", 0.0, 0.0), ("links", 0.0, 0.0)):
        task = build_task(name)
        size = dict(cups=9, automaton=20, links=13)[name]
        positions = task.score(Solver(name, task, corrupt=lambda found: [0]), num_examples=400)
        assert positions["exact"] == first
        assert positions["per_token"] == pytest.approx(1 - 1 / size, abs=0.05)
        wrong = Solver(name, task, corrupt=lambda found: [len(found) - 1])
        assert task.score(wrong, num_examples=400)["exact"] == last


@pytest.mark.parametrize("name", NAMES)
def test_due_gives_each_row_as_many_steps_as_its_largest_due(name):
    task = build_task(name, seed=4)
    batch = task.batch(0, 300, "test")
    largest = batch.due.max(1).values.bincount().tolist()
    wanted = [(steps, count) for steps, count in enumerate(largest) if count]
    model = Solver(name, task)
    assert task.score(model, "test", 300, "due") == {"exact": 1.0, "per_token": 1.0}
    assert [x[:2] for x in model.asked] == wanted and len(wanted) > 5
    assert task.grade(model, "test", 300, "due").tolist() == [1.0] * 300
    middle = wanted[len(wanted) // 2][0]
    share = sum(count for steps, count in wanted if steps <= middle) / 300
    assert task.score(model, "test", 300, middle)["exact"] == pytest.approx(share)


def test_due_changes_nothing_for_a_model_without_steps():
    task = build_task("cups")
    model = Solver("cups", task, takes_steps=False)
    assert task.score(model, "test", 70, "due") == {"exact": 1.0, "per_token": 1.0}
    assert [x[:2] for x in model.asked] == [(None, 70)]


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_by_due_step_counts_the_positions_of_each(name):
    task = build_task(name, seed=4)
    found = task.by_due(Solver(name, task), "test", 250, 5)
    assert list(found) == sorted(found) and max(found) == task.max_due
    assert all(share == (k <= 5) for k, share in found.items())
    wrong = Solver(name, task, corrupt=lambda found: [0])
    found = task.by_due(wrong, "test", 250, "due")
    if name == "automaton":
        assert list(found.values()) == pytest.approx([19 / 20] * 8)
    else:
        assert all(share == 1 for k, share in found.items() if k > 1) and found[1] < 0.7


def test_answers_of_a_task_with_due_steps_are_graded_at_them():
    """By the mechanism of every task of prompts and answers."""
    due = torch.tensor([[1, 2, 0], [1, 4, 4], [1, 2, 2]])
    tokens = torch.tensor([[7, 8, 0], [7, 9, 9], [7, 8, 8]])
    targets = torch.tensor([[-100, 3, -100], [-100, -100, 5], [-100, -100, 3]])
    lengths = torch.tensor([2, 3, 3])
    batch = Batch(tokens, targets, lengths, lengths, due=due)
    model = Recorder()
    ((predicted, truth),) = generated_answers(model, [batch], 1, 10, "due")
    assert (predicted == truth).tolist() == [[True], [False], [True]]
    assert model.asked == [
        (2, [[0, 7, 8], [7, 8, 8]], [2, 3]),
        (4, [[7, 9, 9]], [3]),
    ]
    list(generated_answers(plain := Recorder(takes_steps=False), [batch], 1, 10, "due"))
    list(generated_answers(plain, [batch], 1, 10, 6))
    assert [(steps, len(rows)) for steps, rows, _ in plain.asked] == [(None, 3), (6, 3)]


def test_due_is_refused_where_the_task_has_no_due_step():
    for name, own in (("add", {}), ("cups", dict(written=True))):
        task = build_task(name, **own)
        with pytest.raises(UsageError, match='num_steps "due" on a task whose answers have no due'):
            task.score(Recorder(), "test", 3, "due")
    batch = build_task("add").batch(0, 4)
    assert [(len(rows), steps) for rows, steps in step_groups(batch, None, 3)] == [(4, 3)]


@pytest.mark.parametrize("own", [{}, dict(targets="last"), dict(written=True)])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_graded_as_it_answers(name, own):
    """The grades of cups are those of `Model.answer`, and of states written one by one."""
    torch.manual_seed(0)
    task = build_task("cups", max_length=5, **own)
    sizes = dict(vocab_size=task.vocab_size, max_length=task.max_length)
    model = build_model(name, dim=16, num_layers=1, num_heads=2, **sizes).double()
    task.check(model)
    assert model.loss(task.batch(0, 5)).total.isfinite()
    grades = task.grade(model, "test", 60)
    batch = task.batch(0, 60, "test")
    for i in range(0, 60, 7):
        n = int(batch.lengths[i])
        row, target = batch.tokens[i : i + 1, :n], batch.targets[i, n - 1]
        if own.get("written"):
            answer = _last_written(model, row)
        else:
            answer = model.answer(row, torch.tensor([n]), 1)
        assert grades[i] == float(answer == target)


def _last_written(model, row):
    """Return the last state that a model writes between the swaps of a row, without a cache."""
    mine = row[:, :2]
    with torch.no_grad():
        while True:
            logits = model.eval()(mine, prompt_lengths=torch.tensor([2])).logits
            state = logits[:, -1:].argmax(-1)
            if mine.shape[1] == row.shape[1]:
                return state
            swap = row[:, mine.shape[1] + 1 : mine.shape[1] + 2]
            mine = torch.cat([mine, state, swap], 1)


class Writer(nn.Module):
    """Model of cups with written states, which follows the last state that it reads."""

    causal = True

    def __init__(self, task, wrong_at=None):
        super().__init__()
        self.task, self.wrong_at = task, wrong_at
        self.config = SimpleNamespace(takes_steps=False, max_length=99, vocab_size=16)
        self.weight = nn.Parameter(torch.zeros(1))

    def check_steps(self, num_steps):
        return num_steps or 1

    def check_tokens(self, tokens, lengths=None):
        return tokens

    def prefill(self, tokens, lengths, num_steps, prompted, capacity):
        assert tokens.shape[1] == 2 and prompted
        cache = SimpleNamespace(rows=tokens.tolist())
        return self._next(cache), cache

    def extend(self, tokens, cache):
        for row, token in zip(cache.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._next(cache)

    def _next(self, cache):
        found = torch.zeros(len(cache.rows), 16)
        for i, row in enumerate(cache.rows):
            if row[-1] < 5:
                found[i, 11] = 1.0  # after a state comes a swap, which no model can know
                continue
            ball = row[-2] if len(row) > 2 else 0
            a, b = self.task.swaps[row[-1] - 5]
            ball = b if ball == a else a if ball == b else ball
            wrong = len(row) == self.wrong_at
            found[i, (ball + wrong) % 5] = 1.0
        return found


def test_written_states_are_the_models_own():
    task = build_task("cups", written=True, min_length=8, max_length=8)
    assert task.score(Writer(task), "test", 200) == {"exact": 1.0, "per_token": 1.0}
    # A wrong third state (of row START s1 c1 s2 c2 s3) is read again: all later ones follow it.
    score = task.score(Writer(task, wrong_at=6), "test", 200)
    assert score == {"exact": 0.0, "per_token": 2 / 8}
