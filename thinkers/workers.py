"""Jobs in processes of their own, a few at a time: what one does to its process harms no other."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from thinkers.errors import Interrupted, ThinkersError
from thinkers.plugins import import_file, imported_files
from thinkers.stopping import Signals

PAUSE = 0.1
"""Seconds between two looks at whether a signal came."""


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
    """
    if workers == 1:
        for place, job in enumerate(jobs):
            yield place, _outcome(work, job)
    elif jobs:
        yield from _spread(work, jobs, workers)


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
                    yield place, _result(reader, process)
        finally:
            _end([process for _, process in under_way.values()])


def _begin(work: Callable[..., Any], job: tuple[Any, ...]) -> tuple[Connection, BaseProcess]:
    # A forked process would inherit torch's threads, or a device, and hang.
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, job, imported_files(), writer))
    process.start()
    writer.close()  # the child's end alone is open: when it dies, reading ends
    return reader, process


def _result(reader: Connection, process: BaseProcess) -> Any:
    try:
        found = reader.recv()
    except EOFError:
        process.join()
        found = ThinkersError(f"its process ended with code {process.exitcode}")
    process.join()
    if isinstance(found, Interrupted):  # someone stopped this process alone
        raise found
    return found


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: the parent says it by SIGTERM
    threading.Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(1)
    for file in files:
        import_file(file)
    try:
        found = _outcome(work, job)
    except Interrupted as error:
        found = error
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
