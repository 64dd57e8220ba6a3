"""The command `thinkers serve`: a run behind OpenAI's interface of completions."""

import argparse
from pathlib import Path
from typing import Any

from thinkers.cli.commands import add_import_module, parse_int, split_list
from thinkers.errors import usage_error
from thinkers.terminal import show

NUMBERS = {"max_batch": 32, "max_concurrent": 64, "max_tokens": 1024}
"""{limit: its default}, those of thinkers.serve.service.Limits."""


def add_serve(verbs: Any) -> None:
    verb = verbs.add_parser(
        "serve",
        help="answer OpenAI's completions over HTTP",
        description="POST /v1/completions with num_thinking_steps and halt as further fields, "
        "GET /v1/models and /health. Without authentication: other machines reach it only with "
        "--host.",
    )
    verb.add_argument("folder", metavar="RUN")
    verb.add_argument("--host", default="127.0.0.1", metavar="HOST", help="default: 127.0.0.1")
    verb.add_argument("--port", default="8000", metavar="N", help="default: 8000; 0 is any free")
    for name, text in (
        ("max_batch", "choices that are generated together"),
        ("max_concurrent", "requests that run and wait; others get 429"),
        ("max_tokens", "new tokens of a choice"),
    ):
        verb.add_argument(f"--{name}", metavar="N", help=f"{text} (default: {NUMBERS[name]})")
    verb.add_argument(
        "--stop_seconds",
        default="10",
        metavar="N",
        help="after SIGINT or SIGTERM, let running requests end for so long (default: 10)",
    )
    verb.add_argument(
        "--allowed_hosts",
        metavar="A,B",
        help="names that requests may give this server (default: those of this machine; any with "
        "another --host)",
    )
    add_import_module(verb)
    verb.set_defaults(run=serve)


def serve(options: argparse.Namespace, settings: list[str]) -> int:
    numbers = {
        name: default
        if (text := getattr(options, name)) is None
        else parse_int(f"--{name}", text, 1)
        for name, default in NUMBERS.items()
    }
    port, seconds = parse_port(options.port), parse_int("--stop_seconds", options.stop_seconds, 0)
    from thinkers.runs.result import open_with_task
    from thinkers.serve import process
    from thinkers.serve.service import Limits, Service

    opened = process.bind(options.host, port)
    with opened:
        model, task = open_with_task(options.folder)
        name = Path(options.folder).resolve().name

        def log(line: str, trace: str) -> None:
            show(trace if options.debug else line)

        service = Service.of(name, model, task, Limits(**numbers), log=log)
        show(f"serving {name} at {process.url_of(opened)} (Ctrl-C ends it)")
        if not process.is_local(opened):
            show("other machines reach it without authentication: put a proxy before it")
        process.serve(service, opened, seconds, split_list(options.allowed_hosts))
    return 0


def parse_port(text: str) -> int:
    """Convert the value of --port."""
    port = parse_int("--port", text, 0)
    if port > 65535:
        raise usage_error(f"--port {text}", "an integer in 0 .. 65535", "change --port")
    return port
