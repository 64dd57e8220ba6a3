"""The actions of `thinkers memory`: texts into a long-term memory, and answers from it."""

import argparse
import time
from typing import Any

from thinkers.cli.commands import parse_halt, parse_optional
from thinkers.errors import DamagedError, three_lines, usage_error
from thinkers.files import write_file
from thinkers.strict_json import to_json
from thinkers.terminal import show
from thinkers.user_paths import output_file

FAULTS_SHOWN = 20
"""Faults of a memory that `verify` prints."""


def add(options: argparse.Namespace, settings: list[str]) -> int:
    from thinkers.memory.memory import TOPIC
    from thinkers.memory.text_files import add_files

    start, topic = time.monotonic(), TOPIC if options.topic is None else options.topic
    added = add_files(
        options.folder,
        options.files,
        options.store,
        topic,
        by_line=options.by_line,
        keep_text=options.keep_text,
    )
    seconds = time.monotonic() - start
    show(
        f"{count(added.blocks, 'block')} of {count(added.tokens, 'token')} added to topic {topic} "
        f"in {seconds:.1f} s; {described(options.store, added.topics)}"
    )
    return 0


def ask(options: argparse.Namespace, settings: list[str]) -> int:
    top = parse_optional("--top", options.top, 1)
    num_steps = parse_optional("--num_steps", options.num_steps, 0)
    halt = parse_halt(options.halt)
    out = None if options.out is None else output_file(options.out, "--out")
    from thinkers.inspection.memory_page import asked_lines
    from thinkers.inspection.memory_reading import ask as ask_memory

    run, memory = opened(options.folder, options.store, options.topic)
    asked = ask_memory(
        run, options.prompt, memory, num_steps, top=top, halt=halt, policy=options.policy
    )
    show("\n".join(asked_lines(asked)))
    if out is not None:
        write_file(out, to_json(asked.record()))
    return 0


def opened(folder: str, store: str, topics: list[str] | None) -> tuple[Any, Any]:
    """Return a run, as (model, task), and its memory in a folder, or the topics of it."""
    from thinkers.memory import LongTermMemory
    from thinkers.runs.result import open_with_task

    run = open_with_task(folder)
    memory = LongTermMemory.open(store, run)
    return run, memory if topics is None else memory.part(topics)


def list_topics(options: argparse.Namespace, settings: list[str]) -> int:
    memory = stored(options)
    with memory.view() as view:
        topics, meta = view.topics(), view.meta
    show(
        f"{described(options.store, topics)}; {meta.latents} latents of {meta.dim} numbers "
        f"({meta.dtype}) for up to {meta.section} tokens"
    )
    if sum(meta.counts[1:]):
        above = ", ".join(f"{n} of level {level}" for level, n in enumerate(meta.counts[1:], 2))
        show(f"blocks that were compressed from these: {above}")
    show(f"written by the model {memory.fingerprint[:16]}")
    width = max((len(name) for name in topics), default=0)
    for name, number in topics.items():
        show(f"  {name:<{width}}  {number:>8}")
    return 0


def clear(options: argparse.Namespace, settings: list[str]) -> int:
    if options.all == (options.topic is not None):
        raise usage_error(
            f"thinkers memory clear with {'both' if options.all else 'neither'} of --topic and "
            "--all",
            "--topic T, or --all for every topic",
            "leave one out" if options.all else "add one of them",
        )
    with stored(options) as memory:
        cleared = memory.clear(options.topic)
        show(f"{count(cleared, 'block')} cleared; {described(options.store, memory.topics())}")
    return 0


def verify(options: argparse.Namespace, settings: list[str]) -> int:
    from thinkers.memory.database import GENERATION_FILE

    memory = stored(options)
    faults = memory.verify()
    if not faults:
        show(f"as it was written: {described(options.store, memory.topics())}")
        return 0
    for fault in faults[:FAULTS_SHOWN]:
        show(str(fault))
    rebuilt = all(x.place.startswith("index-") or x.place == GENERATION_FILE for x in faults)
    raise DamagedError(
        three_lines(
            f"{options.store} with {count(len(faults), 'fault')}",
            "a memory as it was written",
            f"run thinkers memory rebuild --store {options.store}: all of its blocks are intact"
            if rebuilt
            else "restore it from a copy, or write the texts to a new memory",
        )
    )


def rebuild(options: argparse.Namespace, settings: list[str]) -> int:
    with stored(options) as memory:
        start = time.monotonic()
        memory.rebuild()
        seconds = time.monotonic() - start
        show(f"index made anew in {seconds:.1f} s: {described(options.store, memory.topics())}")
    return 0


def compact(options: argparse.Namespace, settings: list[str]) -> int:
    with stored(options) as memory:
        memory.compact()
        show(f"rewritten without free space: {described(options.store, memory.topics())}")
    return 0


def recompress(options: argparse.Namespace, settings: list[str]) -> int:
    from thinkers.memory import LongTermMemory

    start = time.monotonic()
    with LongTermMemory.recompress(options.store, options.folder) as memory:
        seconds = time.monotonic() - start
        show(f"compressed anew in {seconds:.1f} s: {described(options.store, memory.topics())}")
    return 0


def stored(options: argparse.Namespace) -> Any:
    """Return the memory of --store, opened without a model."""
    from thinkers.memory import LongTermMemory

    return LongTermMemory.open(options.store)


def described(store: str, topics: dict[str, int]) -> str:
    """Return the size of a memory in words."""
    return f"{store} has {count(sum(topics.values()), 'block')} in {count(len(topics), 'topic')}"


def count(number: int, name: str) -> str:
    """Return a number of things in words."""
    return f"{number:,} {name}{'s' * (number != 1)}"
