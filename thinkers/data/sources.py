"""Sources of text: a file, a folder of files or a data set of the Hugging Face hub.

A file or folder is read in place and never copied. A data set is streamed once into one file
of the cache, `$THINKERS_CACHE/datasets` (default ~/.cache/thinkers/datasets), and read from there
like any other file. Text is decoded in pieces, so that memory does not grow with its size.
"""

import codecs
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from thinkers.errors import DataError, ResourceError, exit_code, three_lines
from thinkers.files import exists, is_folder, is_plain_file, make_folders
from thinkers.optional import require
from thinkers.user_paths import user_path

PIECE_BYTES = 1 << 18
"""Bytes that are read at once."""
HUB_PREFIX = "hf:"
COPIES = "data"
"""Subfolder of a run that may hold copies of its sources."""
CODEC_ERRORS = {"error": "strict", "replace": "replace", "skip": "ignore"}
"""Error handler of the UTF-8 codec for each setting of `bad_bytes`."""
FileStats = tuple[tuple[str, int, int], ...]
"""Path, size and modification time of each file."""


@dataclass(frozen=True)
class FileRange:
    """Bytes start .. stop - 1 of a file."""

    file: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Source:
    """Files of a text, concatenated in this order without separators.

    Args:
        path: The path or name that the user gave.
    """

    path: str
    files: tuple[Path, ...]

    def stats(self) -> FileStats:
        """Return path, size and modification time of each file, to detect a changed text."""
        stats = [(file, file.stat()) for file in self.files]
        return tuple((str(file.absolute()), s.st_size, s.st_mtime_ns) for file, s in stats)

    def digest(self) -> str:
        """Return the SHA-256 of the text."""
        return _digest(self.stats())

    def record(self) -> dict[str, Any]:
        """Return the record of this source that a run keeps; see `recorded_source`."""
        size = sum(file.stat().st_size for file in self.files)
        return {"files": len(self.files), "bytes": size, "sha256": self.digest()}

    def split(self, share: float) -> tuple[list[FileRange], list[FileRange]]:
        """Return the first `share` of the bytes, extended to the end of a character, and the rest.

        Splitting is by bytes and not by tokens, so that it is the same for every tokenizer.
        """
        sizes = [file.stat().st_size for file in self.files]
        left = int(share * sum(sizes))
        first, rest = [], []
        for file, size in zip(self.files, sizes, strict=True):
            cut = _next_character(file, left, size) if 0 < left < size else min(max(left, 0), size)
            left -= size
            first += [FileRange(file, 0, cut)] if cut else []
            rest += [FileRange(file, cut, size)] if cut < size else []
        return first, rest


def absolute_path(path: str, flag: str) -> str:
    """Return the absolute path of a source, valid from every working directory."""
    if not path or str(path).startswith(HUB_PREFIX):
        return path
    return str(user_path(path, flag).absolute())


def find_source(path: str, max_bytes: int | None = None, most: int | None = None) -> Source:
    """Return the source of the text at `path`.

    Args:
        path: A file; a folder, all files of which are taken in sorted order, hidden ones left out;
            or hf:NAME or hf:NAME:CONFIGURATION, a data set of huggingface.co.
        max_bytes: Size after which a data set is cut off, at the end of a text.
        most: Limit on the files of a folder; None for no limit.

    Raises:
        DataError: The text does not exist, is not readable, or is empty.
    """
    if path.startswith(HUB_PREFIX):
        return Source(path, (download(path.removeprefix(HUB_PREFIX), max_bytes),))
    place = user_path(path, "--task.path")
    if is_folder(place):
        shown = (
            p
            for p in place.rglob("*")
            if p.is_file() and not any(x[0] == "." for x in p.relative_to(place).parts)
        )
        files = sorted(islice(shown, None if most is None else most + 1))
        if most is not None and len(files) > most:
            raise data_error(path, "other files than when the run began", f"{most} files")
    elif is_plain_file(place):
        files = [place]
    else:
        raise data_error(path, "no such file or folder", "a file, a folder or hf:NAME")
    for file in files:
        if not os.access(file, os.R_OK):
            raise data_error(str(file), "permission denied", "a readable file")
    if not any(file.stat().st_size for file in files):
        raise data_error(path, "no text in it", "a file, or a folder of files, with text")
    return Source(path, tuple(files))


def recorded_source(
    path: str,
    record: Any,
    run: Path,
    max_bytes: int | None = None,
    find: Callable[[str], Source] | None = None,
) -> Source:
    """Return a source of a run: the copy RUN/data/NAME if there is one, else that at `path`.

    The folder of a run may be untrusted, so its settings must not choose which files are read: no
    host is contacted, and a text is used only if it is the one that was trained on.

    Args:
        record: Result of `Source.record` when the run began.
        find: Function that finds the files of a path; `find_source` if None.

    Raises:
        DataError: The text is missing, or is another one.
    """
    copy = run / COPIES / path.removeprefix(HUB_PREFIX).strip("/").replace("/", "--")
    if not path.startswith(HUB_PREFIX):
        copy = run / COPIES / Path(path).name
    fix = f"put it back, or a copy of it at {copy}"
    wanted = "the text that the run was trained on"
    if not isinstance(record, Mapping) or not isinstance(record.get("files"), int):
        raise data_error(path, "not recorded by the run", wanted, "name it by --task.path FILE")
    try:
        if exists(copy):
            source = (find or _find_limited(record["files"]))(str(copy))
            _refuse_links(source, run)
        elif path.startswith(HUB_PREFIX):
            source = Source(path, (_cached_data_set(path, max_bytes),))
        else:
            source = (find or _find_limited(record["files"]))(path)
        is_recorded = sum(file.stat().st_size for file in source.files) == record.get("bytes")
        if is_recorded and source.record() == record:
            return source
    except DataError as error:
        found = str(error).splitlines()[0].removeprefix("found: ")
        raise DataError(f"found: {found}\nexpected: {wanted}\nfix: {fix}") from None
    raise data_error(source.path, "has changed since the run began", wanted, fix)


def _find_limited(most: int) -> Callable[[str], Source]:
    # The path of an untrusted record may be a folder of a million files.
    return lambda path: find_source(path, most=most)


def _refuse_links(source: Source, run: Path) -> None:
    """Raise a DataError if a link leads from the run to a file of `source`."""
    home = run.resolve()
    for file in source.files:
        if file.resolve() != home / file.relative_to(run):
            raise data_error(str(file), "a link", "a plain file")


def _cached_data_set(path: str, max_bytes: int | None) -> Path:
    name = path.removeprefix(HUB_PREFIX)
    file = _data_set_file(name, max_bytes)
    if not is_plain_file(file):
        size = "" if max_bytes is None else f", max_bytes={max_bytes}"
        read = f"thinkers.build_task('text', path={path!r}{size})"
        raise data_error(path, f"not in the cache; {read} in Python fetches it", "", "")
    return file


def data_error(path: str, found: str, expected: str, fix: str = "change --task.path") -> DataError:
    """Build a DataError about the file at `path` in three lines."""
    return DataError(three_lines(f"{path}: {found}", expected, fix))


def read_pieces(part: FileRange, bad_bytes: str) -> Iterator[tuple[str, int]]:
    """Yield pieces of text, each with the number of its bytes that are not UTF-8.

    Args:
        bad_bytes: "error", "replace" by U+FFFD, or "skip".

    Raises:
        DataError: With "error", naming the first such byte and its offset in the file.
    """
    offset, rest = part.start, b""
    with part.file.open("rb") as stream:
        stream.seek(part.start)
        while True:
            raw = stream.read(min(PIECE_BYTES, part.stop - stream.tell()))
            # A piece may end inside a character: its bytes are kept for the next piece. Only at the
            # end of the range (final=True) is an unfinished character an error.
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
                # The codec does not report the bytes that it drops: those it consumed less those it
                # kept.
                good, used = codecs.utf_8_decode(data, "ignore", not raw)
                text, _ = codecs.utf_8_decode(data, CODEC_ERRORS[bad_bytes], not raw)
                bad = used - len(good.encode())
            offset, rest = offset + used, data[used:]
            if text or bad:
                yield text, bad
            if not raw:
                return


def download(name: str, max_bytes: int | None) -> Path:
    """Return a cached file of the texts of a data set's training split, concatenated.

    A line break follows each text. The data set is streamed on the first call only; the file is
    named by (name, max_bytes), and is not checked against the hub again.
    """
    final = _data_set_file(name, max_bytes)
    folder, key = final.parent, final.stem
    if exists(final):
        return final
    make_folders(folder)
    # A name of its own for each process: two may stream the same data set, and the last one wins.
    temporary = folder / f".{key}.{secrets.token_hex(4)}"
    try:
        size = 0
        with temporary.open("wb") as stream:
            for text in _hub_texts(name):
                line = text.encode("utf-8", "replace") + b"\n"
                size += stream.write(line)
                if max_bytes is not None and size >= max_bytes:
                    break
        if not size:
            raise data_error(HUB_PREFIX + name, "no text in it", "a data set with texts")
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    return final


def _data_set_file(name: str, max_bytes: int | None) -> Path:
    key = hashlib.sha256(f"{name} {max_bytes}".encode()).hexdigest()[:16]
    return cache_folder() / "datasets" / f"{key}.txt"


def _hub_texts(name: str) -> Iterator[str]:
    name, _, configuration = name.partition(":")
    load = require("datasets", "text", "a Hugging Face data set").load_dataset
    try:
        rows = iter(load(name, configuration or None, split="train", streaming=True))
        first: dict[str, Any] = next(rows, {"text": ""})
    except Exception as error:  # network, service and library share no narrower exception
        if exit_code(error) == ResourceError.exit_code:
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise data_error(HUB_PREFIX + name, what, "a data set that can be streamed") from error
    if not isinstance(first.get("text"), str):
        what = f"a data set with the columns {', '.join(first)}"
        raise data_error(HUB_PREFIX + name, what, "a column called text, of strings")
    yield first["text"]
    for row in rows:
        yield row["text"]


# Hashing a large text takes seconds: once for each state of its files is enough.
@lru_cache(maxsize=64)
def _digest(stats: FileStats) -> str:
    digest = hashlib.sha256()
    for file, _, _ in stats:
        with open(file, "rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest()


def _next_character(file: Path, place: int, size: int) -> int:
    """Return the first start of a character at or after `place`."""
    with file.open("rb") as stream:
        stream.seek(place)
        following = stream.read(3)
    # In UTF-8 all bytes of a character but its first are 10xxxxxx, and there are at most three.
    continued = 0
    while continued < len(following) and following[continued] & 0xC0 == 0x80:
        continued += 1
    return min(place + continued, size)


def cache_folder() -> Path:
    """Return $THINKERS_CACHE, or ~/.cache/thinkers."""
    given = os.environ.get("THINKERS_CACHE")
    return user_path(given, "THINKERS_CACHE") if given else Path.home() / ".cache" / "thinkers"
