"""Exceptions, each with the exit code of the command line; `usage_error` builds a message.

A message has the value found, the rule and the fix. Other exceptions, such as torch's, get their
exit code from `exit_code` in cli/main.py.
"""

import difflib
from collections.abc import Iterable


class ThinkersError(Exception):
    """An error that a user can act on; `exit_code` is the exit status of the command line."""

    exit_code = 1


class UsageError(ThinkersError, ValueError):
    """An invalid command, configuration or argument."""

    exit_code = 2


class DataError(ThinkersError, ValueError):
    """Data that cannot be read, or whose form does not match the settings."""

    exit_code = 3


class DamagedError(ThinkersError):
    """A checkpoint, model or store that changed since it was written, or has another format."""

    exit_code = 4


class NonFiniteError(ThinkersError, ArithmeticError):
    """A loss, gradient or weight that is infinite or not a number."""

    exit_code = 5


class ResourceError(ThinkersError, OSError):
    """A full disk, or too little memory."""

    exit_code = 6


class LockedError(ThinkersError):
    """A run folder that another process owns."""

    exit_code = 7


class Interrupted(ThinkersError):
    """A run that saved and ended on a stop request; its exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message, signal_number)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return str(self.args[0])


def usage_error(found: str, expected: str, fix: str) -> UsageError:
    """Build a UsageError in three lines: the value found, the rule, the fix."""
    return UsageError(f"found: {found}\nexpected: {expected}\nfix: {fix}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name most like `name`; a bare field name also finds its dotted form."""
    names = sorted(known)
    if "." not in name:
        ends = {x.rpartition(".")[2]: x for x in reversed(names)}
        close = difflib.get_close_matches(name, ends, n=1, cutoff=0.75)
        if close:
            return ends[close[0]]
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
