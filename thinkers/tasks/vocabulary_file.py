"""vocabulary.json in a run folder: the tokens of a run whose vocabulary comes from files.

With it a trained model can be used without those files, and is never resumed on other ones.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from thinkers.errors import DamagedError, DataError
from thinkers.files import to_json, write_file

VOCABULARY_FILE = "vocabulary.json"


def save_vocabulary(folder: Path, state: Mapping[str, Any], changed: DataError) -> None:
    """Write `state` to the run in `folder`, or raise `changed` if the run began with another."""
    if not (folder / VOCABULARY_FILE).exists():
        write_file(folder / VOCABULARY_FILE, to_json(state))
    elif load_vocabulary(folder, state.keys()) != state:
        raise changed


def load_vocabulary(folder: Path, keys: Collection[str]) -> dict[str, Any]:
    """Return the state that `save_vocabulary` wrote, which must have these keys.

    Raises:
        DataError: There is no such file.
        DamagedError: The file has changed since it was written.
    """
    file = folder / VOCABULARY_FILE
    try:
        state = json.loads(file.read_bytes())
        if missing := set(keys) - state.keys():
            raise ValueError(f"no {min(missing)} in it")
    except FileNotFoundError:
        raise DataError(
            f"{file} is missing, without which tokens cannot be read; restore it from a copy of "
            "the run"
        ) from None
    except (ValueError, AttributeError) as error:
        raise DamagedError(
            f"{file} has changed since it was written: {error}; restore it from a copy of the run"
        ) from None
    return state
