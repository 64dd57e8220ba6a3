"""Cache of tokenized texts and of trained tokenizers, in `$THINKERS_CACHE/text`.

    KEY/tokens.bin      the tokens, in the smallest unsigned type that holds them
    KEY/metadata.json   their type, number and SHA-256, and the SHA-256 of this file itself
    KEY.json            a tokenizer that was made from a text

KEY is a hash of all that an entry was made from: the SHA-256 of the text, the tokenizer, the
treatment of bad bytes and FORMAT. So a changed text gets an entry of its own, and the same text
under another name does not.

An entry is verified before each use, by sizes and digests, and made again if it is damaged; it is
written under a temporary name and renamed when it is complete, so a killed process leaves nothing
that looks finished. Anything in the folder may be deleted while no process uses it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Integer

from thinkers.data.sources import (
    FileRange,
    FileStats,
    Source,
    cache_folder,
    data_error,
    read_pieces,
)
from thinkers.data.tokenizers import (
    LONGEST_WORD,
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    UnknownCharacter,
    distinct_characters,
    tokenizer_from_state,
)
from thinkers.errors import (
    DamagedError,
    FormatError,
    ResourceError,
    system_errno,
    usage_error,
)
from thinkers.files import disk_errors, make_folders, open_file, write_file
from thinkers.json_files import read_with_digest, with_digest
from thinkers.strict_json import Schema
from thinkers.terminal import show

FORMAT = 3
TRAIN_SHARE = 0.9
"""Share of a text's bytes that is trained on where no validation text is given."""
METADATA, TOKENS = "metadata.json", "tokens.bin"
TYPES = ("uint8", "uint16", "uint32")
SCHEMA: Schema = {
    "format": int,
    "dtype": str,
    "tokens": int,
    "num_train": int,
    "tokens_sha256": str,
    "bad_bytes": int,
    "text": str,
}
"""Types of metadata.json."""


@dataclass(frozen=True)
class TokenizedText:
    """A text as tokens, which are memory-mapped and read-only.

    Args:
        num_train: Number of tokens from the first TRAIN_SHARE of the text's bytes.
        bad_bytes: Number of bytes that were not UTF-8 and were replaced or skipped.
        digest: SHA-256 of the text.
    """

    tokens: Integer[np.ndarray, " n"]
    num_train: int
    bad_bytes: int
    digest: str


# Verifying an entry reads all of it; a process does so once for each text.
_verified: dict[tuple[FileStats, str, str], TokenizedText] = {}


def tokenize(source: Source, tokenizer: Tokenizer, bad_bytes: str) -> TokenizedText:
    """Return the tokens of a text, from the cache if a valid entry is there.

    The two parts of `Source.split(TRAIN_SHARE)` are tokenized separately: no token crosses their
    boundary.

    Raises:
        DataError: A character has no token, a byte is not UTF-8, or the text changed while it was
            read.
    """
    stats = source.stats()
    identity = (stats, tokenizer.digest, bad_bytes)
    if identity in _verified:
        return _verified[identity]
    folder, digest = cache_folder() / "text", source.digest()
    key = _key(text=digest, tokenizer=tokenizer.digest, bad_bytes=bad_bytes)
    found = _read_entry(folder / key)
    if found is None:
        with _locked(folder, key):
            found = _read_entry(folder / key)  # another process may have made it in between
            if found is None:
                _write_entry(folder, key, source, bad_bytes, tokenizer, digest)
                found = _read_entry(folder / key)
    if source.stats() != stats or found is None:
        raise data_error(
            source.path, "changed while it was read", "a text that stays unchanged", "try again"
        )
    if found.bad_bytes:
        done = {"replace": "replaced", "skip": "skipped"}[bad_bytes]
        message = f"{source.path}: {found.bad_bytes} bytes that are not UTF-8 {done}"
        show(message, stream=sys.stderr)
    _verified[identity] = found
    return found


def tokenizer_for(
    source: Source, kind: str, bpe_size: int, bad_bytes: str, share: float
) -> Tokenizer:
    """Return the tokenizer of a text, from the cache if a valid one is there.

    Args:
        kind: "byte"; "character", the characters of the whole text, so that held-out text can be
            encoded; or "bpe", learned from the first `share` of the text only.
        bpe_size: The most tokens of a bpe tokenizer.
    """
    if kind == "byte":
        return ByteTokenizer()
    own = {"size": bpe_size, "share": share, "longest": LONGEST_WORD} if kind == "bpe" else {}
    key = _key(text=source.digest(), kind=kind, bad_bytes=bad_bytes, **own)
    folder = cache_folder() / "text"
    file = folder / f"{key}.json"
    schema: Schema = {"format": int, "tokenizer": dict}
    found = _read_json(file, schema)
    if found is None:
        with _locked(folder, key):
            found = _read_json(file, schema)
            if found is None:
                made = _make_tokenizer(source, kind, bpe_size, bad_bytes, share)
                found = {"format": FORMAT, "tokenizer": made.state()}
                write_file(file, with_digest(found))
    return tokenizer_from_state(found["tokenizer"], str(file))


def _make_tokenizer(
    source: Source, kind: str, bpe_size: int, bad_bytes: str, share: float
) -> Tokenizer:
    first, rest = source.split(share)
    if kind == "bpe":
        texts = (text for part in first for text, _ in read_pieces(part, bad_bytes))
        return BPETokenizer.train(texts, bpe_size)
    pieces = (text for part in first + rest for text, _ in read_pieces(part, bad_bytes))
    characters = distinct_characters(pieces)
    if not characters:
        raise data_error(source.path, "no text in it", "a text of characters")
    return CharacterTokenizer(characters)


def _write_entry(
    folder: Path, key: str, source: Source, bad_bytes: str, tokenizer: Tokenizer, digest: str
) -> None:
    """Tokenize a text into the entry `key`, replacing a damaged one if there is one."""
    temporary = folder / f".{key}.tmp"
    with disk_errors(folder / key):
        _fill_entry(folder / key, temporary, source, bad_bytes, tokenizer, digest)


def _fill_entry(
    final: Path,
    temporary: Path,
    source: Source,
    bad_bytes: str,
    tokenizer: Tokenizer,
    digest: str,
) -> None:
    _remove(temporary)  # left by a process that was killed
    temporary.mkdir()
    try:
        with (temporary / TOKENS).open("wb") as stream:
            writer = _TokenWriter(stream, tokenizer)
            first, rest = source.split(TRAIN_SHARE)
            for part in first:
                writer.add(part, bad_bytes)
            num_train = writer.num_tokens
            for part in rest:
                writer.add(part, bad_bytes)
        metadata = {
            "format": FORMAT,
            "dtype": writer.dtype.name,
            "tokens": writer.num_tokens,
            "num_train": num_train,
            "tokens_sha256": writer.digest.hexdigest(),
            "bad_bytes": writer.bad_bytes,
            "text": digest,
        }
        write_file(temporary / METADATA, with_digest(metadata))
        _remove(final)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # an error above is the one to report


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


class _TokenWriter:
    """Append the tokens of parts of a text to a file, in constant memory."""

    def __init__(self, stream: BinaryIO, tokenizer: Tokenizer):
        self.stream, self.tokenizer = stream, tokenizer
        self.dtype = np.dtype(np.min_scalar_type(len(tokenizer) - 1))
        self.num_tokens = self.bad_bytes = 0
        self.digest = hashlib.sha256()

    def add(self, part: FileRange, bad_bytes: str) -> None:
        rest, num_characters = "", 0
        for text, bad in read_pieces(part, bad_bytes):
            self.bad_bytes += bad
            # Text after the last safe cut is encoded with the next piece, so that tokens do not
            # depend on PIECE_BYTES.
            text = rest + text
            cut = self.tokenizer.safe_cut(text)
            num_characters += self._put(text[:cut], part, num_characters)
            rest = text[cut:]
        self._put(rest, part, num_characters)

    def _put(self, text: str, part: FileRange, num_before: int) -> int:
        try:
            tokens = self.tokenizer.encode(text).astype(self.dtype, copy=False)
        except UnknownCharacter as error:
            place = f"{num_before + error.index} characters after byte {part.start}"
            raise data_error(
                str(part.file),
                f"{error.character!r}, {place}, has no token",
                "only characters of the text that the tokenizer was made from",
                "use a text like it, or set --task.vocabulary to byte or bpe",
            ) from None
        content = tokens.tobytes()
        self.digest.update(content)
        self.stream.write(content)
        self.num_tokens += len(tokens)
        return len(text)


def _read_entry(folder: Path) -> TokenizedText | None:
    """Return the text of a cache entry; None if it is missing, damaged or of another format."""
    metadata = _read_json(folder / METADATA, SCHEMA)
    if metadata is None or metadata["dtype"] not in TYPES:
        return None
    dtype = np.dtype(metadata["dtype"])
    try:
        with open_file(folder / TOKENS) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != metadata["tokens"] * dtype.itemsize:
                return None
            if hashlib.file_digest(stream, "sha256").hexdigest() != metadata["tokens_sha256"]:
                return None
            # Of the file that was verified; an empty one cannot be mapped.
            tokens = np.memmap(stream, dtype, "r") if size else np.zeros(0, np.uint8)
    except (FileNotFoundError, DamagedError):
        return None
    # A plain view: slices of np.memmap are slow, since each one is a memmap of its own.
    return TokenizedText(
        tokens.view(np.ndarray), metadata["num_train"], metadata["bad_bytes"], metadata["text"]
    )


def _read_json(file: Path, schema: Schema) -> dict[str, Any] | None:
    """Return the content of a file; None if it is missing, damaged or of another format."""
    try:
        return read_with_digest(file, schema, FORMAT)
    except (FileNotFoundError, DamagedError, FormatError):
        return None


def _key(**made_from: Any) -> str:
    return _sha256(made_from | {"format": FORMAT})[:32]


def _sha256(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(folder: Path, key: str) -> Iterator[None]:
    """Hold the lock of an entry; other processes that need it wait, and then find it complete."""
    try:
        make_folders(folder)
        stream = (folder / f".{key}.lock").open("a")
    except OSError as error:
        if isinstance(error, ResourceError) or system_errno(error) is not None:
            raise
        raise usage_error(
            f"the cache {folder}: {error.strerror}",
            "a folder that can be written",
            "set THINKERS_CACHE to one",
        ) from None
    # The lock file stays: if it were deleted, a waiting process would hold the lock of a file that
    # the next one no longer finds. The kernel releases the lock when its owner ends in any way.
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
