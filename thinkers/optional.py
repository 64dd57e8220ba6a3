"""Import of the packages that only an extra installs."""

import importlib
from typing import Any

from thinkers.errors import UsageError


def require(module: str, extra: str, use: str) -> Any:
    """Import a module that the extra `extra` installs.

    Args:
        use: What needs it, as the subject of the error: "a page".

    Raises:
        UsageError: It cannot be imported; the message holds the pip line.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UsageError(
            f'found: no package {package}, which {use} needs\nfix: pip install "thinkers[{extra}]"'
        ) from None
