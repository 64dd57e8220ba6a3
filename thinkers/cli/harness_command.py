"""`thinkers evaluate --harness`: a run on tasks of the lm-evaluation-harness."""

import argparse
from typing import Any

from thinkers.cli import commands
from thinkers.cli.commands import MOST_DIGITS, parse_halt, parse_int, split_list
from thinkers.errors import usage_error
from thinkers.files import write_file
from thinkers.optional import require
from thinkers.strict_json import to_json
from thinkers.terminal import show
from thinkers.user_paths import output_file


def evaluate(options: argparse.Namespace, settings: list[str]) -> int:
    if options.harness is None:
        if options.include_path is not None:
            found = "--include_path without --harness"
            raise usage_error(found, "--harness TASK ..", "add --harness")
        return commands.evaluate(options, settings)
    check_flags(options, settings)
    steps = None
    if options.num_steps is not None:
        given = split_list(options.num_steps)
        if not all(text.isdecimal() and len(text) <= MOST_DIGITS for text in given):
            raise usage_error(
                f"--num_steps {options.num_steps} with --harness",
                "numbers of steps",
                "write such as --num_steps 1,2,4",
            )
        steps = [int(text) for text in given]
    halt, out = parse_halt(options.halt), None
    if options.out is not None:
        out = output_file(options.out, "--out")
    require("lm_eval", "eval", "thinkers evaluate --harness")
    from thinkers.hf import lm_eval

    rows = lm_eval.evaluate(
        options.folder,
        split_list(options.harness),
        options.include_path,
        steps,
        halt=halt,
        num_examples=parse_int("--num_examples", options.num_examples, 1),
    )
    show("\n".join(table(rows)))
    if out is not None:
        write_file(out, to_json({"scores": {str(row["num_steps"]): row for row in rows}}))
    return 0


def check_flags(options: argparse.Namespace, settings: list[str]) -> None:
    """Raise UsageError if a flag is of the run's own task."""
    others = [f"--{name}" for name in ("tools", "policy") if getattr(options, name)]
    if others or settings:
        flag = [*others, *settings][0]
        raise usage_error(
            f"{flag} with --harness",
            "--include_path, --num_steps, --halt, --num_examples and --out",
            "leave it out; tasks of the harness have their own settings",
        )


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table: a row for each number of steps, a column for each metric."""
    columns = [
        (task, metric)
        for task, values in rows[0]["scores"].items()
        for metric in values
        if "_stderr" not in metric
    ]
    widths = [max(9, len(f"{task} {metric}")) for task, metric in columns]
    heads = [f"{f'{x} {y}':>{w}}" for (x, y), w in zip(columns, widths, strict=True)]
    lines = ["steps  " + "  ".join(heads)]
    for row in rows:
        values = [row["scores"][task][metric] for task, metric in columns]
        shown = "  ".join(f"{x:>{w}.4f}" for x, w in zip(values, widths, strict=True))
        lines.append(f"{row['num_steps']:>5}  {shown}")
    return lines
