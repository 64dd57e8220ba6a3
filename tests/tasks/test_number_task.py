"""Number tasks against plain Python: distributions, answers, text form and limb arithmetic."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from number_oracles import DIGITS, in_base, solve, split_prompt

from thinkers.errors import UsageError
from thinkers.tasks import TASKS, bigint, build_task
from thinkers.tasks.number_task import NumberTask
from thinkers.tasks.number_tokens import END, START, VOCAB_SIZE

ANY_BASE = dict(min_in_base=2, max_in_base=16, min_out_base=2, max_out_base=16)
NUMBERS = [name for name, task in TASKS.items() if issubclass(task, NumberTask)]
TASK = {name: build_task(name) for name in NUMBERS}
"""Built once, since hypothesis calls a test a hundred times."""
CASES = [
    *((name, {}) for name in NUMBERS),
    *((name, ANY_BASE) for name in NUMBERS),
    ("copy", dict(min_in_base=16, max_in_base=16, min_out_base=2, max_out_base=2, max_length=5)),
    ("sort", dict(min_in_base=7, max_in_base=7, min_out_base=11, max_out_base=11, max_length=13)),
    ("jump", dict(num_hops=3, max_length=7)),
    ("rotate", dict(blanks=True, max_length=17)),
    ("add", dict(min_in_base=2, max_in_base=3, max_digits=7, blanks=True)),
    ("add", dict(min_digits=23, max_digits=61, min_out_base=16, max_out_base=16)),
    ("subtract", dict(max_digits=31, min_out_base=3, max_out_base=5)),
    ("multiply", dict(min_digits=40, max_digits=40)),
    ("multiply", dict(max_digits=19) | ANY_BASE),
    ("arithmetic", dict(min_operators=3, max_operators=5, max_digits=11)),
    ("arithmetic", dict(max_operators=3, max_digits=7, blanks=True) | ANY_BASE),
    ("arithmetic", dict(operators="-*", max_operators=4, max_digits=3)),
    ("factorise", dict(max_digits=5)),
    ("factorise", dict(min_digits=2, max_digits=4) | ANY_BASE),
]


def texts(task, batch):
    """Yield the prompt and the answer of every row, as text."""
    columns = (batch.tokens, batch.targets, batch.prompt_lengths)
    for row, targets, length in zip(*(column.tolist() for column in columns), strict=True):
        yield task.decode(row[:length]), task.decode(token for token in targets if token != -100)


@pytest.mark.parametrize("name, own", CASES, ids=lambda x: x if isinstance(x, str) else None)
def test_every_answer_is_that_of_plain_python(name, own):
    task = build_task(name, seed=3, **own)
    base = own.get("min_in_base", 10)
    to_base = own.get("min_out_base", 10)
    for split, rows in (("train", 173), ("test", 41)):
        for prompt, answer in texts(task, task.batch(5, rows, split)):
            if base != to_base and ":" not in prompt:
                prompt = f"{base}>{to_base}:{prompt}"
            assert solve(name, prompt, base, own.get("num_hops", 1)) == answer, prompt


@pytest.mark.parametrize("name, own", CASES, ids=lambda x: x if isinstance(x, str) else None)
def test_bases_and_sizes_are_those_of_the_configuration(name, own):
    task = build_task(name, **own)
    bases, lengths = set(), set()
    for prompt, _ in texts(task, task.batch(0, 997)):
        assert (":" in prompt) == task.config.bases_written
        question, a, b = split_prompt(prompt, own.get("min_in_base", 10))
        bases.add((a, b))
        numbers = re.findall("[0-9A-F]+", question)
        assert all(int(digit, 16) < a for number in numbers for digit in number)
        if task.least_significant_first:
            assert all(len(number) == 1 or number[0] != "0" for number in numbers)
            lengths |= {len(number) for number in numbers}
        else:
            lengths.add(len(numbers[0]))
    if task.config.bases_written:
        assert {a for a, _ in bases} == set(task.config.in_bases)
        assert {b for _, b in bases} == set(task.config.out_bases)
    assert lengths == set(task.config.sizes)


def test_every_number_of_digits_and_operators_is_equally_likely():
    task = build_task("arithmetic", max_digits=4, max_operators=3)
    digits, operators, counts = [], [], []
    for update in range(4):
        for prompt, _ in texts(task, task.batch(update, 1000)):
            digits += [len(number) for number in re.findall(r"\d+", prompt)]
            operators += re.findall(r"[+*-]", prompt)
            counts.append(len(re.findall(r"[+*-]", prompt)))
    for drawn, kinds in ((digits, 4), (operators, 3), (counts, 3)):
        shares = [drawn.count(kind) / len(drawn) for kind in set(drawn)]
        assert shares == pytest.approx([1 / kinds] * kinds, abs=0.03)


def test_elements_and_bases_are_equally_likely():
    task = build_task("copy", min_length=7, max_length=7)
    given = task.batch(0, 5000).tokens[:, 1:8].ravel().bincount(minlength=10)
    assert (given[:10] / given.sum()).tolist() == pytest.approx([0.1] * 10, abs=0.01)
    task = build_task("copy", **ANY_BASE)
    for column in (1, 2):
        bases = task.batch(0, 5000).tokens[:, column].bincount() / 5000
        assert bases[bases > 0].tolist() == pytest.approx([1 / 15] * 15, abs=0.02)


def test_known_examples_in_text_and_in_tokens():
    add = build_task("add")
    assert add.encode("12+305=317") == [START, 2, 1, 16, 5, 0, 3, 20, 7, 1, 3]
    text = [2, 1, 16, 5, 0, 3, 20, 7, 1, 3]
    assert add.decode([START, *text, END, 4, 4]) == add.decode(text) == "12+305=317"
    assert build_task("reverse").encode("1205=5021") == [START, 1, 2, 0, 5, 20, 5, 0, 2, 1]
    subtract = build_task("subtract")
    assert subtract.encode("3-40=-37") == [START, 3, 17, 0, 4, 20, 22, 7, 3]
    assert subtract.decode([22, 7, 3]) == "-37"
    task = build_task("multiply", **ANY_BASE)
    assert task.encode("16>2:a*B=") == [START, 40, 26, 10, 18, 11, 20]
    padded = [START, 2, 1, 23, 16, 5, 4, 3, 20]
    assert build_task("add", blanks=True).encode("_12+345=") == padded


@pytest.mark.parametrize("name, own", CASES, ids=lambda x: x if isinstance(x, str) else None)
def test_text_and_tokens_are_inverse(name, own):
    task = build_task(name, **own)
    batch = task.batch(1, 97)
    for row, targets, length in zip(batch.tokens, batch.targets, batch.prompt_lengths, strict=True):
        tokens = row[:length].tolist() + targets[targets != -100].tolist()
        text = task.decode(tokens)
        assert task.encode(text) == tokens[:-1]
        padded = [25, 25, *tokens, 25]
        assert task.decode(padded) == task.decode(torch.tensor(tokens)) == text


@given(st.lists(st.integers(0, VOCAB_SIZE - 1)))
def test_decode_accepts_any_tokens(tokens):
    assert isinstance(TASK["subtract"].decode(tokens), str)
    assert TASK["copy"].decode(tokens).count("=") <= tokens.count(20)


NUMERALS = st.text("0123456789", min_size=1, max_size=9)


@given(
    NUMERALS,
    st.lists(st.tuples(st.sampled_from("-+*"), NUMERALS), max_size=3),
    st.none() | st.tuples(st.sampled_from(["=", "=-"]), NUMERALS),
)
def test_any_chain_is_decoded_from_its_tokens(first, others, answer):
    text = first + "".join(sign + digits for sign, digits in others) + "".join(answer or ())
    task = TASK["arithmetic"]
    assert task.decode(task.encode(text)) == text


@given(
    st.text(max_size=12) | st.text("0123+,= \t", max_size=12),
    st.sampled_from(["add", "sort", "rotate"]),
)
def test_encode_accepts_allowed_characters_and_names_the_first_other(text, name):
    task = TASK[name]
    allowed = "0123456789=_" + {"add": "+", "sort": "", "rotate": ","}[name]
    dividing = {
        x.start() for x in re.finditer(r"(?<=[0-9a-fA-F_])[ \t\r\n]+(?=[0-9a-fA-F_])", text)
    }
    fitting = allowed + " \t\r\n"
    wrong = [i for i, x in enumerate(text) if x not in fitting or i in dividing]
    if not wrong:
        assert task.decode(task.encode(text)) == re.sub("[ \t\r\n]", "", text)
        return
    with pytest.raises(UsageError) as caught:
        task.encode(text)
    assert f"character {wrong[0]} of" in str(caught.value)
    assert repr(text[wrong[0]]) in str(caught.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("12+34=", "must begin with its two bases, such as 2>9:"),
        ("12>3:1+1=", "first base of '12>3:1\\+1=' must be in 2 .. 10, got 12"),
        ("3>10:1+1=", "second base of '3>10:1\\+1=' must be in 3 .. 9, got 10"),
        ("3>9:12+3=", r"character 7 .* must be one of 0 1 2 \+ = _, got '3'"),
        ("9>3:12+8=23", "character 10 .* must be one of 0 1 2 .*, got '3'"),
    ],
)
def test_bases_in_text_are_checked(text, said):
    task = build_task("add", min_in_base=2, max_in_base=10, min_out_base=3, max_out_base=9)
    with pytest.raises(UsageError, match=said):
        task.encode(text)


def test_decode_refuses_ids_beyond_the_vocabulary():
    with pytest.raises(UsageError, match="token 1 must be in 0 .. 41, got 42"):
        build_task("add").decode([3, 42])


def as_limbs(numbers, limbs):
    """Return numbers as limbs, by shifting Python integers."""
    rows = [[number >> 20 * i & bigint.MASK for number in numbers] for i in range(limbs - 1)]
    return np.array([*rows, [number >> 20 * (limbs - 1) for number in numbers]], np.int64)


def as_digits(number, base, width):
    digits = [DIGITS.index(digit) for digit in reversed(in_base(number, base))]
    return digits + [-1] * (width - len(digits))


NUMBER = st.integers(0, 16**41) | st.sampled_from([0, 1, 2**20 - 1, 2**20, 2**63, 2**160 - 1])


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBER, st.integers(2, 16)), min_size=1, max_size=7))
def test_digits_and_limbs_convert_exactly(cases):
    limbs = bigint.num_limbs(16**41)
    numbers, bases = zip(*cases, strict=True)
    base, width = np.array(bases), max(len(in_base(n, b)) for n, b in cases)
    digits = np.array([as_digits(n, b, width) for n, b in cases])
    assert bigint.from_digits(digits, base, limbs).tolist() == as_limbs(numbers, limbs).tolist()
    assert bigint.to_digits(as_limbs(numbers, limbs), base, width).tolist() == digits.tolist()
    assert [bigint.num_digits(n, b) for n, b in cases] == [len(in_base(n, b)) for n, b in cases]


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=7))
def test_limbs_compute_as_python_does(pairs):
    limbs = bigint.num_limbs(16**82)
    a, b = (as_limbs(numbers, limbs) for numbers in zip(*pairs, strict=True))
    assert bigint.carry(a + b).tolist() == as_limbs([x + y for x, y in pairs], limbs).tolist()
    product = bigint.multiply(a, b, limbs)
    assert product.tolist() == as_limbs([x * y for x, y in pairs], limbs).tolist()
    size, negative = bigint.magnitude(bigint.carry(a - b))
    assert size.tolist() == as_limbs([abs(x - y) for x, y in pairs], limbs).tolist()
    assert negative.tolist() == [int(x < y) for x, y in pairs]


def test_the_largest_limbs_still_multiply_exactly():
    number = 2 ** (20 * 90) - 1
    limbs = bigint.num_limbs(number**2)
    a = as_limbs([number], bigint.num_limbs(number))
    assert bigint.multiply(a, a, limbs).tolist() == as_limbs([number**2], limbs).tolist()
