"""Reader of the files in which W&B keeps a run until it is uploaded.

Such a file is a log in the format of LevelDB, https://github.com/google/leveldb/blob/main/doc/log_format.md,
of messages in the format of protocol buffers. W&B writes it in blocks, from a process of its own
that ends with the training: what a killed run has logged last is not in it.
"""

import importlib
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
FILE_HEADER = 7
HEADER = struct.Struct("<IHB")
"""Checksum, number of bytes and kind of a fragment."""
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Kinds of fragments of a message, which may pass the end of a block."""


def logged_rows(folder: Path, run: str) -> Iterator[dict[str, Any]]:
    """Yield the rows that the files of a run have, file by file.

    Args:
        folder: The folder `wandb`, with one folder for each process that has logged this run.
        run: The id of the run.
    """
    for file in sorted(folder.glob(f"*run-*-{run}/run-{run}.wandb")):
        for record in _records(file):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {x.key or ".".join(x.nested_key): json.loads(x.value_json) for x in items}


def wait_for_end(file: Path, seconds: float = 10) -> None:
    """Wait until W&B's own process has written the end of a run that is finished.

    Raises:
        TimeoutError: It has not for so long.
    """
    last = time.monotonic() + seconds
    while not any(x.WhichOneof("record_type") == "exit" for x in _records(file)):
        if time.monotonic() > last:
            raise TimeoutError(f"W&B has not written {file} within {seconds:g} seconds")
        time.sleep(0.01)


def _records(file: Path) -> Iterator[Any]:
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    return (record.FromString(x) for x in messages(file.read_bytes()))


def messages(content: bytes) -> Iterator[bytes]:
    """Yield the messages of a log that are whole; the last may have been cut."""
    place, parts = FILE_HEADER, b""
    while place + HEADER.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER.size:  # no room for another header: the block is filled with zeros
            place += left
            continue
        _, size, kind = HEADER.unpack_from(content, place)
        end = place + HEADER.size + size
        if not FULL <= kind <= LAST or end > len(content):
            return
        parts = (b"" if kind in (FULL, FIRST) else parts) + content[place + HEADER.size : end]
        if kind in (FULL, LAST):
            yield parts
        place = end
