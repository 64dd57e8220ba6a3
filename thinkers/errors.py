"""Exceptions, each with the exit code of the command line; `usage_error` builds a message.

A message has the value found, the rule and the fix. `exit_code` gives every other exception, such
as one of torch or of the operating system, its exit code too.
"""

import difflib
import errno
import re
from collections.abc import Iterable, Sequence

from thinkers.terminal import one_line, visible


class ThinkersError(Exception):
    """An error that a user can act on; `exit_code` is the exit status of the command line."""

    exit_code = 1


class UsageError(ThinkersError, ValueError):
    """An invalid command, configuration or argument.

    One that is about several settings has an error for each of them in `problems`.
    """

    exit_code = 2

    @property
    def problems(self) -> tuple["UsageError", ...]:
        """The errors that this one reports: itself alone, unless it is a SeveralErrors."""
        return (self,)


class UsageTypeError(UsageError, TypeError):
    """An argument of an invalid type."""


class SeveralErrors(UsageError):
    """All problems of one configuration; its text has one block for each, and an empty line
    between two."""

    def __init__(self, problems: Sequence[UsageError]):
        super().__init__(tuple(problems))

    @property
    def problems(self) -> tuple[UsageError, ...]:
        return self.args[0]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.problems))


class DataError(ThinkersError, ValueError):
    """Data that cannot be read, or whose form does not match the settings."""

    exit_code = 3


class DamagedError(ThinkersError):
    """A file of a run, a model, a comparison or a memory that is not as it was written."""

    exit_code = 4


class ForeignError(ThinkersError):
    """A checkpoint of another run; it may be intact, so nothing is renamed or deleted."""

    exit_code = 4


class FormatError(ThinkersError):
    """A file of an older or a newer version, which this version cannot read: no damage."""

    exit_code = 4


class NonFiniteError(ThinkersError, ArithmeticError):
    """A loss, gradient or weight that is infinite or not a number."""

    exit_code = 5


class ResourceError(ThinkersError, OSError):
    """A full disk, a missing right, a limit of the system, or too little memory."""

    exit_code = 6


class LockedError(ThinkersError):
    """A run folder that another process owns, or a memory that another process writes to."""

    exit_code = 7


class Interrupted(ThinkersError):
    """A run that saved and ended on a stop request; its exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message, signal_number)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return str(self.args[0])


def join_errors(problems: Iterable[UsageError]) -> UsageError:
    """Return one error for one or more problems, without those whose text repeats another's."""
    by_text: dict[str, UsageError] = {}
    for error in problems:
        for problem in error.problems:
            by_text.setdefault(str(problem), problem)
    found = list(by_text.values())
    return found[0] if len(found) == 1 else SeveralErrors(found)


def usage_error(found: str, expected: str, fix: str) -> UsageError:
    """Build a UsageError in three lines: the value found, the rule, the fix."""
    return UsageError(three_lines(found, expected, fix))


def three_lines(found: str, expected: str, fix: str) -> str:
    """Return the text of an error in three lines: the value found, the rule, the fix."""
    # A line break in a name must not forge a line.
    found, expected, fix = (visible(part, keep="\t") for part in (found, expected, fix))
    return f"found: {found}\nexpected: {expected}\nfix: {fix}"


PATH_ERRORS = frozenset(
    (
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EXDEV),
    )
)
"""Errors of the operating system about the path in the error."""
SYSTEM_ERRORS = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EAGAIN),
        *(errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EROFS, errno.ESTALE),
        *(errno.EBUSY, errno.ENODEV, errno.ENOLCK, errno.ETIMEDOUT),
    )
)
"""Errors of the operating system about resources, or about limits of this process."""
NO_MEMORY = ("out of memory", "allocate memory", "Storage size calculation overflowed")
"""Parts of the messages of torch's RuntimeErrors about memory, which have no class of their own."""


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error, by its class, number and message alone.

    The place where it was raised does not matter: code that reads a file turns its errors into the
    classes above, so that any other class is a bug.
    """
    if isinstance(error, ThinkersError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    if is_about_memory(error):
        return ResourceError.exit_code
    if system_errno(error) is not None:
        return ResourceError.exit_code
    if isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename is not None:
        return UsageError.exit_code
    return ThinkersError.exit_code


def system_errno(error: BaseException) -> int | None:
    """Return the errno of an error that is in SYSTEM_ERRORS; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    if type(error).__name__ == "SafetensorError":
        # safetensors reads and writes in Rust: its errors have the number only in their text.
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    return number if number in SYSTEM_ERRORS else None


def remedy(number: int | None) -> str:
    """Return what a user can do about an errno in SYSTEM_ERRORS."""
    if number in (errno.EMFILE, errno.ENFILE):
        return "allow more open files (ulimit -n), or end other programs"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "change the rights, or choose a place where you may write"
    return "free disk space or memory, or choose another disk"


def is_about_memory(error: BaseException) -> bool:
    """Return True if an error is about a lack of memory."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError)


def describe(error: BaseException) -> str:
    """Describe an error of another library in one line, without its advice and C++ locations.

    Messages of torch begin with a location in its C++ code, and some advise to load a refused file
    without protection.
    """
    if isinstance(error, OSError) and error.strerror:
        file = "" if error.filename is None else f"{error.filename}: "
        return one_line(f"{file}{error.strerror}", 300)
    text = str(error).strip().partition("\n")[0]
    text = re.sub(r"\[enforce fail at [^\]]*\][ .]*", "", text)
    if wanted := re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", text):
        return f"no memory for {wanted[1]} bytes"
    if "weights_only" in text:
        text = re.split(r"In PyTorch|Re-running|[^.]*weights_only", text)[0]
    return one_line(text.strip(), 300)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name most like `name`; a bare field name also finds its dotted form."""
    names = sorted(known)
    if "." not in name:
        ends = {x.rpartition(".")[2]: x for x in reversed(names)}
        close = difflib.get_close_matches(name, ends, n=1, cutoff=0.75)
        if close:
            return ends[close[0]]
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def near(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` may be a slip of; None if it is like none of them."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)), None)
