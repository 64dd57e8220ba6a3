"""The calculator: its rows against plain Python, what it computes, and whole answers."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from number_oracles import in_base
from working_oracles import parse, value

import thinkers
from thinkers.errors import UsageError
from thinkers.models import build_model
from thinkers.tasks import build_task
from thinkers.tasks.number_tokens import BLANK, CLOSE, COMMA, END, NEGATIVE, OPEN
from thinkers.tasks.tools import find_tools

BASE_3 = dict.fromkeys(("min_in_base", "max_in_base", "min_out_base", "max_out_base"), 3)
SIZES = [
    {},
    dict(blanks=True, min_operators=2),
    dict(max_digits=3, max_operators=4, min_operators=2),
    dict(max_digits=4, blanks=True) | BASE_3,
]


def called(question, base=10, size=0):
    """Return the text after `=`: products and sums in turn, the value last; `size` pads numbers."""
    numbers, operators = parse(question)
    text, term, shown = "", numbers[0], numbers[0].rjust(size, "_")
    for operator, number in zip(operators, numbers[1:], strict=True):
        factor = number.rjust(size, "_")
        if operator == "*":
            term = in_base(int(term, base) * int(number, base), base)
            result = term.rjust(len(shown) + len(factor), "_") if size else term
            text += f"[{shown}*{factor}]{result},"
            shown = result
        else:
            term, shown = number, factor
    ends = [found.start() for found in re.finditer("[+-]", question)][1:]
    sums = [in_base(value(question[:end], base), base) for end in [*ends, len(question)]]
    return text + ",".join(sums)


def rows_of(task, *which):
    batch = task.batch(*which)
    columns = batch.tokens, batch.targets, batch.prompt_lengths, batch.lengths
    for tokens, targets, prompt, length in zip(*columns, strict=True):
        question = task.decode(tokens[:prompt]).rstrip("=").replace("_", "")
        yield question, tokens[:length].tolist(), targets[:length].tolist(), int(prompt)


@pytest.mark.parametrize("own", SIZES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_row_calls_for_each_product_and_for_nothing_else(own, split):
    task, seen = build_task("arithmetic", seed=5, calculator=True, **own), set()
    base, size = own.get("min_in_base", 10), task.config.max_digits * task.config.blanks
    for question, tokens, targets, prompt in rows_of(task, 2, 100, split):
        expected = called(question, base, size)
        assert task.decode(tokens).partition("=")[2] == expected, question
        assert task.encode(task.decode(tokens)) == tokens
        assert task.with_answer(question, [*tokens[prompt:], END]).replace("_", "") == (
            f"{question}={expected.replace('_', '')}"
        )
        forced = False
        for place in range(len(targets)):
            following = [*tokens[1:], END][place]
            if place < prompt - 1:
                assert targets[place] == -100
                continue
            forced = (forced or tokens[place] == CLOSE) and following != COMMA
            assert targets[place] == (-100 if forced else following)
        assert expected.count("[") == question.count("*")
        assert len(targets) <= task.max_length
        assert len(tokens) - prompt + 1 <= task.max_answer_length()
        seen |= {*parse(question)[1]}
    assert seen == {*"+-*"}


def test_the_longest_row_is_as_long_as_said():
    task = build_task("arithmetic", calculator=True)
    row = [*task.encode(f"99*99*99={called('99*99*99')}"), END]
    assert len(row) == task.max_length
    assert row[-1 - len("[99*99]9801,[9801*99]970299,970299") : -1].count(OPEN) == 2
    assert task.read_prompt("99*99*99").longest == task.max_answer_length()
    assert task.read_prompt("1234*5678").longest >= len(called("1234*5678")) + 1


def test_the_rows_are_those_of_the_direct_form():
    """The same questions, in training and held out, and pure functions of their update."""
    own = dict(seed=3, min_operators=2)
    direct, task = build_task("arithmetic", **own), build_task("arithmetic", calculator=True, **own)
    for split in ("train", "valid", "test"):
        both = [[q for q, *_ in rows_of(x, 4, 50, split)] for x in (direct, task)]
        assert both[0] == both[1]
    first = task.batch(7, 20)
    task.batch(0, 20)
    again = build_task("arithmetic", calculator=True, **own).batch(7, 20)
    for name in ("tokens", "targets", "lengths", "keys"):
        assert getattr(first, name).equal(getattr(again, name))


def compute(task, text):
    """Return the text of the result of a call, as the task writes it."""
    row = task.encode(f"1+1=[{text}]")
    call = row[row.index(OPEN) + 1 : -1]
    return task.decode(find_tools(task, ["calculator"])[0].result(call, 0))


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**12), 10**12), st.sampled_from("+-*"), st.integers(-(10**12), 10**12))
def test_integers_are_exact(x, operator, y):
    task = build_task("arithmetic", calculator=True)
    tool = task.tool("calculator")

    def tokens(number):
        return [NEGATIVE] * (number < 0) + [int(d) for d in reversed(str(abs(number)))]

    operators = {"+": 16, "-": 17, "*": 18}
    right = {"+": x + y, "-": x - y, "*": x * y}[operator]
    assert tool.result([*tokens(x), operators[operator], *tokens(y)], 0) == tokens(right)


def test_numbers_of_other_bases_and_with_blanks():
    base_3 = build_task("arithmetic", calculator=True, max_digits=4, **BASE_3)
    assert compute(base_3, "12*21") == "1022"
    padded = build_task("arithmetic", calculator=True, blanks=True)
    assert compute(padded, "20*_5") == "_100"
    assert compute(padded, "_100*_5") == "___500"
    assert compute(padded, "99+_1") == "100"


@pytest.mark.parametrize(
    "text",
    ["", "12", "12*", "*3", "1*2*3", "1,2", "1**2", "[1*2", "=1*2", "__1*2", "9" * 2001 + "*2"],
)
def test_a_call_that_means_nothing_has_no_result(text):
    task = build_task("arithmetic", calculator=True)
    call = [number for x in text for number in task.encode(f"1+1={x}")[5:]]
    assert task.tool("calculator").result(call, 0) == []


def test_a_large_product_is_quick_and_longer_ones_are_refused():
    tool = build_task("arithmetic", calculator=True).tool("calculator")
    call = [9] * 2000 + [18] + [9] * 2000
    found = tool.result(call, 0)
    assert int("".join(map(str, found[2000:][::-1]))) == 10**2000 - 2 and found[0] == 1
    assert len(call) <= tool.longest_call and len(found) <= tool.longest_result
    assert tool.result([9, *call], 0) == []


class Writer(torch.nn.Module):
    """Writes calls and answers by plain Python; a wrong product shows that the tool was asked."""

    def __init__(self, task, write):
        super().__init__()
        self.task, self.write = task, write

    def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None, tools=()):
        self.tools = tools
        found = torch.full((len(tokens), max_new_tokens), END)
        for row, given_tokens, length in zip(found, tokens.tolist(), prompt_lengths, strict=True):
            question = self.task.decode(given_tokens[-int(length) :]).rstrip("=").replace("_", "")
            text = f"{question}={self.write(called(question))}"
            own = [*self.task.encode(text)[len(self.task.encode(f"{question}=")) :], END]
            row[: len(own)] = torch.tensor(own[:max_new_tokens])
        return found


def test_exact_looks_at_the_answer_alone():
    task = build_task("arithmetic", calculator=True)

    def share(write):
        return task.score(Writer(task, write), "test", 60)["exact"]

    assert share(str) == 1
    assert share(lambda text: text.rpartition(",")[2]) == 1  # an answer without any call
    assert share(lambda text: text if text.count("[") == 2 else "[1*1]1," + text) == 1
    assert share(lambda text: text + "0") == 0
    assert share(lambda text: text + ",") == 0
    scores = task.score(Writer(task, str), "test", 60)
    rows = [question for i in range(1) for question, *_ in rows_of(task, i, 60, "test")]
    assert scores["per_token"] == 1 and scores["calls"] == "".join(rows).count("*") / 60


def test_scores_are_those_with_the_tools_of_the_rows_unless_others_are_named():
    task, seen = build_task("arithmetic", calculator=True), {}
    model = Writer(task, str)
    for tools in (None, (), ["calculator"]):
        task.score(model, "test", 4, tools=tools)
        seen[str(tools)] = [tool.name for tool in model.tools]
        task.grade(model, "test", 4, tools=tools)
        assert seen[str(tools)] == [tool.name for tool in model.tools]
    assert seen == {"None": ["calculator"], "()": [], "['calculator']": ["calculator"]}


def untrained(task, **own):
    torch.manual_seed(0)
    sizes = dict(dim=16, num_layers=1, num_heads=2, num_steps=2, max_length=80)
    return build_model("looped", vocab_size=task.vocab_size, **(sizes | own)).double()


def test_answer_writes_what_the_calculator_gives_only_if_it_is_named():
    task = build_task("arithmetic", calculator=True)
    model = untrained(task)
    model.head.register_forward_hook(
        lambda module, given, logits: logits + 100 * torch.eye(task.vocab_size)[CLOSE].double()
    )
    # The prompt leaves a call open; the model closes it, and would go on closing.
    assert thinkers.answer((model, task), "4-2*3=[2*3").startswith("4-2*3=[2*3]]]]")
    text = thinkers.answer((model, task), "4-2*3=[2*3", tools=("calculator",))
    assert text.startswith("4-2*3=[2*3]6]]]")
    seen = thinkers.inspect((model, task), "4-2*3=[2*3", tools=["calculator"])
    assert seen.answer == text.removesuffix(" …") or seen.answer == text
    own = [task.tool("calculator")]
    assert thinkers.answer((model, task), "4-2*3=[2*3", tools=own) == text


def test_evaluate_names_the_tools():
    task = build_task("arithmetic", calculator=True, max_digits=1)
    run = untrained(task), task
    (row,) = thinkers.evaluate(run, 2, 8)
    assert row["tools"] == ["calculator"]
    (row,) = thinkers.evaluate(run, 2, 8, tools=())
    assert "tools" not in row
    plain = build_task("arithmetic")
    (row,) = thinkers.evaluate((untrained(plain), plain), 2, 8, tools=())
    assert "tools" not in row


def test_tokens_that_halt_and_call_are_scored_together():
    task = build_task("arithmetic", calculator=True, max_digits=1)
    run = untrained(task, halting=True), task
    found = {}
    for tools in (None, ()):
        (row,) = thinkers.evaluate(run, 2, 6, halt=0.5, tools=tools, by_example=True)
        assert 1 <= row["mean_steps"] <= 2 and len(row["examples"]) == 6
        found[tools] = row
    assert found[None]["calls"] >= 0 and "calls" not in found[()]


def test_a_tool_that_the_task_does_not_have_is_refused():
    task, plain = build_task("arithmetic", calculator=True), build_task("arithmetic")
    for one, name, wrong in (
        (task, "calculater", "found: the tool 'calculater'\nexpected: .*calculator"),
        (task, "store", "found: the tool 'store' for Arithmetic\nexpected: .*: calculator"),
        (plain, "calculator", "'calculator' for Arithmetic\nexpected: .*none with these settings"),
    ):
        for call in (
            lambda one, name: thinkers.answer((untrained(one), one), "1+2", tools=[name]),
            lambda one, name: thinkers.evaluate((untrained(one), one), 1, 4, tools=[name]),
            lambda one, name: thinkers.inspect((untrained(one), one), "1+2", tools=[name]),
            lambda one, name: one.score(untrained(one), "test", 4, tools=[name]),
        ):
            with pytest.raises(UsageError, match=wrong):
                call(one, name)
    with pytest.raises(UsageError, match="a list of names"):
        thinkers.answer((untrained(task), task), "1+2", tools="calculator")


def test_settings_that_do_not_fit_are_refused():
    for own, wrong in (
        (dict(scratch=True), "calculator must be False with scratch"),
        (dict(registers="free"), "calculator must be False"),
        (dict(max_in_base=11), "calculator needs questions and answers in one base"),
        (dict(operators="+-"), "operators must have"),
        (dict(max_digits=1000), "at most 2000 with calculator"),
    ):
        with pytest.raises(UsageError, match=wrong):
            build_task("arithmetic", calculator=True, **own)


def test_a_begun_answer_may_hold_calls():
    task = build_task("arithmetic", calculator=True)
    begun = task.read_prompt("3-20*5=[20*5]100,")
    assert begun.begun == 10 and begun.tokens[-10:] == [OPEN, 0, 2, 18, 5, CLOSE, 0, 0, 1, COMMA]
    with pytest.raises(UsageError, match="character 7"):
        task.read_prompt("3-20*5=a")
    assert build_task("arithmetic", calculator=True, blanks=True).tool("calculator").blank == BLANK
    with pytest.raises(UsageError):
        build_task("arithmetic").encode("3-20*5=[20*5]")
    with pytest.raises(UsageError):
        build_task("arithmetic").decode([OPEN])
