"""`thinkers research`: one experiment against the best so far, and the report of all."""

import argparse
from typing import Any

from thinkers.cli.commands import parse_float, parse_optional
from thinkers.errors import usage_error
from thinkers.problems import Collector
from thinkers.terminal import show
from thinkers.user_paths import user_path

DESCRIPTION = (
    "Trains the recipe with one change for a fixed time, and keeps the change if the score on the "
    "validation split is better than the best so far. Settings are flags: --model.dim 64. "
    "examples/research/program.md is a way to use it."
)


def add_research(verbs: Any) -> None:
    verb = verbs.add_parser(
        "research",
        help="make an experiment of a fixed time against the best so far",
        description=DESCRIPTION,
    )
    verb.add_argument("recipe", nargs="?", metavar="RECIPE", help="a recipe, or TASK/MODEL")
    verb.add_argument("--minutes", metavar="M", help="minutes of training of each experiment")
    verb.add_argument("--out", metavar="DIR", help="the folder of all experiments")
    verb.add_argument(
        "--change",
        metavar="FILE.py",
        action="append",
        default=[],
        help="a Python file; its function change(config) returns the changed Config",
    )
    verb.add_argument("--description", metavar="TEXT", default="", help="what is tried, and why")
    verb.add_argument("--seed", metavar="N", help="default: 0")
    verb.add_argument("--report", metavar="DIR", help="print the ledger of DIR")
    verb.add_argument(
        "--judge",
        metavar="SEEDS",
        help="with --report: train the first and the best again with this number of new seeds, and "
        "grade both on the test split, once",
    )
    verb.set_defaults(run=research)


def research(options: argparse.Namespace, settings: list[str]) -> int:
    from thinkers.research import loop, report
    from thinkers.research.ledger import Ledger

    if options.report is not None:
        own = ("recipe", "minutes", "out", "change", "description", "seed")
        if settings or any(getattr(options, name) for name in own):
            raise usage_error(
                "--report with an experiment",
                "--report DIR, with --judge SEEDS or nothing else",
                "leave --report or the recipe and its flags out",
            )
        folder = user_path(options.report, "--report")
        seeds = parse_optional("--judge", options.judge, 2)
        if seeds is not None:
            loop.judge(folder, seeds)
        show("\n".join(report.lines(folder)))
        return 0
    problems = Collector()
    for name in ("recipe", "minutes", "out"):
        with problems:
            if getattr(options, name) is None:
                raise usage_error(
                    f"no {name}",
                    "thinkers research RECIPE --minutes M --out DIR, or --report DIR",
                    f"add {'a recipe' if name == 'recipe' else f'--{name}'}",
                )
    with problems:
        if options.judge is not None:
            expected = "--report DIR --judge SEEDS"
            raise usage_error("--judge without --report", expected, "add --report")
    problems.raise_all()
    folder = user_path(options.out, "--out")
    numbers = {"minutes": 1.0, "seed": 0}
    with problems:
        numbers["minutes"] = parse_float("--minutes", options.minutes)
    with problems:
        numbers["seed"] = parse_optional("--seed", options.seed, 0) or 0
    asked: dict[str, Any] = {
        "recipe": options.recipe,
        "out": folder,
        "files": [user_path(file, "--change") for file in options.change],
        "flags": settings,
        "description": options.description,
        **numbers,
    }
    if problems.found:
        with problems:
            loop.check(**asked)
    problems.raise_all()
    made = loop.experiment(**asked)
    with Ledger(folder) as ledger:
        for one in made:
            show(report.line(one, ledger.meta, ledger.experiments()))
    return 0
