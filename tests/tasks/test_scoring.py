"""Scores: who is right has every point, who slips loses what he slipped."""

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


class Pupil(nn.Module):
    """Answers as plain Python does, but for what `slip` does to the text or to the tokens."""

    def __init__(self, name, task, slip=None):
        super().__init__()
        self.name, self.task, self.slip, self.asked = name, task, slip, []
        self.weight = nn.Parameter(torch.zeros(1))

    def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None):
        assert not self.training and not torch.is_grad_enabled()
        assert tokens.shape[1] == prompt_lengths.max()
        assert tokens.shape[1] + max_new_tokens <= self.task.max_length
        self.asked.append((len(tokens), num_steps))
        out = torch.full((len(tokens), max_new_tokens), 7)
        for i, (row, length) in enumerate(zip(tokens, prompt_lengths, strict=True)):
            prompt = self.task.decode(row[-length:])
            given = [*self.task.encode(solve(self.name, prompt)), END]
            if self.slip:
                self.slip(prompt, given)
            out[i, : len(given)] = torch.tensor(given)
        return out


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("split", SPLITS)
def test_who_answers_as_python_does_has_every_point(name, split):
    task = build_task(name)
    pupil = Pupil(name, task).train()
    assert task.score(pupil, split, 613, num_steps=3) == {"exact": 1.0, "per_token": 1.0}
    assert pupil.asked == [(500, 3), (113, 3)] and pupil.training
    assert task.score(pupil.eval(), split, 7) == {"exact": 1.0, "per_token": 1.0}
    assert not pupil.training and pupil.asked[-1] == (7, None)


def test_scores_count_rows_and_tokens():
    task = build_task("copy", min_length=3, max_length=3)

    def last_digit_wrong_if_first_is_even(prompt, given):
        if int(prompt[0]) % 2 == 0:
            given[2] = (given[2] + 1) % 10

    score = task.score(Pupil("copy", task, last_digit_wrong_if_first_is_even), "test", 900)
    firsts = [prompt[0] for u in (0, 1) for prompt in prompts(task, task.batch(u, 500, "test"))]
    wrong = sum(int(first) % 2 == 0 for first in firsts[:900]) / 900
    assert score == {"exact": pytest.approx(1 - wrong), "per_token": pytest.approx(1 - wrong / 4)}
    assert next(iter(score)) == task.primary_metric

    def never_ends(prompt, given):
        given[-1] = 0

    assert task.score(Pupil("copy", task, never_ends), "test", 10) == {
        "exact": 0.0,
        "per_token": 0.75,
    }


def test_scores_restore_the_mode_after_a_failure():
    task = build_task("add")
    pupil = Pupil("add", task, slip=lambda prompt, given: 1 / 0).train()
    with pytest.raises(ZeroDivisionError):
        task.score(pupil, "test", 3)
    assert pupil.training


def test_grades_are_the_score_example_by_example():
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
