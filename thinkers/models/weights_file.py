"""model.safetensors: weights with their own digest, and their sizes before they are read.

The metadata of the file holds the SHA-256 of all its bytes, computed with zeros in place of the
digest, and that of the settings. The digest of the weights is not in config.json, since the two
files cannot be replaced in one step: a crash in between would leave a model that looks damaged.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from thinkers.checks import first_not_finite
from thinkers.errors import DamagedError, NonFiniteError, ResourceError, exit_code
from thinkers.files import open_file
from thinkers.strict_json import check_schema, parse_json

LARGEST_HEADER = 1 << 24
"""Bytes: room for about 100,000 tensors."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
ZEROS = "0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Args:
        shapes: {name of a tensor: its shape}.
        dtypes: {name of a tensor: its dtype}.
        metadata: The texts that the file holds beside its tensors.
        size: Bytes of the header, its length in front included; the tensors follow.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    metadata: Mapping[str, str]
    size: int

    @property
    def numel(self) -> int:
        """Number of elements of all tensors."""
        return sum(map(product, self.shapes.values()))


def pack(tensors: Mapping[str, Tensor], config_digest: str) -> bytes:
    """Return the content of a safetensors file of these tensors, with its digest.

    Args:
        config_digest: The SHA-256 of the settings that the weights belong to.

    Raises:
        NonFiniteError: A tensor is not finite.
    """
    if (name := first_not_finite(tensors)) is not None:
        raise NonFiniteError(f"{name} is not finite; nothing is saved")
    metadata = {"config": config_digest, "format": "pt", "sha256": ZEROS}
    plain = {name: x.detach().contiguous() for name, x in tensors.items()}
    content = bytearray(safetensors.torch.save(plain, metadata))
    # The library writes the metadata first, in an order that differs from process to process; equal
    # weights are to be equal bytes.
    ordered = b'{"__metadata__":' + json.dumps(metadata, separators=(",", ":")).encode()
    content[8 : 8 + len(ordered)] = ordered
    place = _digest_place(content)
    content[place : place + 64] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file, and check that the file is as long as it says.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It is not the header of such a file.
    """
    with open_file(path) as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 2 <= size <= LARGEST_HEADER:
            raise DamagedError(
                f"{path} must begin with the size of its header, of 2 .. {LARGEST_HEADER} bytes, "
                f"got {size}"
            )
        header = parse_json(stream.read(size), f"the header of {path}")
        data_size = stream.seek(0, 2) - 8 - size
    check_schema(header, {}, f"the header of {path}")
    metadata = header.pop("__metadata__", {})
    shapes, dtypes, end = {}, {}, 0
    for name, one in header.items():
        where = f"the header of {path}: {name}"
        check_schema(one, {"dtype": str, "shape": list, "data_offsets": list}, where)
        if one["dtype"] not in DTYPES:
            raise DamagedError(f"{where} must have a dtype in {list(DTYPES)}, got {one['dtype']!r}")
        numbers = one["shape"] + one["data_offsets"]
        if any(type(x) is not int or x < 0 for x in numbers) or len(one["data_offsets"]) != 2:
            raise DamagedError(f"{where} must have a shape and two offsets")
        shapes[name], dtypes[name] = tuple(one["shape"]), DTYPES[one["dtype"]]
        begin, after = one["data_offsets"]
        if after - begin != product(shapes[name]) * dtypes[name].itemsize:
            raise DamagedError(f"{where} takes {after - begin} bytes, which its shape does not")
        end = max(end, after)
    if end != data_size:
        raise DamagedError(f"{path} holds {data_size} bytes of tensors, its header says {end}")
    return Header(shapes, dtypes, metadata, 8 + size)


def verify(path: Path, header: Header, config_digest: str) -> None:
    """Check that every byte of a file that `pack` made is what was written.

    Raises:
        DamagedError: It has changed since, or belongs to other settings.
    """
    if header.metadata.get("config") != config_digest:
        raise DamagedError(
            f"{path} belongs to another config.json than the one beside it, or was not written by "
            "thinkers"
        )
    with open_file(path) as stream:
        head = bytearray(stream.read(header.size))
        place = _digest_place(head)
        expected = bytes(head[place : place + 64])
        head[place : place + 64] = ZEROS.encode()
        digest = hashlib.sha256(head)
        while piece := stream.read(1 << 20):
            digest.update(piece)
    if place < 0 or digest.hexdigest().encode() != expected:
        raise DamagedError(f"{path} has changed since it was written: its SHA-256 differs")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file that was verified.

    Raises:
        DamagedError: They cannot be read, or one is not finite.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        if exit_code(error) == ResourceError.exit_code:
            raise
        raise DamagedError(f"{path} cannot be read: {error}") from None
    if (name := first_not_finite(tensors)) is not None:
        raise DamagedError(f"{path}: {name} is not finite")
    return tensors


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return {name: shape}."""
    return {name: tuple(x.shape) for name, x in tensors.items()}


def check_shapes(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Compare shapes by name; raise a DamagedError that names the first that differs."""
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise DamagedError(
                f"{where}: {name} must have shape {wanted.get(name)}, got {found.get(name)}"
            )


@contextmanager
def sizes_within(header: Header, where: str) -> Iterator[None]:
    """Stop the building of a model as soon as it is larger than these weights allow.

    Settings that come with a file can ask for any size. A model registers its parameters before it
    fills them, so that until then they take no memory.

    Raises:
        DamagedError: The model asks for many more tensors, or far larger ones.
    """
    # A tied or replaced weight is registered more than once; buffers need not be saved.
    tensors, elements = 2 * len(header.shapes) + 32, 2 * header.numel + (1 << 20)
    buffer_elements = 64 * header.numel + (1 << 24)
    modules, thread = 50 * len(header.shapes) + 1000, threading.get_ident()

    def count(number: int, size: int = 0, buffer_size: int = 0, module: int = 0) -> None:
        nonlocal tensors, elements, buffer_elements, modules
        if threading.get_ident() != thread:
            return
        tensors, elements = tensors - number, elements - size
        buffer_elements, modules = buffer_elements - buffer_size, modules - module
        if min(tensors, elements, buffer_elements, modules) < 0:
            raise DamagedError(
                f"{where} describes a larger model than its weights are: they are "
                f"{len(header.shapes)} tensors of {header.numel} elements"
            )

    def on_parameter(_: nn.Module, __: str, x: nn.Parameter | None) -> None:
        count(1, 0 if x is None else x.numel())

    def on_buffer(_: nn.Module, __: str, x: Tensor | None) -> None:
        count(0, 0, 0 if x is None else x.numel())

    handles = (
        hooks.register_module_parameter_registration_hook(on_parameter),
        hooks.register_module_buffer_registration_hook(on_buffer),
        hooks.register_module_module_registration_hook(lambda *_: count(0, module=1)),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def product(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a shape."""
    result = 1
    for size in shape:
        result *= size
    return result


def _digest_place(content: bytearray) -> int:
    """Return the place of the digest in the header of a file; -1 if it has none."""
    size = 8 + int.from_bytes(content[:8], "little")
    found = _DIGEST.search(content, 8, size)
    return -1 if found is None else found.start(1)
