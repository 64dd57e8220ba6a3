"""The parsers of the library, each with intact input and the way to parse it changed.

`PARSERS` has a function for each: it makes what is intact in a folder, and returns a function that
draws a case. "forged" files have values that were changed and a digest that fits.
"""

import functools
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from file_cases import (
    Case,
    Draw,
    checkpoints,
    comparison,
    forged_manifest,
    forged_model_config,
    forged_plan,
    forged_record,
    forged_tensors,
    index,
    ledger,
    metrics,
    model_config,
    record,
)
from mutations import JSON, YAML, change_bytes, change_value, change_words

import thinkers
from thinkers.cli import main as command_line
from thinkers.config import overrides
from thinkers.data import token_cache
from thinkers.data.sources import find_source, read_pieces
from thinkers.data.tokenizers import ByteTokenizer, UnknownCharacter, tokenizer_from_state
from thinkers.errors import UsageError
from thinkers.json_files import parse_with_digest, with_digest
from thinkers.memory.text_files import read_text
from thinkers.serve.protocol import parse_completion
from thinkers.strict_json import parse_json
from thinkers.tasks.babi_format import parse_stories

TEXT = "The cat sat on the mat; größer, 日本.\r\n\tA line.\n\n" * 40
STORIES = b"1 Mary went home.\n2 John took the ball.\n3 Where is Mary?\thome\t1\n1 It is.\n"
REQUEST = {"model": "add", "prompt": ["12+34=", "1"], "max_tokens": 9, "temperature": 0.5, "n": 2}
REQUEST |= {"stop": ["\n"], "seed": 3, "stream": True, "stream_options": {"include_usage": True}}
LINES = [
    ["train", "add/looped", "--model.dim=16", "--training.lr=1e-3", "--task.max_digits", "2"],
    ["train", "cups/thinker", "--training.random_steps=[1,3]", "--model.halting=true", "--dry_run"],
    [
        "compare",
        "add",
        "--models",
        "decoder,looped",
        "--budget",
        "2e13",
        "--lrs=0.1,0.2",
        "--seeds=2",
    ],
    ["evaluate", "runs/a", "--num_steps", "1,2,4", "--halt=0.5", "--out", "x.json"],
    ["generate", "runs/a", "--prompt", "12+34=", "--temperature", "0.8", "--top_k", "5"],
    ["memory", "add", "runs/a", "b", "--store", "c", "--topic", "t"],
    ["research", "add/looped", "--minutes", "1", "--out", "r", "--model.dim", "8"],
]


def strict_json(folder: Path) -> Draw:
    corpus = [json.dumps(REQUEST).encode(), with_digest({"a": [1, 2.5, None], "b": {"c": "ü"}})]

    def draw(rng: Random) -> Case:
        content = change_bytes(rng, corpus, JSON)
        return Case(content, lambda: parse_json(content, "x"))

    return draw


def digest(folder: Path) -> Draw:
    intact = with_digest(
        {"format": 2, "update": 3, "files": {"a": {"size": 9, "sha256": "0" * 64}}}
    )

    def draw(rng: Random) -> Case:
        content = change_bytes(rng, [intact], JSON)
        schema = {"update": int}
        return Case(
            content,
            lambda: parse_with_digest(content, Path("x"), schema, 2),
            content != intact,
        )

    return draw


def config_file(folder: Path) -> Draw:
    """Settings in YAML."""
    config = thinkers.RECIPES["add/looped"]()
    corpus = [overrides.dump(config).encode(), b"model:\n  dim: 16\ntraining: {lr: 1e-3}\n"]
    file = folder / "config.yaml"

    def draw(rng: Random) -> Case:
        content = change_bytes(rng, corpus, YAML)
        file.write_bytes(content)
        return Case(content, lambda: overrides.override(config, [str(file)]))

    return draw


def flags(folder: Path) -> Draw:
    """Words of a command; those that ask for help end as they do."""
    # The grammar does not change, and building it takes longer than most cases.
    command_line.command_line = functools.cache(command_line.command_line)
    config = thinkers.RECIPES["add/looped"]()

    def parse(words: list[str]) -> None:
        with suppress(SystemExit):
            _, settings = command_line.parse(*command_line.split(words))
            overrides.override(config, flags=settings)

    def draw(rng: Random) -> Case:
        words = change_words(rng, LINES)
        return Case(json.dumps(words).encode(), lambda: parse(words))

    return draw


def requests(folder: Path) -> Draw:
    """Bodies of requests to the server."""
    corpus = [json.dumps(REQUEST).encode(), b'{"model": "a", "prompt": "x", "halt": "answered"}']

    def draw(rng: Random) -> Case:
        content = change_bytes(rng, corpus, JSON)
        if rng.random() < 0.5:
            content = json.dumps(change_value(rng, REQUEST)).encode()
        return Case(content, lambda: parse_completion(content, 4096))

    return draw


def tokenizer(folder: Path) -> Draw:
    """States of tokenizers, forged."""
    (folder / "text").write_text(TEXT)
    source = find_source(str(folder / "text"))
    states = [ByteTokenizer().state()]
    states.append(token_cache.tokenizer_for(source, "character", 300, "error", 0.9).state())
    with suppress(UsageError):  # without the extra text
        states.append(token_cache.tokenizer_for(source, "bpe", 260, "error", 0.9).state())

    def parse(state: Any) -> None:
        made = tokenizer_from_state(state, "vocabulary.json")
        with suppress(UnknownCharacter):
            made.decode(made.encode(TEXT[:60]))

    def draw(rng: Random) -> Case:
        state = change_value(rng, rng.choice(states))
        state = state if isinstance(state, dict) else {"kind": state}
        return Case(json.dumps(state).encode(), lambda: parse(state))

    return draw


def token_entries(folder: Path) -> Draw:
    """Files of the cache of tokens: a damaged entry is made again, and never taken."""
    (folder / "text").write_text(TEXT)
    source, made = find_source(str(folder / "text")), ByteTokenizer()
    right = list(TEXT.encode())
    token_cache.tokenize(source, made, "error")
    entry = next(x for x in (token_cache.cache_folder() / "text").iterdir() if x.is_dir())
    intact = {x.name: x.read_bytes() for x in entry.iterdir()}

    def parse() -> None:
        token_cache._verified.clear()
        if token_cache.tokenize(source, made, "error").tokens.tolist() != right:
            raise AssertionError("other tokens than those of the text")

    def draw(rng: Random) -> Case:
        name = rng.choice(sorted(intact))
        content = change_bytes(rng, [intact[name]], JSON)
        (entry / name).write_bytes(content)
        return Case(content, parse)

    return draw


def texts(folder: Path) -> Draw:
    """Texts of any bytes, which are read as Python decodes them, or refused."""
    file, corpus = folder / "text", [TEXT.encode(), TEXT.encode("utf-16"), b"\xff", STORIES]

    def parse(content: bytes) -> None:
        source = find_source(str(file))
        for handler in ("replace", "skip", "error"):
            pieces = [x for part in source.split(1.0)[0] for x in read_pieces(part, handler)]
            codec = {"replace": "replace", "skip": "ignore", "error": "strict"}[handler]
            if "".join(text for text, _ in pieces) != content.decode(errors=codec):
                raise AssertionError(f"another text with {handler}")
        if read_text(file) != content.decode().removeprefix("\ufeff"):
            raise AssertionError("another text of a memory")

    def draw(rng: Random) -> Case:
        content = change_bytes(rng, corpus)
        file.write_bytes(content)
        return Case(content, lambda: parse(content))

    return draw


def stories(folder: Path) -> Draw:
    tokens = (b"\t", b"1 ", b"99 ", b"\n1 ", b"?", b",", "²".encode(), "٣ ".encode())

    def draw(rng: Random) -> Case:
        content = change_bytes(rng, [STORIES], tokens)
        return Case(content, lambda: parse_stories(content, "x"))

    return draw


PARSERS: dict[str, Callable[[Path], Draw]] = {
    "JSON": strict_json,
    "JSON with a digest": digest,
    "configuration file": config_file,
    "flags": flags,
    "requests": requests,
    "tokenizer, forged": tokenizer,
    "cache of tokens": token_entries,
    "texts": texts,
    "stories": stories,
    "checkpoint": checkpoints,
    "manifest, forged": forged_manifest,
    "tensors, forged": forged_tensors,
    "metrics": metrics,
    "run": record,
    "run, forged": forged_record,
    "model": model_config,
    "model, forged": forged_model_config,
    "comparison": comparison,
    "plan, forged": forged_plan,
    "index of a memory": index,
    "research ledger": ledger,
}
