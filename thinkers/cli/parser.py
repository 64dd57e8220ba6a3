"""The grammar of the command line: the flags of each command."""

import argparse
from typing import Any, NoReturn

import thinkers
from thinkers.cli import (
    commands,
    export_commands,
    harness_command,
    inspect_command,
    memory_commands,
)
from thinkers.cli.commands import add_import_module
from thinkers.cli.research_command import add_research
from thinkers.cli.serve_command import add_serve
from thinkers.errors import usage_error

Subparsers = Any
"""`argparse._SubParsersAction[Parser]`, which argparse does not export."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises a UsageError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise usage_error(message, f"the form that {self.prog} --help shows", "change the command")


def command_line() -> tuple[Parser, dict[str, Parser]]:
    """Build the parser of the whole line, and return it with the parser of each command."""
    top = Parser(prog="thinkers", description="Transformers that think before they answer.")
    top.add_argument("--version", action="version", version=thinkers.__version__)
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    add_list(verbs)
    add_train(verbs)
    add_evaluate(verbs)
    add_generate(verbs)
    add_reinforce(verbs)
    add_grow(verbs)
    add_reproduce(verbs)
    add_compare(verbs)
    add_inspect(verbs)
    add_memory(verbs)
    add_research(verbs)
    add_export(verbs)
    add_import(verbs)
    add_serve(verbs)
    actions = [x for verb in verbs.choices.values() for x in actions_of(verb).values()]
    for verb in [*verbs.choices.values(), *actions]:
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        verb.allow_abbrev = False
    return top, verbs.choices


def add_list(verbs: Subparsers) -> None:
    verb = verbs.add_parser("list", help="list models, tasks and recipes")
    verb.add_argument("kind", nargs="?", choices=("models", "tasks", "recipes"))
    verb.set_defaults(run=commands.list_names)


def add_train(verbs: Subparsers) -> None:
    verb = verbs.add_parser(
        "train",
        help="train the model of a recipe on its task",
        description="A pair TASK/MODEL that is no recipe gets the settings that compare gives it. "
        "Every setting is a flag: --model.num_steps 8 --training.lr 1e-3. "
        "thinkers train RECIPE --help lists them.",
        add_help=False,  # the command prints its own, with the settings of the recipe
    )
    verb.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a name from thinkers list, or TASK/MODEL"
    )
    verb.add_argument("--out", metavar="DIR", help="the run folder (default: runs/RECIPE-SEED)")
    verb.add_argument(
        "--config", metavar="FILE", action="append", default=[], help="read settings from YAML"
    )
    verb.add_argument("--print_config", action="store_true", help="print the settings and exit")
    verb.add_argument(
        "--dry_run", action="store_true", help="print parameters, FLOPs, memory and time, and exit"
    )
    verb.add_argument(
        "--resume", metavar="RUN", help="continue a run; --training.num_updates extends it"
    )
    verb.add_argument(
        "--tracking",
        metavar="NAME",
        help="also log to mlflow, tensorboard or one of yours (default: none)",
    )
    verb.add_argument("--help", "-h", action="store_true", help="show this help and exit")
    add_import_module(verb)
    verb.set_defaults(run=commands.train, format_help=verb.format_help)


def add_evaluate(verbs: Subparsers) -> None:
    verb = verbs.add_parser(
        "evaluate",
        help="score a run at several numbers of thinking steps",
        epilog="--task.test_path FILE scores a run on another text.",
    )
    verb.add_argument("folder", metavar="RUN")
    verb.add_argument(
        "--num_steps",
        metavar="1,2,4",
        help="default: powers of two up to max_steps; due, an oracle: as many as an answer needs",
    )
    add_halt(verb)
    add_tools(verb, "those that the rows of the task call; none turns them off")
    add_policy(verb)
    verb.add_argument("--num_examples", metavar="N", default="2000", help="default: 2000")
    verb.add_argument(
        "--out",
        metavar="FILE",
        help="also write the scores to a JSON file, with --halt those of each example too",
    )
    harness = verb.add_argument_group("on other tasks (extra eval)")
    tasks = "tasks of the lm-evaluation-harness, instead of the run's"
    harness.add_argument("--harness", metavar="TASK ..", help=tasks)
    harness.add_argument("--include_path", metavar="DIR", help="a folder with their YAML files")
    add_import_module(verb)
    verb.set_defaults(run=harness_command.evaluate)


def add_generate(verbs: Subparsers) -> None:
    verb = verbs.add_parser("generate", help="answer a prompt, or continue a text")
    verb.add_argument("folder", metavar="RUN")
    verb.add_argument("--prompt", required=True, help='for example "12+34="')
    verb.add_argument("--num_steps", metavar="N", help="thinking steps (default: as trained)")
    add_halt(verb)
    add_tools(verb, "none")
    add_policy(verb)
    sampling = verb.add_argument_group("for a run on text")
    sampling.add_argument("--max_new_tokens", metavar="N", help="default: 200")
    sampling.add_argument("--temperature", type=float, metavar="T", help="default: 0.8")
    sampling.add_argument("--top_k", metavar="N", help="sample from the N likeliest tokens")
    sampling.add_argument(
        "--top_p",
        type=float,
        metavar="P",
        help="sample from the likeliest tokens of total probability P",
    )
    sampling.add_argument("--seed", metavar="N", help="default: 0")
    sampling.add_argument("--num_samples", metavar="N", help="texts to sample, in one batch")
    add_import_module(verb)
    verb.set_defaults(run=commands.generate)


def add_reinforce(verbs: Subparsers) -> None:
    verb = verbs.add_parser(
        "reinforce",
        help="train a policy that chooses the next block, and its model, in turn",
        description="RUN is of a thinker with --model.policy true. Settings are flags: "
        "--reinforce.cost_weight 0.5 --training.lr 1e-3. thinkers train --resume DIR continues it.",
    )
    verb.add_argument("folder", metavar="RUN")
    verb.add_argument("--out", metavar="DIR", help="the new run folder (default: RUN-policy)")
    verb.add_argument("--tracking", metavar="NAME", help="mlflow, tensorboard or one of yours")
    add_import_module(verb)
    verb.set_defaults(run=commands.reinforce)


def add_grow(verbs: Subparsers) -> None:
    verb = verbs.add_parser(
        "grow",
        help="train a larger model from random weights, guided by the model of a run",
        description="The new run has the settings of RUN; flags change them: --model.dim 128 "
        "--grow.weight 1 --grow.decay 0.5. thinkers train --resume DIR --grow.guide RUN continues "
        "it.",
    )
    verb.add_argument("folder", metavar="RUN")
    verb.add_argument("--out", metavar="DIR", help="the new run folder (default: RUN-grown)")
    verb.add_argument("--tracking", metavar="NAME", help="mlflow, tensorboard or one of yours")
    add_import_module(verb)
    verb.set_defaults(run=commands.grow)


def add_reproduce(verbs: Subparsers) -> None:
    verb = verbs.add_parser(
        "reproduce", help="train a run again from its config.json and compare all metrics"
    )
    verb.add_argument("folder", metavar="RUN")
    verb.add_argument("--out", metavar="DIR", help="the new run folder (default: RUN-again)")
    verb.add_argument(
        "--init_from", metavar="DIR", help="the weights that RUN began with, if it names some"
    )
    verb.add_argument("--guide", metavar="DIR", help="the run that guided RUN, if one did")
    add_import_module(verb)
    verb.set_defaults(run=commands.reproduce)


def add_compare(verbs: Subparsers) -> None:
    verb = verbs.add_parser(
        "compare",
        help="train several models on one task with matched compute, and test the differences",
        description="Settings of all models are flags: --task.max_digits 2 --model.dim 32.",
    )
    verb.add_argument("task", nargs="?", metavar="TASK", help="a name from thinkers list tasks")
    verb.add_argument("--models", metavar="A,B,C", help="the first is the baseline")
    verb.add_argument(
        "--match", metavar="WHAT", help="flops, parameters or seconds (default: flops)"
    )
    verb.add_argument(
        "--budget",
        metavar="B",
        help="of each run: 2e13 FLOPs, 5min (or s, h) or '3000 updates'",
    )
    verb.add_argument("--seeds", metavar="N", help="default: 3")
    verb.add_argument(
        "--lrs", metavar="A,B", help="learning rates to search (default: the recipe's)"
    )
    verb.add_argument("--controls", metavar="A,B", help="any of fillers, untied, wider")
    verb.add_argument("--num_examples", metavar="N", help="held-out examples (default: 2000)")
    verb.add_argument("--out", metavar="DIR", help="default: runs/compare-TASK")
    verb.add_argument("--resume", action="store_true", help="train only the runs missing in DIR")
    verb.add_argument("--workers", metavar="N", help="runs at a time, one core each (default: 1)")
    verb.add_argument(
        "--shard", metavar="I/N", help="make part I of N of the runs, in a folder that all share"
    )
    verb.add_argument("--tracking", metavar="NAME", help="mlflow, tensorboard or one of yours")
    verb.add_argument("--dry_run", action="store_true", help="print sizes and minutes, and exit")
    add_import_module(verb)
    verb.set_defaults(run=commands.compare)


def add_inspect(verbs: Subparsers) -> None:
    verb = verbs.add_parser(
        "inspect", help="show the prediction after each thinking step, or ablate the thoughts"
    )
    verb.add_argument("folder", metavar="RUN")
    verb.add_argument("--prompt", metavar="TEXT", help='for example "12+34="')
    verb.add_argument(
        "--ablate", action="store_true", help="replace the thoughts on held-out examples"
    )
    verb.add_argument("--num_steps", metavar="N", help="thinking steps (default: as trained)")
    add_halt(verb)
    add_tools(verb, "none")
    add_policy(verb)
    verb.add_argument(
        "--memory", metavar="DIR", help="read this long-term memory, and show what of it was read"
    )
    add_part(verb)
    verb.add_argument("--num_examples", metavar="N", help="for --ablate (default: 2000)")
    verb.add_argument(
        "--out", metavar="FILE", help="write an HTML page, or JSON if it ends in .json"
    )
    add_import_module(verb)
    verb.set_defaults(run=inspect_command.inspect)


def add_memory(verbs: Subparsers) -> None:
    verb = verbs.add_parser(
        "memory",
        help="read texts into a long-term memory on disk, and answer from it",
        description="A memory belongs to the run that wrote it: a thinker with --model.memory "
        "blocks, such as that of the recipe facts/thinker.",
    )
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, run: Any, text: str, needs_run: bool = False) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        if needs_run:
            made.add_argument("folder", metavar="RUN")
            add_import_module(made)
        made.add_argument("--store", metavar="DIR", required=True, help="the folder of the memory")
        made.set_defaults(run=run)
        return made

    add = action("add", memory_commands.add, "add files of text, all of them or none", True)
    add.add_argument("files", nargs="+", metavar="FILE")
    add.add_argument("--topic", metavar="T", help="by which they can be cleared (default: default)")
    add.add_argument(
        "--by_line", action="store_true", help="cut at line ends too: no block is of two lines"
    )
    add.add_argument(
        "--keep_text",
        action="store_true",
        help="keep the texts too, so that they can be shown, and compressed anew by another run",
    )
    ask = action("ask", memory_commands.ask, "answer a prompt, and show the blocks read", True)
    ask.add_argument("--prompt", required=True, metavar="TEXT")
    add_part(ask)
    ask.add_argument("--num_steps", metavar="N", help="thinking steps (default: as trained)")
    add_halt(ask)
    add_policy(ask)
    ask.add_argument("--out", metavar="FILE", help="also write answer and blocks to a JSON file")
    action("list", memory_commands.list_topics, "list the topics")
    clear = action("clear", memory_commands.clear, "delete a topic, or all, without leaving a byte")
    clear.add_argument("--topic", metavar="T")
    clear.add_argument("--all", action="store_true", help="every topic")
    action("verify", memory_commands.verify, "check every byte")
    action("rebuild", memory_commands.rebuild, "make the index anew from the keys of the blocks")
    action("compact", memory_commands.compact, "give the space of deleted blocks back to the disk")
    action("recompress", memory_commands.recompress, "compress kept texts anew by this run", True)


def add_part(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--top", metavar="K", help="blocks to read at a step (default: the model's)")
    verb.add_argument(
        "--topic",
        metavar="T",
        action="append",
        help="read this topic of the memory alone; may be repeated",
    )


def actions_of(verb: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the parsers of the actions of a command, by name; of most there are none."""
    found: dict[str, Any] = {}
    for part in verb._actions:
        if isinstance(part, argparse._SubParsersAction):
            found |= part.choices
    return found


def add_export(verbs: Subparsers) -> None:
    verb = verbs.add_parser("export", help="write a run in the format of other programs")
    actions = verb.add_subparsers(dest="action", metavar="FORMAT", required=True)
    text = "a folder of Hugging Face, with the tokenizer and a model card (extra hf)"
    hf = actions.add_parser("hf", help=text, description=text)
    hf.add_argument("folder", metavar="RUN")
    hf.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    hf.set_defaults(run=export_commands.hf)
    text = "the forward pass, from tokens to logits, as an ONNX file (extra onnx)"
    onnx = actions.add_parser("onnx", help=text, description=text)
    onnx.add_argument("folder", metavar="RUN")
    onnx.add_argument("--out", metavar="FILE", required=True)
    onnx.add_argument("--num_steps", metavar="N", help="thinking steps (default: as trained)")
    onnx.set_defaults(run=export_commands.onnx)
    for action in (hf, onnx):
        add_import_module(action)


def add_import(verbs: Subparsers) -> None:
    verb = verbs.add_parser("import", help="convert a published checkpoint to a model folder")
    verb.add_argument("system", metavar="SYSTEM", help=", ".join(commands.SYSTEMS))
    verb.add_argument("checkpoint", metavar="CHECKPOINT")
    verb.add_argument("--settings", metavar="FILE", required=True, help="a JSON file")
    verb.add_argument("--out", metavar="DIR", required=True, help="the model folder")
    verb.set_defaults(run=commands.import_published)


def add_halt(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--halt",
        metavar="H",
        help="let tokens halt before --num_steps: 0.5, once their gate is above it (models with "
        "halting); answered, at their first answer (step_loss wait)",
    )


def add_tools(verb: argparse.ArgumentParser, default: str) -> None:
    verb.add_argument(
        "--tools",
        metavar="A,B",
        help="tools that the model may call: calculator, store; what it writes between [ and ] is "
        f"computed and the result written after it (default: {default})",
    )


def add_policy(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--policy",
        action="store_true",
        help="let the model choose its blocks (after thinkers reinforce)",
    )
