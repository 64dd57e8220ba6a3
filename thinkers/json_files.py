"""Files of JSON: with a schema and limits, and with their own digest and format version."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinkers.errors import DamagedError, FormatError, ThinkersError
from thinkers.files import read_file
from thinkers.strict_json import Schema, check_schema, json_type, parse_json, to_json

LARGEST_JSON = 1 << 26
"""Bytes of a file of JSON; the vocabularies of byte pairs are the largest, of a few MB."""


def check_format(path: Path, found: Any, known: int) -> None:
    """Check that a file has the format that this version reads.

    Args:
        found: The "format" of the file, of any type.

    Raises:
        FormatError: It is that of another version.
        DamagedError: It is not an integer.
    """
    if found == known and type(found) is int:
        return
    if type(found) is not int:
        raise DamagedError(f"{path} has format {found!r}; it must be an integer, here {known}")
    if found < known:
        raise FormatError(
            f"{path} has format {found}, of an older version; this version reads {known}: "
            f"train again, or use the version of thinkers that wrote it"
        )
    raise FormatError(
        f"{path} has format {found}, of a newer version; this version reads {known}: "
        f"upgrade thinkers"
    )


def with_digest(value: Mapping[str, Any]) -> bytes:
    """Return an object as canonical JSON, with the SHA-256 of its other fields as "sha256"."""
    return to_json({**value, "sha256": hashlib.sha256(to_json(value)).hexdigest()})


def read_with_digest(path: Path, schema: Schema, known_format: int | None = None) -> dict[str, Any]:
    """Read a file of `with_digest`, and verify each byte of it by its digest.

    Args:
        schema: The types of the fields that it must have.
        known_format: The value that its "format" must have; None for a file without one.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: Another version wrote it; its digest may follow other rules.
        DamagedError: It has changed since it was written, or is not such a file.
    """
    return parse_with_digest(read_file(path, LARGEST_JSON), path, schema, known_format)


def parse_with_digest(
    content: bytes, path: Path, schema: Schema, known_format: int | None = None
) -> dict[str, Any]:
    """Parse what `with_digest` returned, as `read_with_digest` does.

    Args:
        path: The file that holds it, for errors.
    """
    value = parse_json(content, str(path))
    if not isinstance(value, dict):
        raise DamagedError(f"{path} must hold a JSON object, got {json_type(value)}")
    if known_format is not None:
        check_format(path, value.get("format"), known_format)
    digest = value.pop("sha256", None)
    if digest is None:
        raise DamagedError(
            f"{path} lacks sha256, its own digest: it has changed, or was not written by thinkers"
        )
    if with_digest(value) != content:
        raise DamagedError(f"{path} has changed since it was written: its SHA-256 differs")
    check_schema(value, schema, str(path))
    return value


def read_json(
    path: Path,
    schema: Schema,
    error: type[ThinkersError] = DamagedError,
    follow: bool = False,
) -> dict[str, Any]:
    """Read a JSON object, with the limits of `parse_json`; arguments are those of `open_file`."""
    value = parse_json(read_file(path, LARGEST_JSON, error, follow), str(path), error)
    check_schema(value, schema, str(path), error)
    return value
