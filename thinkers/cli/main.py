"""The command `thinkers`: parse, call one function, print one result."""

import argparse
import errno
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

if sys.platform == "win32":
    sys.stderr.write("thinkers runs on Linux and macOS; on Windows use it inside WSL\n")
    raise SystemExit(2)

import thinkers
from thinkers.cli import commands
from thinkers.cli.commands import raise_unknown
from thinkers.errors import ResourceError, ThinkersError, UsageError
from thinkers.plugins import import_file

SWITCHES = ("print_config", "dry_run", "debug", "help", "version", "ablate")
PATHS = ("out", "config", "resume", "import_module")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOMEM)
"""What an operating system says when a disk or the memory is the trouble, not the path."""
NO_MEMORY = ("out of memory", "allocate memory", "Storage size calculation overflowed")


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are raised."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"found: {message}\nfix: {self.prog} --help shows what it takes")


def command_line() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole line, and that of each command."""
    top = Parser(
        prog="thinkers", description="Transformers that think before they answer.", add_help=True
    )
    top.add_argument("--version", action="version", version=thinkers.__version__)
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    listing = verbs.add_parser("list", help="show what there is: models, tasks, recipes")
    listing.add_argument("kind", nargs="?", choices=("models", "tasks", "recipes"))
    listing.set_defaults(run=commands.list_names)

    training = verbs.add_parser(
        "train",
        help="train the model of a recipe on its task",
        description="Every setting of a recipe is a flag: --model.num_steps 8 --training.lr 1e-3. "
        "thinkers train RECIPE --help lists them.",
        add_help=False,
    )
    training.add_argument("recipe", nargs="?", metavar="RECIPE", help="a name of thinkers list")
    training.add_argument("--out", metavar="DIR", help="the run folder (runs/RECIPE-SEED)")
    training.add_argument(
        "--config", metavar="FILE", action="append", default=[], help="settings in YAML"
    )
    training.add_argument("--print_config", action="store_true", help="print them, and stop")
    training.add_argument(
        "--dry_run", action="store_true", help="print size, work, memory and time, and stop"
    )
    training.add_argument(
        "--resume", metavar="RUN", help="go on with a run; --training.num_updates extends it"
    )
    training.add_argument(
        "--tracking", metavar="NAME", help="mlflow or tensorboard, beside metrics.jsonl"
    )
    training.add_argument("--help", "-h", action="store_true", help="show this, and stop")
    training.set_defaults(run=commands.train, described=training.format_help)

    eval_mode = verbs.add_parser(
        "evaluate",
        help="score a run at several thinking steps",
        epilog="--task.test_path FILE judges a run on text on all of another text.",
    )
    eval_mode.add_argument("folder", metavar="RUN")
    eval_mode.add_argument("--num_steps", metavar="1,2,4", help="all worth testing by default")
    eval_mode.add_argument("--num_examples", metavar="N", default="2000")
    eval_mode.add_argument("--out", metavar="FILE", help="where to put the scores, as JSON, too")
    eval_mode.set_defaults(run=commands.evaluate)

    generating = verbs.add_parser(
        "generate", help="let a run answer a prompt, or go on with a text"
    )
    generating.add_argument("folder", metavar="RUN")
    generating.add_argument("--prompt", required=True, help='for example "12+34="')
    generating.add_argument("--num_steps", metavar="N", help="the run's own by default")
    sampling = generating.add_argument_group("of a run on text")
    sampling.add_argument("--max_new_tokens", metavar="N", help="200 by default")
    sampling.add_argument("--temperature", type=float, metavar="T", help="0.8 by default")
    sampling.add_argument("--top_k", metavar="N", help="draw from the N likeliest tokens")
    sampling.add_argument("--top_p", type=float, metavar="P", help="from those of probability P")
    sampling.add_argument("--seed", metavar="N", help="0 by default")
    sampling.add_argument("--num_samples", metavar="N", help="texts written in one batch")
    generating.set_defaults(run=commands.generate)

    repeating = verbs.add_parser(
        "reproduce", help="train a run again from its config.json, and compare all metrics"
    )
    repeating.add_argument("folder", metavar="RUN")
    repeating.add_argument("--out", metavar="DIR", help="the new run folder (RUN-again)")
    repeating.set_defaults(run=commands.reproduce)

    comparing = verbs.add_parser(
        "compare",
        help="train several models on a task with equal means, and judge what differs",
        description="Settings for all are flags, such as --task.max_digits 2 or --model.dim 32.",
    )
    comparing.add_argument("task", nargs="?", metavar="TASK", help="a name of thinkers list tasks")
    comparing.add_argument("--models", metavar="A,B,C", help="the first is what others are held to")
    comparing.add_argument("--match", metavar="WHAT", help="flops, parameters or seconds")
    comparing.add_argument("--budget", metavar="B", help="of a run: 2e13 FLOPs, 5min, N updates")
    comparing.add_argument("--seeds", metavar="N", help="3 by default")
    comparing.add_argument(
        "--lrs", metavar="A,B", help="rates to choose from; the recipe's if none"
    )
    comparing.add_argument("--controls", metavar="A,B", help="of pause, untied, wider")
    comparing.add_argument("--num_examples", metavar="N", help="held-out, 2000 by default")
    comparing.add_argument("--out", metavar="DIR", help="runs/compare-TASK by default")
    comparing.add_argument("--resume", action="store_true", help="do what DIR is missing")
    comparing.add_argument("--workers", metavar="N", help="runs at once, one core each; 1 if none")
    comparing.add_argument("--tracking", metavar="NAME", help="mlflow or tensorboard")
    comparing.add_argument(
        "--dry_run", action="store_true", help="print sizes and minutes, and stop"
    )
    comparing.set_defaults(run=commands.compare)

    inspecting = verbs.add_parser(
        "inspect", help="show what a run would answer after each thinking step, and if it matters"
    )
    inspecting.add_argument("folder", metavar="RUN")
    inspecting.add_argument("--prompt", metavar="TEXT", help='for example "12+34="')
    inspecting.add_argument(
        "--ablate", action="store_true", help="put other thoughts in place, on held-out examples"
    )
    inspecting.add_argument("--num_steps", metavar="N", help="the run's own by default")
    inspecting.add_argument("--num_examples", metavar="N", help="of --ablate, 2000 by default")
    inspecting.add_argument("--out", metavar="FILE", help="write a page, report.html say")
    inspecting.set_defaults(run=commands.inspect)

    importing = verbs.add_parser("import", help="make a model folder of an author's checkpoint")
    importing.add_argument("system", metavar="SYSTEM", help=", ".join(commands.SYSTEMS))
    importing.add_argument("checkpoint", metavar="CHECKPOINT")
    importing.add_argument("--settings", metavar="FILE", required=True, help="in JSON")
    importing.add_argument("--out", metavar="DIR", required=True, help="the model folder")
    importing.set_defaults(run=commands.import_published)

    for verb in (training, eval_mode, generating, repeating, comparing, inspecting):
        verb.add_argument(
            "--import_module",
            metavar="FILE",
            action="append",
            default=[],
            help="a Python file that adds to thinkers.MODELS, TASKS or RECIPES",
        )
    for verb in verbs.choices.values():
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        verb.allow_abbrev = False
    return top, verbs.choices


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the command's own words, the settings), each flag as --name=value, - in names as _."""
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
            raise UsageError(f"found: --{name} without a value\nfix: write --{name} VALUE")
        if equals or name in SWITCHES or (name == "resume" and own[:1] == ["compare"]):
            flag = f"--{name}{equals}{value}"
        else:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise UsageError(f"found: --{name} without a value\nfix: write --{name} VALUE")
            flag = f"--{name}={following}"
        (settings if "." in name else own).append(flag)
    return own, settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what the process should end with."""
    words = sys.argv[1:] if argv is None else list(argv)
    return guarded(lambda: run(words), debug="--debug" in words)


def guarded(work: Callable[[], int], debug: bool = False) -> int:
    """What `work` returns, or the exit code of its error, told in three lines."""
    try:
        return work()
    except BrokenPipeError:
        sys.stdout = None  # type: ignore  # whoever read the output has left
        return 0
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if debug:
            traceback.print_exc()
        else:
            print("\n".join(explain(error, code)), file=sys.stderr)
        return code


def run(argv: Sequence[str]) -> int:
    own, settings = split(argv)
    top, verbs = command_line()
    verb = verbs.get(own[0]) if own else None
    if own and verb is None and not own[0].startswith("-"):
        raise_unknown(f"command {own[0]!r}", own[0], verbs, "thinkers --help lists them")
    if verb is not None:
        flags = {x for action in verb._actions for x in action.option_strings}
        for word in own[1:]:
            name = word.partition("=")[0]
            if not name.startswith("--") or name in flags:
                continue
            if verb is verbs["train"] and not close(name, flags):
                settings.append(word)  # perhaps a setting without its part: --lr
                own.remove(word)
            else:
                raise_unknown(name, name, flags, f"thinkers {own[0]} --help lists them")
    options = top.parse_args(own)
    every = {commands.train: "--", commands.compare: "--", commands.evaluate: "--task."}
    takes = every.get(options.run)
    others = [flag for flag in settings if takes is None or not flag.startswith(takes)]
    if others:
        but = "takes no settings of a recipe" if takes is None else "takes those of the task alone"
        raise UsageError(
            f"found: {others[0]}, but {options.verb} {but}\n"
            f"fix: thinkers {options.verb} --help shows what it takes"
        )
    for file in getattr(options, "import_module", []):
        import_file(file)
    return options.run(options, settings)


def close(name: str, known: Any) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, known, n=1, cutoff=0.75)


def exit_code(error: BaseException) -> int:
    """What the process ends with, by the contract of thinkers.errors."""
    if isinstance(error, ThinkersError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    message = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in message for words in NO_MEMORY)
    ):
        return ResourceError.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return ResourceError.exit_code if error.errno in FULL else UsageError.exit_code
    if isinstance(error, OSError) and error.errno in FULL:
        return ResourceError.exit_code
    if isinstance(error, ValueError | TypeError) and raised_here(error):
        return UsageError.exit_code
    return 1


def raised_here(error: BaseException) -> bool:
    """Whether a line of this package raised it: then it is about what a user asked for."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(__file__).parents[1] in Path(frames[-1].filename).parents


def explain(error: BaseException, code: int) -> list[str]:
    """At most three lines for a person."""
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"]
    lines = [line for line in str(error).splitlines() if line.strip()][:3]
    if code == 1 and not isinstance(error, ThinkersError):
        lines = [f"{type(error).__name__}: {(lines or [''])[0][:300]}"]
        return [*lines, "this is a fault of thinkers; --debug shows where"]
    if code == ResourceError.exit_code and not isinstance(error, ThinkersError):
        return [f"found: {(lines or ['no memory left'])[0][:300]}", "fix: free some, or ask less"]
    if isinstance(error, OSError) and error.filename is not None:
        return [f"found: {error.filename}: {error.strerror}", "fix: choose a path that works"]
    return lines or [type(error).__name__]


def console() -> NoReturn:
    """The entry point of the command."""
    code = main()
    if code > 128:  # all is saved, and the same wish may be told again while the process ends
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    raise SystemExit(code)
