"""Texts as tokens in memory-mapped files: prepared once, kept in a cache, proved before each use.

A cache entry is a folder, made under another name and renamed when it is whole, and named by a
hash of all that it came from: the text, the vocabulary, the treatment of bad bytes. It can be
deleted at any time.
"""

import fcntl
import hashlib
import json
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Integer

from thinkers.data.sources import PIECE, Part, Signature, Source, cache_folder, data_error, read
from thinkers.data.tokenizers import (
    BPETokenizer,
    Bytes,
    Characters,
    Tokenizer,
    UnknownCharacter,
    characters_of,
    from_state,
)
from thinkers.errors import UsageError

FORMAT = 1
TRAIN_SHARE = 0.9
FACTS, TOKENS = "facts.json", "tokens.bin"


@dataclass(frozen=True)
class Prepared:
    """A text as tokens.

    Args:
        boundary: How many of them come from the first 90 % of the text's bytes.
        bad_bytes: How many bytes of the text were replaced or skipped.
        digest: SHA-256 of the text.
    """

    tokens: Integer[np.ndarray, " n"]
    boundary: int
    bad_bytes: int
    digest: str


_known: dict[tuple[Signature, str, str], Prepared] = {}


def prepare(source: Source, vocabulary: Tokenizer, bad_bytes: str) -> Prepared:
    """The tokens of a text, from the cache if they are there, whole and of this text."""
    signature = source.signature()
    made_of = (signature, vocabulary.digest, bad_bytes)
    if made_of in _known:
        return _known[made_of]
    folder, digest = cache_folder() / "text", source.digest()
    key = _key(text=digest, vocabulary=vocabulary.digest, bad_bytes=bad_bytes)
    found = _open(folder / key)
    if found is None:
        with _locked(folder, key):
            found = _open(folder / key)
            if found is None:
                _write(folder, key, source, bad_bytes, vocabulary, digest)
                found = _open(folder / key)
    if source.signature() != signature or found is None:
        raise data_error(source.path, "changed while it was read", "a text at rest", "try again")
    if found.bad_bytes:
        done = {"replace": "replaced", "skip": "skipped"}[bad_bytes]
        told = f"{source.path}: {found.bad_bytes} bytes that are not UTF-8 {done}"
        print(told, file=sys.stderr, flush=True)
    _known[made_of] = found
    return found


def tokenizer_for(
    source: Source, kind: str, bpe_size: int, bad_bytes: str, share: float
) -> Tokenizer:
    """The vocabulary of a text, from the cache if it is there.

    Args:
        kind: "character": those of the whole text; "bpe": learned from the first `share` of it.
        bpe_size: The most tokens of a bpe vocabulary.
    """
    if kind == "byte":
        return Bytes()
    own = {"size": bpe_size, "share": share} if kind == "bpe" else {}
    key = _key(text=source.digest(), kind=kind, bad_bytes=bad_bytes, **own)
    folder = cache_folder() / "text"
    file = folder / f"{key}.json"
    facts = _facts(file)
    if facts is None:
        with _locked(folder, key):
            facts = _facts(file)
            if facts is None:
                made = _make_vocabulary(source, kind, bpe_size, bad_bytes, share)
                facts = {"format": FORMAT, "vocabulary": made.state()}
                temporary = folder / f".{key}.tmp"
                temporary.write_text(json.dumps(facts | {"digest": _digest_of(facts)}))
                temporary.replace(file)
    return from_state(facts["vocabulary"], str(file))


def _make_vocabulary(
    source: Source, kind: str, bpe_size: int, bad_bytes: str, share: float
) -> Tokenizer:
    first, rest = source.split(share)
    if kind == "bpe":
        texts = (text for part in first for text, _ in read(part, bad_bytes))
        return BPETokenizer.learn(texts, bpe_size)
    found = characters_of(text for part in first + rest for text, _ in read(part, bad_bytes))
    if not found:
        raise data_error(source.path, "holds no text", "a text of characters")
    return Characters(found)


def _write(
    folder: Path, key: str, source: Source, bad_bytes: str, vocabulary: Tokenizer, digest: str
) -> None:
    """Make the entry `key`, in place of a damaged one if there is one."""
    temporary = folder / f".{key}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    try:
        with (temporary / TOKENS).open("wb") as stream:
            writer = _Writer(stream, vocabulary)
            first, rest = source.split(TRAIN_SHARE)
            for part in first:
                writer.add(part, bad_bytes)
            boundary = writer.written
            for part in rest:
                writer.add(part, bad_bytes)
        facts = {
            "format": FORMAT,
            "dtype": writer.dtype.name,
            "tokens": writer.written,
            "boundary": boundary,
            "crc32": writer.crc,
            "bad_bytes": writer.bad_bytes,
            "text": digest,
        }
        facts["digest"] = _digest_of(facts)
        (temporary / FACTS).write_text(json.dumps(facts))
        shutil.rmtree(folder / key, ignore_errors=True)
        temporary.rename(folder / key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Writer:
    """Appends the tokens of parts of a text to a file."""

    def __init__(self, stream: BinaryIO, vocabulary: Tokenizer):
        self.stream, self.vocabulary = stream, vocabulary
        self.dtype = np.dtype(np.min_scalar_type(len(vocabulary) - 1))
        self.written = self.bad_bytes = self.crc = 0

    def add(self, part: Part, bad_bytes: str) -> None:
        rest, before = "", 0
        for text, bad in read(part, bad_bytes):
            self.bad_bytes += bad
            text = rest + text
            cut = self.vocabulary.cut(text)
            before += self._put(text[:cut], part, before)
            rest = text[cut:]
        self._put(rest, part, before)

    def _put(self, text: str, part: Part, before: int) -> int:
        try:
            tokens = self.vocabulary.encode(text).astype(self.dtype, copy=False)
        except UnknownCharacter as error:
            what = f"{error.character!r}, {before + error.index} characters after byte {part.start}"
            raise data_error(
                str(part.file),
                f"{what}, has no token",
                "only characters that the vocabulary was made of",
                "use a text like it; byte and bpe vocabularies have tokens for all",
            ) from None
        content = tokens.tobytes()
        self.crc = zlib.crc32(content, self.crc)
        self.stream.write(content)
        self.written += len(tokens)
        return len(text)


def _open(folder: Path) -> Prepared | None:
    """What is in a cache entry; None if it is missing, damaged or of another format."""
    facts = _facts(folder / FACTS)
    try:
        if facts is None:
            return None
        size = facts["tokens"] * np.dtype(facts["dtype"]).itemsize
        if (folder / TOKENS).stat().st_size != size or _crc(folder / TOKENS) != facts["crc32"]:
            return None
        tokens = np.memmap(folder / TOKENS, facts["dtype"], "r") if size else np.zeros(0, np.uint8)
    except FileNotFoundError:
        return None
    return Prepared(tokens.view(np.ndarray), facts["boundary"], facts["bad_bytes"], facts["text"])


def _facts(file: Path) -> dict[str, Any] | None:
    """What a file of facts says; None if it is missing, damaged or of another format."""
    try:
        facts = json.loads(file.read_bytes())
        digest = facts.pop("digest")
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, AttributeError):
        return None
    whole = digest == _digest_of(facts) and facts["format"] == FORMAT
    return facts if whole else None


def _key(**made_of: Any) -> str:
    return _digest_of(made_of | {"format": FORMAT})[:32]


def _digest_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _crc(file: Path) -> int:
    crc = 0
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


@contextmanager
def _locked(folder: Path, key: str) -> Iterator[None]:
    """Alone among processes that prepare the same; others wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / f".{key}.lock").open("a")
    except OSError as error:
        raise UsageError(
            f"found: the cache {folder}: {error.strerror}\nexpected: a folder that can be written\n"
            "fix: set THINKERS_CACHE to one"
        ) from None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
