"""A run that is served: its name, its rows, and the limits of its requests."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

from thinkers.checks import check_int
from thinkers.models.base import Model
from thinkers.serve.batching import MOST_ROWS, Scheduler
from thinkers.serve.protocol import Completion, RequestError
from thinkers.serve.questions import Questions
from thinkers.serve.rows import Listener, Row
from thinkers.serve.texts import Texts
from thinkers.tasks import Task
from thinkers.tasks.text import Text


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    Args:
        max_batch: Rows of a batch, which bounds the memory of caches.
        max_concurrent: Requests that run and wait together; others are refused with 429.
        max_tokens: New tokens of a choice.
        max_seconds: Seconds in which the body of a request must arrive, and a part of a stream be
            taken.
    """

    max_batch: int = MOST_ROWS
    max_concurrent: int = 64
    max_tokens: int = 1024
    max_seconds: int = 30

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_concurrent", "max_tokens", "max_seconds"):
            check_int(name, getattr(self, name), 1)


@dataclass
class Service:
    """A run that is served, and the requests to it. All methods are called in one thread.

    Args:
        name: The name of the model in requests.
        active: Requests that run and wait.
    """

    name: str
    engine: Texts | Questions
    scheduler: Scheduler
    limits: Limits
    created: int = field(default_factory=lambda: int(time.time()))
    active: int = 0

    @classmethod
    def of(
        cls, name: str, model: Model, task: Task, limits: Limits | None = None, **own: Any
    ) -> "Service":
        """Return the service of a model and its task; `own` are arguments of `Scheduler`.

        Raises:
            UsageError: The task needs a causal model, which this one is not.
        """
        limits = Limits() if limits is None else limits
        engine: Texts | Questions
        engine = Texts(model, task) if isinstance(task, Text) else Questions(model, task)
        return cls(name, engine, Scheduler(engine, limits.max_batch, **own), limits)

    def begin(self, asked: Completion) -> None:
        """Count a request in; `end` counts it out.

        Raises:
            RequestError: It is for another model, or there are too many.
        """
        if asked.model != self.name:
            found, fix = f"the model {asked.model[:100]!r}", f'pass "model": "{self.name}"'
            raise RequestError(404, found, self.name, fix, param="model")
        if not self.scheduler.is_alive:
            raise stopping()
        most = self.limits.max_concurrent
        if self.active >= most:
            found = f"{self.active} requests that run and wait"
            expected = f"at most {most} (thinkers serve --max_concurrent)"
            raise RequestError(429, found, expected, "ask again in a second", retry_after=1)
        self.active += 1

    def end(self, rows: list[Row]) -> None:
        """Count a request out; let its rows leave, if any are left."""
        self.active -= 1
        self.scheduler.cancel([row for row in rows if not row.ended])

    def rows(self, asked: Completion, listener: Listener) -> list[Row]:
        """Return the rows of a request.

        Raises:
            RequestError: A value is not one that this model can honour.
        """
        usual = self.engine.usual_tokens
        if asked.max_tokens is None and usual is not None:
            asked = replace(asked, max_tokens=min(usual, self.limits.max_tokens))
        return list(self.engine.rows(asked, listener))


def stopping() -> RequestError:
    """Return the error of a request to a server that stops."""
    fix = "ask again once it has started"
    return RequestError(503, "a server that stops", "one that runs", fix, retry_after=5)
