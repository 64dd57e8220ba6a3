"""Stories in the bAbI format: files, batches, vocabulary, runs and scores."""

import json
from dataclasses import replace

import pytest
import torch
from story_solver import solve

import thinkers
from thinkers.comparison import matching
from thinkers.errors import DamagedError, DataError, UsageError
from thinkers.recipes.numbers import training_settings
from thinkers.tasks.babi import Babi
from thinkers.tasks.babi_format import Line, generated_stories, parse_stories, read_stories
from thinkers.tasks.base import IGNORED
from thinkers.tasks.vocabulary_file import VOCABULARY_FILE
from thinkers.training import estimate

SMALL = dict(num_stories=20, num_held_out=10)

# Each kind of line that the 20 published files have: commas in answers, several supports, words
# with apostrophes, a space before the tab, capitals.
PIECE = b"""1 The hall is north of Bob's kitchen.
2 Is the hall north of Bob's kitchen? \tyes\t1
3 Eve got the milk there.
4 Eve got the football there.
5 What is Eve carrying?\tmilk,football\t3 4
1 The office is east of the hallway.
2 The kitchen is north of the office.
3 How do you go from the hallway to the kitchen?\te,n\t2 1
"""


def task_of(path, **own):
    return Babi(Babi.Config(path=str(path), **own))


@pytest.fixture
def folder(tmp_path):
    """Files named as published: ten training and two test stories of kind 8, and of kind 19."""
    for name in ("qa8_lists-sets", "qa19_path-finding"):
        (tmp_path / f"{name}_train.txt").write_bytes(PIECE * 5)
        (tmp_path / f"{name}_test.txt").write_bytes(PIECE.replace(b"milk", b"Lamp"))
    (tmp_path / "qa1_single_train.txt").write_bytes(PIECE)
    return tmp_path


def test_lines_are_parsed_into_statements_questions_and_support():
    stories = parse_stories(PIECE, "piece")
    assert [len(story) for story in stories] == [5, 3]
    assert stories[0][0] == Line("The hall is north of Bob's kitchen.")
    assert stories[0][1] == Line("Is the hall north of Bob's kitchen?", "yes", (1,))
    assert stories[0][4] == Line("What is Eve carrying?", "milk,football", (3, 4))
    assert stories[1][2].answer == "e,n" and stories[1][2].support == (2, 1)
    windows = b"\xef\xbb\xbf" + PIECE.replace(b"\n", b"\r\n") + b"\r\n"
    assert parse_stories(windows, "piece") == stories


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", ("file.txt", "no story")),
        (b"\n \n", ("no story",)),
        (b"1 A man.\n2 B\xff man.\n", ("line 2", "byte 3", "0xff", "UTF-8")),
        (b"Once upon a time.\n", ("line 1", "'Once upon a time.'", "a number")),
        (b"1 A man.\n3 B man.\n", ("line 2", "number 3", "1 or 2")),
        (b"2 A man.\n", ("line 1", "number 2", "1")),
        (b"0 A man.\n", ("line 1", "number 0")),
        (b"1 A man.\n2\n", ("line 2", "'2'")),
        (b"1 A man.\n2 Who?\tman\n", ("line 2", "tabs")),
        (b"1 A man.\n2 Who?\tman\t1\t1\n", ("line 2", "tabs")),
        (b"1 A man.\n2 Who?\t\t1\n", ("line 2", "tabs")),
        (b"1 A man.\n2 Who?\ta,\t1\n", ("line 2", "tabs")),
        (b"1 A man.\n2 Who?\tman\tx\n", ("line 2", "tabs")),
        (b"9" * 5000 + b" A man.\n", ("line 1", "a number")),
        (b"1 A man.\n2 Who?\tman\t" + b"1" * 5000, ("line 2", "numbers of supporting")),
        (b"1 A man.\n2 Who?\tman\t2\n", ("line 2", "supporting fact 2")),
        (b"1 A man.\n2 Who?\tman\t1\n3 Who?\tman\t2\n", ("line 3", "supporting fact 2")),
        ("1 A man.\n٢ B man.\n".encode(), ("line 2", "a number")),
    ],
)
def test_a_bad_line_is_an_error_that_names_file_and_line(data, words, tmp_path):
    (tmp_path / "file.txt").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_stories(tmp_path / "file.txt")
    message = str(caught.value)
    assert all(word in message for word in ("file.txt", *words)), message
    assert [line.split(":")[0] for line in message.splitlines()] == ["found", "expected", "fix"]


def test_a_folder_is_read_by_kind_and_split(folder):
    task = task_of(folder, kinds=(8, 19))
    assert {split: len(task.examples(split)) for split in ("train", "valid", "test")} == {
        "train": 28,  # 18 of 20 stories, of which every other has 2 questions
        "valid": 2,
        "test": 6,
    }
    one = task_of(folder, kinds=(8,))
    assert len(one.examples("test")) == 3
    for kinds, words in (((1,), "qa1_*test.txt"), ((2,), "qa2_*train.txt")):
        with pytest.raises(DataError, match="0 files") as caught:
            task_of(folder, kinds=kinds)
        assert words in str(caught.value)
    with pytest.raises(DataError, match="No such file"):
        task_of(folder / "none")
    (folder / "qa8_again_train.txt").write_bytes(PIECE)
    with pytest.raises(DataError, match="2 files"):
        task_of(folder, kinds=(8,))


def test_a_single_file_is_split_by_story(tmp_path):
    lines = [f"1 Eve {i} ran.\n2 Who ran?\tEve,{i}\t1\n" for i in range(20)]
    (tmp_path / "all.txt").write_text("".join(lines))
    task = task_of(tmp_path / "all.txt")
    found = {
        split: sorted(task.decode(x.answer) for x in task.examples(split))
        for split in ("valid", "test")
    }
    assert found == {"valid": ["eve,18", "eve,8"], "test": ["eve,19", "eve,9"]}
    assert len(task.examples("train")) == 16
    (tmp_path / "few.txt").write_text("".join(lines[:9]))
    with pytest.raises(DataError, match="no question for test"):
        task_of(tmp_path / "few.txt")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_prompts_hold_the_statements_before_a_question_and_answers_their_words(split):
    task = Babi(Babi.Config(kinds=(1, 2, 6), **SMALL), seed=3)
    batch = task.batch(5, 67, split)
    for row in range(len(batch)):
        n, end = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        prompt = task.decode(batch.tokens[row, :n])
        *facts, question = prompt.replace("?", "?.").removesuffix(".").split(". ")
        names = {name.lower(): name for name in ("Anna", "Boris", "Clara", "Daniel")}
        names |= {name.lower(): name for name in ("Emma", "Felix", "Greta", "Hugo")}
        facts = [" ".join(names.get(x, x) for x in f"{fact}.".split()) for fact in facts]
        question = " ".join(names.get(x, x) for x in question.replace("?", " ?").split()).replace(
            " ?", "?"
        )
        answer = task.decode(batch.targets[row, n - 1 : end])
        assert solve(facts, question[0].upper() + question[1:]) == answer
        assert (batch.targets[row, : n - 1] == IGNORED).all()
        assert (batch.targets[row, end:] == IGNORED).all()
        assert batch.targets[row, end - 1] == task.end_token
        assert torch.equal(batch.tokens[row, n:end], batch.targets[row, n - 1 : end - 1])
        assert (batch.tokens[row, end:] == task.pad_token).all()
    assert batch.tokens.shape[1] == int(batch.lengths.max()) <= task.max_length


def test_batches_are_a_function_of_seed_update_and_row():
    config = Babi.Config(**SMALL)
    task = Babi(config, seed=3)
    one, again = task.batch(7, 11), Babi(config, seed=3).batch(7, 11)
    assert torch.equal(one.tokens, again.tokens) and torch.equal(one.keys, again.keys)
    others = (task.batch(8, 11), Babi(config, seed=4).batch(7, 11), task.batch(7, 11, "test"))
    assert not any(torch.equal(one.keys, other.keys) for other in others)
    seen = {bytes(task.batch(u, 64).tokens.numpy().tobytes()) for u in range(5)}
    assert len(seen) == 5


def test_a_chosen_answer_is_one_token_after_the_question(folder):
    task = task_of(folder, kinds=(8,), answers="chosen")
    assert "milk,football" in task.words and "e,n" in task.words
    batch = task.batch(0, 29)
    rows = torch.arange(29)
    assert torch.equal(batch.lengths, batch.prompt_lengths)
    assert torch.equal((batch.targets != IGNORED).sum(1), torch.ones(29, dtype=torch.int64))
    given = batch.targets[rows, batch.prompt_lengths - 1]
    assert {task.decode([x]) for x in given} == {"yes", "milk,football", "e,n"}
    assert task.max_answer_length() == 1 and task_of(folder, kinds=(8,)).max_answer_length() == 4


class LookupModel(thinkers.MODELS["decoder"]):
    """Decoder that answers two thirds of the test questions from a table."""

    def memorise(self, task):
        self.answers = {tuple(x.prompt): x.answer for x in task.examples("test")}

    def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None):
        out = torch.zeros(len(tokens), max_new_tokens, dtype=torch.int64)
        for row, n in enumerate(prompt_lengths.tolist()):
            prompt = tuple(tokens[row, len(tokens[row]) - n :].tolist())
            if hash(prompt) % 3:
                answer = self.answers[prompt]
                out[row, : len(answer)] = torch.tensor(answer)
        return out


@pytest.mark.parametrize("answers", ["written", "chosen"])
def test_a_score_is_the_share_of_right_answers(answers):
    task = Babi(Babi.Config(kinds=(1, 2), answers=answers, **SMALL))
    model = LookupModel(LookupModel.Config(vocab_size=task.vocab_size, dim=8))
    model.memorise(task)
    grades = task.grade(model)
    assert len(grades) == len(task.examples("test")) == 90 and grades.dtype == torch.float64
    assert task.score(model)["exact"] == float(grades.mean()) and 0.4 < grades.mean() < 0.9
    assert task.score(model, num_examples=7)["exact"] == float(grades[:7].mean())


def test_a_non_causal_model_is_trained_and_scored_on_chosen_answers_only(tmp_path):
    """Train, evaluate at every number of steps, and ask; written answers are refused."""
    task = Babi.Config(answers="chosen", **SMALL)
    model = thinkers.MODELS["thoughtsformer"]
    training = training_settings(2, batch_size=4, evaluate_examples=10)
    config = thinkers.Config.fit(
        model, task, training, causal=False, dim=16, num_layers=1, num_steps=2
    )
    run = thinkers.train(config, out=tmp_path / "run")
    rows = thinkers.evaluate(run, num_examples=20)
    assert [row["num_steps"] for row in rows] == [1, 2, 4, 8]
    assert all(0 <= row["exact"] <= 1 for row in rows)
    story = "Anna ran to the attic. Where is Anna?"
    said = thinkers.answer(tmp_path / "run", story)
    assert said.startswith(story) and len(said) > len(story)
    written = replace(task, answers="written")
    with pytest.raises(ValueError, match="causal"):
        Babi(written).score(run.model, num_examples=5)
    for call in (thinkers.train, estimate.estimate):
        with pytest.raises(UsageError, match="answers=chosen, or causal=True"):
            call(replace(config, task=written))
    with pytest.raises(UsageError, match="answers=chosen"):
        matching.contenders("babi", ["looped", "thoughtsformer"], [], ["--task.num_stories=5"])


def test_a_run_answers_after_its_files_are_deleted(tmp_path, folder):
    task = Babi.Config(path=str(folder), kinds=(8,))
    config = thinkers.Config.fit(
        thinkers.MODELS["decoder"], task, training_settings(1, batch_size=2), dim=16, num_layers=1
    )
    thinkers.train(config, out=tmp_path / "run")
    wanted = Babi(task)
    (folder / "qa8_lists-sets_train.txt").unlink()
    story = "Eve got the milk there. What is Eve carrying?"
    assert thinkers.answer(tmp_path / "run", story).startswith(story)
    kept = Babi.from_run(task, 0, tmp_path / "run")
    assert (kept.words, kept.max_length, kept.vocab_size) == (
        wanted.words,
        wanted.max_length,
        wanted.vocab_size,
    )
    assert kept.max_answer_length() == wanted.max_answer_length()
    with pytest.raises(DataError, match="qa8"):
        kept.batch(0, 2)

    (tmp_path / "run" / VOCABULARY_FILE).write_text("[]")
    with pytest.raises(DamagedError, match="vocabulary.json"):
        Babi.from_run(task, 0, tmp_path / "run")
    (tmp_path / "run" / VOCABULARY_FILE).unlink()
    with pytest.raises(DataError, match="vocabulary.json is missing"):
        Babi.from_run(task, 0, tmp_path / "run")


def test_a_run_is_not_resumed_on_other_stories(tmp_path, folder):
    task_of(folder, kinds=(8,)).save_to_run(tmp_path)
    task_of(folder, kinds=(8,)).save_to_run(tmp_path)
    assert json.loads((tmp_path / VOCABULARY_FILE).read_text())["max_answer_length"] == 4
    file = folder / "qa8_lists-sets_train.txt"
    file.write_bytes(file.read_bytes().replace(b"Eve", b"Ada"))
    with pytest.raises(DataError, match="other stories than when the run began"):
        task_of(folder, kinds=(8,)).save_to_run(tmp_path)


def test_text_and_tokens_are_inverse():
    task = Babi(Babi.Config(kinds=(1, 7, 18), **SMALL))
    for example in task.examples("train")[:50]:
        assert task.encode(task.decode(example.prompt)) == example.prompt
    text = "the chest is larger than the box. is the box larger than the cup?"
    assert task.decode(task.encode(text.upper())) == text
    assert task.decode([*task.encode("attic"), task.end_token, 5]) == "attic"
    assert task.encode("") == [task.start_token]
    with pytest.raises(UsageError, match="character 5 .* 'attic', got 'atic'"):
        task.encode("anna atic")


def test_generated_stories_are_cached():
    assert generated_stories(1, "train", 3) is generated_stories(1, "train", 3)


@pytest.mark.parametrize(
    "own, words",
    [
        ({"answers": "sung"}, ("answers", "'sung'")),
        ({"kinds": ()}, ("kinds", "()")),
        ({"kinds": (1, 1)}, ("kinds", "(1, 1)")),
        ({"kinds": (4,)}, ("kinds", "among 1, 2", "got 4")),
        ({"kinds": (21,), "path": "x"}, ("kinds", "21")),
        ({"num_stories": 0}, ("num_stories", "0")),
        ({"num_held_out": 1.5}, ("num_held_out", "1.5")),
    ],
)
def test_an_invalid_configuration_is_refused(own, words):
    with pytest.raises(UsageError) as caught:
        Babi.Config(**own)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda task: task.batch(-1, 3), ("update", "-1")),
        (lambda task: task.batch(0, 0), ("batch_size", "0")),
        (lambda task: task.batch(0, 3, "exam"), ("split", "'exam'")),
        (lambda task: task.grade(None, num_examples=0), ("num_examples", "0")),
        (lambda task: task.decode([999]), ("token 0", "999")),
    ],
)
def test_invalid_arguments_are_refused(call, words):
    with pytest.raises(UsageError) as caught:
        call(Babi(Babi.Config(**SMALL)))
    assert all(word in str(caught.value) for word in words)


def test_questions_about_one_story_are_one_group():
    task = Babi(Babi.Config(kinds=(1, 2), num_stories=30, num_held_out=30))
    asked, examples = task.groups("test", 100), task.examples("test")
    assert len(asked) == 100 and len(set(task.groups("test").tolist())) == 60
    first = task.encode(".")[-1]
    openings = [tuple(x.prompt[: x.prompt.index(first)]) for x in examples[:100]]
    assert all(
        openings[i] == openings[j] for i in range(100) for j in range(100) if asked[i] == asked[j]
    )
