"""A task that a user writes: about twenty lines are enough to train on it and to score models."""

from dataclasses import dataclass

import pytest
import torch

import thinkers
from thinkers.cli import main
from thinkers.errors import UsageError
from thinkers.tasks import SPLITS, TASKS, AnswerTask, build_task

TRAINING = dict(num_updates=3, batch_size=16, evaluate_examples=20, device="cpu")


class Parity(AnswerTask):
    """Parity of a row of bits: `01101=1`."""

    symbols = "01="
    prompt_end = "="

    @dataclass(frozen=True, kw_only=True)
    class Config:
        num_bits: int = 10

    def __init__(self, config=None, seed=0):
        super().__init__(config, seed)
        self.max_length = self.config.num_bits + len("=1") + 2  # and the start and end tokens

    def max_answer_length(self):
        return 2

    def example(self, rng):
        bits = "".join(rng.choice("01") for _ in range(self.config.num_bits))
        return f"{bits}=", str(bits.count("1") % 2)


@pytest.fixture(autouse=True)
def parity(monkeypatch):
    monkeypatch.setitem(TASKS, "parity", Parity)


def prompts(task, split, num_rows):
    batch = task.batch(0, num_rows, split)
    lengths = batch.prompt_lengths.tolist()
    return {task.decode(row[:n]) for row, n in zip(batch.tokens, lengths, strict=True)}


def test_it_is_trained_evaluated_and_asked_by_the_public_functions(tmp_path, capsys):
    config = thinkers.Config.fit(
        thinkers.MODELS["looped"], Parity.Config(), thinkers.Training(**TRAINING), dim=16
    )
    run = thinkers.train(config, out=tmp_path / "run")
    assert set(run.scores) == {"exact", "per_token"}
    rows = thinkers.evaluate(run, num_examples=30)
    assert all(0 <= row["exact"] <= 1 for row in rows)
    assert thinkers.answer(run.folder, "0110101100=").startswith("0110101100=")
    words = ["generate", str(run.folder), "--prompt", "0110101101="]
    assert main.main(words) == 0 and "0110101101=" in capsys.readouterr().out


def test_rows_are_a_function_of_seed_split_update_and_row():
    task = build_task("parity", seed=3)
    batch = task.batch(7, 20)
    task.batch(1, 5, "test")
    assert torch.equal(task.batch(7, 9).tokens, batch.tokens[:9])
    assert torch.equal(build_task("parity", seed=3).batch(7, 20).keys, batch.keys)
    for other in (task.batch(8, 20), task.batch(7, 20, "valid"), build_task("parity").batch(7, 20)):
        assert not torch.equal(other.tokens, batch.tokens)


def test_targets_are_the_answer_and_its_end_after_the_prompt():
    task = build_task("parity")
    batch = task.batch(0, 50)
    assert batch.tokens.shape == batch.targets.shape == (50, task.max_length - 1)
    for row, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        answer = sum(row[1:11]) % 2
        assert row[0] == task.start_token
        assert row[11:] == [task.symbols.index("="), answer]
        assert targets == [-100] * 11 + [answer, task.end_token]


def test_splits_share_no_prompt_at_any_seed_and_hold_all():
    found = {
        split: set().union(
            *(prompts(build_task("parity", s, num_bits=6), split, 500) for s in (0, 1))
        )
        for split in SPLITS
    }
    assert not found["train"] & (found["valid"] | found["test"])
    assert not found["valid"] & found["test"]
    assert sum(map(len, found.values())) == 2**6


def test_text_and_tokens_are_inverse():
    task = build_task("parity")
    assert task.encode("0110=0") == [task.start_token, 0, 1, 1, 0, 2, 0]
    assert task.decode([0, 1, 2, 1, task.end_token, 0, 0]) == "01=1"
    assert task.decode([task.pad_token, task.start_token, 1]) == "1"


def test_equal_prompts_are_one_group():
    task = build_task("parity", num_bits=6)
    groups = task.groups("test", 100).tolist()
    texts = [
        task.decode(row[:8])
        for batch in task.evaluation_batches("test", 100)
        for row in batch.tokens
    ]
    assert len(set(groups)) == len(set(texts)) < 100
    assert len(set(zip(groups, texts, strict=True))) == len(set(texts))


class WithoutExamples(Parity):
    example = AnswerTask.example


class TooLong(Parity):
    def example(self, rng):
        return "0" * rng.below(30) + "=", "1"


class TooLongAnswer(Parity):
    def example(self, rng):
        return super().example(rng)[0][4:], "11"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Parity().encode("01x"), UsageError, "character 2 of '01x' must be .*, got 'x'"),
        (lambda: Parity().decode([9]), UsageError, "token 0 must be an integer in 0 .. 5, got 9"),
        (lambda: WithoutExamples().batch(0, 1), NotImplementedError, "must define example"),
        (
            lambda: TooLong().batch(0, 50),
            UsageError,
            "max_length must be at least (1[5-9]|[23][0-9])",
        ),
        (lambda: TooLongAnswer().batch(0, 1), UsageError, "max_answer_length must be at least 3"),
    ],
)
def test_errors_name_what_the_task_lacks(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_split_without_prompts_is_refused(monkeypatch):
    monkeypatch.setattr("thinkers.tasks.answers.ATTEMPTS", 200)
    task = build_task("parity", num_bits=1)
    with pytest.raises(UsageError, match="Parity must have prompts for .*, got none in 200 draws"):
        for split in SPLITS:
            task.batch(0, 1, split)
