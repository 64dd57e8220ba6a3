"""vocabulary.json in a run folder: the tokens of a run whose vocabulary comes from files.

With it a trained model can be used without those files, and is never resumed on other ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinkers.errors import DamagedError, DataError
from thinkers.files import exists, write_file
from thinkers.json_files import read_with_digest, with_digest
from thinkers.strict_json import Schema

VOCABULARY_FILE = "vocabulary.json"


def save_vocabulary(folder: Path, state: Mapping[str, Any], changed: DataError) -> None:
    """Write `state` to the run in `folder`, or raise `changed` if the run began with another."""
    if not exists(folder / VOCABULARY_FILE):
        write_file(folder / VOCABULARY_FILE, with_digest(state))
    elif load_vocabulary(folder, {key: type(value) for key, value in state.items()}) != state:
        raise changed


def load_vocabulary(folder: Path, schema: Schema) -> dict[str, Any]:
    """Return the state that `save_vocabulary` wrote, whose fields must have these types.

    Raises:
        DataError: There is no such file.
        DamagedError: It has changed since it was written.
    """
    file = folder / VOCABULARY_FILE
    try:
        return read_with_digest(file, schema)
    except FileNotFoundError:
        raise DataError(
            f"{file} is missing, without which tokens cannot be read; restore it from a copy of "
            "the run"
        ) from None
    except DamagedError as error:
        raise DamagedError(f"{error}; restore it from a copy of the run") from None
