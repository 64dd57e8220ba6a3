"""Progress of training: each task shows and logs the numbers that say how far it is."""

import math
import re

import pytest
from training_cases import lines, make

import thinkers
from thinkers.models.batch import Loss
from thinkers.models.decoder import Decoder
from thinkers.runs import metrics
from thinkers.tasks.sequences import Copy
from thinkers.tasks.text import Text

POEM = "Vögel singen, Grün überall; 東風吹く。\n" * 60


@pytest.fixture
def shown(monkeypatch, capsys):
    """A function that returns the lines of progress, one for each update."""
    monkeypatch.setattr(metrics, "SECONDS_BETWEEN_BARS", 0.0)
    monkeypatch.setattr(metrics, "SECONDS_BETWEEN_LINES", 0.0)
    return lambda: [x for x in capsys.readouterr().out.splitlines() if x.startswith("update ")]


@pytest.fixture
def poem(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "poem.txt").write_text(POEM)
    return str(tmp_path / "poem.txt")


@pytest.mark.parametrize(
    "model, vocabulary",
    [
        *(("decoder", "byte"), ("decoder", "character"), ("decoder", "bpe")),
        *(("deepsight", "character"), ("multi_token", "bpe")),
    ],
)
def test_text_shows_accuracy_per_token_and_bits_per_byte(model, vocabulary, poem, tmp_path, shown):
    task = Text.Config(path=poem, vocabulary=vocabulary, context=9, bpe_size=270)
    run = thinkers.train(make(model, task, dict(lr=3e-2, num_updates=20)), tmp_path / "a")
    found = lines(run.folder)
    text = Text(task)
    for line in found:
        # Bytes of an update, counted by what its targets are as text.
        batch = text.batch(line["update"] - 1, 6)
        count = sum(len(text.tokenizer.token_bytes[x]) for x in batch.targets.flatten().tolist())
        bits = line["next_token"] * batch.targets.numel() / math.log(2) / count
        assert line["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
        right = line["token_accuracy"] * batch.targets.numel()
        assert right == pytest.approx(round(right), abs=1e-4)
        assert "accuracy" in line and "loss" in line
    assert found[-1]["token_accuracy"] > found[0]["token_accuracy"]
    for line, text in zip(found, shown(), strict=True):
        numbers = f"token accuracy {line['token_accuracy']:.3f}"
        numbers += f"  bits per byte {line['bits_per_byte']:.3f}"
        assert f"loss {line['loss']:.4f}  {numbers}  " in text


def test_a_task_of_answers_shows_the_share_of_right_rows(tmp_path, shown):
    run = thinkers.train(make(), tmp_path / "a")
    for line, text in zip(lines(run.folder), shown(), strict=True):
        assert f"loss {line['loss']:.4f}  accuracy {line['accuracy']:.3f}  " in text
        assert line["accuracy"] <= line["token_accuracy"] <= 1


def test_a_task_of_a_user_names_its_numbers(tmp_path, shown, monkeypatch):
    class Mine(Copy):
        def progress(self, batch, values):
            return {"rows": float(len(batch)), "surprise": math.exp(values["loss"])}

    monkeypatch.setitem(thinkers.TASKS, "mine", Mine)
    run = thinkers.train(make(task=Mine.Config(max_length=2)), tmp_path / "a")
    for line, text in zip(lines(run.folder), shown(), strict=True):
        assert line["rows"] == 6 and line["surprise"] == pytest.approx(math.exp(line["loss"]))
        assert re.search(r"  rows 6.000  surprise \d+\.\d{3}  ", text)


def test_a_model_that_does_not_count_tokens_is_trained_on_text(tmp_path, poem, shown, monkeypatch):
    class Rows(Decoder):
        def loss(self, batch, *, num_steps=None, counts=None):
            found = super().loss(batch, num_steps=num_steps, counts=counts)
            return Loss(found.total, found.parts, found.counts, found.correct)

    monkeypatch.setitem(thinkers.MODELS, "rows", Rows)
    task = Text.Config(path=poem, vocabulary="byte", context=9)
    run = thinkers.train(make("rows", task), tmp_path / "a")
    assert all("token_accuracy" not in line for line in lines(run.folder))
    assert all("bits per byte" in line and "accuracy" not in line for line in shown())
