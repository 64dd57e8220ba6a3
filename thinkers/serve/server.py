"""The routes of the server: completions, models, health."""

import asyncio
import contextlib
import json
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from thinkers.errors import describe
from thinkers.optional import require
from thinkers.serve.batching import Stopping
from thinkers.serve.protocol import LARGEST_BODY, Completion, RequestError, parse_completion
from thinkers.serve.rows import Ended, Event, Failed, Piece, Row
from thinkers.serve.service import Service, stopping
from thinkers.terminal import show

USE = "thinkers serve"
fastapi = require("fastapi", "serve", USE)
responses = require("fastapi.responses", "serve", USE)
requests = require("starlette.requests", "serve", USE)
exceptions = require("starlette.exceptions", "serve", USE)


class Gone(Exception):
    """The client has hung up: nobody waits for an answer."""


def create_app(service: Service, allowed_hosts: Collection[str] | None = None) -> Any:
    """Return the application, of which `thinkers.serve.process` is the server.

    Args:
        allowed_hosts: Names in the header Host that are answered; None answers any. A page of
            another name, which its owner lets resolve to this machine, is not answered.
    """
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    Request, mailbox = requests.Request, Mailbox()

    @app.get("/health")
    async def health(request: Request) -> Any:  # type: ignore[valid-type]
        check_host(request, allowed_hosts)
        running, waiting = service.scheduler.counts()
        is_alive = service.scheduler.is_alive
        found = {"status": "ok" if is_alive else "stopping", "requests": service.active}
        found |= {"running": running, "waiting": waiting}
        return responses.JSONResponse(found, 200 if is_alive else 503)

    @app.get("/v1/models")
    async def models(request: Request) -> Any:  # type: ignore[valid-type]
        check_host(request, allowed_hosts)
        return responses.JSONResponse({"object": "list", "data": [description(service)]})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Any:  # type: ignore[valid-type]
        check_host(request, allowed_hosts)
        if name != service.name:
            raise RequestError(404, f"the model {name[:100]!r}", service.name, "ask for this one")
        return responses.JSONResponse(description(service))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:  # type: ignore[valid-type]
        check_host(request, allowed_hosts)
        try:
            content = await read_body(request, service.limits.max_seconds)
            mailbox.open()
            return await complete(request, service, mailbox, content)
        except (Gone, requests.ClientDisconnect):
            return responses.Response(status_code=499)  # nobody reads it

    for kind, handler in (
        (RequestError, sent_error),
        (exceptions.HTTPException, sent_http_error),
        (Exception, sent_bug),
    ):
        app.add_exception_handler(kind, handler)
    return app


def description(service: Service) -> dict[str, Any]:
    """Return what the interface says of a model."""
    found = {"id": service.name, "object": "model", "created": service.created}
    return found | {"owned_by": "thinkers"}


# Errors --------------------------------------------------------------------------------------


async def sent_error(request: Any, error: RequestError) -> Any:
    return responses.JSONResponse(error.body(), error.status, error.headers())


async def sent_http_error(request: Any, error: Any) -> Any:
    found = f"{request.method} {request.url.path[:100]}"
    expected = "POST /v1/completions, GET /v1/models or GET /health"
    own = RequestError(error.status_code, found, expected, "correct method or path")
    return responses.JSONResponse(own.body(), error.status_code, error.headers)


async def sent_bug(request: Any, error: Exception) -> Any:
    show(f"error of the server: {type(error).__name__} {describe(error)}")
    return await sent_error(request, failed("server", type(error).__name__))


def failed(what: str, name: str) -> RequestError:
    """Return the error of a request that failed by an error of the model or of the server."""
    fix = "ask again; the output of thinkers serve has the error"
    return RequestError(500, f"an error of the {what}: {name}", "an answer", fix)


def failed_request(error: Exception) -> RequestError:
    """Return the error of a request whose rows ended by this one."""
    return stopping() if isinstance(error, Stopping) else failed("model", str(error))


# Reading a request ----------------------------------------------------------------------------


def check_host(request: Any, allowed: Collection[str] | None) -> None:
    """Raise RequestError unless the request names this server as its user does."""
    host = request.headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if allowed is not None and name.lower() not in allowed:
        expected = f"one of {', '.join(sorted(allowed))}"
        fix = "add it: thinkers serve --allowed_hosts A,B"
        raise RequestError(403, f"the host {host[:100]!r}", expected, fix)


async def read_body(request: Any, seconds: float) -> bytes:
    """Return the body of a request.

    Raises:
        RequestError: It is no JSON, is too large, or does not arrive in time.
    """
    # A page of another origin may send any other type without being asked for permission.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        fix = "send the header content-type: application/json"
        raise RequestError(415, f"content-type {kind[:100]!r}", "application/json", fix)
    content = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                content += part
                if len(content) > LARGEST_BODY:
                    found, expected = "a larger body", f"at most {LARGEST_BODY:,} bytes"
                    raise RequestError(413, found, expected, "send shorter prompts")
    except TimeoutError:
        found = f"{len(content)} bytes of a body after {seconds} s"
        raise RequestError(408, found, "all of it", "send it at once") from None
    return bytes(content)


# Answering ------------------------------------------------------------------------------------


class Mailbox:
    """Events on their way from the thread of the model to the event loop.

    The loop is woken once for all events of a token, not for each: it would take the interpreter
    from the model as often.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[asyncio.Queue[Event | None], Event]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_due = False

    def open(self) -> None:
        """Deliver in the loop that runs."""
        self._loop = asyncio.get_running_loop()

    def post(self, queue: asyncio.Queue[Event | None], event: Event) -> None:
        """Put an event into a queue of the loop; called in the thread of the model."""
        self._events.append((queue, event))
        if not self._is_due and self._loop is not None:
            self._is_due = True
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Before the first event is taken: one that comes later must wake the loop again.
        self._is_due = False
        while self._events:
            queue, event = self._events.popleft()
            queue.put_nowait(event)


@dataclass
class Exchange:
    """A request that is answered: its rows, and the events of them as they arrive."""

    service: Service
    mailbox: Mailbox
    asked: Completion
    rows: list[Row] = field(default_factory=list)
    events: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.number = len(self.asked.prompts) * self.asked.n
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.service.name,
        }
        self._is_open = True

    async def begin(self) -> None:
        """Put the rows in line.

        Raises:
            RequestError: The request cannot be honoured.
        """
        # Prompts become tokens in another thread: a long one would hold up all requests.
        self.rows = await asyncio.to_thread(self.service.rows, self.asked, self._listen)
        try:
            self.service.scheduler.submit(self.rows)
        except Stopping:
            raise stopping() from None

    def _listen(self, event: Event) -> None:
        self.mailbox.post(self.events, event)

    async def next(self) -> Event:
        """Wait for the next event.

        Raises:
            Gone: The client has hung up, as far as it is watched.
        """
        event = await self.events.get()
        if event is None:
            raise Gone
        return event

    async def watch(self, request: Any) -> None:
        """Wait until the client hangs up, and let `next` raise Gone."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.events.put_nowait(None)

    def close(self) -> None:
        """Count the request out; rows that are left leave their batch."""
        if self._is_open:
            self._is_open = False
            self.service.end(self.rows)

    def usage(self, ended: Mapping[int, Ended]) -> dict[str, int]:
        """Return the counts of tokens; those of a prompt with several choices count once."""
        prompts = {row.indices[0] // self.asked.n: row.prompt_tokens for row in self.rows}
        read, written = sum(prompts.values()), sum(x.tokens for x in ended.values())
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        return dict(zip(names, (read, written, read + written), strict=True))


async def complete(request: Any, service: Service, mailbox: Mailbox, content: bytes) -> Any:
    """Answer a request whose body has been read.

    Raises:
        RequestError: The request cannot be honoured, or its rows ended by an error.
        Gone: The client has hung up.
    """
    asked = parse_completion(content, service.limits.max_tokens)
    service.begin(asked)
    exchange = Exchange(service, mailbox, asked)
    watching = None
    try:
        await exchange.begin()
        watching = asyncio.create_task(exchange.watch(request))
        first = await exchange.next()
        if isinstance(first, Failed):
            raise failed_request(first.error)
        if asked.stream:
            return EventStream(exchange, first)
        return responses.JSONResponse(await gathered(exchange, first))
    except BaseException:
        exchange.close()
        raise
    finally:
        if watching is not None:
            watching.cancel()
        if not asked.stream:
            exchange.close()


async def gathered(exchange: Exchange, event: Event) -> dict[str, Any]:
    """Return the whole answer, of which `event` is the first."""
    texts = [""] * exchange.number
    ended: dict[int, Ended] = {}
    while True:
        if isinstance(event, Failed):
            raise failed_request(event.error)
        if isinstance(event, Piece):
            texts[event.index] += event.text
        else:
            ended[event.index] = event
        if len(ended) == exchange.number:
            break
        event = await exchange.next()
    choices = [choice(i, text, ended[i]) for i, text in enumerate(texts)]
    return exchange.head | {"choices": choices, "usage": exchange.usage(ended)}


def choice(index: int, text: str, end: Ended | None = None) -> dict[str, Any]:
    """Return a choice, or a part of one, of which `end` is the last."""
    found = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
    if end is None:
        return found
    return found | {"finish_reason": end.reason, "mean_thinking_steps": end.mean_steps}


async def streamed(exchange: Exchange, event: Event) -> AsyncIterator[bytes]:
    """Yield the parts of an answer as server-sent events, of which `event` is the first."""
    ended: dict[int, Ended] = {}
    usage = {"usage": None} if exchange.asked.include_usage else {}
    while True:
        if isinstance(event, Failed):
            yield server_sent(failed_request(event.error).body())
            return
        if isinstance(event, Piece):
            part = choice(event.index, event.text)
        else:
            ended[event.index] = event
            part = choice(event.index, "", event)
        yield server_sent(exchange.head | {"choices": [part]} | usage)
        if len(ended) == exchange.number:
            break
        event = await exchange.next()
    if exchange.asked.include_usage:
        yield server_sent(exchange.head | {"choices": [], "usage": exchange.usage(ended)})
    yield b"data: [DONE]\n\n"


def server_sent(value: Any) -> bytes:
    """Return an object as a server-sent event."""
    return f"data: {json.dumps(value, allow_nan=False)}\n\n".encode()


class EventStream(responses.StreamingResponse):  # type: ignore[misc, name-defined]
    """A streamed answer; its rows leave their batch once nobody reads it.

    A client that reads nothing for `max_seconds` while more is to be sent is left: it would count
    as a request for ever.
    """

    def __init__(self, exchange: Exchange, first: Event):
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(streamed(exchange, first), headers=headers, media_type="text/event-stream")
        self.exchange = exchange

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        seconds = self.exchange.service.limits.max_seconds

        async def send_in_time(message: Any) -> None:
            async with asyncio.timeout(seconds):
                await send(message)

        try:
            with contextlib.suppress(TimeoutError):
                await super().__call__(scope, receive, send_in_time)
        finally:
            self.exchange.close()
