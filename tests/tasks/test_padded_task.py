"""Padded operands, coupled digits and long carries, against loops over tokens and plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from number_oracles import DIGITS, in_base

import thinkers
from thinkers.config.overrides import override
from thinkers.errors import UsageError
from thinkers.evaluation.by_step import accuracy_by_step
from thinkers.inspection.inspect import inspect_model
from thinkers.models import build_model
from thinkers.prng import Draws, mix
from thinkers.recipes import RECIPES
from thinkers.tasks import answers, build_task
from thinkers.tasks.number_tokens import BLANK, END, EQUALS, PLUS, START, TIMES, VOCAB_SIZE
from thinkers.tasks.padded_task import digit_places

BASE_3 = dict.fromkeys(("min_in_base", "max_in_base", "min_out_base", "max_out_base"), 3)
CASES = [
    ("add", dict(width="own", coupled=True, max_digits=5)),
    ("add", dict(width="own", max_digits=4, long_carries=0.5)),
    ("add", dict(width="answer", coupled=True, max_digits=5, long_carries=0.3)),
    ("add", dict(width=7, coupled=True, max_digits=5)),
    ("add", dict(coupled=True)),
    ("add", dict(coupled=True, blanks=True)),
    ("add", dict(width="own", coupled=True, max_digits=6, long_carries=0.3) | BASE_3),
    ("multiply", dict(width="own", coupled=True, max_digits=4)),
    ("multiply", dict(width=3)),
    ("multiply", dict(width="own", scratch=True)),
    ("multiply", dict(width="answer", max_digits=3)),
    ("multiply", dict(coupled=True, max_digits=5, second_digits=2)),
]
OPERATOR = {"add": "+", "multiply": "*"}
TINY = dict(dim=16, num_layers=1, num_heads=2, tie_head=False, max_length=200)


def places(tokens):
    """Count digits from the last other token on; after `=` count every token."""
    found, count, is_answer = [], 0, False
    for token in tokens:
        is_digit = token < 16 or token == BLANK
        count = count + 1 if is_digit or is_answer else 0
        found.append(count)
        is_answer = is_answer or token == EQUALS
    return found


def adder(model="decoder", window=2, **own):
    task = build_task("add", width="own", coupled=True, **own)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        return build_model(model, vocab_size=VOCAB_SIZE, window=window, **TINY).eval(), task


def greedy(model, task, prompt, count, coupled=True):
    """Append the likeliest token `count` times, whole rows computed anew each time."""
    row = list(prompt)
    for _ in range(count):
        given = {"positions": torch.tensor([places(row)])} if coupled else {}
        logits = model(torch.tensor([row]), **given).logits[0, -1, : task.num_output_tokens]
        row.append(int(logits.argmax()))
    return row[len(prompt) :]


@given(st.lists(st.integers(0, VOCAB_SIZE - 1) | st.sampled_from([EQUALS, PLUS, 3, 9])))
def test_places_of_digits_are_counted_and_depend_on_what_is_before_them_alone(tokens):
    row = [START, *tokens]
    found = digit_places(torch.tensor([row]))[0]
    assert found.tolist() == places(row)
    part = len(row) // 2 + 1
    assert digit_places(torch.tensor([row[:part]]))[0].tolist() == found[:part].tolist()
    if EQUALS in row:
        answered = found[row.index(EQUALS) :].tolist()
        assert answered == list(range(len(answered)))


def test_the_example_of_the_docstring():
    task = build_task("add", width="own", coupled=True)
    row = [START, 5, 4, 3, PLUS, 2, 1, 0, EQUALS, 7, 5, 3, 0]
    assert task.encode("345+12=0357") == row
    assert digit_places(torch.tensor([row])).tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert task.encode("12+345=0357")[1:8] == [2, 1, 0, PLUS, 5, 4, 3]
    assert task.with_answer("12+345", [7, 5, 3, 0, END]) == "12+345=357"
    assert task.decode(row) == "345+012=0357"


def wanted(name, question, own):
    """Return prompt and answer of a question without zeros, padded, as tokens."""
    base = own.get("min_in_base", 10)
    first, second = question.split(OPERATOR[name])
    longest, width = max(len(first), len(second)), own.get("width")
    one, two = int(first, base), int(second, base)
    answer = in_base(one + two if name == "add" else one * two, base)
    digits = 0 if width is None else max(longest, width) if isinstance(width, int) else longest
    most = 0 if width is None else digits + 1 if name == "add" else 2 * digits
    blanks = (most - digits) * [BLANK] if width == "answer" else []
    fill, size = ("_", own.get("max_digits", 3)) if own.get("blanks") else ("0", digits)
    tokens = [START]
    for run, mark in ((first, OPERATOR[name]), (second, "=")):
        mark = {"+": PLUS, "*": TIMES, "=": EQUALS}[mark]
        padded = [BLANK if x == "_" else DIGITS.index(x) for x in reversed(run.rjust(size, fill))]
        tokens += [*padded, *blanks, mark]
    return tokens, [DIGITS.index(x) for x in reversed(answer.rjust(most, "0"))]


@pytest.mark.parametrize("name, own", CASES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_are_padded_as_their_longer_operand_asks(name, own, split):
    task = build_task(name, seed=4, **own)
    batch, lengths = task.batch(3, 60, split), set()
    columns = batch.tokens.tolist(), batch.targets, batch.prompt_lengths.tolist(), batch.lengths
    for i, (row, targets, length, end) in enumerate(zip(*columns, strict=True)):
        text = task.decode(row[:length]).rstrip("=").replace("_", "")
        numbers = [run.lstrip("0") or "0" for run in text.split(OPERATOR[name])]
        question = OPERATOR[name].join(numbers)
        prompt, answer = wanted(name, question, own)
        assert row[:length] == prompt == task.encode(f"{question}=")
        written = targets[targets != -100].tolist()
        assert written[-1] == END and row[length:end] == written[:-1]
        if own.get("scratch"):
            assert written[-1 - len(answer) : -1] == answer
        else:
            assert written[:-1] == answer
        if own.get("coupled"):
            assert batch.positions[i].tolist() == places(row[:end]) + [0] * (len(row) - int(end))
        assert task.encode(task.decode([*prompt, *written])) == [*prompt, *written[:-1]]
        shown = task.with_answer(question, written)
        assert shown == task.with_answer(f"{question}=", written)
        value = int(shown.rpartition("=")[2].rpartition(",")[2], own.get("min_in_base", 10))
        a, b = (int(x, own.get("min_in_base", 10)) for x in numbers)
        assert value == (a + b if name == "add" else a * b)
        assert "=0" not in shown or value == 0 or own.get("scratch")
        lengths.add(tuple(map(len, numbers)))
        assert len(written) <= task.max_answer_length() and int(end) <= task.max_length
    assert (batch.positions is None) == (not own.get("coupled")) == (task.positions is None)
    assert len(lengths) > 3


def test_padding_changes_no_question_and_no_split():
    rows = []
    for own in ({}, dict(width="own"), dict(width=3, coupled=True), dict(long_carries=0.0)):
        task = build_task("add", seed=2, **own)
        batch = task.batch(0, 50, "valid")
        prompts = zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), strict=True)
        texts = [task.decode(row[:n])[:-1].split("+") for row, n in prompts]
        rows.append([tuple(map(int, text)) for text in texts])
    assert rows[0] == rows[1] == rows[2] == rows[3]


@pytest.mark.parametrize("name, own", CASES[:5] + CASES[7:8] + CASES[10:])
@pytest.mark.parametrize("digits", [1, 3, 30])
def test_prompts_of_any_length_are_read(name, own, digits):
    task = build_task(name, **own)
    for first, second in ((digits, 1), (2, digits), (digits, digits)):
        question = "7" * first + OPERATOR[name] + "8" * second
        prompt, answer = wanted(name, question, own)
        for text in (question, f"{question}=", f" {question} = "):
            read = task.read_prompt(text)
            assert read.tokens == prompt and read.begun == 0 and read.longest >= len(answer) + 1
            if own.get("width"):
                assert read.longest == len(answer) + 1
        begun = task.read_prompt(f"{question}={DIGITS[answer[0]]}")
        assert begun.tokens == [*prompt, answer[0]] and begun.begun == 1
        padded = task.with_answer(question, [*answer, END])
        value = int(question.split(OPERATOR[name])[0]), int(question.split(OPERATOR[name])[1])
        right = sum(value) if name == "add" else math.prod(value)
        assert padded == f"{question}={right}"


def test_an_equals_sign_need_not_be_typed():
    questions = {"add": "12+34", "subtract": "12-34", "multiply": "12*34", "arithmetic": "1+2*3"}
    for name, text in {**questions, "factorise": "360"}.items():
        task = build_task(name)
        assert task.read_prompt(text) == task.read_prompt(f"{text}=")
        assert task.with_answer(text, [1]) == task.with_answer(f"{text}=", [1]) == f"{text}=1"
    for text, place, found in (("12", 2, "its end"), ("12-3", 2, "'-'"), ("1+2+3", 3, "'+'")):
        with pytest.raises(UsageError) as error:  # what was typed is shown, without `=`
            build_task("add").read_prompt(text)
        assert f"character {place} of '{text}' must be one of" in str(error.value)
        assert str(error.value).endswith(f", got {found}")
    sums = build_task("add", max_in_base=16, min_in_base=16, min_out_base=16, max_out_base=16)
    assert sums.read_prompt("a+f").tokens == sums.encode("A+F=")


@pytest.mark.parametrize(
    "text", ["12+", "+12", "12", "12+x", "012+3", "1+2+3", "1 2+3", "1_+2", ""]
)
def test_wrong_prompts_are_refused(text):
    task = build_task("add", width="own", coupled=True)
    with pytest.raises(UsageError):
        task.read_prompt(text)


def test_nothing_is_zero_and_zeros_are_one():
    task = build_task("add", width=4, coupled=True)
    assert task.encode("0+0=") == [START, 0, 0, 0, 0, PLUS, 0, 0, 0, 0, EQUALS]
    assert task.with_answer("0+0", [0, 0, 0, 0, 0, END]) == "0+0=0"
    assert task.with_answer("50+50", [0, 0, 1, 0, 0, END]) == "50+50=100"


@pytest.mark.parametrize(
    "name, own, message",
    [
        (
            "add",
            dict(width="wide"),
            "width must be a number of digits, own, answer or None, got 'wide'",
        ),
        ("add", dict(width=2), "width must be an integer at least 3, got 2"),
        ("add", dict(width=0), "width must be an integer at least 3, got 0"),
        ("add", dict(width=4, blanks=True), "width must be None with blanks or where bases differ"),
        ("add", dict(width="own", max_in_base=11), "width must be None with blanks or where bases"),
        ("add", dict(width="own", min_out_base=2, max_out_base=2), "bases [2, 10]"),
        ("add", dict(long_carries=1.5), "long_carries must be in 0 .. 1, got 1.5"),
        ("add", dict(long_carries=-0.1), "long_carries must be in 0 .. 1, got -0.1"),
        ("add", dict(long_carries=float("nan")), "long_carries must be in 0 .. 1, got nan"),
        ("multiply", dict(second_digits=0), "second_digits must be an integer in 1 .. 1000, got 0"),
        ("multiply", dict(second_digits=2, width="own"), "second_digits must be None with width"),
        ("multiply", dict(coupled=True, scratch=True), "coupled must be False with scratch or reg"),
        ("multiply", dict(coupled=True, registers="free"), "coupled must be False with scratch or"),
    ],
)
def test_wrong_settings_are_refused(name, own, message):
    with pytest.raises(UsageError) as error:
        build_task(name, **own)
    assert message in str(error.value)


def test_a_width_is_a_number_own_or_none_on_the_command_line():
    config = RECIPES["add/long"]()
    assert config.task.width == "answer"
    for text, value in (("12", 12), ("own", "own"), ("answer", "answer"), ("null", None)):
        assert override(config, flags=[f"--task.width={text}"]).task.width == value
    with pytest.raises(UsageError):
        override(config, flags=["--task.width=broad"])


def test_models_that_number_tokens_in_order_are_refused():
    task = build_task("add", coupled=True)
    thinker = build_model("thinker", vocab_size=VOCAB_SIZE, **TINY)
    with pytest.raises(UsageError) as error:
        task.check(thinker)
    assert "positions for thinker" in str(error.value) and "coupled=False" in str(error.value)
    build_task("add", width="own").check(thinker)


@pytest.mark.parametrize("name", ["decoder", "looped"])
def test_answers_and_scores_use_the_positions_of_digits(name):
    model, task = adder(name, max_digits=4)
    truth, found, ordered = [], [], []
    batch = task.batch(0, 5, "test")
    room = task.max_answer_length()
    for row, length in zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), strict=True):
        ours = greedy(model, task, row[:length], room)
        truth.append(ours)
        ordered.append(greedy(model, task, row[:length], room, coupled=False))
        question = task.decode(row[:length])
        number = "+".join(str(int(x)) for x in question[:-1].split("+"))
        longest = task.read_prompt(number).longest
        shown = thinkers.answer((model, task), number)
        wide = greedy(model, task, row[:length], max(room, longest))
        assert shown.removesuffix(" …") == task.with_answer(number, wide)
    for predicted, _ in answers.generated_answers(
        model, [batch], room, task.num_output_tokens, None, task.positions
    ):
        found += predicted.tolist()
    assert found == truth and truth != ordered
    ((of_task, _),) = task._answers(model, "test", 5, None)
    assert of_task.tolist() == truth


def test_equal_digits_have_an_end_that_is_seen_only_with_the_width_of_the_answer():
    """All that a window shows at the end of 999+999 are nines, as before it: see the module."""
    for width, is_seen in (("own", False), ("answer", True)):
        task = build_task("add", width=width, coupled=True)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(1)
            sizes = {**TINY, "num_layers": 2, "window": 2, "vocab_size": VOCAB_SIZE}
            model = build_model("decoder", **sizes).eval().double()
        for digits in (8, 20):
            nines = "9" * digits
            row = torch.tensor([[*task.encode(f"{nines}+{nines}="), 8, *[9] * (digits - 1)]])
            last = model(row, positions=digit_places).logits[0, -2:].log_softmax(-1)
            assert torch.allclose(last[0], last[1], atol=1e-12) != is_seen


def test_rows_are_answered_alike_however_many_are_answered_at_once(monkeypatch):
    model, task = adder(max_digits=4)
    ((whole, right),) = task._answers(model, "test", 9, None)
    monkeypatch.setattr(answers, "SCORED_PAIRS", 1)
    ((alone, _),) = task._answers(model, "test", 9, None)
    assert alone.equal(whole) and right.shape == whole.shape


def test_inspection_and_accuracy_by_step_use_the_positions_of_digits():
    model, task = adder("looped", max_digits=4)
    seen = inspect_model(model, task, "12+345", model.config.num_steps)
    prompt = task.encode("12+345=")
    written = greedy(model, task, prompt, seen.task.max_answer_length())
    assert seen.tokens == [*prompt, *written][: len(seen.tokens)]
    row = torch.tensor([seen.tokens])
    logits = model(row, positions=torch.tensor([places(seen.tokens)])).logits[0]
    best = logits[:, : task.num_output_tokens].argmax(-1)
    assert seen.answers.tokens[-1, :, 0].equal(best)
    assert not model(row).logits[0].argmax(-1).equal(logits.argmax(-1))
    batch = task.batch(0, 30, "test")
    found = accuracy_by_step(model, [batch])
    right = graded = 0
    for row, targets, end in zip(batch.tokens, batch.targets, batch.lengths.tolist(), strict=True):
        tokens = row[:end][None]
        logits = model(tokens, positions=torch.tensor([places(row[:end].tolist())])).logits[0]
        is_graded = targets[:end] != -100
        right += int((logits.argmax(-1) == targets[:end])[is_graded].sum())
        graded += int(is_graded.sum())
    counts = (batch.targets != -100).sum(0)
    total = float((found[-1].nan_to_num() * counts).sum() / counts.sum())
    assert total == pytest.approx(right / graded, abs=1e-6)


KEYS = np.arange(1, 20_001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


@pytest.mark.parametrize("own", [{}, BASE_3])
def test_long_carries_are_pairs_that_pass_carries_or_repeat_the_pair_below(own):
    base = own.get("max_in_base", 10)
    task = build_task("add", max_digits=10, long_carries=1.0, **own)
    digits = task.draw(Draws(mix(KEYS)), 10).digits
    lengths = (digits[:, 0] >= 0).sum(1)
    assert ((digits >= 0).sum(2) == lengths[:, None]).all()
    assert np.bincount(lengths, minlength=11)[1:] / len(lengths) == pytest.approx(0.1, abs=0.01)
    last = np.take_along_axis(digits, lengths[:, None, None] - 1, 2)
    assert (last[lengths > 1] > 0).all() and digits.max() == base - 1
    inside = np.arange(10) < lengths[:, None] - 1
    for operand in (0, 1):
        shares = np.bincount(digits[:, operand][inside], minlength=base) / inside.sum()
        assert shares == pytest.approx(1 / base, abs=0.01)
    passed = (digits.sum(1) == base - 1)[inside].mean()
    assert passed == pytest.approx((0.8 + 0.2 / base + 1 / base) / 2, abs=0.015)
    repeated = (digits[:, :, 1:] == digits[:, :, :-1]).all(1)[inside[:, 1:]].mean()
    assert repeated == pytest.approx(repeats(base, 1.0), abs=0.015)


def repeats(base, share):
    """Return the odds that a pair of digits is that of the place below."""
    passed = 0.8 + 0.2 / base
    of_passing = passed**2 / base + (1 - passed) ** 2 / (base**2 - base)
    return share / 2 * (0.8 + 0.2 / base**2 + of_passing) + (1 - share) / base**2


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_long_carries_are_a_share_of_the_rows_of_each_split(split, share):
    task = build_task("add", min_digits=12, max_digits=12, long_carries=share)
    digits = task._questions(KEYS[:10_000], split, 12).digits[:, :, :11]
    passed = (digits.sum(1) == 9).mean()
    repeated = (digits[:, :, 1:] == digits[:, :, :-1]).all(1)
    assert passed == pytest.approx(0.1 + share / 2 * 0.72, abs=0.01)
    assert repeated.mean() == pytest.approx(repeats(10, share), abs=0.01)
    # The two kinds are kinds of rows: most pairs of a row, or few of them.
    rows = (digits.sum(1) == 9).mean(1) > 0.6, repeated.mean(1) > 0.6
    assert [x.mean() for x in rows] == pytest.approx([share / 2 * 1.03, share / 2 * 0.93], abs=0.02)


def test_without_long_carries_rows_are_as_before():
    plain, none = (build_task("add", **own).batch(3, 40) for own in ({}, {"long_carries": 0.0}))
    assert plain.tokens.equal(none.tokens)


@pytest.mark.parametrize("first, second, most", [(1, 5, 2), (3, 5, 2), (2, 2, 2), (1, 3, 7)])
def test_the_second_factor_has_fewer_digits(first, second, most):
    task = build_task("multiply", min_digits=first, max_digits=second, second_digits=most)
    digits = task.draw(Draws(mix(KEYS)), second).digits
    counts = [np.bincount((digits[:, i] >= 0).sum(1), minlength=9)[:9] for i in (0, 1)]
    longest, shortest = min(most, second), min(first, most)
    for count, low, high in ((counts[0], first, second), (counts[1], shortest, longest)):
        wanted = [1 / (high - low + 1) if low <= n <= high else 0 for n in range(9)]
        assert count / len(digits) == pytest.approx(wanted, abs=0.015)
    assert task.max_length == 1 + second + 1 + longest + 1 + second + longest + 1


def test_questions_with_a_short_factor_are_counted_without_order():
    def wanted(low, high, short):
        numbers = {n for n in range(10**high) if low <= len(str(n)) <= high}
        few = {n for n in range(10**short) if min(low, short) <= len(str(n)) <= short}
        return len({(min(a, b), max(a, b)) for a in numbers for b in few})

    for low, high, short in ((1, 3, 2), (1, 2, 1), (3, 3, 1), (2, 3, 2), (1, 2, 2)):
        task = build_task("multiply", min_digits=low, max_digits=high, second_digits=short)
        assert task.num_examples(high) == wanted(low, high, short)
