"""Files of users, whose purpose is to add to MODELS, TASKS or RECIPES."""

import importlib.util
import sys
from pathlib import Path

from thinkers.errors import UsageError

_files: list[str] = []


def import_file(file: str) -> None:
    """Run a user's file.

    Raises:
        UsageError: There is none, or it ends with an error.
    """
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UsageError(f"found: --import_module {file}\nexpected: the path of a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(f"found: --import_module {file} ends with {what}") from error
    _files.append(str(path.resolve()))


def imported_files() -> tuple[str, ...]:
    """Those that were run here, in order, for another process to run as well."""
    return tuple(_files)
