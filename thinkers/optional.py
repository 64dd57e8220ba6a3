"""Imports of optional packages, which an extra installs."""

import importlib
import random
from typing import Any

from thinkers.errors import usage_error


def require(module: str, extra: str, use: str) -> Any:
    """Import a module that the extra `extra` installs.

    Args:
        use: The feature that needs it, as the subject of the error: "a page".

    Raises:
        UsageError: It cannot be imported; the message has the pip command.
    """
    # Some packages draw from Python's random stream as they are imported; the caller may have
    # seeded it.
    stream = random.getstate()
    try:
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
