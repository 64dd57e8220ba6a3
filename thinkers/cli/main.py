"""The command `thinkers`: parse the line, run one command, map errors to exit codes."""

import difflib
import errno
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

if sys.platform == "win32":
    sys.stderr.write("thinkers runs on Linux and macOS; on Windows use it inside WSL\n")
    raise SystemExit(2)

from thinkers.cli import commands
from thinkers.cli.commands import raise_unknown
from thinkers.cli.parser import Parser, command_line
from thinkers.errors import ResourceError, ThinkersError, usage_error
from thinkers.plugins import import_file

SWITCHES = ("print_config", "dry_run", "debug", "help", "version", "ablate")
PATHS = ("out", "config", "resume", "import_module")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOMEM)
"""Errors of the operating system that are about the disk or memory, not about a path."""
NO_MEMORY = ("out of memory", "allocate memory", "Storage size calculation overflowed")
"""Parts of the messages of torch's RuntimeErrors about memory, which have no class of their own."""
SETTINGS_OF = {commands.train: "--", commands.compare: "--", commands.evaluate: "--task."}
"""{command: prefix of the settings that it takes}; the others take none."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process."""
    words = sys.argv[1:] if argv is None else list(argv)
    return guarded(lambda: run(words), debug="--debug" in words)


def guarded(work: Callable[[], int], debug: bool = False) -> int:
    """Return the result of `work`, or print its error and return the error's exit code."""
    try:
        return work()
    except BrokenPipeError:
        # The reader of the output has left, as in `thinkers list | head -1`. Without a stdout
        # Python does not flush it at exit, which would raise once more.
        sys.stdout = None  # type: ignore
        return 0
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if debug:
            traceback.print_exc()
        else:
            print("\n".join(explain(error, code)), file=sys.stderr)
        return code


def run(argv: Sequence[str]) -> int:
    """Parse a line and run its command.

    Raises:
        UsageError: The line names a command, a flag or a setting that does not exist.
    """
    own, settings = split(argv)
    top, verbs = command_line()
    if own and not own[0].startswith("-"):
        if own[0] not in verbs:
            raise_unknown(f"command {own[0]!r}", own[0], verbs, "thinkers --help lists them")
        own, settings = check_flags(own, settings, verbs[own[0]])
    options = top.parse_args(own)
    prefix = SETTINGS_OF.get(options.run)
    others = [flag for flag in settings if prefix is None or not flag.startswith(prefix)]
    if others:
        taken = "no settings of a recipe" if prefix is None else "settings of the task alone"
        raise usage_error(
            others[0],
            f"thinkers {options.verb} takes {taken}",
            f"leave it out; thinkers {options.verb} --help lists the flags",
        )
    for file in getattr(options, "import_module", []):
        import_file(file)
    return options.run(options, settings)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a line into (words of the command, settings), every flag as --name=value.

    A setting has a dot in its name, such as --model.dim; in names, - becomes _.
    """
    own: list[str] = []
    settings: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith("--") or word == "--":
            own.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if equals and not value and name in PATHS:
            raise_no_value(name)
        # `train --resume RUN` takes a value; `compare --resume` is a switch.
        if equals or name in SWITCHES or (name == "resume" and own[:1] == ["compare"]):
            flag = f"--{name}{equals}{value}"
        else:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise_no_value(name)
            flag = f"--{name}={following}"
        (settings if "." in name else own).append(flag)
    return own, settings


def check_flags(own: list[str], settings: list[str], verb: Parser) -> tuple[list[str], list[str]]:
    """Move flags that may be settings without their part (--lr) to the settings of `train`.

    The parser of settings then names the nearest one.

    Raises:
        UsageError: Another flag that the command does not have.
    """
    known = {flag for action in verb._actions for flag in action.option_strings}
    kept = own[:1]
    for word in own[1:]:
        name = word.partition("=")[0]
        if not name.startswith("--") or name in known:
            kept.append(word)
        elif own[0] == "train" and not is_close(name, known):
            settings = [*settings, word]
        else:
            raise_unknown(name, name, known, f"thinkers {own[0]} --help lists the flags")
    return kept, settings


def is_close(name: str, known: Iterable[str]) -> bool:
    return bool(difflib.get_close_matches(name, known, n=1, cutoff=0.75))


def raise_no_value(name: str) -> NoReturn:
    raise usage_error(f"--{name} without a value", "a value", f"write --{name} VALUE")


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error; thinkers.errors lists them."""
    if isinstance(error, ThinkersError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    message = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in message for words in NO_MEMORY)
    ):
        return ResourceError.exit_code
    if isinstance(error, OSError) and error.errno in FULL:
        return ResourceError.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return 2
    # Models and operations raise plain ValueErrors about their arguments, since they know no
    # command line; the same errors from torch or Python are bugs.
    if isinstance(error, ValueError | TypeError) and is_raised_here(error):
        return 2
    return 1


def is_raised_here(error: BaseException) -> bool:
    """Return True if a line of this package raised the error."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(__file__).parents[1] in Path(frames[-1].filename).parents


def explain(error: BaseException, code: int) -> list[str]:
    """Describe an error in at most three lines."""
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"]
    lines = [line for line in str(error).splitlines() if line.strip()][:3]
    if isinstance(error, ThinkersError):
        return lines or [type(error).__name__]
    first = lines[0][:300] if lines else type(error).__name__
    if code == 1:
        first = first if not lines else f"{type(error).__name__}: {first}"
        return [first, "this is a bug in thinkers; --debug shows the traceback"]
    if code == ResourceError.exit_code:
        return [f"found: {first}", "fix: free disk space or memory, or choose smaller settings"]
    if isinstance(error, OSError) and error.filename is not None:
        return [f"found: {error.filename}: {error.strerror}", "fix: choose another path"]
    return lines or [type(error).__name__]


def console() -> NoReturn:
    """Run the command as a process: the entry point of the installed script."""
    code = main()
    if code > 128:
        # Everything is saved. A second stop request while the process ends, for instance from a
        # supervisor that signals a whole group, must not replace this exit code.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    raise SystemExit(code)
