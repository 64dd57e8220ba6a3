"""Generated stories, checked by a solver that reads nothing but their sentences."""

import collections

import numpy as np
import pytest
from story_solver import solve

from thinkers.prng import Rng, hash_integers, mix, mix_int
from thinkers.tasks import babi_worlds
from thinkers.tasks.babi import Babi
from thinkers.tasks.babi_format import parse_stories
from thinkers.tasks.babi_words import THINGS

KINDS = list(babi_worlds.KINDS)


def stories(kind, split, count):
    text = "".join(babi_worlds.generate_story(kind, split, number) for number in range(count))
    found = parse_stories(text.encode(), "test")
    assert len(found) == count
    return found


def questions(story):
    """Yield for each question (the statements before it, the question)."""
    facts = []
    for line in story:
        if line.answer is None:
            facts.append(line.text)
        else:
            yield list(facts), line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_follows_from_the_sentences(kind, split):
    answers = collections.Counter()
    for story in stories(kind, split, 60):
        assert len(story) <= babi_worlds.MAX_LINES
        for facts, line in questions(story):
            assert solve(facts, line.text) == line.answer, "\n".join([*facts, line.text])
            assert len(facts) >= babi_worlds.OPENING_LINES
            answers[line.answer] += 1
    # No answer is so common that it could be guessed.
    assert len(answers) > 1 and answers.most_common(1)[0][1] < 0.62 * answers.total()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != 7])
def test_the_supporting_facts_alone_give_the_answer(kind):
    for story in stories(kind, "valid", 30):
        for line in story:
            if line.answer is not None:
                facts = [story[number - 1].text for number in line.support]
                assert facts and solve(facts, line.text, is_complete=False) == line.answer, line


def test_of_kind_2_a_reader_that_ignores_the_thing_is_right_in_at_most_60_percent():
    agree = []
    for story in stories(2, "test", 200):
        for facts, _ in questions(story):
            things = sorted({fact.split()[-1].rstrip(".") for fact in facts} & set(THINGS))
            assert len(things) == 2
            places = [solve(facts, f"Where is the {thing}?") for thing in things]
            agree.append(places[0] == places[1])
    # Asked for either thing with the same probability, it is right by chance where they differ.
    assert 0.5 + np.mean(agree) / 2 <= 0.6


def test_counting_is_supported_by_all_actions_of_the_person():
    for story in stories(7, "valid", 30):
        for line in story:
            if line.answer is not None:
                name = line.text.split()[4]
                facts = [story[number - 1].text for number in line.support]
                assert facts and all(fact.startswith(name) for fact in facts)
                assert solve(facts, line.text) == line.answer


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_splits_have_stories_that_begin_alike(kind):
    seen = {}
    for split in ("train", "valid", "test"):
        for story in stories(kind, split, 60):
            opening = tuple(line.text for line in story[: babi_worlds.OPENING_LINES])
            assert seen.setdefault(opening, split) == split
    assert len(set(seen.values())) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_story_is_a_function_of_its_number(kind):
    texts = [babi_worlds.generate_story(kind, "train", number) for number in range(17)]
    assert texts == [babi_worlds.generate_story(kind, "train", number) for number in range(17)]
    assert len(set(texts)) == 17


def test_all_words_are_in_the_vocabulary_and_no_story_is_too_long():
    task = Babi(Babi.Config(kinds=tuple(KINDS), num_stories=20, num_held_out=5))
    for split in ("train", "valid", "test"):
        for example in task.examples(split):
            assert len(example.prompt) + len(example.answer) <= task.max_length
    used = {token for split in ("train",) for x in task.examples(split) for token in x.prompt}
    assert len(used) > 0.8 * len(task.words)


def test_hashes_of_integers_differ_and_random_integers_are_uniform():
    seen = {hash_integers(*x) for x in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (2**64,), (2**80,))}
    assert len(seen) == 8
    for number in (0, 1, 5, 2**63, 2**64 - 1):
        assert mix_int(number) == int(mix(np.array([number], np.uint64))[0])
    rng = Rng(5)
    counts = collections.Counter(rng.below(6) for _ in range(3000))
    assert set(counts) == set(range(6)) and max(abs(n - 500) for n in counts.values()) < 120
    assert all(sorted(rng.sample("abc", 3)) == ["a", "b", "c"] for _ in range(5))
