"""Rows of tasks with answers begin with a token of their own, which tells equal tokens apart."""

import pytest
import torch
from model_cases import CASES, tiny

import thinkers
from thinkers.errors import FormatError
from thinkers.tasks import SPLITS, TASKS, AnswerTask, build_task

WITHOUT = ("text", "facts", "reasoning_gym")
ANSWERED = [x for x, task in TASKS.items() if issubclass(task, AnswerTask) and x not in WITHOUT]
SIZES = {"babi": {"num_stories": 9, "num_held_out": 3}}


@pytest.mark.parametrize("name", ANSWERED)
def test_rows_begin_with_the_start_token_and_hold_no_other(name):
    task = build_task(name, **SIZES.get(name, {}))
    assert task.start_token == task.vocab_size - 1
    for split in SPLITS:
        for batch in (task.batch(3, 50, split), next(task.evaluation_batches(split, 50))):
            assert (batch.tokens[:, 0] == task.start_token).all()
            assert (batch.tokens[:, 1:] != task.start_token).all()
            assert (batch.targets[:, 0] == -100).all()
            assert (batch.targets != task.start_token).all()


@pytest.mark.parametrize("name", ANSWERED)
def test_encode_adds_the_start_token_and_decode_drops_it(name):
    task = build_task(name, **SIZES.get(name, {}))
    batch = task.batch(0, 1)
    tokens = batch.tokens[0, : batch.prompt_lengths[0]].tolist()
    text = task.decode(tokens)
    assert text == task.decode(tokens[1:]) != ""
    assert task.encode(text) == task.read_prompt(text).tokens == tokens
    assert task.without_start(tokens) == task.without_start(tokens[1:]) == tokens[1:]
    with pytest.raises(ValueError, match="an empty prompt"):
        task.read_prompt("")


@pytest.mark.parametrize("name", [x for x in WITHOUT if x in TASKS])
def test_tasks_whose_texts_are_parts_of_longer_ones_have_no_start_token(name):
    assert TASKS[name].start_token is None


@pytest.mark.parametrize("name, own", CASES)
def test_equal_leading_tokens_have_different_logits(name, own):
    """`11+..` and `111+..` begin differently, also for a model without absolute positions."""
    task = build_task("add", max_digits=4)
    model = tiny(name, own, vocab_size=task.vocab_size).double()
    row = torch.tensor([task.encode("1111+1111=")])
    with torch.no_grad():
        logits = model(row, prompt_lengths=torch.tensor([row.shape[1]])).logits[0]
    for first in range(1, 5):
        for second in range(first + 1, 5):
            assert (logits[first] - logits[second]).abs().max() > 1e-6


def test_a_run_from_before_rows_had_a_start_token_is_refused_as_older(tmp_path, monkeypatch):
    config = thinkers.Config.fit(
        thinkers.MODELS["decoder"],
        TASKS["copy"].Config(max_length=3),
        thinkers.Training(num_updates=1, batch_size=4, evaluate_examples=4, device="cpu"),
        dim=16,
    )
    newer = TASKS["copy"].vocab_size
    with monkeypatch.context() as older:
        # The size is all that a run keeps of its vocabulary: one token less made such a run.
        older.setattr(TASKS["copy"], "vocab_size", newer - 1)
        older.setattr("thinkers.tasks.number_tokens.START", 25)
        older.setattr("thinkers.tasks.number_task.START", 25)
        run = thinkers.train(config, out=tmp_path / "run")
    for call in (thinkers.open_run, thinkers.resume, thinkers.reproduce, thinkers.evaluate):
        with pytest.raises(FormatError, match=f"{newer - 1} tokens, of an older .* has {newer}"):
            call(run.folder)
    with pytest.raises(FormatError, match="of an older version"):
        thinkers.evaluate(run.folder, flags=["--task.max_length=2"])
