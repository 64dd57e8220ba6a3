"""Several questions in a training row: their places, answers and number, and held-out rows."""

import collections
from dataclasses import replace

import pytest
import torch
from story_solver import solve

import thinkers
from thinkers.errors import UsageError
from thinkers.models.batch import IGNORED
from thinkers.tasks import babi_worlds
from thinkers.tasks.babi import Babi
from thinkers.tasks.babi_format import parse_stories
from thinkers.tasks.babi_words import NAMES, THINGS

CONFIG = Babi.Config(kinds=(1, 2), questions=4, num_stories=40, num_held_out=10)
KNOWN = {name.lower(): name for name in NAMES}


def sentences(text):
    """The statements and questions of a text in lower case, with the names that it has."""
    marked = text.replace(".", " .|").replace("?", " ?|").split("|")
    found = [" ".join(KNOWN.get(word, word) for word in part.split()) for part in marked if part]
    return [part.replace(" .", ".").replace(" ?", "?") for part in found if part]


def asked_in(task, batch, row):
    """The statements of a row, its questions and the answers that are graded for them."""
    n = int(batch.lengths[row])
    tokens, targets = batch.tokens[row, :n].tolist(), batch.targets[row, :n].tolist()
    answers = []
    for place, token in enumerate(tokens):
        assert (targets[place] == IGNORED) or place >= batch.prompt_lengths[row] - 1
        if token == task.encode("?")[-1]:
            answers.append(task.decode([targets[place]]))
    graded = [x for x in targets if x != IGNORED]
    if task.config.answers == "written":
        assert graded == [x for answer in answers for x in (task.encode(answer)[-1], 0)]
        kept = [x for i, x in enumerate(tokens) if x and not (i and targets[i - 1] != IGNORED)]
    else:
        assert len(graded) == len(answers)
        kept = tokens
    parts = sentences(task.decode(kept))
    facts = [x for x in parts if x.endswith(".")]
    questions = [x[0].upper() + x[1:] for x in parts if x.endswith("?")]
    assert parts[: len(facts)] == facts and len(questions) == len(answers)
    return facts, questions, answers


@pytest.mark.parametrize("answers", ["written", "chosen"])
def test_a_training_row_asks_different_questions_at_one_place_and_grades_every_answer(answers):
    task = Babi(replace(CONFIG, answers=answers), seed=3)
    counts = collections.Counter()
    for update in range(3):
        batch = task.batch(update, 67)
        for row in range(len(batch)):
            facts, questions, right = asked_in(task, batch, row)
            assert [solve(facts, question) for question in questions] == right
            things = {x.split()[-1] for x in facts} & {f"{thing}." for thing in THINGS}
            known = len(things) if "the" in questions[0] else len({x.split()[0] for x in facts})
            assert len(set(questions)) == len(questions) <= min(4, known)
            assert len(questions) == min(4, known) or answers == "chosen"
            counts[len(questions)] += 1
        read = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
        assert (batch.tokens[~read] == task.pad_token).all()
        assert (batch.targets[~read] == IGNORED).all()
    # Their number is drawn where a non-causal model would see all of them.
    assert set(counts) == {1, 2, 3, 4} and (counts[1] > 201 / 4) == (answers == "chosen")


@pytest.mark.parametrize("answers", ["written", "chosen"])
def test_the_prompt_of_a_row_is_a_question_as_it_is_without_others(answers):
    """Rows of valid and test ask one question, and are the same for any number in training."""
    task, one = (Babi(replace(CONFIG, answers=answers, questions=n), seed=3) for n in (4, 1))
    for split in ("valid", "test"):
        some = [*task.evaluation_batches(split, 50), task.batch(2, 13, split)]
        same = [*one.evaluation_batches(split, 50), one.batch(2, 13, split)]
        for x, y in zip(some, same, strict=True):
            assert torch.equal(x.tokens, y.tokens) and torch.equal(x.targets, y.targets)
    batch, prompts = task.batch(1, 31), {tuple(x.prompt) for x in task.examples("train")}
    rows = zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), strict=True)
    assert all(tuple(row[:n]) in prompts for row, n in rows)
    assert len(task.examples("train")) > 1.7 * len(one.examples("train"))


def test_rows_are_a_function_of_seed_update_and_row():
    one, again = Babi(CONFIG, seed=3).batch(7, 11), Babi(CONFIG, seed=3).batch(7, 5)
    assert torch.equal(one.keys[:5], again.keys)
    assert torch.equal(one.targets[:5, : again.targets.shape[1]], again.targets)
    assert not torch.equal(one.keys, Babi(CONFIG, seed=4).batch(7, 11).keys)


def test_a_row_has_as_many_questions_as_fit_and_files_as_many_as_they_ask(tmp_path):
    story = b"1 Eve ran.\n2 Who ran?\tEve\t1\n3 Did Eve run?\tyes\t1\n4 Who?\tEve\t1\n5 Bob ran.\n"
    (tmp_path / "all.txt").write_bytes((story + b"6 Did Bob run?\tyes\t5\n") * 10)
    task = Babi(Babi.Config(path=str(tmp_path / "all.txt"), questions=9))

    def numbers():
        rows = task.batch(0, 67).tokens
        assert rows.shape[1] <= task.max_length
        return {int((row == task.encode("?")[-1]).sum()) for row in rows}

    assert task.max_length == 1 + 3 + 3 * 2 + 3 + 4 + 2 and numbers() == {1, 3}
    task.max_length = 14
    assert numbers() == {1, 2}


@pytest.mark.parametrize("kind", list(babi_worlds.KINDS))
def test_every_answer_of_stories_with_more_questions_follows_from_the_sentences(kind):
    more = one = 0
    for number in range(30):
        (story,) = parse_stories(babi_worlds.generate_story(kind, "train", number, 3).encode(), "")
        facts, asked = [], []
        for line in story:
            if line.answer is None:
                facts.append(line.text)
                asked = []
                continue
            assert solve(facts, line.text) == line.answer
            assert line.text not in asked or kind == 18  # which draws its pairs again
            more, one = more + 1, one + (not asked)
            asked.append(line.text)
        assert len(facts) <= babi_worlds.MAX_LINES
    assert more > 1.2 * one or kind == 20


def test_kind_2_with_more_questions_also_asks_where_one_thing_is_known():
    (one, more) = (babi_worlds.generate_story(2, "train", 5, asked) for asked in (1, 2))
    asked = collections.Counter()
    for number in range(40):
        facts = []
        story = babi_worlds.generate_story(2, "train", number, 2)
        for line in parse_stories(story.encode(), "")[0]:
            if line.answer is None:
                facts.append(line.text)
            known = {x.split()[-1] for x in facts} & {f"{thing}." for thing in THINGS}
            asked[len(facts), len(known)] += line.answer is not None
    assert all(asked[count, 2] == 80 for count in range(4, 11))
    assert asked[3, 1] == 40 and 0 < asked[2, 1] < 40 and not asked[4, 1]
    assert one.count("?") == 4 < more.count("?")


@pytest.mark.parametrize("model", ["looped", "thinker", "thoughtsformer"])
def test_the_models_of_the_recipes_learn_from_rows_of_several_questions(model):
    own = dict(causal=False) if model == "thoughtsformer" else {}
    answers = "chosen" if own else "written"
    task = Babi(replace(CONFIG, answers=answers))
    kind = thinkers.MODELS[model]
    made = kind(kind.Config(vocab_size=task.vocab_size, max_length=195, dim=16, **own))
    batch = task.batch(0, 5)
    loss = made.loss(batch)
    assert loss.counts["next_token"] == int((batch.targets != IGNORED).sum()) > 5
    loss.total.backward()


def test_a_number_of_questions_below_one_is_refused():
    with pytest.raises(UsageError, match="questions must be an integer at least 1, got 0"):
        Babi.Config(questions=0)
