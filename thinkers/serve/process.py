"""The process of a server: its socket, its signals, and how it ends."""

import contextlib
import ipaddress
import signal
import socket
from collections.abc import Collection, Iterator
from typing import Any

from thinkers.errors import Interrupted, ResourceError, three_lines, usage_error
from thinkers.optional import require
from thinkers.serve.server import USE, create_app
from thinkers.serve.service import Service
from thinkers.training.signals import Signals

uvicorn = require("uvicorn", "serve", USE)

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
LAST_SECONDS = 3
"""Seconds for answers that say that the server stops, after those of running requests."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any free one.

    Raises:
        UsageError: The port is in use, or the host is none of this machine.
        ResourceError: The port is one that this user may not open.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        fix = "choose such as 127.0.0.1, or 0.0.0.0 for all of this machine"
        raise usage_error(f"--host {host}", "a name or an address", fix) from None
    family, _, _, _, address = found[0]
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it, a port is in use for a minute after a server has ended.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(512)
    except PermissionError:
        opened.close()
        fix = "choose a port from 1024 on"
        message = three_lines(f"no right to open port {port}", "a port that you may open", fix)
        raise ResourceError(message) from None
    except OSError as error:
        opened.close()
        what = f"port {port} of {host}, which cannot be opened: {error.strerror}"
        fix = f"choose another, such as --port {port + 1}, or --port 0 for any"
        raise usage_error(what, "a free port of this machine", fix) from None
    return opened


def is_local(opened: socket.socket) -> bool:
    """Return True if only this machine reaches a socket."""
    return ipaddress.ip_address(opened.getsockname()[0]).is_loopback


def url_of(opened: socket.socket) -> str:
    """Return the address of a socket, to which clients add the names of routes."""
    host, port = opened.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
    """A server that ends on a signal, after its requests or `stop_seconds`."""

    def __init__(self, config: Any, service: Service, signals: Signals | None, stop_seconds: float):
        super().__init__(config)
        self.service, self.signals, self.stop_seconds = service, signals, stop_seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `Signals`, which decides about the exit code."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Return True once the server must end."""
        ends = await super().on_tick(counter)
        return bool(ends or (self.signals is not None and self.signals.number))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and let those that run end."""
        self.service.scheduler.stop(self.stop_seconds)
        await super().shutdown(sockets)


def make_server(
    service: Service,
    opened: socket.socket,
    signals: Signals | None = None,
    stop_seconds: float = 10.0,
    allowed_hosts: Collection[str] = (),
) -> Server:
    """Return the server of a service behind a socket, which `run` runs.

    Args:
        signals: The first signal, by which it ends; None if the caller sets `should_exit`.
        stop_seconds: Seconds in which running requests may end after it.
        allowed_hosts: Further names of a server that only this machine reaches.
    """
    allowed = {name.lower() for name in (*LOCAL_NAMES, *allowed_hosts)}
    app = create_app(service, allowed if is_local(opened) or allowed_hosts else None)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=int(stop_seconds) + LAST_SECONDS,
    )
    return Server(config, service, signals, stop_seconds)


def serve(
    service: Service,
    opened: socket.socket,
    stop_seconds: float,
    allowed_hosts: Collection[str] = (),
) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        Interrupted: The server has ended by a signal.
    """
    with Signals() as signals:
        server = make_server(service, opened, signals, stop_seconds, allowed_hosts)
        service.scheduler.start()
        try:
            server.run(sockets=[opened])
        finally:
            service.scheduler.stop(0)
            service.scheduler.join(LAST_SECONDS)
    if signals.number:
        name = signal.Signals(signals.number).name
        raise Interrupted(f"stopped by {name}: no request is left", signals.number)
