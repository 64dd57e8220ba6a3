"""Where a text comes from: a file, a folder of files or a data set, read in pieces of UTF-8."""

import codecs
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from thinkers.errors import DataError
from thinkers.optional import require

PIECE = 1 << 18
"""Bytes that are read at once."""
DATA_SET = "hf:"
Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Part:
    """Bytes start .. stop - 1 of a file."""

    file: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Source:
    """The files that a text is made of, one after the other as `cat` joins them.

    Args:
        path: As a user named it.
    """

    path: str
    files: tuple[Path, ...]

    def signature(self) -> Signature:
        """What differs, as far as the file system knows, once the text has changed."""
        stats = [(file, file.stat()) for file in self.files]
        return tuple((str(file.absolute()), s.st_size, s.st_mtime_ns) for file, s in stats)

    def digest(self) -> str:
        """SHA-256 of the text."""
        return _digest(self.signature())

    def split(self, share: float) -> tuple[list[Part], list[Part]]:
        """The first `share` of the bytes, up to the end of a character, and the rest."""
        sizes = [file.stat().st_size for file in self.files]
        left = int(share * sum(sizes))
        first, rest = [], []
        for file, size in zip(self.files, sizes, strict=True):
            cut = _next_character(file, left, size) if 0 < left < size else min(max(left, 0), size)
            left -= size
            first += [Part(file, 0, cut)] if cut else []
            rest += [Part(file, cut, size)] if cut < size else []
        return first, rest


def find(path: str, max_bytes: int | None = None) -> Source:
    """The text that a user means by `path`.

    Args:
        path: A file, a folder, whose files are taken in sorted order without hidden ones, or
            hf:NAME or hf:NAME:CONFIGURATION, a data set of huggingface.co.
        max_bytes: Where a data set is cut off.

    Raises:
        DataError: There is no such text, or nothing is in it.
    """
    if path.startswith(DATA_SET):
        return Source(path, (download(path.removeprefix(DATA_SET), max_bytes),))
    place = Path(path).expanduser()
    if place.is_dir():
        found = sorted(p for p in place.rglob("*") if p.is_file())
        files = [p for p in found if not any(x[0] == "." for x in p.relative_to(place).parts)]
    elif place.is_file():
        files = [place]
    else:
        raise data_error(path, "no such file or folder", "a file, a folder or hf:NAME")
    for file in files:
        if not os.access(file, os.R_OK):
            raise data_error(str(file), "may not be read", "a file with permission to read it")
    if not any(file.stat().st_size for file in files):
        raise data_error(path, "holds no text", "a file, or a folder of files, with text")
    return Source(path, tuple(files))


def data_error(path: str, found: str, expected: str, todo: str = "change --task.path") -> DataError:
    """An error about a text, in three lines."""
    return DataError(f"found: {path}: {found}\nexpected: {expected}\nfix: {todo}")


def read(part: Part, bad_bytes: str) -> Iterator[tuple[str, int]]:
    """Pieces of text, each with the number of bytes in it that are not UTF-8.

    Args:
        bad_bytes: "error", "replace" by U+FFFD, or "skip".
    """
    ways = {"error": "strict", "replace": "replace", "skip": "ignore"}
    offset, rest = part.start, b""
    with part.file.open("rb") as stream:
        stream.seek(part.start)
        while True:
            raw = stream.read(min(PIECE, part.stop - stream.tell()))
            data, bad = rest + raw, 0
            try:
                text, used = codecs.utf_8_decode(data, "strict", not raw)
            except UnicodeDecodeError as error:
                if bad_bytes == "error":
                    place = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}"
                    raise data_error(
                        str(part.file),
                        f"{place} is not UTF-8",
                        "text in UTF-8",
                        "convert it, or set --task.bad_bytes to replace or skip",
                    ) from None
                good, used = codecs.utf_8_decode(data, "ignore", not raw)
                text, _ = codecs.utf_8_decode(data, ways[bad_bytes], not raw)
                bad = used - len(good.encode())
            offset, rest = offset + used, data[used:]
            if text or bad:
                yield text, bad
            if not raw:
                return


def download(name: str, max_bytes: int | None) -> Path:
    """The texts of a data set's training split, in one file of the cache, a line break after each.

    It is streamed once, and taken from the cache from then on.
    """
    folder = cache_folder() / "datasets"
    key = hashlib.sha256(f"{name} {max_bytes}".encode()).hexdigest()[:16]
    final = folder / f"{key}.txt"
    if final.exists():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{key}.{secrets.token_hex(4)}"
    try:
        size = 0
        with temporary.open("wb") as stream:
            for text in _texts(name):
                line = text.encode("utf-8", "replace") + b"\n"
                size += stream.write(line)
                if max_bytes is not None and size >= max_bytes:
                    break
        if not size:
            raise data_error(DATA_SET + name, "holds no text", "a data set with texts")
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    return final


def _texts(name: str) -> Iterator[str]:
    name, _, configuration = name.partition(":")
    load = require("datasets", "text", "a Hugging Face data set").load_dataset
    try:
        rows = iter(load(name, configuration or None, split="train", streaming=True))
        first: dict[str, Any] = next(rows, {"text": ""})
    except Exception as error:  # whatever the network, the service or the library has to say
        what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise data_error(DATA_SET + name, what, "a data set that can be streamed") from error
    if not isinstance(first.get("text"), str):
        what = f"has the columns {', '.join(first)}"
        raise data_error(DATA_SET + name, what, "a data set with a column of texts called text")
    yield first["text"]
    for row in rows:
        yield row["text"]


@lru_cache(maxsize=64)
def _digest(signature: Signature) -> str:
    digest = hashlib.sha256()
    for file, _, _ in signature:
        with open(file, "rb") as stream:
            while piece := stream.read(PIECE):
                digest.update(piece)
    return digest.hexdigest()


def _next_character(file: Path, place: int, size: int) -> int:
    """`place`, moved on to the start of a character."""
    with file.open("rb") as stream:
        stream.seek(place)
        following = stream.read(3)
    continued = 0
    while continued < len(following) and following[continued] & 0xC0 == 0x80:
        continued += 1
    return min(place + continued, size)


def cache_folder() -> Path:
    """$THINKERS_CACHE, or ~/.cache/thinkers."""
    given = os.environ.get("THINKERS_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "thinkers"
