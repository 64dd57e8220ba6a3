"""The command `thinkers inspect`."""

import argparse
from dataclasses import replace
from typing import Any

import thinkers
from thinkers.cli.commands import parse_int, parse_optional, parse_rule
from thinkers.cli.memory_commands import opened
from thinkers.errors import usage_error
from thinkers.terminal import show
from thinkers.user_paths import output_file

ALL_STEPS = "thoughts are replaced at all steps, whether tokens could halt or not"
NEEDS_PROMPT = {
    "halt": ALL_STEPS,
    "policy": ALL_STEPS,
    "tools": "thoughts are replaced on rows that call the tools of the task",
    "memory": "thoughts are replaced on rows that bring their own documents",
}
"""{flag of the inspection of a prompt: its reason}."""


def inspect(options: argparse.Namespace, settings: list[str]) -> int:
    check_flags(options)
    rule = parse_rule(options)
    top = parse_optional("--top", options.top, 1)
    out = None if options.out is None else output_file(options.out, "--out")
    from thinkers.inspection import ablation_page
    from thinkers.inspection import page as pages

    num_steps = parse_optional("--num_steps", options.num_steps, 0)
    num_examples = parse_int("--num_examples", options.num_examples or "2000", 2)
    seen = ablation = None
    if options.prompt is not None:
        run: Any = options.folder
        if options.memory is not None:
            run, memory = opened(options.folder, options.memory, options.topic)
            rule |= {"memory": memory, "top": top}
        seen = thinkers.inspect(run, options.prompt, num_steps, **rule)
        seen = replace(seen, run=options.folder)
        show("\n".join(pages.inspection_lines(seen)))
    if options.ablate:
        ablation = thinkers.ablate(options.folder, num_steps, num_examples)
        show("\n".join(ablation_page.ablation_lines(ablation)))
    if out is not None:
        pages.write(out, seen, ablation)
        show(f"report {out}")
    return 0


def check_flags(options: argparse.Namespace) -> None:
    """Raise UsageError if a flag stands without the one that it belongs to."""
    if options.prompt is None and not options.ablate:
        raise usage_error(
            f"thinkers inspect {options.folder} without a prompt",
            "--prompt TEXT, or --ablate (or both)",
            'add a prompt, such as --prompt "12+34="',
        )
    if options.num_examples is not None and not options.ablate:
        raise usage_error(
            "--num_examples without --ablate",
            "--ablate, which uses held-out examples",
            "leave --num_examples out, or add --ablate",
        )
    for name, reason in NEEDS_PROMPT.items():
        if options.prompt is None and getattr(options, name) not in (None, False):
            raise usage_error(
                f"--{name} without a prompt",
                f"--prompt TEXT: {reason}",
                f"leave --{name} out, or add --prompt",
            )
    for name in ("topic", "top"):
        if options.memory is None and getattr(options, name) is not None:
            raise usage_error(
                f"--{name} without --memory",
                "--memory DIR, the memory that is read",
                f"leave --{name} out, or add --memory",
            )
