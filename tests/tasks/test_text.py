"""Text: windows, splits, scores in nats and bits, and runs that continue prompts."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from torch import nn

import thinkers
from thinkers.cli import main
from thinkers.config.experiment import Config, build
from thinkers.config.overrides import override
from thinkers.data import token_cache
from thinkers.errors import DamagedError, DataError, UsageError
from thinkers.models.base import Thought
from thinkers.models.generation import stream
from thinkers.runs.result import open_with_task
from thinkers.tasks.text import Text

SHAKESPEARE = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
POEM = "".join(f"{i} Vögel, {i * i} Lieder;\n" for i in range(97))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "_verified", {})


@pytest.fixture
def poem(tmp_path):
    (tmp_path / "poem.txt").write_text(POEM)
    return str(tmp_path / "poem.txt")


def text(poem, seed=0, **own):
    return Text(
        Text.Config(**({"path": poem, "vocabulary": "character", "context": 7} | own)), seed
    )


# batches


def test_rows_are_windows_of_the_training_part_with_the_next_tokens_as_targets(poem):
    task = text(poem)
    held_out = POEM[task.tokens("train").size :]
    assert POEM == task.decode(task.tokens("train")) + held_out
    assert task.decode(task.tokens("valid")) == task.decode(task.tokens("test")) == held_out
    assert task.tokens("train").size == next(
        i for i in range(len(POEM)) if len(POEM[:i].encode()) >= int(0.9 * len(POEM.encode()))
    )
    for split, part in (("train", POEM[: -len(held_out)]), ("valid", held_out)):
        batch = task.batch(3, 500, split)
        assert batch.prompt_lengths is None and batch.lengths is None
        rows = {
            task.decode([*row, last])
            for row, last in zip(batch.tokens.tolist(), batch.targets[:, -1].tolist(), strict=True)
        }
        assert (batch.targets[:, :-1] == batch.tokens[:, 1:]).all()
        assert all(row in part and len(row) == 8 for row in rows)
        assert len(rows) > 100


def test_the_first_and_the_last_window_are_drawn(tmp_path):
    letters = "".join(map(chr, range(256, 296)))
    (tmp_path / "t.txt").write_text(letters)
    task = text(str(tmp_path / "t.txt"), context=3)
    starts = task.batch(0, 20_000).tokens[:, 0]
    counts = np.bincount(starts.numpy())
    assert len(counts) == 36 - 3 and counts.min() > 0.8 * 20_000 / 33
    assert counts.max() < 1.2 * 20_000 / 33


def test_a_row_is_a_function_of_seed_split_update_and_row(poem):
    task = text(poem, seed=5)
    batch = task.batch(11, 23)
    task.batch(2, 3)
    assert torch.equal(task.batch(11, 9).tokens, batch.tokens[:9])
    assert torch.equal(text(poem, seed=5).batch(11, 23).keys, batch.keys)
    others = [text(poem, seed=6).batch(11, 23), task.batch(12, 23), task.batch(11, 23, "test")]
    assert not any(torch.equal(other.tokens, batch.tokens) for other in others)
    for wrong in (
        lambda: task.batch(-1, 2),
        lambda: task.batch(0, 0),
        lambda: task.batch(0, 2, "x"),
    ):
        with pytest.raises(UsageError):
            wrong()


def test_splits_by_file(poem, tmp_path):
    for name, words in (("valid", "3 Vögel, 9 Lieder"), ("test", "2 Lieder; 4 Vögel")):
        (tmp_path / name).write_text(words)
    valid, test = str(tmp_path / "valid"), str(tmp_path / "test")
    both = text(poem, valid_path=valid, test_path=test)
    found = {split: both.decode(both.tokens(split)) for split in ("train", "valid", "test")}
    assert found == {"train": POEM, "valid": "3 Vögel, 9 Lieder", "test": "2 Lieder; 4 Vögel"}
    one = text(poem, valid_path=valid)
    assert one.decode(one.tokens("test")) == "3 Vögel, 9 Lieder" == one.decode(one.tokens("valid"))
    other = text(poem, test_path=test)
    assert other.decode(other.tokens("train")) + other.decode(other.tokens("valid")) == POEM
    (tmp_path / "valid").write_text("Vögel? " * 9)
    with pytest.raises(DataError, match=r"valid: '\?', 5 characters after byte 0, has no token"):
        text(poem, valid_path=valid)


def test_without_a_path_sizes_are_known_and_batches_refused():
    for vocabulary, size in (("byte", 256), ("character", 1), ("bpe", 256)):
        config = Text.Config(vocabulary=vocabulary, context=11)
        assert (Text(config).vocab_size, Text(config).max_length) == (size, 11)
        for call in (lambda t: t.batch(0, 1), lambda t: t.encode("a"), lambda t: t.decode([1])):
            with pytest.raises(UsageError, match="--task.path FILE"):
                call(Text(config))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"context": 1}, "context must be an integer at least 2, got 1"),
        ({"vocabulary": "word"}, "vocabulary must be one of byte, character, bpe, got 'word'"),
        ({"bad_bytes": "drop"}, "bad_bytes must be one of error, replace, skip, got 'drop'"),
        ({"bpe_size": 255}, "bpe_size must be an integer at least 256"),
        ({"max_bytes": 0}, "max_bytes must be an integer at least 1"),
    ],
)
def test_invalid_settings_are_refused(own, message):
    with pytest.raises(UsageError, match=message):
        Text.Config(**own)


def test_a_lone_surrogate_is_refused(poem):
    for vocabulary in ("byte", "character", "bpe"):
        task = text(poem, vocabulary=vocabulary)
        with pytest.raises(UsageError, match=r"'\\udcff' at character 3"):
            task.encode("9 V\udcff")


def test_a_text_shorter_than_a_row_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("abcdefghij" * 7)
    with pytest.raises(DataError, match="7 tokens for valid\nexpected: at least 8, one more"):
        text(str(tmp_path / "short.txt"))
    text(str(tmp_path / "short.txt"), context=6)


# scores


class Bigrams(nn.Module):
    """Bigram model: the logits are a table's row of the last token."""

    causal = True

    def __init__(self, size):
        super().__init__()
        self.table = nn.Parameter(torch.randn(size, size, generator=torch.manual_seed(2)))
        self.asked = []

    def forward(self, tokens, num_steps=None):
        self.asked.append((tokens.shape[1], num_steps, self.training))
        return Thought(self.table[tokens])


@pytest.mark.parametrize("own", [{}, {"vocabulary": "byte"}, {"vocabulary": "bpe", "context": 5}])
def test_scores_are_nats_per_token_and_bits_per_byte(poem, own):
    task = text(poem, **own)
    model = Bigrams(task.vocab_size)
    tokens, length = task.tokens("test").tolist(), task.config.context
    windows = [tokens[i : i + length + 1] for i in range(0, len(tokens) - length, length)]
    logs = model.table.detach().double().log_softmax(-1)
    nats = [[-logs[a, b].item() for a, b in zip(w[:-1], w[1:], strict=True)] for w in windows]
    size = len(b"".join(task.tokenizer.token_bytes[token] for w in windows for token in w[1:]))
    scores = task.score(model, num_steps=3)
    assert scores["loss"] == pytest.approx(np.mean(nats), rel=1e-6)
    assert scores["bits_per_byte"] == pytest.approx(np.sum(nats) / math.log(2) / size, rel=1e-6)
    assert next(iter(scores)) == task.primary_metric and task.objective(scores) == -scores["loss"]
    assert task.grade(model).tolist() == pytest.approx([np.mean(x) for x in nats], rel=1e-6)
    assert model.training and set(model.asked[:1]) == {(length, 3, False)}
    some = task.grade(model, num_examples=4)
    chosen = [len(windows) * i // 4 for i in range(4)]
    assert some.tolist() == pytest.approx([np.mean(nats[i]) for i in chosen], rel=1e-6)
    assert task.score(model, num_examples=4)["loss"] == pytest.approx(float(some.mean()))


def test_a_non_causal_model_is_not_scored(poem):
    model = Bigrams(text(poem).vocab_size)
    model.causal = False
    with pytest.raises(ValueError, match="needs a causal model"):
        text(poem).score(model)


def test_a_non_causal_model_is_not_trained(poem, tmp_path):
    recipe = thinkers.RECIPES["shakespeare/thoughtsformer"]()
    config = override(recipe, flags=[f"--task.path={poem}", "--model.causal=false"])
    with pytest.raises(UsageError, match="needs a causal model"):
        thinkers.train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# runs


def config_of(poem, **own):
    recipe = thinkers.RECIPES["shakespeare/decoder"]()
    small = {"model.dim": 8, "model.num_layers": 1, "model.num_heads": 2, "model.hidden": 12}
    small |= {"training.num_updates": 2, "training.batch_size": 3, "training.device": "cpu"}
    small |= {"task.path": poem, "task.context": 10, "training.evaluate_examples": 5} | own
    return override(recipe, flags=[f"--{name}={value}" for name, value in small.items()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder whose text and cache were deleted."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THINKERS_CACHE", str(folder / "cache"))
        (folder / "poem.txt").write_text(POEM)
        run = thinkers.train(config_of(str(folder / "poem.txt")), out=folder / "run")
    assert list(run.scores) == ["loss", "bits_per_byte"]
    shutil.rmtree(folder / "cache")
    (folder / "poem.txt").unlink()
    return folder / "run"


def test_the_sizes_of_the_model_follow_the_vocabulary_of_the_text(poem):
    config = config_of(poem)
    model = build(config)[1].config
    assert model.vocab_size == len(set(POEM)) and model.max_length == 10
    assert Config.from_dict(config.to_dict()) == config
    pairs = config_of(poem, **{"task.vocabulary": "bpe", "task.bpe_size": 270})
    assert build(pairs)[1].config.vocab_size == 270


def test_a_run_continues_a_prompt_after_its_text_is_deleted(trained):
    settings = dict(max_new_tokens=23, temperature=1.5, num_samples=3, seed=4)
    samples = thinkers.generate(trained, "3 Vögel", **settings)
    assert len(set(samples)) == 3
    assert all(x.startswith("3 Vögel") and len(x) == 7 + 23 for x in samples)
    assert samples == thinkers.generate(trained, "3 Vögel", **settings)
    assert samples != thinkers.generate(trained, "3 Vögel", **(settings | {"seed": 5}))
    pieces = list(thinkers.stream(trained, "3 Vögel", **settings))
    assert ["3 Vögel" + "".join(x) for x in zip(*pieces, strict=True)] == samples
    assert [len(piece[0]) for piece in pieces] == [1] * 23 + [0]


def test_a_text_longer_than_the_model_is_continued_from_its_last_half(trained):
    model = thinkers.load(trained)
    _, task = open_with_task(trained)
    assert model.config.max_length == 10
    so_far = task.encode("17 Vögel, 289 L")
    while len(so_far) < 15 + 12:
        row = torch.tensor([so_far[-5:]])
        so_far += model.generate(row, min(5, 27 - len(so_far)))[0, 5:].tolist()
    found = thinkers.generate(trained, "17 Vögel, 289 L", max_new_tokens=12, temperature=0.0)
    assert found == [task.decode(so_far)]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"prompt": ""}, "an empty prompt"),
        ({"prompt": "3 Vögel?"}, "found: '\\?' at character 7 has no token\nexpected: characters"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"top_k": 0}, "top_k must be"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"seed": -1}, "seed must be"),
        ({"num_steps": 2}, "num_steps must be"),
    ],
)
def test_invalid_arguments_of_generate_are_refused(trained, own, message):
    with pytest.raises(ValueError, match=message):
        thinkers.generate(trained, **({"prompt": "3 V"} | own))


def test_a_character_of_several_bytes_is_streamed_when_it_is_complete(poem, tmp_path):
    run = thinkers.train(config_of(poem, **{"task.vocabulary": "byte"}), out=tmp_path / "bytes")
    pieces = list(thinkers.stream(run.folder, "Vö", max_new_tokens=40, temperature=9.0))
    whole = "".join(piece[0] for piece in pieces)
    tokens = next(iter(pieces))
    assert len(tokens) == 1 and "\ufffd" in whole  # drawn nearly at random, few bytes are letters
    assert thinkers.generate(run.folder, "Vö", max_new_tokens=40, temperature=9.0) == ["Vö" + whole]


def test_a_run_is_scored_on_another_text(trained, tmp_path):
    (tmp_path / "other.txt").write_text(POEM[300:700])
    model, (_, task) = thinkers.load(trained), open_with_task(trained)
    with pytest.raises(DataError, match="poem.txt: no such file"):
        thinkers.evaluate(trained)
    flags = [f"--task.test_path={tmp_path / 'other.txt'}"]
    (row,) = thinkers.evaluate(trained, flags=flags)
    tokens = torch.tensor([task.encode(POEM[300:700])])
    windows = torch.stack([tokens[0, i : i + 11] for i in range(0, 390, 10)])
    with torch.no_grad():
        logs = model(windows[:, :-1]).logits.log_softmax(-1)
    expected = -logs.gather(-1, windows[:, 1:, None]).mean().item()
    assert row["num_steps"] == 1 and row["loss"] == pytest.approx(expected, rel=1e-5)
    (tmp_path / "poem.txt").write_text(POEM)  # the run's own text, moved
    (moved,) = thinkers.evaluate(trained, flags=[f"--task.path={tmp_path / 'poem.txt'}"])
    assert moved["loss"] != row["loss"]
    with pytest.raises(DataError, match="has changed since the run began"):
        thinkers.evaluate(trained, flags=[f"--task.path={tmp_path / 'other.txt'}"])
    with pytest.raises(UsageError, match="--task.test_path"):
        thinkers.evaluate(trained, flags=["--task.test_pat=x"])
    with pytest.raises(UsageError, match="a run keeps its vocabulary"):
        thinkers.evaluate(trained, flags=["--task.vocabulary=byte"])


def test_a_run_is_not_resumed_with_another_text(poem, tmp_path):
    run = thinkers.train(config_of(poem), out=tmp_path / "run")
    Path(poem).write_text(POEM.replace("Lieder", "Leider"))
    with pytest.raises(DataError, match="has changed since the run began"):
        thinkers.resume(run.folder, num_updates=3)
    Path(poem).write_text(POEM)
    assert thinkers.resume(run.folder, num_updates=3).model is not None


def test_a_damaged_or_missing_vocabulary_is_named(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "vocabulary.json").write_text("{")
    with pytest.raises(DamagedError, match="vocabulary.json is not JSON"):
        thinkers.generate(copy, "3")
    (copy / "vocabulary.json").unlink()
    with pytest.raises(DataError, match="vocabulary.json is missing"):
        thinkers.generate(copy, "3")


def test_commands_generate_evaluate_and_exit_codes(trained, tmp_path, capsys):
    flags = ["--max_new_tokens=9", "--num-samples", "2", "--seed=3", "--top_k=5", "--top_p=0.9"]
    assert main.main(["generate", str(trained), "--prompt=3 V", *flags]) == 0
    first, second = capsys.readouterr().out.split("---\n")
    expected = thinkers.generate(
        trained, "3 V", max_new_tokens=9, num_samples=2, seed=3, top_k=5, top_p=0.9
    )
    assert [first.removesuffix("\n"), second.removesuffix("\n")] == expected
    (tmp_path / "other.txt").write_text(POEM[300:700])
    assert main.main(["evaluate", str(trained), f"--task.test_path={tmp_path / 'other.txt'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["steps", "loss", "bits_per_byte"] and len(lines) == 2
    for words, code in (
        (["generate", str(trained), "--prompt=?"], 2),
        (["generate", str(trained), "--prompt=3", "--temperature=hot"], 2),
        (["evaluate", str(trained)], 3),
        (["evaluate", str(trained), "--model.dim=3"], 2),
        (["train", "shakespeare/decoder", f"--out={tmp_path / 'no'}"], 2),
        (["train", "shakespeare/decoder", "--dry_run"], 2),
        (["train", "shakespeare/decoder", "--task.path=nowhere", f"--out={tmp_path / 'no'}"], 3),
    ):
        assert main.main(words) == code
        assert 1 <= len(capsys.readouterr().err.splitlines()) <= 3
    assert not (tmp_path / "no").exists()
    assert main.main(["train", "shakespeare/decoder", "--print_config"]) == 0
    assert "vocab_size: null" in capsys.readouterr().out


def test_sampling_is_refused_for_a_run_of_questions(tmp_path, capsys):
    recipe = thinkers.RECIPES["add/decoder"]()
    training = replace(recipe.training, num_updates=1, evaluate_examples=1, device="cpu")
    run = thinkers.train(replace(recipe, training=training), out=tmp_path / "add")
    assert main.main(["generate", str(run.folder), "--prompt=1+2=", "--top_k=3"]) == 2
    assert "--top_k" in capsys.readouterr().err
    with pytest.raises(UsageError, match="fix: use thinkers.answer"):
        thinkers.generate(run.folder, "1+2=")


def test_gradients_are_enabled_between_the_tokens_of_a_stream():
    model = thinkers.build_model("decoder", vocab_size=7, dim=8, num_heads=2, num_layers=1)
    tokens = torch.randint(7, (2, 3), generator=torch.manual_seed(1))
    written = stream(model, tokens, 4)
    first = next(written)
    assert torch.is_grad_enabled() and not first.logits.requires_grad and not model.training
    written.close()
    assert model.training
    whole = model.generate(tokens, 4)
    assert torch.equal(torch.stack([x.tokens for x in stream(model, tokens, 4)], 1), whole[:, 3:])


@pytest.mark.parametrize("name", [x for x in thinkers.RECIPES if x.startswith("shakespeare/")])
def test_recipes_are_equally_large(poem, name):
    config = override(thinkers.RECIPES[name](), flags=[f"--task.path={poem}", "--task.context=16"])
    model = thinkers.models.from_config(replace(config.model, vocab_size=65, max_length=64))
    size = sum(p.numel() for p in model.parameters())
    expected = 10_650_000 if name.endswith("_gpu") else 800_000
    assert abs(size / expected - 1) <= 0.03
    assert config.training.device == ("cuda" if name.endswith("_gpu") else "auto")


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="needs the text")
def test_shakespeare_is_split_as_in_nanogpt():
    task = Text(Text.Config(path=str(SHAKESPEARE), vocabulary="character", context=64))
    assert task.vocab_size == 65
    assert (task.tokens("train").size, task.tokens("valid").size) == (1_003_854, 111_540)
