"""Imports of optional packages, which an extra installs."""

import importlib
import importlib.util
import random
import warnings
from typing import Any

from thinkers.errors import usage_error


def is_installed(module: str) -> bool:
    """Return True if there is such a package, without importing it."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def require(module: str, extra: str, use: str) -> Any:
    """Import a module that the extra `extra` installs.

    Args:
        use: The feature that needs it, as the subject of the error: "a page".

    Raises:
        UsageError: It cannot be imported; the message has the pip command.
    """
    # Some packages draw from Python's random stream as they are imported; the caller may have
    # seeded it. Python warns of the sources of others when it first compiles them.
    stream = random.getstate()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            found = importlib.import_module(module)
        # A folder of this name in the working folder, as W&B makes one, can be imported too: it has
        # a path, and no file.
        if getattr(found, "__path__", None) and getattr(found, "__file__", None) is None:
            raise ImportError(module)
        return found
    except ImportError:
        package = module.partition(".")[0]
        raise usage_error(
            f"no package {package}, which {use} needs",
            f"the packages of the extra {extra}",
            f'pip install "thinkers[{extra}]"',
        ) from None
    finally:
        random.setstate(stream)
