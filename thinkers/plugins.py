"""Python files of users, which add to MODELS, TASKS or RECIPES."""

import importlib.util
import sys
from pathlib import Path

from thinkers.errors import ResourceError, describe, exit_code, usage_error
from thinkers.files import is_plain_file
from thinkers.user_paths import user_path

_files: list[str] = []


def import_file(file: str) -> None:
    """Import a Python file by its path.

    Raises:
        UsageError: There is none, or it raises an error.
    """
    path = user_path(file, "--import_module")
    spec = importlib.util.spec_from_file_location(path.stem, path) if is_plain_file(path) else None
    if spec is None or spec.loader is None:
        raise usage_error(f"--import_module {file}", "the path of a Python file", "change the path")
    if _is_taken(path):
        raise usage_error(
            f"--import_module {file}, named like a module that other code imports",
            f"another name than {path.stem}: that code would get this file instead",
            "rename the file",
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # before it runs, as import does: dataclasses look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        # SystemExit too: a file that calls sys.exit(0) would end the command with success.
        del sys.modules[path.stem]
        if exit_code(error) == ResourceError.exit_code:
            raise
        what = f"{type(error).__name__}: {describe(error)}"
        raise usage_error(
            f"--import_module {file} raises {what}",
            "a file that can be imported",
            "correct the file",
        ) from error
    _files.append(str(path.resolve()))


def _is_taken(path: Path) -> bool:
    """Return True if a module that was not imported here has the name of the file."""
    loaded = getattr(sys.modules.get(path.stem), "__file__", None)
    if loaded is not None:
        file = Path(loaded).resolve()
        return file != path.resolve() and str(file) not in _files
    return path.stem in sys.modules or path.stem in sys.stdlib_module_names


def imported_files() -> tuple[str, ...]:
    """Return the files imported so far, in order, for a subprocess to import as well."""
    return tuple(_files)
