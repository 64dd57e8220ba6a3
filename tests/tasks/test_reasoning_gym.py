"""Questions of reasoning-gym: held out by their text, seeds apart, graded by their verifier."""

import random

import numpy as np
import pytest
import torch

import thinkers
from thinkers.cli import main
from thinkers.errors import UsageError
from thinkers.tasks import SPLITS, build_task
from thinkers.tasks import reasoning_gym as gym

pytestmark = pytest.mark.extras
pytest.importorskip("reasoning_gym")
SMALL = '{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}'
LONG = {"max_length": 700, "max_answer": 60}
GENERATORS = {
    "chain_sum": {},
    "gcd": {},
    "shortest_path": {"max_length": 900, "max_answer": 80},  # several answers
    "pool_matrix": {"max_length": 1000, "max_answer": 300},  # draws from numpy's global stream
    "mini_sudoku": LONG,
    "emoji_mystery": {"max_length": 2000, "max_answer": 250},
}


def questions(task, split, num_rows, update=0):
    batch = task.batch(update, num_rows, split)
    pairs = zip(batch.tokens, batch.prompt_lengths.tolist(), strict=True)
    return [task.decode(row[:length]) for row, length in pairs]


class Fixed(torch.nn.Module):
    """Answers by a function of the question's text."""

    def __init__(self, task, answer):
        super().__init__()
        self.task, self.text_of = task, answer
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def answer(self, tokens, lengths, longest, num_steps=None):
        out = torch.full((len(tokens), longest), gym.PAD)
        for i, (row, length) in enumerate(zip(tokens, lengths.tolist(), strict=True)):
            found = self.text_of(self.task.decode(row[len(row) - length :]))
            written = torch.tensor([*found.encode(), gym.END][:longest])
            out[i, : len(written)] = written
        return out


def given(task, split="test", rows=500):
    """{question: the generator's own answer} of the rows that are scored."""
    found = {}
    for batch in task.evaluation_batches(split, rows):
        for row, targets, length in zip(
            batch.tokens, batch.targets, batch.prompt_lengths.tolist(), strict=True
        ):
            found[task.decode(row[:length])] = task.decode(targets[targets >= 0])
    return found


@pytest.mark.parametrize("name", GENERATORS)
def test_rows_are_functions_of_their_key_and_leave_the_random_streams(name):
    task = build_task("reasoning_gym", seed=3, name=name, **GENERATORS[name])
    streams = random.getstate(), np.random.get_state()
    batch = task.batch(7, 5)
    task.batch(1, 3, "test")
    assert torch.equal(
        task.batch(7, 3).tokens, batch.tokens[:3, : task.batch(7, 3).tokens.shape[1]]
    )
    again = build_task("reasoning_gym", seed=3, name=name, **GENERATORS[name]).batch(7, 5)
    assert torch.equal(again.tokens, batch.tokens) and torch.equal(again.targets, batch.targets)
    assert random.getstate() == streams[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), streams[1], strict=True))


@pytest.mark.parametrize("name", GENERATORS)
def test_own_answers_are_right_and_others_wrong(name):
    task = build_task("reasoning_gym", name=name, **GENERATORS[name])
    known = given(task, rows=7)
    assert task.score(Fixed(task, known.__getitem__), "test", 7) == {"exact": 1, "per_token": 1}
    assert task.score(Fixed(task, lambda question: "?!"), "test", 7)["exact"] == 0
    cut = Fixed(task, lambda question: known[question] + " " * task.max_answer_length())
    assert task.score(cut, "test", 7)["exact"] == 0  # an answer must end


def test_another_right_answer_is_right_though_the_tokens_differ():
    """Fractions of the same value: the verifier decides, and `per_token` keeps to the row's own."""
    task = build_task("reasoning_gym", name="complex_arithmetic")
    known = given(task, rows=40)
    spaced = Fixed(task, lambda question: known[question].replace(" ", ""))
    scores = task.score(spaced, "test", 40)
    assert scores["exact"] == 1 and scores["per_token"] < 0.9
    grades = task.grade(spaced, "test", 40)
    assert grades.tolist() == [1] * 40
    rows = list(task.graded_rows(spaced, "test", 40, None))
    assert torch.cat([x.grades for x in rows]).tolist() == [1] * 40


def test_an_error_of_a_verifier_is_a_wrong_answer():
    """That of prime_factorization raises ValueError at letters."""
    task = build_task("reasoning_gym", name="prime_factorization", max_answer=60)
    assert task.score(Fixed(task, lambda question: "a × b"), "test", 20)["exact"] == 0


def test_splits_and_seeds_share_no_question():
    """Entry i of a generator's seed s is entry i - 1 of its seed s + 1."""
    own = {"name": "family_relationships", "max_length": 400}
    found = {
        (seed, split): set(questions(build_task("reasoning_gym", seed, **own), split, 60))
        for seed in (0, 1)
        for split in SPLITS
    }
    for one, other in ((a, b) for a in found for b in found if a < b):
        assert not found[one] & found[other], (one, other)
    first = build_task("reasoning_gym", 0, **own)._data.seed
    assert build_task("reasoning_gym", 1, **own)._data.seed - first >= own.get(
        "num_entries", 1 << 20
    )
    small = {"settings": SMALL}
    sets = [
        {q for s in (0, 1) for q in questions(build_task("reasoning_gym", s, **small), x, 400)}
        for x in SPLITS
    ]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]


def test_a_slow_generator_makes_each_entry_once(monkeypatch):
    task = build_task("reasoning_gym", num_entries=50)
    made = []
    real = task._data.__class__.__getitem__
    monkeypatch.setattr(
        task._data.__class__, "__getitem__", lambda self, i: made.append(i) or real(self, i)
    )
    for update in range(30):
        task.batch(update, 16)
    assert len(made) == len(set(made)) <= 50


def test_questions_that_are_too_long_are_left_out():
    task = build_task("reasoning_gym", max_length=85)
    batch = task.batch(0, 300)
    assert batch.tokens.shape[1] < 85 and len(set(questions(task, "train", 300))) > 250
    with pytest.raises(UsageError, match="1000 entries of chain_sum are longer"):
        build_task("reasoning_gym", max_length=30).batch(0, 1)
    with pytest.raises(UsageError, match="(?s)longer.* sizes such as"):
        build_task("reasoning_gym", name="spell_backward", max_answer=2).batch(0, 1)


@pytest.mark.parametrize(
    "own, said",
    [
        ({"name": "propositional_logic", **LONG}, "an entry whose answer is None"),
        ({"name": "chain_sums"}, "expected: chain_sum\n"),
        ({"name": "xyzzy"}, r"one of the \d+ generators .*\n.*reasoning_gym.factory.DATASETS"),
        ({"settings": '{"xyzzy": 3}'}, "expected: a setting of chain_sum\n"),
        (
            {"settings": '{"min_terms": "a"}'},
            '(?s)found: --task.settings {"min_terms": "a"} with 1048576 entries\n.*min_terms int',
        ),
        ({"settings": "[]"}, r'settings must be JSON such as {"min_terms": 2}, got \[\]'),
        ({"settings": "{"}, "settings must be JSON"),
        ({"settings": '{"seed": 3}'}, "must leave seed to the task"),
        ({"settings": '{"min_term": 3}'}, "(?s)min_term\n.*min_terms\n.*choose from min_terms"),
        ({"settings": '{"min_terms": 99}'}, "max_terms must be >= min_terms"),
        ({"num_entries": 0}, "num_entries must be .* in 1 .. 1048576, got 0"),
        ({"max_answer": 200}, "max_answer must be .* got 200"),
    ],
)
def test_what_cannot_be_asked_is_refused(own, said):
    with pytest.raises(UsageError, match=said):
        build_task("reasoning_gym", **own).batch(0, 1)


def test_texts_and_tokens_are_inverse():
    task = build_task("reasoning_gym")
    for text in ("4 + 3 =", "naïve 🙂\n7", "\udcff"):
        tokens = task.encode(text)
        assert task.decode([*tokens, gym.END, 5]) == text.replace("\udcff", "\ufffd")
    assert task.read_prompt("4 + 3 =").tokens == task.encode("4 + 3 =\n")
    assert task.read_prompt("4 + 3 =\n").tokens == task.encode("4 + 3 =\n")
    assert task.with_answer("4 + 3 =", [55, gym.END]) == "4 + 3 =\n7"
    for wrong in ("\ud800", ""):
        with pytest.raises(UsageError, match="a form in UTF-8|an empty prompt"):
            task.read_prompt(wrong)


def test_it_is_trained_and_asked_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--training.num_updates", "3", "--training.evaluate_examples", "20"]
    own = ["--task.name", "gcd", "--task.settings", '{"max_value": 9}', "--model.dim", "16"]
    assert main.main(["train", "reasoning_gym/looped", "--out", "a", *own, *flags]) == 0
    assert main.main(["generate", "a", "--prompt", "gcd of 4 and 6?"]) == 0
    assert "gcd of 4 and 6?\n" in capsys.readouterr().out
    model, task = thinkers.open_run("a")
    assert (task.config.name, task.config.settings) == ("gcd", '{"max_value": 9}')
    assert thinkers.evaluate("a", num_examples=20)[0]["exact"] >= 0
    assert main.main(["train", "--resume", "a", "--training.num_updates", "4"]) == 0
