"""Texts in batches: each is continued as `thinkers.generate` continues it alone."""

import pytest
from model_cases import ALONE, NAMES, tiny
from serving_cases import alone, answer_all, asked, text_run

from thinkers.errors import UsageError
from thinkers.models import MODELS
from thinkers.serve.protocol import RequestError
from thinkers.serve.texts import Texts

pytestmark = pytest.mark.extras
pytest.importorskip("openai")  # with the tests of the server, not with those of the core

PROMPTS = ("the", "cat sät on", "s", "on — 猫. the cat sät on —", "t")
REQUESTS = [
    asked(PROMPTS[0], max_tokens=9, temperature=0.0),
    asked(PROMPTS[1], max_tokens=23, temperature=1.0, seed=3),
    asked(PROMPTS[2], max_tokens=1, temperature=0.7, top_p=0.9, seed=4),
    asked(PROMPTS[3], max_tokens=40, temperature=1.0, top_p=0.5, seed=3),
    asked(PROMPTS[4], max_tokens=6, temperature=2.0, seed=3, n=2),
]
GATED = [(name, own) for name, own in ALONE if own.get("halting") and own.get("causal", True)]


def check_alone(run, requests, **own):
    """Check that each choice is what the library writes alone; return the sizes of batches."""
    answers, batches = answer_all(run, requests, **own)
    for request, answer in zip(requests, answers, strict=True):
        assert not answer.errors
        for choice in range(len(request.prompts) * request.n):
            assert answer.text(choice) == alone(run, request, choice), request
            end = answer.ends[choice]
            assert (end.reason, end.tokens) == ("length", request.max_tokens)
    return batches


@pytest.mark.parametrize("name", NAMES)
def test_a_text_in_a_batch_is_the_text_alone(name, tmp_path):
    """Of unequal lengths, broken off every few tokens, and beyond the window of the model."""
    run = text_run(tmp_path, name)
    batches = check_alone(run, REQUESTS, turn=4)
    assert max(batches) == (6 if MODELS[name].ragged_text else 3)


@pytest.mark.parametrize("halt", [0.4, 0.5, 1.0])
@pytest.mark.parametrize(("name", "own"), GATED, ids=lambda x: str(x)[:40])
def test_tokens_that_halt_early(name, own, halt, tmp_path):
    run = text_run(tmp_path, name, own)
    requests = [asked(x, max_tokens=6, temperature=0.0, halt=halt, num_steps=3) for x in PROMPTS]
    other = asked(PROMPTS[0], max_tokens=6, temperature=0.0, halt=0.9, num_steps=3)
    answers, _ = answer_all(run, requests)
    # What a thinker writes before its first section has ended takes no step.
    least = 3 * (halt == 1.0) * run[0].ragged_text
    assert all(least <= answer.ends[0].mean_steps <= 3 for answer in answers)
    check_alone(run, [*requests, other, REQUESTS[1]], turn=4)


@pytest.mark.parametrize("name", [x for x in NAMES if MODELS[x].Config.takes_steps])
def test_requests_of_other_steps_run_in_other_batches(name, tmp_path):
    run = text_run(tmp_path, name)
    least, most = run[0].config.least_steps, run[0].config.max_steps
    requests = [
        asked(PROMPTS[0], max_tokens=5, temperature=1.0, seed=1, num_steps=steps)
        for steps in (least, most, None, most)
    ]
    batches = check_alone(run, requests)
    assert sorted(batches) == [1, 1, 2]
    answers, _ = answer_all(run, requests)
    found = [answer.ends[0].mean_steps for answer in answers]
    assert found == [least, most, run[0].config.num_steps, most]


@pytest.mark.parametrize("vocabulary", ["character", "bpe"])
def test_other_tokens(vocabulary, tmp_path):
    pytest.importorskip("tokenizers") if vocabulary == "bpe" else None
    check_alone(text_run(tmp_path, vocabulary=vocabulary), REQUESTS, turn=4)


def test_pieces_are_whole_characters(tmp_path):
    run = text_run(tmp_path)
    hook = run[0].head.register_forward_hook(lambda *_: next_bytes(run, "—猫sä"))
    request = asked("t", max_tokens=10, temperature=0.0, stream=True)
    (answer,), _ = answer_all(run, [request])
    hook.remove()
    assert answer.pieces[0] == ["—", "猫", "s", "ä", "\ufffd"]


def next_bytes(run, text, written=[]):  # noqa: B006, one list for all calls
    """Logits that write these bytes, over and over."""
    token = text.encode()[len(written) % len(text.encode())]
    written.append(token)
    logits = run[0].norm.weight.new_zeros(1, run[1].vocab_size)
    logits[:, token] = 1
    return logits


def test_a_text_ends_before_a_text_of_stop_and_echo_repeats_the_prompt(tmp_path):
    run = text_run(tmp_path, vocabulary="character")
    whole = alone(run, asked("the", max_tokens=20, temperature=1.0, seed=5))
    place = next(i for i in range(4, 20) if whole.index(whole[i : i + 2]) == i)
    stop = whole[place : place + 2]
    sampling = dict(max_tokens=20, temperature=1.0, seed=5, stop=("no such text", stop))
    for stream in (True, False):
        (answer,), _ = answer_all(run, [asked("the", echo=True, stream=stream, **sampling)])
        assert answer.text() == "the" + whole[:place]
        assert (answer.ends[0].reason, answer.ends[0].tokens) == ("stop", place + 2)
        assert (len(answer.pieces[0]) > 1) == stream


def test_a_row_that_is_cancelled_leaves_its_batch_and_its_memory(tmp_path):
    run = text_run(tmp_path)
    engine, sizes = Texts(*run), []
    extend = run[0].extend
    run[0].extend = lambda tokens, cache, **own: (
        sizes.append(cache.data.shape[2]) or extend(tokens, cache, **own)
    )
    request = asked(["the", "cat", "sät"], max_tokens=9, temperature=0.0)
    rows = engine.rows(request, lambda event: None)
    batch = engine.run(rows)
    next(batch), next(batch)
    rows[1].cancelled = True
    next(batch), next(batch)
    batch.close()
    assert sizes == [3, 2, 2]


def test_what_a_model_cannot_do_is_refused_by_the_field(tmp_path):
    engine = Texts(*text_run(tmp_path))
    limit = engine.model.config.max_length
    for request, param in (
        (asked(""), "prompt"),
        (asked("t" * (limit + 1)), "prompt"),
        (asked("\ud800"), "prompt"),
        (asked("t", num_steps=2), "num_thinking_steps"),
        (asked("t", halt=0.5), "halt"),
        (asked("t", halt="answered"), "halt"),
    ):
        with pytest.raises(RequestError) as caught:
            engine.rows(request, print)
        assert caught.value.param == param and caught.value.status == 400
    engine.rows(asked("t" * limit, max_tokens=1), print)
    engine = Texts(*text_run(tmp_path, vocabulary="character"))
    with pytest.raises(RequestError, match="'!' at character 1"):
        engine.rows(asked("t!"), print)


def test_a_model_that_is_not_causal_is_not_served(tmp_path):
    _, task = text_run(tmp_path)
    with pytest.raises(UsageError, match="causal"):
        Texts(tiny("thoughtsformer", {"causal": False}, vocab_size=256), task)
