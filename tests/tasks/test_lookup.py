"""Hops over a table outside the prompt: rows, the tool, and what a model can know."""

import numpy as np
import pytest
import torch

import thinkers
from thinkers.errors import UsageError
from thinkers.models import build_model
from thinkers.prng import row_keys
from thinkers.tasks import build_task
from thinkers.tasks.tools import find_tools

SIZES = [{}, dict(num_keys=2, max_hops=9), dict(num_keys=5, min_hops=3, max_hops=3)]


def tables_of(task, update, count, split):
    """Return {key: value} of each row, as the tool gives them, one call after another."""
    tool = task.tool("store", task.batch(update, count, split).keys)
    keys = range(task.config.num_keys)
    return [{k: tool.result([k], row)[0] for k in keys} for row in range(count)]


@pytest.mark.parametrize("own", SIZES)
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_rows_are_hops_over_the_table_of_the_tool(own, split):
    task, hops_seen = build_task("lookup", seed=4, **own), set()
    batch = task.batch(3, 80, split)
    tables = tables_of(task, 3, 80, split)
    for i, table in enumerate(tables):
        length, prompt = int(batch.lengths[i]), int(batch.prompt_lengths[i])
        text = task.decode(batch.tokens[i, :length])
        at, hops = text[0], int(text[1])
        expected = f"{at}{hops}="
        for _ in range(hops):
            value = "abcdefghijklmnopqrstuvwxyz"[table["abcdefghijklmnopqrstuvwxyz".index(at)]]
            expected, at = f"{expected}[{at}]{value}", value
        assert text == f"{expected},{at}" and prompt == 4
        assert task.encode(text) == batch.tokens[i, :length].tolist()
        targets = batch.targets[i].tolist()
        row = [*batch.tokens[i, :length].tolist(), task.end_token]
        for place, target in enumerate(targets):
            given = place < length and row[place] == task.closing
            graded = prompt - 1 <= place < length and not given
            assert target == (row[place + 1] if graded else -100)
        assert length + 1 <= task.max_length and length + 1 - prompt <= task.max_answer_length()
        hops_seen.add(hops)
    config = task.config
    assert hops_seen == set(range(config.min_hops, config.max_hops + 1))


def test_tables_are_functions_of_the_key_of_a_row():
    task = build_task("lookup", seed=4)
    batch = task.batch(5, 30)
    again = build_task("lookup", seed=4)
    again.batch(0, 3)
    other = again.batch(5, 12)
    assert torch.equal(batch.rows(slice(12)).keys, other.keys)
    width = other.tokens.shape[1]
    assert torch.equal(batch.tokens[:12, :width], other.tokens)
    reverse = torch.arange(29, -1, -1)
    tool, turned = (task.tool("store", batch.keys[order]) for order in (slice(None), reverse))
    for row in range(30):
        for key in range(26):
            assert tool.result([key], row) == turned.result([key], 29 - row)
    keys = [row_keys(4, stream, np.array([0]), 400)[0] for stream in range(3)]
    tables = [{tuple(t) for t in task.questions(k).tables.tolist()} for k in keys]
    assert all(len(t) == 400 for t in tables) and not tables[0] & (tables[1] | tables[2])
    assert abs(np.bincount(task.questions(keys[0]).tables.ravel()) / 400 - 1).max() < 0.25


def test_what_is_no_key_has_no_value():
    task = build_task("lookup", num_keys=5)
    tool = task.tool("store")
    assert all(len(tool.result([key], 0)) == 1 for key in range(5))
    for call in ([], [5], [0, 1], [task.opening], [task.end_token]):
        assert tool.result(call, 0) == []


class Perfect(torch.nn.Module):
    """Calls as many times as it is asked to, reading values from the tool that it was given."""

    def __init__(self, task, more=0):
        super().__init__()
        self.task, self.more = task, more

    def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None, tools=()):
        found = torch.full((len(tokens), max_new_tokens), self.task.end_token)
        for i, prompt in enumerate(tokens.tolist()):
            at, hops = prompt[1], prompt[2] - 25
            row = []
            for _ in range(min(hops + self.more, self.task.config.max_hops)):
                row += [self.task.opening, at, self.task.closing]
                at = tools[0].result([at], i)[0] if tools else at
                row += [at]
            row += [self.task.comma, at, self.task.end_token]
            found[i, : len(row)] = torch.tensor(row)
        return found


def test_scores_count_calls_and_need_the_tool():
    task = build_task("lookup", max_hops=6)
    scores = task.score(Perfect(task), "test", 700)
    hops = [
        task.questions(batch.keys.numpy().view(np.uint64)).hops
        for batch in task.evaluation_batches("test", 700)
    ]
    assert scores == {"exact": 1, "per_token": 1, "calls": float(np.concatenate(hops).mean())}
    without = task.score(Perfect(task), "test", 700, tools=())
    assert without["exact"] < 0.1 and "calls" not in without
    assert task.score(Perfect(task, more=-1), "test", 200)["exact"] < 0.3
    assert len(set(task.groups("test", 50).tolist())) == 50


def test_rows_that_are_answered_in_parts_keep_their_tables(monkeypatch):
    task, seen = build_task("lookup"), []
    monkeypatch.setattr("thinkers.tasks.answers.SCORED_PAIRS", 1 << 12)

    class Counted(Perfect):
        def answer(self, tokens, *rest, **settings):
            seen.append(len(tokens))
            return super().answer(tokens, *rest, **settings)

    assert task.score(Counted(task), "test", 40)["exact"] == 1
    assert sum(seen) == 40 and len(seen) > 3


def untrained(task):
    torch.manual_seed(0)
    sizes = dict(dim=16, num_layers=1, num_heads=2, num_steps=2, max_length=64)
    return build_model("looped", vocab_size=task.vocab_size, **sizes).double()


def test_a_prompt_is_answered_over_a_table_of_ones_own():
    task = build_task("lookup", num_keys=3)
    store = task.store({"a": "c", "b": "a", "c": "b"})
    run = untrained(task), task
    assert thinkers.answer(run, "a3=[a]", tools=[store]).startswith("a3=[a]c")
    assert thinkers.answer(run, "a3=[a]c[c]", tools=[store]).startswith("a3=[a]c[c]b")
    first = "abc"[find_tools(task, ["store"])[0].result([0], 0)[0]]
    assert thinkers.answer(run, "a3=[a]", tools=("store",)).startswith(f"a3=[a]{first}")
    assert thinkers.evaluate(run, 2, 6)[0]["tools"] == ["store"]


@pytest.mark.misuse
@pytest.mark.parametrize(
    "table, wrong",
    [
        ({}, "the keys ''"),
        ({"a": "b"}, "the keys 'a'"),
        ({"a": "b", "b": "c", "c": "d"}, "the keys 'abc', with the value 'd'"),
        ({"a": "b", "b": ["c"], "c": "a"}, r"the keys 'abc', with the value \['c'\]"),
        ({"a": "b", "b": None, "c": "ab"}, "the keys 'abc', with the value None"),
        ({0: "b", 1: "b", 2: "b"}, "the keys '012'"),
        (None, "type NoneType"),
        (["a", "b", "c"], "type list"),
    ],
)
def test_a_table_without_a_value_of_each_key_is_refused(table, wrong):
    with pytest.raises(UsageError, match=f"found: a table of {wrong}\nexpected: a value of a .. c"):
        build_task("lookup", num_keys=3).store(table)


def test_models_that_write_answers_at_once_are_refused_before_training():
    task = build_task("lookup")
    model = build_model("thinker", vocab_size=task.vocab_size, output="parallel", max_length=64)
    with pytest.raises(UsageError, match="write all tokens of an answer at once"):
        task.check(model)
    build_task("add").check(model)
    task.check(untrained(task))


def test_prompts():
    task = build_task("lookup", num_keys=6)
    assert task.read_prompt("c3").tokens == task.encode("c3=")
    begun = task.read_prompt(" c3=[c]f ")
    assert begun.begun == 4 and begun.longest == task.max_answer_length()
    assert task.with_answer("c3", task.encode("[c]a")[1:]) == "c3=[c]a"
    for wrong in ("", "3c", "c0", "g1", "cc", "c3=x", "c3=[c]9"):
        with pytest.raises(UsageError):
            task.read_prompt(wrong)
    with pytest.raises(UsageError, match="hops must be at most 4"):
        task.read_prompt("c5")
    for own in (dict(num_keys=1), dict(num_keys=27), dict(max_hops=10), dict(min_hops=5)):
        with pytest.raises(UsageError):
            build_task("lookup", **own)
    with pytest.raises(UsageError, match="'calculator' for Lookup"):
        thinkers.answer((untrained(task), task), "c3", tools=["calculator"])


@pytest.mark.misuse
@pytest.mark.parametrize("tools", [None, 5, [5], [None]])
def test_tools_that_are_no_list_of_names_and_tools_are_refused(tools):
    with pytest.raises(UsageError, match="found: the tool|found: tools"):
        find_tools(build_task("lookup"), tools)


def test_a_row_without_a_table_of_its_own_is_refused():
    store = build_task("lookup").tool("store", torch.arange(2))
    assert store.result([3], 1)
    with pytest.raises(UsageError, match="row 2 for the tool store with 2 tables"):
        store.result([3], 2)


def test_tables_that_are_not_those_of_the_rows_are_refused_before_anything_is_written():
    task = build_task("lookup")
    model, batch = untrained(task), task.batch(0, 5)
    tokens, lengths = batch.tokens[:, :4], batch.prompt_lengths
    for rows in (3, 6):
        tools = [task.tool("store", torch.arange(rows))]
        with pytest.raises(UsageError, match=f"5 rows and the tool store with data of {rows}\n"):
            model.answer(tokens, lengths, 2, tools=tools)
    for keys in (batch.keys, batch.keys[:1], None):
        assert model.answer(tokens, lengths, 2, tools=[task.tool("store", keys)]).shape == (5, 2)


@pytest.mark.misuse
def test_tools_are_found_by_names_and_keys_alone():
    task = build_task("lookup")
    for keys in ([1, 2], torch.ones(2), torch.tensor(3), np.arange(2)):
        with pytest.raises(TypeError, match=r"keys must be an int64 tensor \(b,\), got"):
            task.tool("store", keys)
    for other in (task, build_task("add")):
        with pytest.raises(UsageError, match="found: the tool 'calculator' for"):
            other.tool("calculator")
        with pytest.raises(UsageError, match="found: the tool 'stor'\nexpected: store"):
            other.tool("stor")
