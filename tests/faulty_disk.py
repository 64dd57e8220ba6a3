"""A disk of which one operation fails: the injector of faults of all tests.

The functions of `os` and `open` are replaced while a disk is entered, and count what is done to the
files in one folder. All writing goes through `thinkers.files`, by these functions, so
that failing the first operation, the second and so on, until none is left, tries every fault there
is (as SQLite is tested: https://sqlite.org/testing.html). What SQLite and Rust do themselves is not
seen here: `tests/faults/test_native.py` has it.
"""

import builtins
import contextlib
import errno
import io
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from thinkers.errors import ResourceError, exit_code
from thinkers.files import FULL

CHANGES = ("write", "fsync", "mkdir", "rmdir", "unlink", "rename", "replace", "link")
READS = ("open", "stat", "lstat", "scandir", "listdir")
KILL = "SIGKILL"
ERRORS = ("EIO", "ENOSPC", "EACCES", "EMFILE", "EROFS", "EDQUOT", "EPERM", "ENFILE")


class WatchedDisk:
    """Operations on the files in a folder, each of which is met by `before` and `after`."""

    def __init__(self, folder: Path):
        self.folder = os.path.abspath(folder)
        self.open: dict[int, str] = {}
        self._real: list[tuple[Any, str, Any]] = []

    def before(self, name: str, where: Any, changes: bool) -> None:
        """Meet an operation that is about to be made; `changes` is False if it only reads."""

    def after(self, name: str, where: Any, given: tuple[Any, ...], found: Any) -> None:
        """Meet an operation that was made."""

    def __enter__(self) -> Any:
        for name in (*CHANGES, *READS):
            self._replace(os, name, self._wrapped(name, getattr(os, name)))
        self._replace(os, "close", self._close(os.close))
        real = io.open
        for module in (io, builtins):
            self._replace(module, "open", self._wrapped("open", real))
        return self

    def __exit__(self, *_: Any) -> None:
        for module, name, real in self._real:
            setattr(module, name, real)
        self._real.clear()

    def _replace(self, module: Any, name: str, function: Any) -> None:
        self._real.append((module, name, getattr(module, name)))
        setattr(module, name, function)

    def holds(self, where: Any) -> bool:
        """Return True for a path in the folder, or a descriptor of a file in it."""
        if isinstance(where, int):
            return where in self.open
        return os.path.abspath(os.fsdecode(where)).startswith(self.folder)

    def _close(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def close(descriptor: int) -> None:
            self.open.pop(descriptor, None)
            real(descriptor)

        return close

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(where: Any = ".", *given: Any, **named: Any) -> Any:
            # `os.fdopen` is no operation on the disk: the descriptor is open already.
            if not self.holds(where) or (name == "open" and isinstance(where, int)):
                return real(where, *given, **named)
            changes = name in CHANGES or (name == "open" and writes(*given, **named))
            self.before(name, where, changes)
            found = real(where, *given, **named)
            if name == "open" and isinstance(found, int):
                self.open[found] = os.path.abspath(os.fsdecode(where))
            self.after(name, where, given, found)
            return found

        return call


class FaultyDisk(WatchedDisk):
    """A disk of which one operation fails.

    Args:
        number: The operation that fails, from 1; 0 for none.
        fault: The name of an errno, or KILL: the process dies before the operation.
        changes: Count only operations that change the disk: a death before any other leaves what
            the death before the next change leaves.
    """

    def __init__(self, folder: Path, number: int = 0, fault: str = "EIO", changes: bool = False):
        super().__init__(folder)
        self.number, self.fault, self.changes = number, fault, changes
        self.count, self.failed = 0, ""

    def before(self, name: str, where: Any, changes: bool) -> None:
        if self.changes and not changes:
            return
        self.count += 1
        if self.count == self.number:
            self.failed = f"{name} {where}"
            if self.fault == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            number = getattr(errno, self.fault)
            if number in FULL and not changes:  # to read needs no room
                number = errno.EIO
            raise OSError(number, os.strerror(number), *([] if isinstance(where, int) else [where]))


def writes(mode: Any = "r", *_: Any, **named: Any) -> bool:
    """Return True if a file is opened by these arguments to be changed or created."""
    mode = named.get("mode", named.get("flags", mode))
    if isinstance(mode, int):
        return bool(mode & (os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC))
    return any(letter in mode for letter in "wax+")


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    Args:
        code: Its exit code; -9 if it was killed.
        text: Of its error; "" if there was none.
        said: What it printed.
        failed: The operation that failed; "" if the call made fewer.
        error: What it raised, if it was not killed.
    """

    code: int
    text: str
    said: str
    failed: str = ""
    error: BaseException | None = None


class CommandError(Exception):
    """A command line that ended with another code than 0, and what it wrote to stderr."""

    def __init__(self, code: int, text: str):
        super().__init__(text)
        self.code = code


def quick_folder() -> Path | None:
    """Return a folder in memory, where SQLite need not wait for a disk; None if there is none."""
    found = Path("/dev/shm")
    return found if os.access(found, os.W_OK) else None


def end_of(act: Callable[[], object], disk: FaultyDisk | None = None) -> Ended:
    """Call a function, on a disk of which an operation may fail."""
    said = io.StringIO()
    code, error, text = 0, None, ""
    with contextlib.redirect_stdout(said), disk or contextlib.nullcontext():
        try:
            act()
        except Exception as found:
            code = found.code if isinstance(found, CommandError) else exit_code(found)
            error, text = found, str(found)
    return Ended(code, text, said.getvalue(), disk.failed if disk else "", error)


def killed_end(act: Callable[[], object], disk: FaultyDisk, log: Path) -> Ended:
    """Call a function in a forked process, which is killed at an operation of the disk.

    Args:
        log: The file that holds what it prints; it must not lie in the folder of the disk.
    """
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            with log.open("w", buffering=1) as sys.stdout:
                with disk:
                    act()
            os._exit(0)
        except BaseException as error:
            log.write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    said = log.read_text()
    return Ended(code, said if code == 1 else "", said, disk.fault if code < 0 else "")


class Case:
    """An operation on a folder.

    Args:
        every: Short tests try every N-th death, and every N-th error, of what takes long.
        images: The most images of a power loss that short tests look at.
        loses_power: It writes something that must survive one.
    """

    name: ClassVar[str]
    every: ClassVar[tuple[int, int]] = (1, 1)
    images: ClassVar[int] = 120
    loses_power: ClassVar[bool] = True

    def begin(self, folder: Path) -> None:
        """Make what is on the disk before the operation."""

    def act(self, folder: Path) -> None:
        """Perform the operation."""
        raise NotImplementedError

    def again(self, folder: Path) -> None:
        """Perform it after it has failed, or continue it."""
        self.act(folder)

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        """Return what is gone, or damaged, of what was acknowledged before an operation ended."""
        return []

    def result(self, folder: Path) -> Any:
        """Return what the operation came to; two results are compared by ==."""
        raise NotImplementedError

    def leftovers(self, folder: Path) -> list[str]:
        """Return names that the operation leaves if it fails, and never otherwise."""
        found = (x.relative_to(folder).as_posix() for x in folder.rglob("*"))
        return [x for x in found if re.search(r"\.(tmp|old|damaged\d*)$", x)]


def trial(
    case: Case, begun: Path, place: Path, number: int, fault: str, expected: Any, changes: bool
) -> Ended:
    """Let an operation fail at the Nth operation of the disk, and then perform it again.

    Args:
        changes: Count only operations that change the disk.

    Returns:
        How it ended; `text` says what was wrong with that or afterwards, "" if nothing was.
    """
    folder = shutil.copytree(begun, place / "tried")
    disk = FaultyDisk(folder, number, fault, changes)
    try:
        if fault == KILL:
            ended = killed_end(lambda: case.act(folder), disk, place / "said")
            wrong = [] if ended.code == -9 else [f"code {ended.code}, {ended.text}"]
        else:
            ended = end_of(lambda: case.act(folder), disk)
            wrong = wrong_error(ended)
        wrong += case.lost(folder, ended)
        again = end_of(lambda: case.again(folder))
        if again.code:
            wrong.append(f"again: code {again.code}, {again.text}")
        else:
            found = case.result(folder)
            wrong += [] if found == expected else [f"again: {found}, not {expected}"]
        wrong += [f"left: {name}" for name in case.leftovers(folder)]
    finally:
        shutil.rmtree(folder)
    what = f"{case.name}, {fault} at {number} ({ended.failed}): "
    return Ended(ended.code, "; ".join(what + x for x in wrong), ended.said, ended.failed)


def wrong_error(ended: Ended) -> list[str]:
    """Return what is wrong with the error of an operation that the system failed.

    There may be none: bytecode that is not cached, a commit of git that is not known.
    """
    if not ended.code:
        return []
    wrong = [] if ended.code == 6 else [f"code {ended.code}"]
    text = ended.text.strip()
    if not isinstance(ended.error, ResourceError | CommandError):
        wrong.append(f"a {type(ended.error).__name__}")
    if len(text.splitlines()) > 3 or "Traceback" in text or "enforce fail" in text:
        wrong.append("the form of its message")
    if not re.search(r"/\S", text) or not re.search("; |fix: ", text):
        wrong.append("no path or no remedy in its message")
    return [f"{', '.join(wrong)}: {text}"] if wrong else []


def count(case: Case, begun: Path, place: Path, changes: bool) -> tuple[int, Any]:
    """Return the operations of the disk that a case makes, and its result."""
    folder = shutil.copytree(begun, place / "counted")
    disk = FaultyDisk(folder, changes=changes)
    ended = end_of(lambda: case.act(folder), disk)
    assert ended.code == 0, ended.text
    result = case.result(folder)
    shutil.rmtree(folder)
    return disk.count, result
