"""Scores of answers: exact match and right tokens, grades of examples, the mode of the model."""

import pytest
import torch
from number_oracles import solve
from torch import nn

from thinkers.models import build_model
from thinkers.tasks import TASKS, build_task
from thinkers.tasks.number_task import NumberTask
from thinkers.tasks.number_tokens import END

NUMBERS = [name for name, task in TASKS.items() if issubclass(task, NumberTask)]
SPLITS = ("train", "valid", "test")


def prompts(task, batch):
    return [
        task.decode(row[:length])
        for row, length in zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), strict=True)
    ]


class OracleModel(nn.Module):
    """Model that answers as plain Python does, changed by `corrupt`(prompt, tokens)."""

    def __init__(self, name, task, corrupt=None):
        super().__init__()
        self.name, self.task, self.corrupt, self.asked = name, task, corrupt, []
        self.weight = nn.Parameter(torch.zeros(1))

    def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None):
        assert not self.training and not torch.is_grad_enabled()
        assert tokens.shape[1] == prompt_lengths.max()
        assert tokens.shape[1] + max_new_tokens <= self.task.max_length
        self.asked.append((len(tokens), num_steps))
        out = torch.full((len(tokens), max_new_tokens), 7)
        for i, (row, length) in enumerate(zip(tokens, prompt_lengths, strict=True)):
            prompt = self.task.decode(row[-length:])
            given = [*self.task.without_start(self.task.encode(solve(self.name, prompt))), END]
            if self.corrupt:
                self.corrupt(prompt, given)
            out[i, : len(given)] = torch.tensor(given)
        return out


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("split", SPLITS)
def test_right_answers_score_one(name, split):
    task = build_task(name)
    model = OracleModel(name, task).train()
    assert task.score(model, split, 613, num_steps=3) == {"exact": 1.0, "per_token": 1.0}
    assert model.asked == [(500, 3), (113, 3)] and model.training
    assert task.score(model.eval(), split, 7) == {"exact": 1.0, "per_token": 1.0}
    assert not model.training and model.asked[-1] == (7, None)


def test_scores_count_rows_and_tokens():
    task = build_task("copy", min_length=3, max_length=3)

    def last_digit_wrong_if_first_is_even(prompt, given):
        if int(prompt[0]) % 2 == 0:
            given[2] = (given[2] + 1) % 10

    score = task.score(OracleModel("copy", task, last_digit_wrong_if_first_is_even), "test", 900)
    firsts = [prompt[0] for u in (0, 1) for prompt in prompts(task, task.batch(u, 500, "test"))]
    wrong = sum(int(first) % 2 == 0 for first in firsts[:900]) / 900
    assert score == {"exact": pytest.approx(1 - wrong), "per_token": pytest.approx(1 - wrong / 4)}
    assert next(iter(score)) == task.primary_metric

    def never_ends(prompt, given):
        given[-1] = 0

    assert task.score(OracleModel("copy", task, never_ends), "test", 10) == {
        "exact": 0.0,
        "per_token": 0.75,
    }


def test_scoring_restores_the_mode_after_an_error():
    task = build_task("add")
    model = OracleModel("add", task, corrupt=lambda prompt, given: 1 / 0).train()
    with pytest.raises(ZeroDivisionError):
        task.score(model, "test", 3)
    assert model.training


def test_the_mean_of_the_grades_is_the_score():
    task = build_task("add", seed=3, max_digits=2)
    sizes = dict(vocab_size=task.vocab_size, max_length=task.max_length)
    model = build_model("decoder", dim=16, num_layers=1, num_heads=2, **sizes)
    # One question, whose answer is learned by heart, is right, and not all are.
    batch = task.batch(0, 64, "test")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(batch.rows(slice(0, 4))).total.backward()
        optimizer.step()
    grades = task.grade(model, "test", 600)
    assert grades.dtype == torch.float64 and grades.shape == (600,)
    assert task.score(model, "test", 600)["exact"] == pytest.approx(grades.mean().item(), abs=1e-12)
    assert set(grades.tolist()) == {0.0, 1.0}
    assert torch.equal(task.grade(model, "test", 600), grades)
    assert task.objective({"exact": 0.25}) == 0.25
