"""A server in a thread of the tests, and clients of it."""

import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from thinkers.serve.service import Service

pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")

from thinkers.serve import process  # noqa: E402, after the packages that it needs

IDLE = {"status": "ok", "requests": 0, "running": 0, "waiting": 0}


class Running:
    """A server in a thread, and clients of it."""

    def __init__(self, service, stop_seconds):
        self.service, self.rows = service, []
        read = service.rows
        service.rows = lambda *given: self.rows.extend(found := read(*given)) or found
        self.socket = process.bind("127.0.0.1", 0)
        self.url = process.url_of(self.socket)
        self.port = self.socket.getsockname()[1]
        self.server = process.make_server(service, self.socket, None, stop_seconds)
        service.scheduler.start()
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()
        self.client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0)
        self.http = httpx.Client(base_url=self.url.removesuffix("/v1"), timeout=60)

    def complete(self, prompt, **fields):
        own = {x: fields.pop(x) for x in ("num_thinking_steps", "halt") if x in fields}
        return self.client.completions.create(model="m", prompt=prompt, extra_body=own, **fields)

    def post(self, **fields):
        return self.http.post("/v1/completions", json={"model": "m"} | fields)

    def health(self):
        return self.http.get("/health").json()

    def wait_until_idle(self):
        until(lambda: self.health() == IDLE)

    def open_socket(self, fields):
        """Send a request by a socket, and leave its answer unread."""
        opened = socket.create_connection(("127.0.0.1", self.port))
        body = json.dumps({"model": "m"} | fields).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        )
        opened.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        return opened

    def stop(self):
        self.client.close()
        self.http.close()
        self.server.should_exit = True
        self.thread.join(30)
        self.service.scheduler.join(30)
        assert not self.thread.is_alive()


def until(is_true, seconds=20):
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def serving(run, stop_seconds=10, limits=None, **own):
    lines = []
    own = {"log": lambda line, trace: lines.append(line)} | own
    found = Running(Service.of("m", *run, limits, **own), stop_seconds)
    found.lines = lines
    try:
        yield found
    finally:
        found.stop()


@contextmanager
def slow(run, seconds=0.02):
    """Let every token take so long."""
    hook = run[0].norm.register_forward_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        hook.remove()
