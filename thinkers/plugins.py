"""Python files of users, which add to MODELS, TASKS or RECIPES."""

import importlib.util
import sys

from thinkers.errors import usage_error
from thinkers.files import user_path

_files: list[str] = []


def import_file(file: str) -> None:
    """Import a Python file by its path.

    Raises:
        UsageError: There is none, or it raises an error.
    """
    path = user_path(file, "--import_module")
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise usage_error(f"--import_module {file}", "the path of a Python file", "change the path")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # before it runs, as import does: dataclasses look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        # SystemExit too: a file that calls sys.exit(0) would end the command as if all were done.
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise usage_error(
            f"--import_module {file} raises {what}",
            "a file that can be imported",
            "correct the file",
        ) from error
    _files.append(str(path.resolve()))


def imported_files() -> tuple[str, ...]:
    """Return the files imported so far, in order, for a subprocess to import as well."""
    return tuple(_files)
