"""The fields of a request: what is read, and what is refused, by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkers.errors import UsageError, usage_error
from thinkers.serve.protocol import (
    FIELDS,
    HIGHEST_SEED,
    MOST_CHOICES,
    Completion,
    RequestError,
    parse_completion,
    refused,
)

pytestmark = pytest.mark.extras
pytest.importorskip("openai")  # with the tests of the server, not with those of the core

LEAST = {"model": "m", "prompt": "12+34="}


def parse(**fields):
    return parse_completion(json.dumps(LEAST | fields).encode(), 1000)


def test_what_is_left_out_is_none_and_null_is_left_out():
    assert (
        parse() == parse(**dict.fromkeys(set(FIELDS) - set(LEAST))) == Completion("m", ("12+34=",))
    )


def test_all_fields_are_read():
    found = parse(
        prompt=["a", "b"],
        max_tokens=7,
        temperature=0,
        top_p=0.5,
        n=2,
        best_of=2,
        stop="x",
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
        echo=True,
        num_thinking_steps=0,
        halt=0.25,
        user="me",
        logprobs=False,
        suffix="",
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
    )
    sampling = dict(max_tokens=7, temperature=0.0, top_p=0.5, n=2, stop=("x",), seed=3)
    own = dict(stream=True, echo=True, include_usage=True, num_steps=0, halt=0.25)
    assert found == Completion("m", ("a", "b"), **sampling, **own)
    assert parse(halt="answered").halt == "answered" and parse(halt=1).halt == 1.0


REFUSED = [
    ("model", [1, ["m"], True]),
    ("prompt", [1, [], [1, 2], ["a", 1], {"a": 1}, [["a"]], ["a"] * (MOST_CHOICES + 1)]),
    ("max_tokens", [0, -1, 1.0, "3", True, 1001, 10**30]),
    ("temperature", [-0.1, "1", True, [1]]),
    ("top_p", [0, -1, 1.1, "0.5", False]),
    ("n", [0, MOST_CHOICES + 1, 10**9, 1.5, "2", True]),
    ("best_of", [2, 0, "1"]),
    ("stop", [1, [1], [""], "", ["a"] * 5, "a" * 201, {}]),
    ("seed", [-1, HIGHEST_SEED + 1, 1.0, "1", True]),
    ("stream", [1, "true"]),
    ("stream_options", [{"include_usage": 1}, {"other": True}, [], True, {}]),
    ("echo", [1, "no"]),
    ("num_thinking_steps", [-1, 1.5, "2", True]),
    ("halt", [-0.1, 1.1, "policy", "0.5", True, [0.5]]),
    ("user", [1]),
    ("logprobs", [1, 0, 5, True, "all"]),
    ("suffix", ["x", 1]),
    ("frequency_penalty", [0.5, False, "0"]),
    ("presence_penalty", [1]),
    ("logit_bias", [{"1": 2}, []]),
    ("functions", [[]]),
    ("temprature", [1]),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED for value in values]
)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(name, value):
    with pytest.raises(RequestError) as caught:
        parse(**{name: value})
    body = caught.value.body()["error"]
    assert caught.value.status == 400 and body["type"] == "invalid_request_error"
    assert body["param"].partition(".")[0] == name
    parts = [body[part] for part in ("found", "expected", "fix")]
    assert all(parts) and len(body["message"]) < 500
    lines = zip(("found", "expected", "fix"), parts, strict=True)
    assert body["message"].split("\n") == [f"{key}: {text}" for key, text in lines]


def test_the_nearest_name_of_an_unknown_field_is_shown():
    with pytest.raises(RequestError) as caught:
        parse(temprature=1)
    assert caught.value.expected == "temperature"
    with pytest.raises(RequestError) as caught:
        parse(foo=1)
    assert caught.value.expected.startswith("one of model, prompt, max_tokens, ")
    assert "logprobs" not in caught.value.expected


@pytest.mark.parametrize("name", LEAST)
def test_a_field_that_is_needed_is_named(name):
    with pytest.raises(RequestError) as caught:
        parse(**{name: None})
    assert caught.value.param == name


def test_choices_and_seeds_have_limits_together():
    assert parse(prompt=["a"] * 16, n=2).n == 2
    assert parse(seed=HIGHEST_SEED).seed == HIGHEST_SEED
    for fields, param in (
        ({"prompt": ["a"] * 16, "n": 3}, "n"),
        ({"seed": HIGHEST_SEED, "n": 2}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ):
        with pytest.raises(RequestError) as caught:
            parse(**fields)
        assert caught.value.param == param


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "m", "prompt": "a", "temperature": NaN}',
        b'{"model": "m", "prompt": "a", "temperature": 1e999}',
        b'{"model": "m", "prompt": "a", "prompt": "b"}',
        b'{"model": "m", "prompt": "a", "temperature": 1%b}' % (b"0" * 400),
        b"[" * 10_000,
        b'{"a":' * 200 + b"1" + b"}" * 200,
    ],
)
def test_a_body_that_is_no_object_of_json_is_refused(content):
    with pytest.raises(RequestError) as caught:
        parse_completion(content, 1000)
    assert caught.value.status == 400 and caught.value.param in (None, "temperature")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), JSON) | JSON)
def test_any_body_is_read_or_refused(value):
    given = {**LEAST, **value} if isinstance(value, dict) else value
    try:
        found = parse_completion(json.dumps(given).encode(), 1000)
    except RequestError as error:
        json.dumps(error.body(), allow_nan=False)
    else:
        assert isinstance(found, Completion)


def test_errors_of_the_library_keep_their_three_parts():
    found = refused(usage_error("an a", "a b", "write b"), "prompt")
    assert (found.found, found.expected, found.fix) == ("an a", "a b", "write b")
    found = refused(UsageError("num_steps must be 1, got 2"), "num_thinking_steps")
    assert (found.found, found.expected) == ("num_thinking_steps 2", "1")
    assert found.fix == "change num_thinking_steps"
    found = refused(UsageError("character 0 of 'a' must be one of 0 1, got 'a'"), "prompt")
    assert found.found.startswith("character 0 of") and "prompt" in found.expected
