"""Jobs in processes of their own, a few at a time: what one does to its process harms no other."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from thinkers.errors import Interrupted, ThinkersError, UsageError
from thinkers.plugins import import_file, imported_files
from thinkers.training.signals import Signals

PAUSE = 0.1
"""Seconds between two looks at whether a signal came."""
READY = "ready"
"""What a process says when it has begun."""


def run_each(
    work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, Any]]:
    """(place of the job, what `work(*job)` returned), as they end; with one worker in order, here.

    An exception is returned in the place of a result, except Interrupted, which is raised when all
    jobs that were begun have saved what they had. In another process each job has one thread.

    Args:
        work: A function of a module, which returns or raises something that can be pickled.
        workers: How many jobs are under way at once.

    Raises:
        Interrupted: A signal came.
        UsageError: Other processes cannot begin, for want of `if __name__ == "__main__":`.
    """
    if workers == 1:
        yield from _here(work, jobs)
    elif jobs:
        yield from _spread(work, jobs, workers)


def _here(work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    with Signals() as signals:
        for place, job in enumerate(jobs):
            found = signals.unless_stopped(partial(_outcome, work, job))
            if signals.number:
                raise Interrupted("interrupted", signals.number)
            yield place, found


def _outcome(work: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    try:
        return work(*job)
    except Interrupted:
        raise
    except Exception as error:  # whoever reads the results tells of it
        return error


def _spread(
    work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, Any]]:
    waiting = list(enumerate(jobs))[::-1]
    under_way: dict[Connection, tuple[int, BaseProcess]] = {}
    with Signals() as signals:
        try:
            while waiting or under_way:
                if signals.number:
                    raise Interrupted("interrupted", signals.number)
                while waiting and len(under_way) < workers:
                    place, job = waiting.pop()
                    reader, process = _begin(work, job)
                    under_way[reader] = place, process
                ready = set(wait(list(under_way), PAUSE))
                for reader in [reader for reader in under_way if reader in ready]:
                    place, process = under_way.pop(reader)
                    found = _result(reader, process)
                    if found is READY:
                        under_way[reader] = place, process
                    elif signals.number and isinstance(found, Exception):
                        raise Interrupted("interrupted", signals.number)
                    else:
                        yield place, found
        finally:
            _end([process for _, process in under_way.values()])


def _begin(work: Callable[..., Any], job: tuple[Any, ...]) -> tuple[Connection, BaseProcess]:
    # A forked process would inherit torch's threads, or a device, and hang.
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, job, imported_files(), writer))
    # A terminal tells of Ctrl-C to all: this process hears it, and says it to the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    writer.close()  # the child's end alone is open: when it dies, reading ends
    return reader, process


def _result(reader: Connection, process: BaseProcess) -> Any:
    try:
        found = reader.recv()
    except EOFError:
        process.join()
        found = _death(process)
    if found == READY:
        process.ready = True  # type: ignore[attr-defined]
        return READY
    process.join()
    if isinstance(found, Interrupted):  # someone stopped this process alone
        raise found
    return found


def _death(process: BaseProcess) -> Exception:
    """What is to be said of a process that ended without a result."""
    code = process.exitcode or 0
    if not hasattr(process, "ready") and code > 0:
        raise UsageError(
            "found: workers that cannot begin (their own error stands above)\n"
            'expected: a script, in a file, that calls this below if __name__ == "__main__":\n'
            "fix: write it so, or use one worker"
        )
    if code < 0:
        return ThinkersError(f"killed by signal {-code}, perhaps for want of memory")
    return ThinkersError(f"its process ended with code {code}")


def _end(processes: Sequence[BaseProcess]) -> None:
    """Ask for what is under way to be saved, and wait for it."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _work(
    work: Callable[..., Any], job: tuple[Any, ...], files: Sequence[str], writer: Connection
) -> None:
    """What the other process does."""
    writer.send(READY)
    threading.Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(1)
    for file in files:
        import_file(file)
    try:
        found = _outcome(work, job)
    except Interrupted as error:
        found = error
    with contextlib.suppress(OSError):  # nobody is left to read it
        writer.send(_sendable(found) if isinstance(found, Exception) else found)


def _sendable(error: Exception) -> Exception:
    """The error, or its words if it is of a kind that is lost on the way."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever someone's own exception does when it is made again
        return ThinkersError(f"{type(error).__name__}: {error}")
    return error


def _follow() -> None:
    """End with the parent, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
