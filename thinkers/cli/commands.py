"""The commands: each checks its flags, calls one public function and prints the result."""

import argparse
import os
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import thinkers
from thinkers.errors import nearest, usage_error
from thinkers.files import write_file
from thinkers.problems import Collector
from thinkers.strict_json import to_json
from thinkers.terminal import show
from thinkers.user_paths import output_file

SYSTEMS = ("deepsight", "self_reasoning_tokens", "thinker", "thoughtsformer")
"""The systems of thinkers.published, repeated here so that the command starts without torch."""
MOST_DIGITS = 18
"""Digits of an integer in a flag: all of them fit in 64 bits."""


def list_names(options: argparse.Namespace, settings: list[str]) -> int:
    from thinkers import recipes

    registries = {
        "models": thinkers.MODELS,
        "tasks": thinkers.TASKS,
        "recipes": thinkers.RECIPES,
    }
    found = recipes.results()
    for kind in [options.kind] if options.kind else registries:
        show(f"{kind}:")
        for name, thing in registries[kind].items():
            show(f"  {name:<18} {summary(thing)}")
            if kind == "recipes":
                show(f"  {'':<18} {recipes.score(name, found)}")
    return 0


def summary(thing: Any) -> str:
    """Return the first line of an object's docstring."""
    return (thing.__doc__ or "").strip().partition("\n")[0]


def train(options: argparse.Namespace, settings: list[str]) -> int:
    if options.resume is not None:
        return resume(options, settings)
    if options.recipe is None:
        if options.help:
            show(options.format_help())
            return 0
        fix = "thinkers list recipes lists them"
        raise usage_error("no recipe", "the name of a recipe, or TASK/MODEL", fix)
    from thinkers.config.overrides import dump, override, parser
    from thinkers.recipes.pairs import find

    recipe = find(options.recipe)
    if options.help:
        show(options.format_help())
        show(parser(recipe, f"thinkers train {options.recipe}").format_help())
        return 0
    config = override(recipe, options.config, settings)
    if options.print_config:
        show(dump(recipe, options.config, settings), end="")
        return 0
    if options.dry_run:
        from thinkers.training.estimate import estimate

        show(estimate(config))
        return 0
    changed = [f"{key}={value}" for key, value in config.changes(recipe).items()]
    run = thinkers.train(config, options.out, overrides=changed, tracking=options.tracking)
    print_run(run)
    return 0


def resume(options: argparse.Namespace, settings: list[str]) -> int:
    """Continue a run; only its number of updates may change."""
    given = dict(word[2:].split("=", 1) for word in settings)
    allowed = ("training.num_updates", "training.init_from", "grow.guide")
    other = [word for word in settings if word[2:].partition("=")[0] not in allowed]
    own = ("out", "config", "recipe")
    other += [f"--{name}" for name in own if getattr(options, name)]
    if other or options.print_config or options.dry_run:
        raise usage_error(
            f"{(other or ['--dry_run or --print_config'])[0]} with --resume",
            "no other flag, except --training.num_updates N, which extends the run",
            "leave it out; the settings of a run are in its config.json",
        )
    num_updates = parse_optional("--training.num_updates", given.get(allowed[0]), 1)
    run = thinkers.resume(
        options.resume,
        num_updates=num_updates,
        tracking=options.tracking,
        init_from=given.get(allowed[1]),
        guide=given.get(allowed[2]),
    )
    print_run(run)
    return 0


def reinforce(options: argparse.Namespace, settings: list[str]) -> int:
    run = thinkers.reinforce(
        options.folder, out=options.out, flags=settings, tracking=options.tracking
    )
    print_run(run)
    return 0


def grow(options: argparse.Namespace, settings: list[str]) -> int:
    run = thinkers.grow(options.folder, out=options.out, flags=settings, tracking=options.tracking)
    print_run(run)
    return 0


def print_run(run: Any) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    scores = ", ".join(f"{name} {value:.3f}" for name, value in run.scores.items())
    show(f"{scores} on held-out examples, run {run.folder}")


def evaluate(options: argparse.Namespace, settings: list[str]) -> int:
    steps = None
    if options.num_steps is not None:
        given = [text.strip() for text in options.num_steps.split(",")]
        for text in given:
            if text != "due" and not (text.isdecimal() and len(text) <= MOST_DIGITS):
                raise usage_error(
                    f"--num_steps {options.num_steps}",
                    "numbers of steps, or due for as many as each answer needs",
                    "write such as --num_steps 1,4 or --num_steps due,8",
                )
        steps = [text if text == "due" else int(text) for text in given]
    num_examples = parse_int("--num_examples", options.num_examples, 1)
    halt = parse_halt(options.halt)
    tools = None if options.tools is None else parse_tools(options.tools)
    out = None if options.out is None else output_file(options.out, "--out")
    rows = thinkers.evaluate(
        options.folder,
        num_steps=steps,
        num_examples=num_examples,
        halt=halt,
        tools=tools,
        policy=options.policy,
        by_example=(halt is not None or options.policy) and out is not None,
        flags=settings,
    )
    others = ("num_steps", "oracle", "halt", "policy", "tools", "examples")
    metrics = [name for name in rows[0] if name not in others]
    widths = {name: max(9, len(name)) for name in metrics}
    show("steps  " + "  ".join(f"{name:>{widths[name]}}" for name in metrics))
    for row in rows:
        values = "  ".join(f"{row[name]:>{widths[name]}.4f}" for name in metrics)
        show(f"{row['num_steps']:>5}  {values}")
    if any("oracle" in row for row in rows):
        show("due: each example at as many steps as its answers need, known to an oracle alone")
    if out is not None:
        write_file(out, to_json({"scores": {str(r["num_steps"]): r for r in rows}}))
    asked = {"halt": halt, "policy": options.policy, "tools": tools, "flags": settings}
    warn_of_fall(options.folder, rows, num_examples, asked)
    return 0


def warn_of_fall(
    folder: str,
    rows: list[dict[str, Any]],
    num_examples: int,
    asked: dict[str, Any],
) -> None:
    """Print a warning if more thinking scores lower and chance does not explain it."""
    from thinkers.evaluation.evaluate import find_fall

    steps = sorted({row["num_steps"] for row in rows if row["num_steps"] != "due"})
    fall = None
    if len(steps) > 1:
        fall = find_fall(folder, steps, num_examples, **asked)
    if fall is not None:
        loss = fall.loss
        show(
            f"more thinking hurts: {fall.deep} steps are {loss.value:.4f} worse than "
            f"{fall.shallow} (99 % interval {loss.low:.4f} to {loss.high:.4f})"
        )


def generate(options: argparse.Namespace, settings: list[str]) -> int:
    from thinkers.runs.result import open_with_task
    from thinkers.tasks.text import Text

    num_steps = parse_optional("--num_steps", options.num_steps, 0)
    rule = parse_rule(options)
    least = {"max_new_tokens": 1, "top_k": 1, "seed": 0, "num_samples": 1}
    own = {name: getattr(options, name) for name in (*least, "temperature", "top_p")}
    own = {
        name: parse_int(f"--{name}", value, least[name]) if name in least else value
        for name, value in own.items()
        if value is not None
    }
    run = open_with_task(options.folder)
    if isinstance(run[1], Text):
        print_samples(
            thinkers.stream(run, options.prompt, num_steps=num_steps, **rule, **own),
            options.prompt,
        )
    elif own:
        raise usage_error(
            f"--{next(iter(own))}, but {options.folder} answers questions",
            "a run on text",
            f"leave --{next(iter(own))} out",
        )
    else:
        show(thinkers.answer(run, options.prompt, num_steps=num_steps, **rule))
    return 0


def print_samples(pieces: Iterator[list[str]], prompt: str) -> None:
    """Print the first sample as it is generated, and the others once all are finished."""
    begun = next(pieces)  # errors are raised here, before anything is printed
    others = [prompt + piece for piece in begun[1:]]
    show(prompt + begun[0], end="")
    for first, *rest in pieces:
        show(first, end="")
        others = [text + piece for text, piece in zip(others, rest, strict=True)]
    show("")
    for text in others:
        show(f"---\n{text}")


def reproduce(options: argparse.Namespace, settings: list[str]) -> int:
    found = thinkers.reproduce(
        options.folder, options.out, init_from=options.init_from, guide=options.guide
    )
    for change in found.changes:
        show(f"{change}: the last bits may differ")
    lines = f"{found.num_lines} lines of metrics up to update {found.last}"
    if found.equal:
        weights = "" if found.weights_equal is None else ", and the weights"
        show(f"equal bit for bit: {lines}{weights}, run {found.folder}")
        return 0
    what = found.difference or "the metrics are equal, and the weights differ"
    show(f"not equal: {what}; {lines} were compared, run {found.folder}")
    # Without a change of machine or versions, a difference is a bug: exit code 1.
    return 0 if found.changes else 1


def compare(options: argparse.Namespace, settings: list[str]) -> int:
    from thinkers.comparison.page import terminal_table
    from thinkers.comparison.plan import Plan
    from thinkers.comparison.results import PAGE

    request = comparison_request(options, settings)
    workers = 1 if options.workers is None else parse_int("--workers", options.workers, 1)
    if options.dry_run:
        show(Plan.of(**request).table(workers))
        return 0
    comparison = thinkers.compare(
        **request,
        out=options.out,
        resume=options.resume,
        workers=workers,
        tracking=options.tracking,
        shard=options.shard,
    )
    if not comparison.is_complete:
        show("this part is finished; the page is written by the part that finishes last")
        return comparison.exit_code
    show(terminal_table(comparison))
    show(f"page {comparison.folder / PAGE}")
    return comparison.exit_code


def comparison_request(options: argparse.Namespace, settings: list[str]) -> dict[str, Any]:
    """Return the arguments of a comparison that its flags ask for."""
    from thinkers.comparison.arguments import check_arguments

    problems, lrs = Collector(), []
    numbers: dict[str, int | None] = {"seeds": None, "num_examples": None}
    for text in split_list(options.lrs):
        with problems:
            lrs.append(parse_float("--lrs", text))
    for name in numbers:
        with problems:
            numbers[name] = parse_optional(f"--{name}", getattr(options, name), 1)
    request = {
        "task": options.task,
        "models": split_list(options.models),
        "match": options.match,
        "budget": options.budget,
        "lrs": lrs,
        "controls": split_list(options.controls),
        "settings": {key[2:]: value for key, _, value in (x.partition("=") for x in settings)},
        **numbers,
    }
    if problems.found and not options.resume:
        with problems:
            check_arguments(**request)
    problems.raise_all()
    return request


def split_list(text: str | None) -> list[str]:
    """Split a list with commas."""
    return [] if text is None else [part.strip() for part in text.split(",")]


def parse_float(flag: str, text: str) -> float:
    """Convert the value of a flag to a number."""
    try:
        return float(text)
    except ValueError:
        raise usage_error(f"{flag} {text!r}", "a number", f"change {flag}") from None


def import_published(options: argparse.Namespace, settings: list[str]) -> int:
    from thinkers.published.unpickle import import_checkpoint

    if options.system not in SYSTEMS:
        fix = "thinkers import --help lists them"
        raise_unknown(f"system {options.system!r}", options.system, SYSTEMS, fix)
    model = import_checkpoint(options.system, options.checkpoint, options.settings, options.out)
    size = sum(p.numel() for p in model.parameters())
    show(f"{model.name} with {size:,} parameters, model folder {options.out}")
    return 0


def add_import_module(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--import_module",
        metavar="FILE",
        action="append",
        default=[],
        help="a Python file that adds to thinkers.MODELS, TASKS or RECIPES",
    )


def parse_rule(options: argparse.Namespace) -> dict[str, Any]:
    """Return the values of --halt, --policy and --tools."""
    return {
        "halt": parse_halt(options.halt),
        "policy": options.policy,
        "tools": parse_tools(options.tools),
    }


def parse_halt(text: str | None) -> Any:
    """Convert the value of --halt to a number, or leave it as "answered"; None if not given."""
    if text is None or text.strip() == "answered":
        return text and text.strip()
    try:
        return float(text)
    except ValueError:
        raise usage_error(
            f"--halt {text}", "a number in 0 .. 1, or answered", "write such as --halt 0.5"
        ) from None


def parse_tools(text: str | None) -> tuple[str, ...]:
    """Split the names of --tools; "none", or no flag, gives no names."""
    return () if text is None or text.strip() == "none" else tuple(split_list(text))


def parse_int(flag: str, text: str, least: int) -> int:
    """Convert the value of a flag to an integer of at least `least`."""
    digits, expected = text.strip(), f"an integer of at least {least}"
    if len(digits) > MOST_DIGITS:  # Python does not convert thousands of them
        raise usage_error(
            f"{flag} {text}", f"{expected}, of at most {MOST_DIGITS} digits", f"change {flag}"
        )
    if not digits.isdecimal() or int(digits) < least:
        raise usage_error(f"{flag} {text}", expected, f"change {flag}")
    return int(digits)


def parse_optional(flag: str, text: str | None, least: int) -> int | None:
    """Convert the value of a flag as `parse_int` does; None if the flag was not given."""
    return None if text is None else parse_int(flag, text, least)


def raise_unknown(what: str, name: str, known: Iterable[str], fix: str) -> NoReturn:
    """Raise the UsageError for an unknown name; it shows the nearest known one."""
    raise usage_error(f"unknown {what}", nearest(name, known), fix)
