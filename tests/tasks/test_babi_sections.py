"""Stories read by sections: what is in them, in the row, and what a reader answers from them."""

import re
from types import SimpleNamespace

import pytest
import torch
from model_cases import tiny
from story_solver import solve
from torch import nn

from thinkers.errors import UsageError
from thinkers.tasks import SPLITS, build_task
from thinkers.tasks.babi import Babi
from thinkers.tasks.babi_long import long_stories
from thinkers.tasks.babi_words import NAMES
from thinkers.tasks.babi_worlds import split_of

SMALL = {"num_stories": 30, "num_held_out": 5}
KNOWN = {name.lower(): name for name in NAMES}


def named(text):
    return re.sub(r"\w+", lambda x: KNOWN.get(x[0], x[0]), text)


def read(task, batch, row):
    """The numbers of the sections that a row asks about, their statements, and its question."""
    number = int(batch.document[row])
    found = zip(batch.sections[number], batch.section_lengths[number], strict=True)
    texts = [task.decode(tokens[:length]).split(" ", 1) for tokens, length in found if length]
    parts = [[f"{x}." for x in named(text).split(".")[:-1]] for _, text in texts]
    prompt = batch.tokens[row, : batch.prompt_lengths[row]]
    question = named(task.decode(prompt))
    return [int(x) for x, _ in texts], [[x.strip() for x in part] for part in parts], question


@pytest.mark.parametrize("own", [{}, {"kinds": (1, 2), "statements": 64}, {"kinds": (2, 7, 15)}])
def test_sections_hold_the_statements_in_order_and_rows_the_question_alone(own):
    task = build_task("babi", sections=3, answers="chosen", **{**SMALL, **own})
    for split in SPLITS:
        batch = task.batch(0, 40, split)
        ages = set()
        for row in range(40):
            numbers, parts, question = read(task, batch, row)
            assert numbers == list(range(1, len(parts) + 1))
            assert all(len(part) == 3 for part in parts[:-1]) and 1 <= len(parts[-1]) <= 3
            facts = [x for part in parts for x in part]
            question = question[0].upper() + question[1:]
            answer = task.decode(batch.targets[row, batch.lengths[row] - 1 :][:1])
            assert question.endswith("?") and "." not in question
            assert solve(facts, question) == answer
            ages.add(len(facts))
        if "statements" in own and split != "train":
            assert ages == {64}
        assert batch.tokens[:, 0].eq(task.start_token).all()
        assert batch.sections.ne(task.start_token).all()
        assert batch.section_lengths.max() <= task.section_length
        assert (batch.document_keys is not None) == (split == "train")
        assert batch.tokens.shape[1] + 1 <= task.max_length


def test_rows_ask_about_one_story_in_turn_and_do_not_depend_on_the_batch_size():
    own = dict(statements=12, num_stories=40, questions=4, kinds=(1, 2))
    for answers in ("written", "chosen"):
        task = build_task("babi", sections=2, answers=answers, **own)
        large, small = task.batch(7, 60), task.batch(7, 10)
        stories = [tuple(map(tuple, read(task, large, row)[1])) for row in range(60)]
        shared = {story: int(large.document[row]) for row, story in enumerate(stories)}
        assert [shared[story] for story in stories] == large.document.tolist()
        asked = [[read(task, large, row + i)[2] for i in range(4)] for row in range(0, 60, 4)]
        assert all(large.document[row] == large.document[row - row % 4] for row in range(60))
        assert len(shared) > 10 and max(len(set(some)) for some in asked) == 4
        for row in range(10):
            assert read(task, large, row) == read(task, small, row)
            width = small.targets.shape[1]
            assert torch.equal(large.targets[row, :width], small.targets[row])
            key = small.document_keys[small.document[row]]
            assert key == large.document_keys[large.document[row]]
        graded = (large.targets != -100).sum(1)
        assert (graded == (2 if answers == "written" else 1)).all()


def test_a_row_asks_what_it_asks_when_the_story_is_in_it():
    own = {**SMALL, "kinds": (1, 2), "curriculum": True, "seed": 4}
    whole, cut = build_task("babi", **own), build_task("babi", sections=4, **own)
    assert whole.levels == cut.levels
    for task in (whole, cut):
        task.skip_curriculum()
    for update in range(5):
        a, b = whole.batch(update, 20), cut.batch(update, 20)
        assert torch.equal(a.keys, b.keys)
        for row in range(20):
            story = whole.decode(a.tokens[row, : a.prompt_lengths[row]])
            facts = "".join(x for part in read(cut, b, row)[1] for x in part).lower()
            question = cut.decode(b.tokens[row, : b.prompt_lengths[row]])
            assert story.replace(" ", "") == (facts + question).replace(" ", "")
            graded = [
                task.decode([x for x in batch.targets[row].tolist() if x > 0])
                for task, batch in ((whole, a), (cut, b))
            ]
            assert graded[0] == graded[1]


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("split", SPLITS)
def test_long_stories_have_their_length_and_ask_about_all_parts_of_it(kind, split):
    stories = long_stories(kind, split, 25, 64, 2)
    assert stories[:7] == long_stories(kind, split, 7, 64, 2)
    ages, counts = [], set()
    for story in stories:
        assert split_of(kind, [f"{i} {x.text}" for i, x in enumerate(story[:2], 1)]) == split
        facts, lines = [], {}
        for line, (text, answer, support) in enumerate(story, 1):
            if answer is None:
                facts.append(text)
                lines[line] = len(facts)
                continue
            assert solve(facts, text) == answer
            assert solve([story[x - 1].text for x in support], text, is_complete=False) == answer
            ages.append(len(facts) - min(lines[x] for x in support))
            counts.add(len(facts))
        assert len(facts) == 64
    assert counts == ({64} if split != "train" else set(range(4, 65, 4)))
    if split != "train":
        far = sum(age > 24 for age in ages) / len(ages)
        assert far > 0.35  # more than the whole of other stories


class StoryReader(nn.Module):
    """A model that solves what `blocks_of` gave it."""

    name, causal, takes_positions, halts_by = "reader", True, False, ()
    config = SimpleNamespace(memory="blocks", memory_section=20, takes_steps=True, num_steps=2)

    def __init__(self, task):
        super().__init__()
        self.task = task
        self.weight = nn.Parameter(torch.zeros(1))

    def blocks_of(self, batch):
        assert batch.sections[..., 0].numel() <= 2000
        return [read(self.task, batch, row) for row in range(len(batch))]

    def answer(self, tokens, prompt_lengths, room, num_steps=None, memory=None):
        found = torch.zeros(len(tokens), room, dtype=torch.int64)
        for row, (_, parts, question) in enumerate(memory):
            facts = [x for part in parts for x in part]
            answer = solve(facts, question[0].upper() + question[1:])
            found[row, 0] = self.task.encode(answer)[1]  # and 0, the end
        return found


def test_scores_come_from_the_sections():
    task = build_task("babi", sections=2, statements=64, num_held_out=20)
    task.check(StoryReader(task))
    assert task.score(StoryReader(task), num_examples=70)["exact"] == 1


def test_models_without_a_memory_or_with_shorter_sections_are_refused():
    task = build_task("babi", sections=3, **SMALL)
    assert task.section_length == 25
    with pytest.raises(UsageError, match="questions about documents for thinker without a memory"):
        task.check(tiny("thinker", {}))
    with pytest.raises(UsageError, match="memory_section 20\nexpected: at least 25"):
        task.check(StoryReader(task))
    build_task("babi", **SMALL).check(tiny("thinker", {}))


@pytest.mark.parametrize(
    "own, message",
    [
        ({"sections": 0}, "sections must be an integer at least 1, got 0"),
        ({"statements": 3}, "statements must be an integer at least 4, got 3"),
        ({"statements": 64, "kinds": (3,)}, "kinds must be among 1, 2 with statements, got 3"),
        ({"statements": 64, "path": "x"}, "statements must be None for stories of a path"),
    ],
)
def test_settings_out_of_range_are_refused(own, message):
    with pytest.raises(UsageError, match=message):
        build_task("babi", **own)


STORY = "1 Ann has the red hat.\n2 Bo sleeps.\n3 Who has a hat?\tAnn\t1\n4 Bo eats, as Ann does.\n"
STORY += "5 Who eats?\tBo,Ann\t4\n"


def test_files_are_read_by_sections_and_a_run_keeps_their_sizes(tmp_path):
    file = tmp_path / "stories.txt"
    file.write_text(STORY * 20)
    config = Babi.Config(path=str(file), sections=2, answers="chosen")
    task = Babi(config)
    assert (
        task.section_length == 1 + 2 * 7 and {"1", "2"} <= {*task.words} and "3" not in task.words
    )
    found = {read(task, task.batch(0, 30), row)[2] for row in range(30)}
    assert found == {"who has a hat?", "who eats?"}
    run = tmp_path / "run"
    run.mkdir()
    task.save_to_run(run)
    again = Babi.from_run(config, 0, run)
    assert again.section_length == 15 and again.words == task.words
    assert torch.equal(again.batch(0, 9).sections, task.batch(0, 9).sections)
    wider = Babi.from_run(Babi.Config(path=str(file), sections=3, answers="chosen"), 0, run)
    assert wider.section_length == 22
    narrow = Babi.from_run(Babi.Config(path=str(file), sections=1, answers="chosen"), 0, run)
    with pytest.raises(UsageError, match="a story of 3 statements, in sections of 1\n.*at most 2"):
        narrow.batch(0, 9)


def test_a_run_on_sections_is_not_resumed_with_other_stories(tmp_path):
    file = tmp_path / "stories.txt"
    file.write_text(STORY * 20)
    config = Babi.Config(path=str(file), sections=2)
    Babi(config).save_to_run(tmp_path)
    Babi(config).save_to_run(tmp_path)
    file.write_text(STORY.replace("red hat", "hat red") * 20)  # in sections alone
    with pytest.raises(Exception, match="other stories than when the run began"):
        Babi(config).save_to_run(tmp_path)
