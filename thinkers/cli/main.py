"""The command `thinkers`: parse the line, run one command, map errors to exit codes."""

import argparse
import difflib
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

if sys.platform == "win32":
    sys.stderr.write("thinkers runs on Linux and macOS; on Windows use it inside WSL\n")
    raise SystemExit(2)

from thinkers.cli import commands, harness_command, research_command
from thinkers.cli.commands import raise_unknown
from thinkers.cli.parser import Parser, actions_of, command_line
from thinkers.errors import (
    ResourceError,
    SeveralErrors,
    ThinkersError,
    describe,
    exit_code,
    is_about_memory,
    remedy,
    system_errno,
    usage_error,
)
from thinkers.plugins import import_file, imported_files
from thinkers.terminal import one_line, show

SWITCHES = (
    *("print_config", "dry_run", "debug", "help", "version", "ablate", "policy"),
    *("keep_text", "by_line", "all"),
)
PATHS = (
    "out",
    "config",
    "resume",
    "import_module",
    "init_from",
    "guide",
    "store",
    "memory",
    "change",
    "report",
)
LISTS = ("harness",)
"""Flags that take all words up to the next flag, as well as one word with commas."""
SETTINGS_OF = {
    commands.train: "--",
    commands.reinforce: "--",
    commands.grow: "--",
    commands.compare: "--",
    research_command.research: "--",
    harness_command.evaluate: "--task.",
}
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
        shown = traceback.format_exception(error) if debug else explain(error, code)
        show("\n".join(line.rstrip("\n") for line in shown), stream=sys.stderr)
        return code


def run(argv: Sequence[str]) -> int:
    """Parse a line and run its command.

    Raises:
        UsageError: The line names a command, a flag or a setting that does not exist.
    """
    own, settings = split(argv)
    options, settings = parse(own, settings)
    prefix = SETTINGS_OF.get(options.run)
    others = [flag for flag in settings if prefix is None or not flag.startswith(prefix)]
    if others:
        taken = "no settings of a recipe" if prefix is None else "settings of the task alone"
        raise usage_error(
            others[0],
            f"thinkers {options.verb} takes {taken}",
            f"leave it out; thinkers {options.verb} --help lists the flags",
        )
    try:
        for file in getattr(options, "import_module", []):
            import_file(file)
        return options.run(options, settings)
    except SystemExit as error:
        # A user's file that calls sys.exit(0) would look like completed work.
        raise usage_error(
            f"{' '.join(imported_files()) or 'code that was called'} ends the program by "
            f"sys.exit({error.code!r}) before the work is done",
            "code that raises errors",
            "remove the call of sys.exit",
        ) from error


def parse(own: Sequence[str], settings: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the words of a command; return its options, and the settings.

    Raises:
        UsageError: The words name a command or a flag that does not exist.
    """
    top, verbs = command_line()
    if not own or own[0].startswith("-"):
        return top.parse_args(own), settings
    if own[0] not in verbs:
        raise_unknown(f"command {own[0]!r}", own[0], verbs, "thinkers --help lists them")
    name, *words = own
    parser, actions = verbs[name], actions_of(verbs[name])
    if actions and words and not words[0].startswith("-"):
        if words[0] not in actions:
            fix = f"thinkers {name} --help lists them"
            raise_unknown(f"command '{name} {words[0]}'", words[0], actions, fix)
        name, parser, words = f"{name} {words[0]}", actions[words[0]], words[1:]
    words, settings = check_flags([name, *words], settings, parser)
    # Parsed by the command's own parser: the meaning of -- before it differs between Pythons.
    return parser.parse_args(words[1:], argparse.Namespace(verb=name)), settings


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a line into (words of the command, settings), every flag as --name=value.

    A setting has a dot in its name, such as --model.dim; in names, - becomes _. Words after a
    single -- are never flags.
    """
    own: list[str] = []
    settings: list[str] = []
    words = deque(argv)
    while words:
        word = words.popleft()
        if word == "--":
            return [*own, word, *words], settings
        if not word.startswith("--"):
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
            if not words or words[0].startswith("--"):
                raise_no_value(name)
            values = [words.popleft()]
            while name in LISTS and words and not words[0].startswith("--"):
                values.append(words.popleft())
            flag = f"--{name}={','.join(values)}"
        (settings if "." in name else own).append(flag)
    return own, settings


def check_flags(
    own: Sequence[str], settings: list[str], verb: Parser
) -> tuple[list[str], list[str]]:
    """Move flags that may be settings without their part (--lr) to the settings of `train`.

    The parser of settings then names the nearest one.

    Raises:
        UsageError: Another flag that the command does not have.
    """
    known = {flag for action in verb._actions for flag in action.option_strings}
    kept = list(own[:1])
    for place, word in enumerate(own[1:], 1):
        name = word.partition("=")[0]
        if word == "--":
            return [*kept, *own[place:]], settings
        if name in known or not name.startswith("-") or name == "-":
            kept.append(word)
        elif not name.startswith("--"):
            raise usage_error(
                f"unknown {word}",
                f"a flag of thinkers {own[0]} --help",
                f"to name a folder or file that begins with -, write -- {word} at the end",
            )
        elif own[0] == "train" and not is_close(name, known):
            settings = [*settings, word]
        else:
            raise_unknown(name, name, known, f"thinkers {own[0]} --help lists the flags")
    return kept, settings


def is_close(name: str, known: Iterable[str]) -> bool:
    return bool(difflib.get_close_matches(name, known, n=1, cutoff=0.75))


def raise_no_value(name: str) -> NoReturn:
    fix = f"write --{name}=VALUE"
    raise usage_error(f"--{name} without a value", "a value", fix)


def explain(error: BaseException, code: int) -> list[str]:
    """Describe an error in at most three lines for each problem, and an empty one between two."""
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"]
    if isinstance(error, SeveralErrors):
        blocks = [["", *explain(problem, code)] for problem in error.problems]
        return [line for block in blocks for line in block][1:]
    if isinstance(error, ThinkersError):
        message = str(error) or type(error).__name__
        # An error of three lines stays one; a line break in any other error comes from a name in
        # it.
        lines = message.split("\n")[:3] if message.startswith("found: ") else [message]
        return [one_line(line) for line in lines]
    found = describe(error)
    if code == 1:
        what = f"{type(error).__name__}: {found}" if found else type(error).__name__
        return [what, f"this is a bug in {_place_of(error)}; --debug shows the traceback"]
    if code == ResourceError.exit_code:
        return [f"found: {found or 'not enough memory'}", f"fix: {_fix_of(error)}"]
    return [f"found: {found}", "fix: choose another path"]


def _place_of(error: BaseException) -> str:
    """Return the package, or the file and line of the user's code that ran last."""
    own = {Path(file) for file in imported_files()}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.resolve() in own:
            return f"{file.name}, line {frame.lineno}"
        if Path(__file__).parents[1] in file.parents:
            break
    return "thinkers"


def _fix_of(error: BaseException) -> str:
    if is_about_memory(error):
        return "free memory, or choose smaller settings"
    return remedy(system_errno(error))


def console() -> NoReturn:
    """Run the command as a process: the entry point of the installed script."""
    code = main()
    if code > 128:
        # Everything is saved. A second stop request while the process ends, for instance from a
        # supervisor that signals a whole group, must not replace this exit code.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    raise SystemExit(code)
