"""Wrong input is refused before anything runs: by type, and by name, value, place and limit."""

import dataclasses

import numpy as np
import pytest
import torch
from model_cases import CASES, NAMES, ids, thinks, tiny

from thinkers.checks import check_ids, check_int, check_lengths, check_shape, describe
from thinkers.models import MODELS, Batch
from thinkers.models.base import SIZES
from thinkers.testing.helpers import untouched

V, T = 13, 7


class Index:
    def __index__(self):
        return 2


@pytest.mark.parametrize(
    "value",
    [2, np.int64(2), np.uint8(2), torch.tensor(2), torch.tensor(2, dtype=torch.int32), Index()],
)
def test_what_python_can_index_by_is_an_integer(value):
    found = check_int("n", value, 0, 5)
    assert found == 2 and type(found) is int


@pytest.mark.parametrize(
    "value",
    [True, False, np.bool_(True), torch.tensor(True), 2.0, np.float64(2), torch.tensor(2.0), "2"]
    + [None, [2], 1 + 0j, float("nan"), np.array([1, 2]), torch.ones(2, dtype=torch.int64)],
)
def test_anything_else_is_no_integer(value):
    with pytest.raises(ValueError) as error:
        check_int("n", value, 0, 5)
    assert str(error.value) == f"n must be an integer in 0 .. 5, got {value!r}"


@pytest.mark.parametrize("value", [-1, 6, 10**30, -(10**30), np.int64(6), torch.tensor(-1)])
def test_an_integer_out_of_range_is_named_with_the_range(value):
    with pytest.raises(ValueError) as error:
        check_int("n", value, 0, 5, "most")
    assert str(error.value) == f"n must be an integer in 0 .. 5 (most), got {value!r}"
    with pytest.raises(ValueError, match="n must be an integer at least 7, got 6"):
        check_int("n", 6, 7)


def test_the_first_wrong_id_is_named_with_its_place():
    check_ids("x", torch.tensor([[0, 12]]), V)
    with pytest.raises(ValueError) as error:
        check_ids("x", torch.tensor([[0, 12], [13, -1]]), V)
    assert str(error.value) == "x must be in 0 .. 12 (vocab_size 13), got 13 at [1, 0]"
    with pytest.raises(ValueError, match=r"got -9223372036854775808 at \[1\]"):
        check_ids("x", torch.tensor([0, -(2**63)]), V)


@pytest.mark.parametrize(
    "lengths, kind, words",
    [
        ([2, 2], TypeError, "n must be an int64 tensor, got list"),
        (torch.tensor([2, 2]).int(), TypeError, "n must be an int64 tensor, got int32 [2]"),
        (torch.tensor([2.0, 2]), TypeError, "n must be an int64 tensor, got float32 [2]"),
        (torch.tensor([2]), ValueError, "n must have shape (2,), got [1]"),
        (torch.tensor([[2, 2]]), ValueError, "n must have shape (2,), got [1, 2]"),
        (torch.tensor(2), ValueError, "n must have shape (2,), got []"),
        (torch.tensor([7, 0]), ValueError, "n must be in 1 .. 7, got 0 in row 1"),
        (torch.tensor([8, 0]), ValueError, "n must be in 1 .. 7, got 8 in row 0"),
    ],
)
def test_wrong_lengths_are_refused_with_the_reason(lengths, kind, words):
    check_lengths("n", torch.tensor([1, T]), 2, T)
    with pytest.raises(kind) as error:
        check_lengths("n", lengths, 2, T)
    assert str(error.value) == words


def test_check_shape_returns_rows_and_columns():
    assert check_shape("x", ids(3, 5)) == (3, 5)
    for wrong in (ids(5), ids(2, 3, 5), ids(0, 5), ids(3, 0)):
        with pytest.raises(ValueError, match=r"x must have shape \(b, t\) with b, t >= 1, got \["):
            check_shape("x", wrong)
    with pytest.raises(TypeError, match="x must be an int64 tensor, got ndarray"):
        check_shape("x", ids(3, 5).numpy())


def test_values_are_described_in_words():
    assert describe(torch.zeros(2, 3)) == "float32 [2, 3]"
    assert describe(torch.tensor(True)) == "bool []"
    assert describe(None) == "NoneType" and describe("x") == "str"


STEPS = [
    True,
    False,
    2.0,
    2.5,
    "2",
    -1,
    10**9,
    10**30,
    np.float32(1),
    np.bool_(True),
    torch.tensor(1.0),
    [1],
]


@pytest.mark.misuse
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", STEPS, ids=repr)
def test_wrong_steps_are_refused_everywhere(name, steps):
    model, tokens = tiny(name), ids(2, T)
    calls = [
        lambda: model(tokens, num_steps=steps),
        lambda: model(tokens, num_steps=steps),
        lambda: model.loss(tokens, num_steps=steps),
        lambda: model.score(tokens, num_steps=steps),
        lambda: model.generate(tokens, 1, steps),
        lambda: model.generate(tokens, 1, steps, use_cache=False),
        lambda: model.answer(tokens, torch.tensor([T, 2]), 1, steps),
        lambda: model.flops(2, T, steps),
    ]
    with untouched(model):
        for call in calls:
            with pytest.raises(ValueError) as error:
                call()
            assert "num_steps must be an integer in " in str(error.value)
            assert str(error.value).endswith(f"got {steps!r}")


@pytest.mark.misuse
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_allowed_up_to_the_limit_that_is_named(name):
    model, tokens = tiny(name), ids(2, T)
    low, high = (model.config.least_steps, 4) if thinks(model) else (1, 1)
    for steps in (low, high, np.int64(high), torch.tensor(high), torch.tensor(low).int()):
        assert model(tokens, num_steps=steps).logits.shape == (2, T, V)
    given = model(tokens, num_steps=model.config.num_steps).logits
    assert torch.equal(model(tokens, num_steps=None).logits, given)
    for steps in (low - 1, high + 1):
        with pytest.raises(ValueError, match=rf"num_steps .* {low} .. {high} .*got {steps}"):
            model(tokens, num_steps=steps)


def wrong_inputs():
    high, low = ids(2, T), ids(2, T)
    above, huge = ids(2, T), ids(2, T)
    high[1, 5], low[0, 0], above[1, 6], huge[0, 2] = V, -1, V + 1, 2**31
    good = torch.tensor([T, 3])
    return {
        "float": (TypeError, {"tokens": ids(2, T).double()}, ("tokens", "int64", "float64 [2, 7]")),
        "int32": (TypeError, {"tokens": ids(2, T).int()}, ("tokens", "int64", "int32 [2, 7]")),
        "bool": (TypeError, {"tokens": ids(2, T) > 5}, ("tokens", "int64", "bool [2, 7]")),
        "list": (TypeError, {"tokens": ids(2, T).tolist()}, ("tokens", "int64", "list")),
        "numpy": (TypeError, {"tokens": ids(2, T).numpy()}, ("tokens", "int64", "ndarray")),
        "flat": (ValueError, {"tokens": ids(T)}, ("tokens", "(b, t)", "[7]")),
        "no rows": (ValueError, {"tokens": ids(0, T)}, ("tokens", "(b, t)", "[0, 7]")),
        "no columns": (ValueError, {"tokens": ids(2, 0)}, ("tokens", "(b, t)", "[2, 0]")),
        "high": (ValueError, {"tokens": high}, ("tokens", "0 .. 12", "got 13 at [1, 5]")),
        "above": (ValueError, {"tokens": above}, ("tokens", "0 .. 12", "got 14 at [1, 6]")),
        "huge": (ValueError, {"tokens": huge}, ("tokens", "0 .. 12", f"got {2**31} at [0, 2]")),
        "low": (ValueError, {"tokens": low}, ("tokens", "0 .. 12", "got -1 at [0, 0]")),
        "long": (ValueError, {"tokens": ids(1, 68)}, ("67", "max_length", "got 68")),
        "long rows": (
            ValueError,
            {"tokens": ids(2, 70), "lengths": torch.tensor([5, 69])},
            ("67", "max_length", "got 69"),
        ),
        "prompt beyond": (
            ValueError,
            {"tokens": ids(2, T), "lengths": good, "prompt_lengths": torch.tensor([7, 4])},
            ("prompt_lengths", "at most lengths", "got 4 of 3 in row 1"),
        ),
        **{
            f"{name} {why}": (kind, {"tokens": ids(2, T), name: value}, (name, *words))
            for name in ("lengths", "prompt_lengths")
            for why, kind, value, words in (
                ("int32", TypeError, good.int(), ("int64", "int32")),
                ("list", TypeError, [7, 3], ("int64", "list")),
                ("one", ValueError, good[:1], ("(2,)", "[1]")),
                ("zero", ValueError, torch.tensor([7, 0]), ("1 .. 7", "got 0 in row 1")),
                ("above", ValueError, torch.tensor([8, 3]), ("1 .. 7", "got 8 in row 0")),
            )
        },
    }


@pytest.mark.misuse
@pytest.mark.parametrize("why", wrong_inputs())
@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_refused_by_forward_loss_and_score(name, why):
    model, (kind, given, words) = tiny(name), wrong_inputs()[why]
    tokens = given["tokens"]
    targets = ids(*tokens.shape) if isinstance(tokens, torch.Tensor) else ids(2, T)
    batch = Batch(targets=targets, **given)
    calls = [lambda: model(**given), lambda: model.loss(batch)]
    if "prompt_lengths" not in given:
        calls.append(lambda: model.score(**given))
    with untouched(model):
        for call in calls:
            with pytest.raises(kind) as error:
                call()
            assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.misuse
@pytest.mark.parametrize("why", wrong_inputs())
@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_refused_by_generate_and_answer(name, why):
    model, (kind, given, words) = tiny(name), wrong_inputs()[why]
    if "lengths" in given:
        return
    tokens, lengths = given["tokens"], given.get("prompt_lengths")
    if lengths is None and isinstance(tokens, torch.Tensor):
        lengths = torch.full(tokens.shape[:1], tokens.shape[-1])
    if why == "long":
        words = ("67", "max_length", "got 68 + 1")
    with untouched(model):
        for call in (
            lambda: model.generate(tokens, 1, prompt_lengths=given.get("prompt_lengths")),
            lambda: model.answer(tokens, lengths, 1),
        ):
            with pytest.raises(kind) as error:
                call()
            assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.misuse
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change, kind, words",
    [
        (lambda x: x.int(), TypeError, "targets must be an int64 tensor, got int32"),
        (lambda x: x.tolist(), TypeError, "targets must be an int64 tensor, got list"),
        (lambda x: x[:, 1:], ValueError, r"targets must have the shape .*\[2, 7\], got \[2, 6\]"),
        (lambda x: x[:1], ValueError, r"targets must have the shape .*\[2, 7\], got \[1, 7\]"),
        (lambda x: x[..., None], ValueError, r"targets must have the shape .*got \[2, 7, 1\]"),
        (lambda x: x + V, ValueError, r"targets must be in 0 .. 12 .*got \d+ at \[0, 0\]"),
        (lambda x: x * 0 - 99, ValueError, r"targets must be in 0 .. 12 .*got -99 at \[0, 0\]"),
    ],
)
def test_wrong_targets_are_refused(name, change, kind, words):
    model = tiny(name)
    with untouched(model), pytest.raises(kind, match=words):
        model.loss(Batch(ids(2, T), change(ids(2, T, seed=1))))


@pytest.mark.misuse
@pytest.mark.parametrize("name", NAMES)
def test_other_types_than_batches_are_refused(name):
    model = tiny(name)
    for wrong in (None, 5, [[1, 2]], {"tokens": ids(2, T)}):
        with pytest.raises(TypeError, match="batch must be a Batch or an int64 tensor, got "):
            model.loss(wrong)
    with pytest.raises(TypeError, match="tokens must be an int64 tensor, got float32"):
        model.loss(torch.zeros(2, T))


@pytest.mark.parametrize("name, own", CASES)
def test_what_needs_causality_is_refused_without_it(name, own):
    model = tiny(name, own)
    if model.causal:
        return
    for call in (
        lambda: model.generate(ids(2, T), 1),
        lambda: model.loss(ids(2, T)),
        lambda: model.score(ids(2, T)),
    ):
        with pytest.raises(ValueError, match="needs a causal model"):
            call()


@pytest.mark.parametrize("name", NAMES)
def test_settings_after_the_tokens_are_given_by_keyword(name):
    model, tokens = tiny(name), ids(2, T)
    for call in (model, model.loss, model.score):
        with pytest.raises(TypeError, match="positional"):
            call(tokens, None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_a_size_that_follows_the_task_must_be_set_before_a_model_is_built(name, size):
    config = dataclasses.replace(tiny(name).config, **{size: None})
    with pytest.raises(ValueError, match=f"{size} must be set before a model is built, got None"):
        MODELS[name](config)
    assert MODELS[name].Config().vocab_size is None
