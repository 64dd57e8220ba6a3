"""Answers of the server to OpenAI's client; see the other files for its parts."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_cases import openai, serving
from serving_cases import alone, asked, run_of, text_run

import thinkers
from thinkers.evaluation.generate import UNFINISHED

pytestmark = pytest.mark.extras

WORDS = "the cat sät on — 猫 .".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2}
    run = text_run(tmp_path_factory.mktemp("text"), "looped", **sizes)
    with serving(run, turn=16) as server:
        server.run = run
        yield server
        server.wait_until_idle()


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    own = {"halting": True}
    run = text_run(tmp_path_factory.mktemp("gated"), "looped", own, vocabulary="character")
    with serving(run) as server:
        server.run = run
        yield server
        server.wait_until_idle()


@pytest.fixture(scope="module")
def questions():
    run = run_of("add")
    with serving(run) as server:
        server.run = run
        yield server
        server.wait_until_idle()


def streamed(stream):
    """The texts, the reasons and the usage of a stream."""
    texts, ends, usage = {}, {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason, choice.mean_thinking_steps
    return texts, ends, usage


def test_two_hundred_requests_of_which_32_wait_at_once(text):
    """None is lost, and each is what the library writes alone, streamed or not."""
    requests = [
        asked(
            " ".join(WORDS[i % 3 : i % 3 + 1 + i % 5]),
            max_tokens=1 + 7 * i % 23,
            temperature=(0.0, 1.0, 0.7)[i % 3],
            top_p=(1.0, 0.8)[i % 2],
            seed=i,
            num_steps=(None, 1, None, 3)[i % 4],
        )
        for i in range(200)
    ]

    def ask(request):
        own = {} if request.num_steps is None else {"num_thinking_steps": request.num_steps}
        names = ("max_tokens", "temperature", "top_p", "seed")
        fields = {name: getattr(request, name) for name in names}
        prompt, stream = request.prompts[0], request.seed % 5 == 0
        found = text.complete(prompt, stream=stream, **fields, **own)
        return streamed(found)[0].get(0, "") if stream else found.choices[0].text

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, requests))
    assert found == [alone(text.run, request) for request in requests]


def test_questions_are_answered_as_by_the_library(questions):
    prompts = [f"{i}+{7 * i % 90}=" for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(questions.complete, prompts))
    for prompt, one in zip(prompts, found, strict=True):
        whole = thinkers.answer(questions.run, prompt)
        choice = one.choices[0]
        assert prompt + choice.text == whole.removesuffix(UNFINISHED)
        assert choice.finish_reason == ("length" if whole.endswith(UNFINISHED) else "stop")
        assert one.usage.prompt_tokens == len(prompt) and choice.mean_thinking_steps == 2
    texts, ends, _ = streamed(questions.complete(prompts, stream=True))
    assert [texts[i] for i in range(20)] == [one.choices[0].text for one in found]
    assert len(ends) == 20


def test_a_stream_is_the_answer_in_pieces(text):
    fields = dict(max_tokens=12, seed=3, n=2, echo=True, stop=["tt", "ö"], temperature=1.0)
    whole = text.complete(["the", "cat sät"], **fields)
    texts, ends, usage = streamed(
        text.complete(
            ["the", "cat sät"], stream=True, stream_options={"include_usage": True}, **fields
        )
    )
    assert [choice.text for choice in whole.choices] == [texts[i] for i in range(4)]
    found = [(choice.finish_reason, choice.mean_thinking_steps) for choice in whole.choices]
    assert found == [ends[i] for i in range(4)] and usage == whole.usage
    assert usage.prompt_tokens == 3 + 8 and usage.completion_tokens <= 48
    assert [choice.text.startswith("the") for choice in whole.choices] == [True, True, False, False]


def test_a_stream_ends_in_done_and_has_usage_only_if_asked(text):
    answer = text.post(prompt="the", max_tokens=2, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *parts, last = [line for line in answer.text.split("\n\n") if line]
    assert last == "data: [DONE]" and len(parts) >= 2
    chunks = [json.loads(part.removeprefix("data: ")) for part in parts]
    assert not any("usage" in chunk for chunk in chunks) and len({x["id"] for x in chunks}) == 1


def test_the_defaults_are_those_of_the_interface(text):
    found = text.complete("the")
    assert found.usage.completion_tokens == 16 and len(found.choices) == 1
    assert text.complete("the").choices[0].text != found.choices[0].text  # 256^16 others


def test_thinking_steps_and_halting(gated):
    sampling = dict(max_tokens=9, temperature=0.0)
    for own in ({}, {"num_thinking_steps": 1}, {"num_thinking_steps": 4}, {"halt": 0.5}):
        found = gated.complete("the cat", **sampling, **own).choices[0]
        steps, halt = own.get("num_thinking_steps"), own.get("halt")
        request = asked("the cat", **sampling, num_steps=steps, halt=halt)
        assert found.text == alone(gated.run, request)
        taken = found.mean_thinking_steps
        assert (1 <= taken <= 2) if halt else taken == (steps or 2)


def test_models_and_health(text):
    (model,) = text.client.models.list().data
    assert (model.id, model.owned_by) == ("m", "thinkers")
    assert text.client.models.retrieve("m") == model
    with pytest.raises(openai.NotFoundError):
        text.client.models.retrieve("other")
    text.wait_until_idle()
