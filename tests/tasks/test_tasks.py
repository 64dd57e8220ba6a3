"""Properties of all number tasks: pure batches, disjoint splits, layout, curricula, errors."""

import json
import re
from itertools import pairwise, product

import pytest
import torch
from torch import nn

from thinkers.errors import UsageError
from thinkers.models.batch import Batch
from thinkers.tasks import TASKS, build_task, from_config
from thinkers.tasks.number_task import NumberTask
from thinkers.tasks.number_tokens import END, PAD

SMALL = {
    "copy": dict(max_length=2),
    "reverse": dict(max_length=2),
    "sort": dict(max_length=2),
    "rotate": dict(max_length=2),
    "shift": dict(max_length=2),
    "jump": dict(max_length=4),
    "running_sum": dict(max_length=2),
    "add": dict(max_digits=1),
    "subtract": dict(max_digits=1),
    "multiply": dict(max_digits=1),
    "arithmetic": dict(max_digits=1, max_operators=1),
    "factorise": dict(max_digits=2),
}
NUMBERS = [name for name, task in TASKS.items() if issubclass(task, NumberTask)]
SPLITS = ("train", "valid", "test")


def equal(a: Batch, b: Batch) -> bool:
    names = ("tokens", "targets", "prompt_lengths", "lengths", "keys")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def prompts(task, batch):
    return [
        task.decode(row[:length])
        for row, length in zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), strict=True)
    ]


def different_prompts(task, update, batch_size, split="train"):
    batch = task.batch(update, batch_size, split)
    beyond = torch.arange(batch.tokens.shape[1]) >= batch.prompt_lengths[:, None]
    rows = batch.tokens.masked_fill(beyond, PAD).unique(dim=0)
    return {task.decode(row) for row in rows.tolist()}


def canonical(name: str, prompt: str) -> str:
    """Return the prompt, the same for sums and products whose operands are exchanged."""
    if name not in ("add", "multiply"):
        return prompt
    return "".join(sorted(re.findall(r"\w+", prompt))) + "="


@pytest.mark.parametrize("name", NUMBERS)
def test_batches_do_not_depend_on_earlier_calls(name):
    """Across the boundaries of blocks, forwards, backwards, and for a new task."""
    task, updates = build_task(name, seed=7), (0, 1, 62, 63, 64, 65, 1000)
    batches = {update: task.batch(update, 37) for update in updates}
    task.batch(3, 5)
    for update in reversed(updates):
        assert equal(task.batch(update, 37), batches[update])
        task.batch(update, 11, "test")
        assert equal(build_task(name, seed=7).batch(update, 37), batches[update])


@pytest.mark.parametrize("name", NUMBERS)
def test_a_row_depends_on_seed_split_update_and_row(name):
    task = build_task(name, seed=7)
    batch = task.batch(2, 37)
    assert equal(task.batch(2, 61).rows(slice(37)), batch)
    others = [
        task.batch(3, 37),
        task.batch(2, 37, "valid"),
        task.batch(2, 37, "test"),
        build_task(name, seed=8).batch(2, 37),
        build_task(name, seed=-7).batch(2, 37),
        batch.rows(slice(1, None)),
    ]
    for other in others:
        assert not set(other.keys.tolist()) & set(batch.keys[:1].tolist())
        assert other.tokens[:5].tolist() != batch.tokens[:5].tolist()
    assert len(set(batch.keys.tolist())) == 37


def test_writing_to_a_batch_does_not_change_the_next_one():
    task = build_task("add")
    task.batch(0, 5).tokens.zero_()
    assert equal(task.batch(0, 5), build_task("add").batch(0, 5))


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("blanks", [False, True])
def test_layout_of_a_batch(name, blanks):
    task = build_task(name, blanks=blanks)
    for split in SPLITS:
        batch = task.batch(4, 211, split)
        assert batch.tokens.shape == batch.targets.shape == (211, task.max_length - 1)
        assert {x.dtype for x in (batch.tokens, batch.targets, batch.keys)} == {torch.int64}
        for row, targets, p, length in zip(
            *(batch.tokens, batch.targets, batch.prompt_lengths.tolist(), batch.lengths.tolist()),
            strict=True,
        ):
            assert row[p - 1] == 20 and (row[length:] == PAD).all()
            assert not torch.isin(row[:length], torch.tensor([END, PAD])).any()
            assert row[:length].max() < task.vocab_size
            assert targets[p - 1 : length - 1].tolist() == row[p:length].tolist()
            assert targets[length - 1] == END
            assert (targets[: p - 1] == -100).all() and (targets[length:] == -100).all()
        if blanks:
            assert len(set(batch.prompt_lengths.tolist())) == 1 or name == "arithmetic"


@pytest.mark.parametrize("name", NUMBERS)
def test_max_length_is_the_longest_prompt_and_the_longest_answer(name):
    task = build_task(name)
    longest_prompt = longest_answer = 0
    for update in range(8):
        batch = task.batch(update, 4096)
        longest_prompt = max(longest_prompt, int(batch.prompt_lengths.max()))
        longest_answer = max(longest_answer, int((batch.targets != -100).sum(1).max()))
    assert longest_prompt + longest_answer == task.max_length


@pytest.mark.parametrize("operators", ["+", "-", "*", "+-", "-*", "+*", "+-*"])
@pytest.mark.parametrize("least, most", [(0, 1), (0, 3), (1, 2), (2, 5)])
def test_results_of_chains_are_within_their_bounds(operators, least, most):
    """All chains of up to three operators; if 0 is an operand, the bounds are tight."""
    chain = build_task("arithmetic", operators=operators, max_operators=3)
    results = []
    for count in (1, 2, 3):
        for signs in product(operators, repeat=count):
            for operands in product(range(least, most + 1), repeat=count + 1):
                pairs = zip(operands, (*signs, ""), strict=True)
                results.append(eval("".join(f"{x}{sign}" for x, sign in pairs)))
    low, high = chain.bounds(least, most)
    assert low <= min(results) and max(results) <= high
    if least == 0:
        assert (low, high) == (min(results), max(results))


@pytest.mark.parametrize("name", NUMBERS)
def test_splits_are_disjoint_and_cover_all_examples(name):
    """For settings so small that every example is drawn."""
    found = {}
    for split in SPLITS:
        task = build_task(name, seed=SPLITS.index(split), **SMALL[name])
        drawn = set().union(*(different_prompts(task, u, 4096, split) for u in range(2)))
        found[split] = {canonical(name, prompt) for prompt in drawn}
        assert found[split]
    assert not found["train"] & (found["valid"] | found["test"])
    assert not found["valid"] & found["test"]
    assert sum(map(len, found.values())) == task.num_examples(task.config.sizes[-1])


def test_splits_are_8_1_1_of_a_large_space():
    task = build_task("multiply", min_digits=5, max_digits=5)
    keys = build_task("copy").batch(0, 20_000).keys.numpy().view("uint64")
    from thinkers.prng import Draws

    counts = torch.from_numpy(task.split_of(task.draw(Draws(keys), 5))).bincount() / 20_000
    assert counts.tolist() == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_held_out_example_is_held_out_of_every_training(name):
    """At another seed, at larger sizes, in an earlier curriculum stage, and with blanks."""
    own = SMALL[name]
    field = "max_digits" if "max_digits" in own else "max_length"
    task = build_task(name, **own)
    held = different_prompts(task, 0, 2000, "valid") | different_prompts(task, 0, 2000, "test")
    trainings = [
        build_task(name, seed=5, **own),
        build_task(name, **own | {field: own[field] + 1}),
        build_task(name, curriculum=True, **own | {field: own[field] + 2}),
        build_task(name, blanks=True, **own),
    ]
    trainings[2].load_state_dict({"difficulty": own[field], "accuracy": 0.0})
    for training in trainings:
        seen = {p.replace("_", "") for p in different_prompts(training, 0, 2000)}
        assert len(seen) > 10 and not seen & held


@pytest.mark.parametrize(
    "name, own, count",
    [
        ("copy", dict(max_length=1, min_in_base=2, max_in_base=2), 2),
        ("jump", dict(max_length=2), 4),
        ("factorise", dict(max_digits=1, min_in_base=4, max_in_base=4), 2),
        ("add", dict(max_digits=1, min_in_base=2, max_in_base=2), 3),
        ("copy", dict(max_length=9, curriculum=True, min_in_base=2, max_in_base=2), None),
        ("jump", dict(min_length=1, max_length=9, curriculum=True), None),
    ],
)
def test_too_few_examples_to_split_are_refused_with_their_number(name, own, count):
    if count is None:
        task = build_task(name, **own)
        assert len(task.batch(0, 100)) == 100
        return
    with pytest.raises(UsageError, match=f"has {count} different examples .* too few"):
        build_task(name, **own)


@pytest.mark.parametrize("name", NUMBERS)
def test_curriculum_grows_with_accuracy_and_resumes(name):
    own = dict(curriculum=True, threshold=0.8, window=40)
    task = build_task(name, seed=2, **own)
    sizes = task.config.sizes
    right, wrong = torch.ones(10, dtype=torch.bool), torch.arange(10) < 7
    widths, seen = [], {}
    for update in range(60 * len(sizes)):
        state = json.loads(json.dumps(task.state_dict()))
        if state["difficulty"] not in seen:
            seen[state["difficulty"]] = state, update, task.batch(update, 53)
            widths.append(task.batch(update, 53).tokens.shape[1])
            for _ in range(50):
                task.observe(wrong)
            assert task.difficulty == state["difficulty"]
        task.observe(right)
    assert list(seen) == list(sizes)
    assert all(a < b for a, b in pairwise(widths)) and widths[-1] == task.max_length - 1
    plain = build_task(name, seed=2)
    held_out = plain.batch(0, 29, "test")
    for state, update, batch in seen.values():
        fresh = build_task(name, seed=2, **own)
        fresh.load_state_dict(state)
        assert fresh.state_dict() == state and equal(fresh.batch(update, 53), batch)
        assert equal(fresh.batch(0, 29, "test"), held_out)
        assert fresh.max_length == plain.max_length


def test_running_accuracy_is_an_exponential_mean_over_the_window():
    task = build_task("add", curriculum=True, threshold=1.0, window=8)
    task.observe(torch.tensor([True, True, False, True]))
    assert task.accuracy == pytest.approx(0.375)
    task.observe(torch.tensor([False, True]))
    assert task.accuracy == pytest.approx(0.375 + (0.5 - 0.375) / 4)
    task.observe(torch.arange(18) < 9)
    assert task.accuracy == 0.5
    task.observe(torch.ones(9, dtype=torch.bool))
    assert task.state_dict() == {"difficulty": 2, "accuracy": 0.0}
    for _ in range(300):
        task.observe(torch.ones(3, dtype=torch.bool))
    assert task.difficulty == 3


@pytest.mark.parametrize("name, width", [("add", 9), ("rotate", 14), ("factorise", 5)])
def test_blanks_pad_prompts_to_the_largest_size(name, width):
    task = build_task(name, curriculum=True, blanks=True)
    assert task.difficulty == 1 and set(task.batch(0, 99).prompt_lengths.tolist()) == {width}
    assert set(task.batch(0, 99, "test").prompt_lengths.tolist()) == {width}


def test_without_a_curriculum_observe_does_nothing():
    task = build_task("add")
    before = task.state_dict()
    task.observe(torch.ones(100_000, dtype=torch.bool))
    assert task.state_dict() == before == {"difficulty": 3, "accuracy": 0.0}


@pytest.mark.parametrize("name", NUMBERS)
def test_from_config_builds_the_task_of_a_configuration(name):
    task = build_task(name, seed=5, **SMALL[name])
    again = from_config(task.config, seed=5)
    assert type(again) is TASKS[name] and equal(again.batch(1, 7), task.batch(1, 7))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: build_task("ad"), "unknown task 'ad'; did you mean 'add'"),
        (lambda: build_task("chess"), "unknown task 'chess'; choose from copy, reverse"),
        (lambda: build_task("add", max_digit=3), "unknown setting 'max_digit' of add; did you"),
        (lambda: from_config(3), "int is not the Config of a task"),
        (lambda: TASKS["add"](TASKS["copy"].Config()), "a Add.Config, got a Copy.Config"),
        (lambda: build_task("add", max_digits=0), "max_digits must be .* in 1 .. 1000, got 0"),
        (lambda: build_task("add", min_digits=5), "max_digits must be .* in 5 .. 1000, got 3"),
        (lambda: build_task("add", max_digits=True), "max_digits must be an integer .*, got True"),
        (lambda: build_task("copy", max_length=0), "max_length must be .* in 1 .. 1000, got 0"),
        (lambda: build_task("copy", min_in_base=1), "min_in_base must be .* in 2 .. 16, got 1"),
        (lambda: build_task("copy", max_in_base=17), "max_in_base must be .* 10 .. 16, got 17"),
        (lambda: build_task("copy", max_out_base=9), "max_out_base must be .* 10 .. 16, got 9"),
        (lambda: build_task("copy", threshold=0.0), "threshold must be above 0 .*, got 0.0"),
        (lambda: build_task("copy", window=0), "window must be an integer at least 1, got 0"),
        (lambda: build_task("jump", num_hops=0), "num_hops must be .* in 1 .. 1000, got 0"),
        (lambda: build_task("arithmetic", operators="+/"), "operators must be .*, got '\\+/'"),
        (lambda: build_task("arithmetic", operators=""), "operators must be some of .*, got ''"),
        (lambda: build_task("arithmetic", max_operators=0), "max_operators must .*, got 0"),
        (lambda: build_task("factorise", max_digits=7), "within 1048576, got 7 in base 10"),
        (lambda: build_task("add").batch(-1, 3), "update must be .* in 0 .. .*, got -1"),
        (lambda: build_task("add").batch(2**63, 3), f"update must be .* got {2**63}"),
        (lambda: build_task("add").batch(0, 0), "batch_size must be .* at least 1, got 0"),
        (lambda: build_task("add").batch(0, 3, "tests"), "split must be one of .*, got 'tests'"),
        (
            lambda: build_task("add").score(nn.Identity(), "dev", 3),
            "split must be one of .*, got 'dev'",
        ),
        (
            lambda: build_task("add").score(nn.Identity(), "test", 0),
            "num_examples must be .*, got 0",
        ),
        (lambda: build_task("add").load_state_dict({}), "must hold difficulty and accuracy"),
        (
            lambda: build_task("add").load_state_dict({"difficulty": 4, "accuracy": 0.0}),
            "difficulty must be an integer in 1 .. 3, got 4",
        ),
    ],
)
def test_errors_name_the_value_and_the_range(call, said):
    with pytest.raises(UsageError, match=said):
        call()


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bases", [{}, dict(min_in_base=3, max_out_base=16)])
def test_blanks_need_not_be_typed(name, bases):
    task = build_task(name, blanks=True, **bases)
    batch = task.batch(0, 97)
    for row, length in zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), strict=True):
        typed = task.decode(row[:length])
        assert task.encode(typed) == task.encode(typed.replace("_", "")) == row[:length]


def test_equal_questions_are_one_group():
    task = build_task("add")
    texts = [
        task.decode(row[:length])
        for batch in task.evaluation_batches("test", 700)
        for row, length in zip(batch.tokens, batch.prompt_lengths.tolist(), strict=True)
    ]
    questions = task.groups("test", 700)
    assert len(questions) == 700 and questions.max() + 1 == len(set(texts)) < 700
    assert all(
        (questions[i] == questions[j]) == (texts[i] == texts[j])
        for i in range(0, 700, 7)
        for j in range(700)
    )
