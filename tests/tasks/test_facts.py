"""Facts in documents: batches, answers and evidence against plain loops, stages, texts, scores."""

import json
from itertools import product

import pytest
import torch
from fact_oracle import Reader, document_of, facts_of, question_of, solved
from model_cases import tiny

from thinkers.errors import UsageError
from thinkers.models.batch import as_batch
from thinkers.tasks import SPLITS, build_task
from thinkers.tasks.fact_documents import grid

CASES = [
    {},
    {"num_sections": 1, "questions": 3},
    {"hops": 2, "num_sections": 5},
    {"text": "sentences", "num_sections": 6},
    {"text": "sentences", "hops": 2, "num_entities": 9, "num_relations": 3, "num_sections": 13},
]
FIELDS = ("tokens", "targets", "prompt_lengths", "lengths", "keys")
SHARED = ("sections", "section_lengths", "document")


def texts(task, batch):
    """The document, question and answer of each row."""
    ends = batch.targets.gather(1, batch.lengths[:, None] - 1)
    rows = range(len(batch))
    return [
        (document_of(task, batch, i), question_of(task, batch, i), task.decode(ends[i]))
        for i in rows
    ]


def equal(a, b):
    return all(torch.equal(getattr(a, x), getattr(b, x)) for x in (*FIELDS, *SHARED))


@pytest.mark.parametrize("own", CASES)
def test_answers_and_their_sections_are_those_of_a_loop(own):
    task = build_task("facts", seed=3, **own)
    hops = set()
    for split in SPLITS:
        batch = task.batch(1, 41, split)
        found = zip(texts(task, batch), task.evidence(batch), task.hops_of(batch), strict=True)
        for (sections, question, answer), places, count in found:
            right, needed = solved(sections, question)
            assert answer == right and len(needed) == count
            assert places.tolist() == needed + [-1] * (task.config.hops - len(needed))
            hops.add(int(count))
        assert ((batch.targets != -100).sum(1) == 1).all()
        assert torch.equal(batch.prompt_lengths, batch.lengths)
        assert (batch.document_keys is not None) == (split == "train")
    assert hops == set(range(1, task.config.hops + 1))


@pytest.mark.parametrize("own", CASES)
def test_a_document_has_two_facts_a_section_and_no_two_of_equal_keys(own):
    task = build_task("facts", seed=3, **own)
    batch, size = task.batch(0, 50, "test"), task.config.num_sections
    assert batch.sections.shape == (-(-50 // task.config.questions), size, task.section_length)
    assert (
        batch.sections[torch.arange(task.section_length) >= batch.section_lengths[..., None]] == 0
    ).all()
    for row in range(0, 50, task.config.questions):
        facts = [facts_of(section) for section in document_of(task, batch, row)]
        assert [len(x) for x in facts] == [2] * size
        whole = {key: value for x in facts for key, value in x.items()}
        assert len(whole) == 2 * size
        entities = {entity for entity, _ in whole}
        if task.config.hops > 1:
            assert set(whole.values()) <= entities
        limits = grid(2 * size, task.config.num_entities, task.config.num_relations)
        assert len(entities) <= limits[0] and len({x for _, x in whole}) <= limits[1]


def test_neither_half_of_a_key_tells_the_fact():
    task = build_task("facts")
    batch = task.batch(0, 80, "test")
    for sections, _, _ in texts(task, batch)[::8]:
        keys = [key for section in sections for key in facts_of(section)]
        for half in (0, 1):
            counts = [sum(key[half] == other[half] for other in keys) for key in keys]
            assert sum(counts) / len(counts) > 3


def test_a_grid_has_room_for_the_facts():
    for facts, entities, relations in product((2, 3, 8, 33, 512), (3, 24, 200), (3, 24, 200)):
        if facts <= entities * relations:
            width, height = grid(facts, entities, relations)
            assert width <= entities and height <= relations and width * height >= facts


@pytest.mark.parametrize("split", SPLITS)
def test_a_row_is_a_function_of_seed_split_update_and_row(split):
    task = build_task("facts", seed=7, hops=2, num_sections=3, questions=8)
    batch = task.batch(5, 21, split)
    longer = task.batch(5, 50, split)
    assert equal(longer.rows(slice(21)), batch)
    if split == "train":
        assert torch.equal(longer.document_keys[:3], batch.document_keys)
        assert len(set(longer.document_keys.tolist())) == 7
    others = [
        task.batch(6, 21, split),
        build_task("facts", seed=8, hops=2, num_sections=3, questions=8).batch(5, 21, split),
        task.batch(5, 21, "valid" if split == "train" else "train"),
    ]
    for other in others:
        assert texts(task, other)[0] != texts(task, batch)[0]
        assert not set(other.keys.tolist()) & set(batch.keys.tolist())
    assert equal(
        build_task("facts", seed=7, hops=2, num_sections=3, questions=8).batch(5, 21, split), batch
    )


def test_splits_share_no_set_of_facts():
    task = build_task("facts", num_entities=3, num_relations=3, num_sections=1, questions=1)
    seen = {}
    for split, rows in zip(SPLITS, (4000, 400, 400), strict=True):
        keys = [task.texts.keys_of(x[0]) for x in task.batch(0, rows, split).sections.tolist()]
        seen[split] = {frozenset([tuple(x[:3]), tuple(x[3:])]) for x in keys}
    assert not seen["train"] & seen["test"] and not seen["valid"] & (seen["train"] | seen["test"])
    assert len(set.union(*seen.values())) == 324  # two of nine keys, with one of three values each


def test_words_stand_at_all_places():
    task = build_task("facts", num_sections=64, questions=1)
    sections = task.batch(0, 40, "test").sections.flatten(0, 1)
    assert sections.unique().tolist() == list(range(task.vocab_size - 1))
    starts = (sections >= 48).int()
    assert len({tuple(row) for row in starts.tolist()}) == 6  # all orders of 2 facts and 2 words
    sentences = build_task("facts", num_sections=64, text="sentences", questions=1)
    lengths = sentences.batch(0, 40, "test").section_lengths
    assert lengths.unique().tolist() == [8, 9, 10, 11, 12]


def test_levels_begin_with_the_shortest_documents():
    task = build_task("facts", curriculum=True, num_sections=12, levels=3, window=40)
    assert task.stages == [(1, 2, 1), (1, 2, 2), (1, 2, 3), (1, 4, 3), (1, 8, 3), (1, 12, 3)]
    for stage, (_, _, highest) in enumerate(task.stages):
        while task.difficulty < stage:
            task.observe(torch.ones(40, dtype=torch.bool))
        levels = torch.cat([task.batch(update, 40).document_levels for update in range(20)])
        assert set(levels.tolist()) == set(range(1, highest + 1))


def test_stages_double_the_sections_and_end_with_two_hops():
    task = build_task("facts", curriculum=True, num_sections=12, hops=2, window=40)
    assert task.stages == [(1, 2, 1), (1, 4, 1), (1, 8, 1), (1, 12, 1), (2, 12, 1)]
    sizes, hops = {}, {}
    for stage in task.levels:
        assert task.difficulty == stage
        batches = [task.batch(update, 40) for update in range(40)]
        longest = task.stages[stage][1]
        found = [batch.sections.shape[1] for batch in batches]
        assert [task.sections_of(update) for update in range(40)] == found
        sizes[stage], shorter = set(found), sum(x < longest for x in found)
        assert 3 < shorter < 20  # 30 %
        hops[stage] = {int(x) for batch in batches for x in task.hops_of(batch)}
        state = task.state_dict()
        while task.difficulty == stage and stage < task.levels[-1]:
            task.observe(torch.ones(40, dtype=torch.bool))
            assert task.observed < state["observed"] + 30
    assert [sizes[stage] for stage in range(4)] == [
        {1, 2},
        {1, 2, 4},
        {1, 2, 4, 8},
        {1, 2, 4, 8, 12},
    ]
    assert [hops[stage] for stage in task.levels] == [{1}] * 4 + [{1, 2}]
    assert task.batch(0, 9, "valid").sections.shape[1] == 12
    plain = build_task("facts", num_sections=12, hops=2)
    task.skip_curriculum()
    assert equal(plain.batch(4, 9), task.batch(4, 9))
    assert equal(plain.batch(4, 9, "test"), task.batch(4, 9, "test"))


def test_only_the_longest_documents_count_for_the_curriculum():
    task = build_task("facts", curriculum=True, first_sections=8, window=8)
    seen = set()
    for update in range(40):
        before = task.accuracy
        is_longest = task.sections_of(update) == 8
        task.observe(torch.arange(8) < update % 7)
        assert (task.accuracy != before) <= is_longest
        if is_longest:
            assert task.accuracy == (update % 7) / 8
        seen.add(is_longest)
    assert seen == {True, False} and task.difficulty == 0


def test_the_curriculum_resumes():
    task = build_task("facts", curriculum=True, hops=2, num_sections=4, window=50)
    states = []
    for update in range(40):
        states.append((json.loads(json.dumps(task.state_dict())), task.batch(update, 16)))
        task.observe(torch.ones(16, dtype=torch.bool))
    assert task.difficulty == task.levels[-1]
    last = task.state_dict()
    for update, (state, batch) in enumerate(states):
        again = build_task("facts", curriculum=True, hops=2, num_sections=4, window=50)
        again.load_state_dict(state)
        assert equal(again.batch(update, 16), batch)
    again.observe(torch.ones(16, dtype=torch.bool))
    assert again.state_dict() == last
    for state in ({}, {"difficulty": 0, "accuracy": 0.0}, {"observed": 1}, {**last, "more": 1}):
        with pytest.raises(UsageError, match="state must hold"):
            again.load_state_dict(state)


@pytest.mark.parametrize("own", CASES)
def test_sections_and_questions_are_read_as_they_are_written(own):
    task = build_task("facts", **own)
    batch = task.batch(0, 20, "test")
    for row, (sections, question, answer) in enumerate(texts(task, batch)):
        number, length = int(batch.document[row]), int(batch.lengths[row])
        for place, text in enumerate(sections):
            end = batch.section_lengths[number, place]
            assert task.encode(text) == batch.sections[number, place, :end].tolist()
        read = task.read_prompt(question)
        assert read.tokens == task.encode(question) == batch.tokens[row, :length].tolist()
        assert (read.begun, read.longest) == (0, 1)
        assert len(read.tokens) + 1 <= task.max_length
        assert task.with_answer(question, task.encode(answer)) == f"{question} {answer}"
        assert task.encode(answer)[0] < task.num_output_tokens


def test_the_words_are_those_of_the_contract():
    task = build_task("facts")
    assert task.decode(task.encode("n15 e3 r5 e17 e0 r23 e1 n0")) == "n15 e3 r5 e17 e0 r23 e1 n0"
    assert task.encode("e3 r5?") == task.encode(" E3  r5 ?")
    sentences = build_task("facts", text="sentences")
    text = "Today Anna often admires Boris. Boris avoids Anna."
    assert sentences.decode(sentences.encode(text.lower())) == text


@pytest.mark.parametrize(
    "own, text, message",
    [
        ({}, "e3 r24 ?", "word 1 of 'e3 r24 \\?' is 'r24'\nexpected: e0 .. e23, r0 .. r23, n0"),
        ({}, "", "an empty prompt"),
        ({}, "e3 r5", "found: 'e3 r5'\nexpected: a question of one hop\nfix: .* e0 r0 \\?"),
        ({}, "r5 e3 ?", "a question of one hop"),
        ({}, "e3 r5 r2 ?", "a question of one hop"),
        ({"hops": 2}, "e3 ?", "at most 2 hops\nfix: write one such as e0 r0 \\? or e0 r0 r1 \\?"),
        ({"hops": 2}, "e3 r5 r2 r1 ?", "at most 2 hops"),
        ({"hops": 2}, "e3 r5 ? e1", "at most 2 hops"),
        ({"hops": 2}, "e3 r5 n1 ?", "at most 2 hops"),
        (
            {"text": "sentences"},
            "Ada admires me?",
            "word 2 of .* is 'me'\nexpected: Ada .. Hugo, admires",
        ),
        ({"text": "sentences", "hops": 2}, "Ada admires who?", "or Ada admires someone who"),
    ],
)
def test_other_texts_are_refused(own, text, message):
    with pytest.raises(UsageError, match=message):
        build_task("facts", **own).read_prompt(text)


@pytest.mark.parametrize(
    "own, message",
    [
        ({"num_entities": 2}, "num_entities must be an integer in 3"),
        ({"hops": 3}, "hops must be an integer in 1 .. 2"),
        ({"two_hops": 0.0}, "two_hops must be above 0 and at most 1, got 0.0"),
        ({"questions": 0}, "questions must be"),
        ({"first_sections": 0}, "first_sections must be"),
        ({"threshold": 1.5}, "threshold must be"),
        ({"text": "verse"}, r"text must be one of \['codes', 'sentences'\], got 'verse'"),
        ({"text": "sentences", "num_entities": 65}, r"in 1 .. 64 \(names of text sentences\)"),
        (
            {"num_sections": 289},
            "num_sections 289, whose 578 facts are more than the 576 pairs of 24 entities and 24 "
            "relations\nexpected: at most 288 sections.*\nfix: set num_entities=64",
        ),
        ({"num_sections": 5000, "num_relations": 64}, "set num_entities=100 and num_relations=100"),
    ],
)
def test_settings_out_of_range_are_refused(own, message):
    with pytest.raises(UsageError, match=message):
        build_task("facts", **own)


def test_as_many_facts_as_there_are_pairs():
    task = build_task("facts", num_entities=4, num_relations=3, num_sections=6, hops=2)
    sections, question, answer = texts(task, task.batch(0, 8, "test"))[3]
    assert len({key for x in sections for key in facts_of(x)}) == 12
    assert solved(sections, question)[0] == answer


def test_scores_are_those_of_what_is_read():
    task = build_task("facts", hops=2, num_sections=4, questions=5)
    found = task.score(Reader(task), num_examples=103)
    assert found == {"exact": 1.0, "one_hop": 1.0, "two_hops": 1.0}
    half = Reader(task, known=2)
    grades = task.grade(half, num_examples=103)
    batches = list(task.evaluation_batches("test", 103))
    evidence = torch.cat([task.evidence(batch) for batch in batches])
    assert torch.equal(grades, (evidence < 2).all(1).double())
    scores, hops = task.score(half, num_examples=103), torch.cat(list(map(task.hops_of, batches)))
    assert list(scores) == ["exact", "one_hop", "two_hops"]
    assert scores["exact"] == grades.mean() and scores["two_hops"] == grades[hops == 2].mean()
    rows = list(task.graded_rows(half, "test", 103, None))
    assert torch.equal(torch.cat([x.grades for x in rows]), grades)
    assert list(build_task("facts").score(Reader(build_task("facts")), num_examples=9)) == ["exact"]
    groups = task.groups("test", 103)
    of_document = {}
    for row, text in enumerate(x for batch in batches for x in texts(task, batch)):
        of_document.setdefault(tuple(text[0]), set()).add(int(groups[row]))
    assert all(len(x) == 1 for x in of_document.values()) and len(of_document) == 21


@pytest.mark.parametrize("sections, questions", [(256, 8), (1024, 3), (2, 8), (1, 700)])
def test_documents_of_at_most_2000_sections_are_read_at_once(sections, questions):
    sizes = {"num_entities": 64, "num_relations": 64, "questions": questions}
    task = build_task("facts", num_sections=sections, **sizes)
    batches = list(task.evaluation_batches("valid", 30))
    assert sum(map(len, batches)) == 30
    assert max(batch.sections[..., 0].numel() for batch in batches) <= 2000
    assert all(len(batch) % questions == 0 for batch in batches[:-1])


@pytest.mark.parametrize("name", ["decoder", "thinker"])
def test_a_model_without_a_memory_is_refused(name):
    with pytest.raises(UsageError, match=f"questions about documents for {name} without a memory"):
        build_task("facts").check(tiny(name, {}))


def test_a_model_of_shorter_sections_is_refused():
    task = build_task("facts", text="sentences")
    task.check(Reader(task))
    with pytest.raises(UsageError, match="memory_section 8\nexpected: at least 12, .*tokens of a"):
        task.check(Reader(task, memory_section=8))


def test_batches_pass_the_checks_of_a_model():
    task = build_task("facts", hops=2, num_sections=3)
    reader = Reader(task)
    reader.config.vocab_size = task.vocab_size
    reader.check_tokens = lambda tokens, lengths, prompt_lengths: tokens
    for split in SPLITS:
        batch = task.batch(0, 20, split)
        assert equal(as_batch(batch, reader), batch)
