"""The server under requests that are wrong or too many, clients that leave, errors, and its end."""

import asyncio
import gc
import json
import socket
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_cases import IDLE, httpx, openai, serving, slow, until
from serving_cases import alone, asked, text_run

from thinkers.models.writers import Cached
from thinkers.serve.rows import Piece
from thinkers.serve.server import EventStream
from thinkers.serve.service import Limits

pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    run = text_run(tmp_path_factory.mktemp("text"))
    with serving(run) as server:
        server.run = run
        yield server
        server.wait_until_idle()


def test_a_refused_request_has_the_three_parts(text):
    limit = text.run[0].config.max_length
    for fields, param in (
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a" * (limit + 1)}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": "the\ud800"}, "prompt"),
        ({"prompt": "the", "n": 10**9}, "n"),
        ({"prompt": "the", "temperature": -1}, "temperature"),
        ({"prompt": "the", "max_tokens": 10**6}, "max_tokens"),
        ({"prompt": "the", "num_thinking_steps": 99}, "num_thinking_steps"),
        ({"prompt": "the", "halt": 0.5}, "halt"),
        ({"prompt": "the", "stream": True, "halt": 0.5}, "halt"),
        ({"prompt": "the", "logprobs": 3}, "logprobs"),
        ({"prompt": "the", "tools": []}, "tools"),
    ):
        answer = text.http.post(
            "/v1/completions",
            content=json.dumps({"model": "m"} | fields),
            headers={"content-type": "application/json"},
        )
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == param
        assert error["found"] and error["expected"] and error["fix"]
        assert error["type"] == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="an empty prompt"):
        text.complete("")
    with pytest.raises(openai.NotFoundError, match="the model 'other'"):
        text.client.completions.create(model="other", prompt="the")


def test_the_server_may_allow_fewer_tokens_than_the_interface_asks_for(text, monkeypatch):
    monkeypatch.setattr(text.service, "limits", Limits(max_tokens=8))
    assert text.complete("the").usage.completion_tokens == 8
    with pytest.raises(openai.BadRequestError, match="--max_tokens"):
        text.complete("the", max_tokens=9)


def test_a_bug_of_the_server_is_an_error_without_its_message(text, monkeypatch, capfd):
    monkeypatch.setattr(text.service, "begin", lambda asked: {}["a secret"])
    answer = text.post(prompt="the")
    assert answer.status_code == 500 and "KeyError" in answer.json()["error"]["found"]
    assert "secret" not in answer.text and "a secret" in capfd.readouterr().out
    monkeypatch.undo()
    assert text.complete("the", max_tokens=1).usage.completion_tokens == 1


def test_requests_that_are_no_requests(text):
    post, kind = text.http.post, {"content-type": "application/json"}
    nan = b'{"model": "m", "prompt": "the", "temperature": NaN}'
    for answer, status in (
        (post("/v1/completions", content=b"{", headers=kind), 400),
        (post("/v1/completions", content=nan, headers=kind), 400),
        (post("/v1/completions", content=b"[" * 9999, headers=kind), 400),
        (post("/v1/completions", content=b" " * ((1 << 20) + 1), headers=kind), 413),
        (post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"}), 415),
        (post("/v1/completions", content=b"{}", headers=kind | {"host": "evil.example"}), 403),
        (text.http.get("/health", headers={"host": "evil.example:80"}), 403),
        (text.http.get("/health", headers={"host": f"[::1]:{text.port}"}), 200),
        (text.http.get("/v1/completions"), 405),
        (text.http.get("/docs"), 404),
        (post("/v1/chat/completions", json={}), 404),
    ):
        assert answer.status_code == status
        assert "access-control-allow-origin" not in answer.headers
        if status != 200:
            assert answer.json()["error"]["message"].startswith("found: ")


def test_a_body_that_does_not_arrive_is_not_waited_for(text, monkeypatch):
    monkeypatch.setattr(text.service, "limits", Limits(max_seconds=1))
    opened = text.open_socket({"prompt": "the"})
    opened.close()
    opened = socket.create_connection(("127.0.0.1", text.port))
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n"
    opened.sendall(head + b'content-type: application/json\r\n\r\n{"model"')
    assert opened.recv(1000).startswith(b"HTTP/1.1 408")
    opened.close()


@pytest.mark.parametrize("stream", [True, False])
def test_the_rows_of_a_client_that_hangs_up_leave(text, stream):
    with slow(text.run), ThreadPoolExecutor(1) as pool:
        other = pool.submit(text.complete, "cat", max_tokens=30, seed=1)
        text.rows.clear()
        fields = {"prompt": ["the", "cat"], "max_tokens": 900, "stream": stream}
        opened = text.open_socket(fields)
        if stream:
            assert opened.recv(15) == b"HTTP/1.1 200 OK"
        until(lambda: sum(100 < row.left < 890 for row in text.rows) == 2)
        mine = [row for row in text.rows if row.left > 100]
        assert text.health()["requests"] >= 1
        opened.close()
        until(lambda: all(row.is_gone for row in mine))
        left = [row.left for row in mine]
        written = other.result().choices[0].text
    # The token that was being computed then is the last.
    assert min(left) > 500 and all(x - row.left <= 1 for x, row in zip(left, mine, strict=True))
    assert written == alone(text.run, asked("cat", max_tokens=30, seed=1, temperature=1.0))
    text.wait_until_idle()


def test_a_client_that_reads_nothing_is_left(tmp_path):
    """Its answer does not fit into the buffers of the system; no other request is held up."""
    run = text_run(tmp_path)
    with serving(run, limits=Limits(max_seconds=1)) as server:
        exchange = type("Exchange", (), {"service": server.service, "closed": 0})()
        exchange.close = lambda: setattr(exchange, "closed", exchange.closed + 1)
        exchange.asked, exchange.head, exchange.number = asked("the"), {}, 1

        async def never(*_):
            await asyncio.sleep(99)

        async def ask():
            scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
            await EventStream(exchange, Piece(0, "text"))(scope, never, never)

        start = time.monotonic()
        asyncio.run(ask())
        assert exchange.closed == 1 and time.monotonic() - start < 10


def test_too_many_requests_are_told_to_come_back(tmp_path):
    run = text_run(tmp_path)
    with serving(run, limits=Limits(max_concurrent=2, max_batch=1)) as server, slow(run):
        fields = {"prompt": "the", "max_tokens": 900}
        opened = [server.open_socket(fields) for _ in range(2)]
        busy = IDLE | {"requests": 2, "running": 1, "waiting": 1}
        until(lambda: server.health() == busy)
        answer = server.post(prompt="the")
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert "--max_concurrent" in answer.json()["error"]["expected"]
        with pytest.raises(openai.RateLimitError):
            server.complete("the")
        for one in opened:
            one.close()
        server.wait_until_idle()
        assert server.complete("the", max_tokens=2).usage.completion_tokens == 2


def fail_on(model, text, error=RuntimeError):
    """Let the model fail while it reads or writes this character."""

    def check(module, given):
        if (given[0] == ord(text)).any():
            raise error("a message of the model")

    return model.embedding.register_forward_pre_hook(check)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_an_error_of_the_model_is_that_of_its_request_alone(tmp_path, error):
    run = text_run(tmp_path)
    with serving(run) as server:
        hook = fail_on(run[0], "z", error)
        with ThreadPoolExecutor(8) as pool:
            prompts = ["the", "cat", "z", "on"] * 4
            found = list(pool.map(lambda x: server.post(prompt=x, max_tokens=5, seed=1), prompts))
        assert [x.status_code for x in found] == [200, 200, 500, 200] * 4
        assert found[2].json()["error"]["type"] == "server_error"
        assert "a message" not in found[2].text and "a message" in server.lines[0]
        assert server.post(prompt="z", stream=True).status_code == 500
        hook.remove()
        assert server.post(prompt="z", max_tokens=5, seed=1).status_code == 200


def test_an_error_within_a_stream_is_an_event(tmp_path):
    run = text_run(tmp_path)
    with serving(run) as server, slow(run):
        stream = server.complete("the", max_tokens=500, stream=True)
        next(stream)
        hook = run[0].norm.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(openai.APIError, match="an error of the model: ZeroDivisionError"):
            list(stream)
        hook.remove()
        server.wait_until_idle()


def test_other_requests_do_not_wait_for_the_model(text):
    with slow(text.run, 1.0), ThreadPoolExecutor(1) as pool:
        pending = pool.submit(text.complete, "the", max_tokens=1)
        until(lambda: text.health()["running"] == 1)
        start = time.monotonic()
        text.health(), text.post(prompt="")
        assert time.monotonic() - start < 0.5
        pending.result()


@pytest.mark.parametrize("seconds", [20, 0])
def test_stopping_lets_requests_end_for_so_long(tmp_path, seconds):
    run = text_run(tmp_path)
    with serving(run, stop_seconds=seconds) as server, slow(run), ThreadPoolExecutor(3) as pool:
        fields = {"prompt": "the", "max_tokens": 40, "seed": 1}
        whole = pool.submit(server.post, **fields)
        stream = pool.submit(server.post, **fields, stream=True)
        until(lambda: server.health()["running"] == 2)
        server.server.should_exit = True
        if seconds:
            assert whole.result().json()["usage"]["completion_tokens"] == 40
            assert stream.result().text.endswith("data: [DONE]\n\n")
        else:
            assert whole.result().status_code == 503
            assert "a server that stops" in stream.result().text
        server.thread.join(20)
        with pytest.raises(httpx.ConnectError):
            server.post(**fields)


def test_nothing_of_a_request_is_kept(tmp_path):
    """Neither its rows and its events, nor their cache."""
    with serving(text_run(tmp_path)) as server:
        for stream in (True, False):
            found = server.complete(["the", "cat"], max_tokens=3, stream=stream)
            list(found)
        parts = [part for row in server.rows for part in (row, row._listener.__self__)]
        kept = [weakref.ref(part) for part in parts]
        del parts[:], server.rows[:]
        assert len(kept) == 8

        def is_free():
            gc.collect()
            left = any(ref() is not None for ref in kept)
            return not left and not any(isinstance(x, Cached) for x in gc.get_objects())

        until(is_free)  # the thread of the model closes a batch after its rows have ended
