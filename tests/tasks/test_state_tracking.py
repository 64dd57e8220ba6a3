"""Cups, automaton and links against solvers in plain Python; splits, text, lessons."""

import json

import pytest
import torch
from state_oracles import SOLVE

from thinkers.errors import UsageError
from thinkers.tasks import SPLITS, build_task

CASES = [
    ("cups", {}),
    ("cups", dict(num_cups=3, min_length=5, max_length=7)),
    ("cups", dict(num_cups=9, targets="last")),
    ("cups", dict(written=True)),
    ("cups", dict(min_length=24, max_length=24)),
    ("automaton", {}),
    ("automaton", dict(rule=86, width=31, min_updates=3, max_updates=12, num_counts=12)),
    ("links", {}),
    ("links", dict(num_values=10, max_back=9, max_depth=3, min_length=2, max_length=40)),
    ("links", dict(curriculum=True)),
]
SMALL = {
    "cups": dict(num_cups=3, min_length=4, max_length=4),
    "automaton": dict(width=7),
    "links": dict(num_values=2, max_back=2, min_length=4, max_length=4, max_depth=3),
}
NAMES = list(SMALL)
cases = pytest.mark.parametrize(
    "name, own", CASES, ids=[f"{n}{i}" for i, (n, _) in enumerate(CASES)]
)


def equal(a, b):
    pairs = [(getattr(a, x), getattr(b, x)) for x in vars(a)]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


def rows(batch):
    """Yield the tokens, targets and due steps of each row, without padding."""
    due = torch.zeros_like(batch.tokens) if batch.due is None else batch.due
    for i, length in enumerate(batch.lengths.tolist()):
        assert (batch.targets[i, length:] == -100).all() and (due[i, length:] == 0).all()
        yield tuple(x[i, :length].tolist() for x in (batch.tokens, batch.targets, due))


def inputs(task, row):
    """Return the tokens of a row that are given, without written states."""
    written = getattr(task.config, "written", False)
    return [row[0], *row[1::2]] if written else row


def prompts(task, batch):
    return [task.decode(inputs(task, row)) for row, _, _ in rows(batch)]


@cases
def test_targets_and_due_steps_are_those_of_a_loop_in_python(name, own):
    task = build_task(name, seed=3, **own)
    for split in SPLITS:
        sizes = set()
        for update in range(5):
            for row, targets, due in rows(task.batch(update, 13, split)):
                assert row[0] == task.start_token and targets[0] == -100
                found = SOLVE[name](task.decode(inputs(task, row)), **vars(task.config))
                sizes.add(len(found))
                if own.get("written"):
                    states = [int(answer) - 1 for answer, _ in found]
                    assert row[2::2] == states[:-1] and targets[1::2] == states
                    assert set(targets[2::2]) <= {-100}
                    continue
                values, steps = zip(*found, strict=True)
                first = len(row) - len(found)
                assert due == [*[1] * first, *steps] and max(due) <= task.max_due
                graded = [x if x == -100 else task.decode([x]) for x in targets]
                if own.get("targets") == "last":
                    assert graded == [-100] * (len(row) - 1) + [values[-1]]
                else:
                    assert graded == [-100] * first + list(values)
        if name == "cups" and split != "train":
            assert sizes <= set(task.sizes) and len(sizes) > len(task.sizes) // 2


@cases
def test_the_length_of_a_row_is_within_that_of_the_task(name, own):
    task = build_task(name, **own)
    batch = task.batch(0, 300, "test")
    written = own.get("written", False)
    assert int(batch.lengths.max()) + 1 <= task.max_length
    assert int(batch.lengths.max()) + 1 == task.max_length or name == "links"
    assert batch.tokens.max() == task.start_token == task.vocab_size - 1
    assert batch.prompt_lengths.tolist() == ([2] * 300 if written else batch.lengths.tolist())
    assert (batch.due is None) == (task.max_due is None) == written
    assert task.wait_token == (None if written else task.start_token)


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_functions_of_seed_split_update_and_row(name):
    task = build_task(name, seed=7)
    updates = (0, 54, 55, 1000)
    batches = {update: task.batch(update, 37) for update in updates}
    task.batch(3, 5)
    for update in reversed(updates):
        assert equal(task.batch(update, 37), batches[update])
        task.batch(update, 11, "test")
        assert equal(build_task(name, seed=7).batch(update, 37), batches[update])
    for split in SPLITS:
        few, many = task.batch(2, 20, split), task.batch(2, 61, split)
        width = few.tokens.shape[1]
        assert torch.equal(few.keys, many.keys[:20])
        assert torch.equal(few.tokens, many.tokens[:20, :width])
        assert torch.equal(few.due, many.due[:20, :width])
    others = [task.batch(3, 37), task.batch(2, 37, "test"), build_task(name, seed=8).batch(2, 37)]
    assert all(prompts(task, x) != prompts(task, task.batch(2, 37)) for x in others)
    task.batch(0, 5).tokens.zero_()
    assert equal(task.batch(0, 5), build_task(name, seed=7).batch(0, 5))


@pytest.mark.parametrize("name", NAMES)
def test_an_update_has_rows_of_one_size_and_a_held_out_batch_all_sizes(name):
    task = build_task(name, seed=1)

    def sizes(batch):
        if name == "automaton":
            return [prompt.split(":")[0] for prompt in prompts(task, batch)]
        return batch.lengths.tolist()

    number = len(task.sizes)
    trained = [sizes(task.batch(update, 9)) for update in range(4 * number)]
    assert all(len(set(one)) == 1 for one in trained) or name == "links"  # their depth is limited
    cycles = [[max(one) for one in trained[i : i + number]] for i in range(0, 4 * number, number)]
    assert all(len(set(cycle)) == number for cycle in cycles) or name == "links"
    assert len({str(cycle) for cycle in cycles}) == 4
    every = {size for cycle in cycles for size in cycle}
    assert set(sizes(task.batch(0, 400, "valid"))) == every and len(every) == number


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_row_and_cover_all_at_any_seed(name):
    found = {}
    for split in SPLITS:
        drawn = []
        for seed in (0, 5):
            task = build_task(name, seed, **SMALL[name])
            drawn += [x for u in (0, 9) for x in prompts(task, task.batch(u, 500, split))]
        found[split] = {x.split(":")[-1] for x in drawn}  # a start is held out at every number
        assert found[split]
    assert not found["train"] & (found["valid"] | found["test"])
    assert not found["valid"] & found["test"]
    every = {"cups": 3**4, "automaton": 2**7}
    total = sum(map(len, found.values()))
    assert total == every.get(name, total) > 40
    assert len(found["train"]) > 0.6 * total


def test_held_out_rows_are_those_of_longer_and_of_written_rows_too():
    short = build_task("cups", max_length=3)
    held = set(prompts(short, short.batch(0, 900, "test")))
    for own in (dict(max_length=30), dict(written=True), dict(targets="last")):
        other = build_task("cups", seed=4, **own)
        seen = {x for u in range(60) for x in prompts(other, other.batch(u, 32))}
        assert not held & seen and sum(len(x) < 9 for x in seen) > 60


@pytest.mark.parametrize(
    "name, text, tokens",
    [
        ("cups", "12 35 14", [15, 5, 13, 7]),
        ("cups", "45 3", [15, 14, 2]),
        ("automaton", "3:01101", [10, 4, 0, 1, 1, 0, 1]),
        ("automaton", "0110", [10, 0, 1, 1, 0]),
        ("links", "1+3 2+0 3+4", [20, 8, 10, 19]),
        ("links", "2 ? 0", [20, 2, 20, 0]),
    ],
)
def test_text_and_tokens_of_known_rows(name, text, tokens):
    task = build_task(name)
    assert task.decode(tokens if "?" not in text else tokens[1:]) == text
    if "?" not in text:
        assert task.encode(text) == task.encode(f" {text} ") == tokens


@cases
def test_text_and_tokens_are_inverse(name, own):
    task = build_task(name, **own)
    batch = task.batch(1, 47)
    for row, targets, _ in rows(batch):
        assert task.encode(task.decode(row)) == row
        answer = [x for x in targets if x != -100]
        assert task.encode(task.decode(torch.tensor(answer))) == [task.start_token, *answer]


def test_a_start_token_in_answers_is_a_question_mark_of_links():
    task = build_task("links")
    assert task.decode([20, 8]) == "1+3" and task.decode([20]) == "?"
    assert task.decode([20, 20]) == "? ?" and task.decode([20, 3]) == "? 3"
    assert build_task("cups").decode([15, 5, 15]) == "12"


def test_more_updates_than_count_tokens_have_the_last():
    task = build_task("automaton", min_updates=16, max_updates=16)
    assert task.vocab_size == build_task("automaton").vocab_size == 11
    assert task.encode("16:01") == task.encode("8:01") == [10, 9, 0, 1]
    batch = task.batch(0, 9, "test")
    assert (batch.tokens[:, 1] == 9).all() and (batch.due[:, 2:] == 16).all()
    for row, targets, _ in rows(batch):
        found = SOLVE["automaton"](task.decode(row), updates=16)
        assert targets[2:] == [int(cell) for cell, _ in found]


def test_a_lesson_limits_the_due_step_and_draws_links_evenly():
    task = build_task("links", seed=2, curriculum=True, threshold=0.8, window=64)
    right, wrong = torch.ones(64, dtype=torch.bool), torch.arange(64) < 48
    for lesson in range(2, 13):
        assert task.difficulty == lesson
        if lesson in (4, 7, 9, 11):
            task.observe(right)
            continue
        state = json.loads(json.dumps(task.state_dict()))
        chosen = {}
        for update in range(8):
            for row, _, due in rows(task.batch(update, 53)):
                assert max(due) <= lesson
                depth = [0, *due[1:]]
                allowed = [
                    [i for i in (1, 2, 3) if depth[max(0, t - i)] < lesson]
                    for t in range(1, len(row) + 1)
                ]
                for t, token in enumerate(row[1:]):
                    if len(allowed[t]) == 2:
                        back = (token - 5) // 5 + 1
                        chosen.setdefault(tuple(allowed[t]), []).append(back == allowed[t][0])
                # A row that is shorter than its update's longest ends where no link is allowed.
                assert allowed[-1] == [] or len(row) in range(5, 26)
        shares = [sum(x) / len(x) for x in chosen.values() if len(x) > 200]
        assert all(abs(share - 0.5) < 0.15 for share in shares)
        again = build_task("links", seed=2, curriculum=True)
        again.load_state_dict(state)
        assert equal(again.batch(7, 31), task.batch(7, 31))
        held = build_task("links", seed=2).batch(7, 31, "test")
        assert equal(again.batch(7, 31, "test"), held)
        for _ in range(9):
            task.observe(wrong)
        assert task.difficulty == lesson
        task.observe(right)
    assert task.difficulty == 12 and list(task.levels) == list(range(2, 13))


def test_rows_of_a_lesson_end_where_no_link_is_allowed():
    task = build_task("links", curriculum=True, min_length=20, max_length=20)
    for row, _, due in rows(task.batch(0, 200)):
        assert len(row) < 21 and min(due[-3:]) == 2 and (len(row) < 5 or min(due[-4:-1]) < 2)


@pytest.mark.parametrize("own", [{}, dict(written=True)])
def test_shares_of_prefixes_are_those_of_sets_of_texts(own):
    task = build_task("cups", seed=1, max_length=6, **own)
    known = set()
    for update in range(70):
        for prompt in prompts(task, task.batch(update, 32)):
            words = prompt.split()
            known |= {tuple(words[:n]) for n in range(1, len(words))}
    held = [tuple(x.split()) for u in (0, 1) for x in prompts(task, task.batch(u, 500, "test"))]
    shares = task.prefix_shares(70, 32, num_examples=1000)
    assert list(shares) == [2, 3, 4, 5, 6] and shares[6] == 0 < shares[5] < shares[2] == 1
    for size, share in shares.items():
        mine = [row for row in held if len(row) == size]
        assert share == pytest.approx(sum(row in known for row in mine) / len(mine))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: build_task("cups", num_cups=2), "rows of size 2 for (train|valid|test), got none"),
        (lambda: build_task("cups", num_cups=10), "num_cups must be .* in 2 .. 9, got 10"),
        (lambda: build_task("cups", max_length=1), "max_length must be .* got 1"),
        (lambda: build_task("cups", targets="all"), "targets must be every or last, got 'all'"),
        (lambda: build_task("cups", targets="last", written=True), "targets must be every if"),
        (lambda: build_task("automaton", width=1), "must have rows of size 1 for .*, got none"),
        (lambda: build_task("automaton", rule=256), "rule must be .* in 0 .. 255, got 256"),
        (lambda: build_task("automaton", max_updates=0), "max_updates must be .* got 0"),
        (lambda: build_task("links", max_back=0), "max_back must be .* in 1 .. 9, got 0"),
        (lambda: build_task("links", threshold=2.0), "threshold must be .* got 2.0"),
        (lambda: build_task("cups").encode("12 11"), "word 1 of '12 11' is '11'"),
        (lambda: build_task("cups").encode("16"), "word 0 of '16' is '16'"),
        (lambda: build_task("cups").read_prompt(" "), "an empty prompt"),
        (lambda: build_task("cups").read_prompt("12 3"), "word 1 of '12 3', which is an answer"),
        (lambda: build_task("cups").decode([16]), "token 0 must be .* in 0 .. 15, got 16"),
        (lambda: build_task("automaton").encode("x:01"), "'x' updates in 'x:01'"),
        (lambda: build_task("automaton").encode("0:01"), "'0' updates in '0:01'"),
        (lambda: build_task("automaton").encode("3:021"), "character 3 of '3:021' is '2'"),
        (lambda: build_task("automaton").read_prompt("01"), "a number of updates, a colon"),
        (lambda: build_task("automaton").read_prompt("3:"), "a number of updates, a colon"),
        (lambda: build_task("links").encode("1+3 4+0"), "word 1 of '1\\+3 4\\+0' is '4\\+0'"),
        (lambda: build_task("links").read_prompt("1+3 2"), "word 1 of .*, which is an answer"),
        (lambda: build_task("links").load_state_dict({}), "must hold difficulty and accuracy"),
        (lambda: build_task("cups").batch(-1, 3), "update must be .*, got -1"),
        (lambda: build_task("cups").batch(0, 3, "exam"), "split must be one of .*, got 'exam'"),
        (lambda: build_task("cups", written=True).by_due(None), "answers have no due step"),
    ],
)
def test_errors_name_the_value_and_the_rule(call, said):
    with pytest.raises(UsageError, match=said):
        call()
